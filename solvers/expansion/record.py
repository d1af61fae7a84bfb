"""What the expansion in 1/width predicts, and how far it can be trusted."""

import warnings
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from solvers.result import marked, raise_where_failed, RESULTS, SolverError
from zoo.common import checks

_LARGE = 0.5
"""The ratio |Theta1| / lambda_min from which on corrections do not count as small."""


class ValidityWarning(UserWarning):
    """A correction was computed where it is not small, or for steps that are not."""


class WidthExpansion(eqx.Module):
    """Outputs and tangent kernel as 0 + 1: the frozen kernel's, and what is of order 1/width.

    - `ts`: times (t,), the last of which may be inf; for descent the counts of steps.
    - `train0`, `train1`: on the training points, (t, n, k).
    - `test0`, `test1`: on the test points, (t, m, k), or None.
    - `kernel0`: Theta_0 on the training points, (n, k, n, k), or on the pairs that were asked for,
      (n1, k, n2, k); None where it was not asked for.
    - `kernel1`: how it has moved, (t, n, k, n, k) or (t, n1, k, n2, k).
    - `validity`: |Theta1| / lambda_min(Theta_0) on the training points at each time, (t,), operator
      norm: corrections grow like 1 / lambda_min, and mean something where it is well below 1.
    - `valid`: which rows hold numbers, (t,); the others are NaN.
    - `result`: a member of `RESULTS`.
    """

    ts: Float[Array, " t"]
    train0: Float[Array, "t n k"]
    train1: Float[Array, "t n k"]
    test0: Float[Array, "t m k"] | None
    test1: Float[Array, "t m k"] | None
    kernel0: Float[Array, "n1 k n2 k"] | None
    kernel1: Float[Array, "t n1 k n2 k"] | None
    validity: Float[Array, " t"]
    valid: Bool[Array, " t"]
    result: Any

    @property
    def train(self) -> Float[Array, "t n k"]:
        """train0 + train1: f0 + f1 on the training points."""
        return self.train0 + self.train1

    @property
    def test(self) -> Float[Array, "t m k"] | None:
        """test0 + test1: f0 + f1 on the test points."""
        if self.test0 is None or self.test1 is None:
            return None
        return self.test0 + self.test1

    @property
    def kernel(self) -> Float[Array, "t n1 k n2 k"] | None:
        """Theta_0 + Theta1."""
        if self.kernel0 is None or self.kernel1 is None:
            return None
        return self.kernel0[None] + self.kernel1

    @property
    def successful(self) -> Bool[Array, ""]:
        """Whether every row holds numbers."""
        return jnp.asarray(self.result == RESULTS.successful)


class ExpansionError(SolverError):
    """An expansion failed under `throw=True`. `.partial` is what there is, marked."""


def ratio_to(smallest: Float[Array, ""], norms: Float[Array, " t"]) -> Float[Array, " t"]:
    """|Theta1| over the smallest eigenvalue; inf where that is 0."""
    positive = smallest > 0
    return jnp.where(positive, norms / jnp.where(positive, smallest, 1), jnp.inf)


def finish(expansion: WidthExpansion, *, throw: bool, stacklevel: int = 4) -> WidthExpansion:
    """The expansion, with NaN in the rows that are not valid.

    **Raises:** `ExpansionError` where it failed and `throw` asks for that. **Warns:**
    `ValidityWarning` where the correction of the kernel is not small.
    """
    rows = ("train0", "train1", "test0", "test1", "kernel1")
    expansion = eqx.tree_at(
        lambda e: [getattr(e, name) for name in rows],
        expansion,
        [marked(getattr(expansion, name), expansion.valid) for name in rows],
        is_leaf=lambda leaf: leaf is None,
    )

    def error() -> ExpansionError:
        return ExpansionError(
            f"{RESULTS[expansion.result]} {int(np.sum(expansion.valid))} of {len(expansion.ts)} "
            "times are valid (`throw=False` returns them, and so does `.partial` of this error).",
            expansion,
        )

    expansion = raise_where_failed(expansion, error, throw=throw)
    ratios = checks.concrete(expansion.validity)
    large = np.flatnonzero(ratios > _LARGE) if ratios is not None else np.zeros(0, int)
    if ratios is not None and large.size:
        first = int(large[0])
        warnings.warn(
            f"The correction of the kernel is {ratios[first]:.2g} of its smallest eigenvalue on "
            f"the training points at t = {float(expansion.ts[first]):.4g}, and above {_LARGE} at "
            f"{large.size} of {ratios.size} times, expected well below 1: corrections of order "
            "1/width are no small ones there. Ask for earlier times, or a wider network "
            "(`.validity` is this ratio, time by time).",
            ValidityWarning,
            stacklevel=stacklevel,
        )
    return expansion


def warn_of_large_steps(learning_rate: float, fastest: float, *, stacklevel: int = 4) -> None:
    """**Warns:** `ValidityWarning` where steps are too large for a flow to describe."""
    if learning_rate * fastest > 0.1:
        warnings.warn(
            f"`learning_rate` {learning_rate:g} times lambda_max / n is "
            f"{learning_rate * fastest:.2g}, expected below 0.1: for steps of that size the "
            "corrections of gradient flow gain no order in 1/width; `width_expansion_descent` "
            "has those of gradient descent.",
            ValidityWarning,
            stacklevel=stacklevel,
        )
