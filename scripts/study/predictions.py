"""The solves of a study: the network and every way to predict it, each described once.

Whoever needs to know something of a solve (when it is chosen, what it computes, what it costs, how
it is drawn and named) asks here.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

from scripts.study.palette import BLUE, BROWN, GREEN, INK, ORANGE, PURPLE, SKY, VERMILION

Kind = Literal["network", "limit", "hierarchy", "taylor"]


@dataclass(frozen=True)
class Cost:
    """What a program costs.

    - `dense`, `conv`: seconds of compilation a layer.
    - `gradients`: gradients of the training loss that a right-hand side takes.
    """

    dense: float = 0.0
    conv: float = 0.0
    gradients: float = 0.0


@dataclass(frozen=True)
class Solve:
    """The network's training, or a prediction of it.

    - `name`: in the results.
    - `kind`: what is solved: the network itself, the flow under the kernel of infinite width, the
      hierarchy of kernels or a Taylor model, the latter two of an order.
    - `colour`, `marker`: in figures.
    - `cost`: of its program; nothing where all networks share it.
    - `short`: its name in narrow tables.
    - `article`: whether a sentence says "the" before its name.
    - `beneath`: whether other solves may coincide with it, so that its line is the wider.
    """

    name: str
    kind: Kind
    order: int
    colour: str
    marker: str
    cost: Cost = Cost()
    short: str | None = None
    article: bool = False
    beneath: bool = False

    @property
    def keeps_its_kernel(self) -> bool:
        """Whether its kernel is that of the start at all times."""
        return self.kind == "limit" or (self.kind == "hierarchy" and self.order == 2)

    @property
    def predicts_its_kernel(self) -> bool:
        """Whether it says how the network's kernel changes."""
        return self.kind == "hierarchy" and not self.keeps_its_kernel

    @property
    def in_a_sentence(self) -> str:
        """Its name, with an article where it takes one."""
        return f"the {self.name}" if self.article else self.name


SOLVES = (
    Solve("network", "network", 0, INK, "o", Cost(1.2, 1.7, 1.0), beneath=True),
    Solve("frozen NTK", "hierarchy", 2, BLUE, "o", short="frozen", article=True),
    Solve("infinite NTK", "limit", 2, SKY, "v", short="width ∞", article=True),
    Solve("order 3", "hierarchy", 3, VERMILION, "s", Cost(2.0, 2.6, 3.0)),
    Solve("order 4", "hierarchy", 4, PURPLE, "^", Cost(2.5, 3.2, 5.5)),
    # The first Taylor model is the frozen NTK.
    Solve("Taylor 1", "taylor", 1, BROWN, "<", Cost(1.3, 1.4, 2.0), beneath=True),
    Solve("Taylor 2", "taylor", 2, GREEN, "D", Cost(2.0, 2.4, 4.5)),
    Solve("Taylor 3", "taylor", 3, ORANGE, "P", Cost(2.3, 4.2, 11.0)),
)
"""All that there are, in the order of the results."""
_BY_NAME = {solve.name: solve for solve in SOLVES}


def named(name: str) -> Solve:
    """The solve that the results call so."""
    return _BY_NAME[name]


def of_kind(kind: Kind) -> tuple[Solve, ...]:
    """The solves of a kind, by increasing order."""
    return tuple(solve for solve in SOLVES if solve.kind == kind)


def orders(kind: Kind) -> tuple[int, ...]:
    """The orders that there are of a kind."""
    return tuple(solve.order for solve in of_kind(kind))


(NETWORK,) = (solve.name for solve in of_kind("network"))
(INFINITE,) = (solve.name for solve in of_kind("limit"))
_HIERARCHY = tuple(solve.name for solve in of_kind("hierarchy"))
FROZEN, FIRST_CORRECTION = _HIERARCHY[:2]
PAIRS = tuple(itertools.pairwise(_HIERARCHY))
"""What each order of the hierarchy is compared with: the one below."""
