r"""The kernel of a solve, which does not move: stored or an operator, with its rows of test points.

What solvers do with it: products with outputs, and of a stored one the matrices on the training
points (`corrections.symmetric.layouts.Layout`), with a ridge, factorised or in eigenvectors.
"""

import abc
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from corrections.symmetric.layouts import Layout, resolved
from corrections.symmetric.matrix_functions import eigenbasis, MatrixFunction, Relaxation
from corrections.symmetric.positive_matrix import solve_positive
from solvers.frozen_kernel.operators import Operator, product, times
from zoo.common import checks
from zoo.common.norms import largest_magnitude, power_of_two

RidgeScale = Literal["absolute", "relative"]


class Ridge(NamedTuple):
    """What is added to the eigenvalues of a kernel: `size`, in its units or, `relative`, in those
    of the mean of its diagonal.
    """

    size: Float[Array, ""]
    relative: bool

    def of(self, matrix: Float[Array, "n n"]) -> Float[Array, ""]:
        """Its size for a matrix."""
        size = self.size.astype(matrix.dtype)
        return size * jnp.mean(jnp.diagonal(matrix)) if self.relative else size


def check_ridge(diag_reg: Any, scale: RidgeScale) -> Ridge:
    """**Raises:** `ValueError` for a negative ridge or an unknown scale."""
    size = checks.nonnegative_scalar("diag_reg", diag_reg)
    checks.choice("diag_reg_scale", scale, ("absolute", "relative"))
    return Ridge(size, scale == "relative")


class Solution(NamedTuple):
    """Coefficients a of a solve, so that outputs move by Theta a.

    - `coefficients`: for each matrix of the kernel, (count, size, c), with axes in front.
    - `positive`: whether the matrices are positive semidefinite, to rounding.
    - `dropped`: directions that cannot be told from zero and were left out.
    """

    coefficients: Float[Array, "*t count size c"]
    positive: Bool[Array, ""]
    dropped: Int[Array, ""]


class FrozenKernel(eqx.Module):
    """Rows of training points, then of test points."""

    @abc.abstractmethod
    def times(self, g: Float[Array, "n k"]) -> Array:
        """Theta g at all points, (points, k); of a frozen O_p its last slot contracted."""

    def spread(self) -> float:
        """Smallest over largest eigenvalue on the training points, of those that are told from
        zero; 1 where they are not known: for an operator, or a kernel that is traced.
        """
        return 1.0

    def in_units(self) -> tuple["FrozenKernel", Float[Array, ""] | None]:
        """The kernel over the size of its entries, and that size; None where it is not known."""
        return self, None

    def stored(self, instead: str = "") -> "StoredKernel":
        """**Raises:** `TypeError` for an operator; it says what to do `instead`."""
        raise TypeError(f"`kernel` is an operator, expected an array. {instead}".strip())


class OperatorKernel(FrozenKernel):
    """A kernel that is not formed: an operator for training rows, and one for test rows."""

    train: Operator
    test: Operator | None

    def as_operators(self) -> "OperatorKernel":
        """The kernel itself."""
        return self

    def across(self, side: int) -> Float[Array, "size side"]:
        """K(X, x), a column for each of the `side` numbers of a vector on test points."""
        assert self.test is not None
        return product(self.test.T, jnp.eye(side, dtype=self.test.in_structure().dtype))

    def times(self, g: Float[Array, "n k"]) -> Float[Array, "points k"]:
        moved = times(self.train, g)
        return moved if self.test is None else jnp.concatenate([moved, times(self.test, g)])


class KernelInUnits(FrozenKernel):
    """A kernel over a number: of order 1, so that rates and squares of them are numbers too."""

    kernel: FrozenKernel
    unit: Float[Array, ""]

    def times(self, g: Float[Array, "n k"]) -> Array:
        return self.kernel.times(g) / self.unit

    def spread(self) -> float:
        return self.kernel.spread()


class StoredKernel(FrozenKernel):
    """An array of it, (n, n), (n, n, k) or (n, k, n, k); for products alone O_p, p > 2, too.

    - `rows`: those of training points. Those of test points may follow them, or be apart in `test`:
      to join them copies the kernel, which takes as long as part of a solve.
    """

    rows: Float[Array, "points *others"]
    test: Float[Array, "m *others"] | None = None

    @property
    def layout(self) -> Layout:
        """How its matrices are laid out."""
        return Layout(self.rows.ndim)

    def times(self, g: Float[Array, "n k"]) -> Array:
        return self._at_all_points(lambda rows: self.layout.times(rows, g))

    def blocks(self) -> Float[Array, "count size size"]:
        """The matrices on the training points."""
        blocks = self.layout.blocks(self.rows)
        return blocks[:, : blocks.shape[2]]

    def stored(self, instead: str = "") -> "StoredKernel":
        del instead
        return self

    def in_units(self) -> tuple[KernelInUnits, Float[Array, ""]]:
        """Over the power of two next above its largest entry on the training points."""
        unit = _unit(self.rows[: self.rows.shape[1 if self.layout.axes < 4 else 2]])
        return KernelInUnits(self, unit), unit

    def as_operators(self) -> OperatorKernel:
        """The same kernel, read as operators."""
        train = self.layout.operator(self.rows, lx.positive_semidefinite_tag)
        return OperatorKernel(train, None if self.test is None else self.layout.operator(self.test))

    def outputs(
        self, coefficients: Float[Array, "count size c"], k: int
    ) -> Float[Array, "points k"]:
        """Theta a, from the coefficients of each matrix."""
        layout = self.layout
        return self._at_all_points(
            lambda rows: layout.outputs(layout.blocks(rows) @ coefficients, k)
        )

    def _at_all_points(self, of_rows: Callable[[Array], Array]) -> Array:
        found = of_rows(self.rows)
        return found if self.test is None else jnp.concatenate([found, of_rows(self.test)])

    def relaxed(
        self,
        at: Callable[[Array], MatrixFunction],
        ts: Shaped[Array, "t *of"],
        ridge: Ridge,
        right: Float[Array, "n k"],
    ) -> Solution:
        """f_t(Theta + ridge) b at some times, in the eigenvectors of each matrix."""

        def of_block(block: Array, columns: Array) -> tuple[Array, Array, Array]:
            one = jnp.eye(len(block), dtype=block.dtype)
            basis = eigenbasis(block + ridge.of(block) * one)
            found, dropped = jax.lax.map(
                lambda t: (basis.apply(at(t), columns), basis.dropped(at(t))), ts
            )
            return found, basis.positive, jnp.max(dropped)

        found, positive, dropped = _over_blocks(of_block, self.blocks(), self.layout.columns(right))
        return Solution(jnp.moveaxis(found, 0, 1), jnp.all(positive), jnp.sum(dropped))

    def flowed(
        self, ts: Float[Array, " t"], ridge: Ridge, right: Float[Array, "n k"], to_the_limit: bool
    ) -> Solution:
        """What gradient flow of squared loss has made of b at some times; `to_the_limit`: the last
        of them is inf, where the kernel is solved with.
        """
        n = len(right)
        finite = ts[:-1] if to_the_limit else ts
        parts = []
        if len(finite):
            parts = [self.relaxed(lambda t: Relaxation(t / n), finite, ridge, right)]
        if to_the_limit:
            limit = self.solved(ridge, right)
            parts.append(limit._replace(coefficients=limit.coefficients[None]))
        return Solution(
            jnp.concatenate([part.coefficients for part in parts]),
            jnp.all(jnp.stack([part.positive for part in parts])),
            jnp.max(jnp.stack([part.dropped for part in parts])),
        )

    def solved(self, ridge: Ridge, right: Float[Array, "n k"]) -> Solution:
        """(Theta + ridge)^{-1} b."""

        def of_block(block: Array, columns: Array) -> tuple[Array, Array, Array]:
            return solve_positive(block, columns, ridge.of(block))

        found, positive, dropped = _over_blocks(of_block, self.blocks(), self.layout.columns(right))
        return Solution(found, jnp.all(positive), jnp.sum(dropped))

    def spread(self) -> float:
        rows = checks.concrete(self.rows)
        if rows is None:
            return 1.0
        values = np.linalg.eigvalsh(np.asarray(self.blocks()))
        seen = values[np.asarray(resolved(jnp.asarray(values)))]
        return float(seen.min() / seen.max()) if seen.size else 1.0


def frozen_kernel(kernel: Any, test: Any) -> "StoredKernel | OperatorKernel":
    """The kernel of the training points, an array or an operator, and what of test points is like
    it (None: there are none); checked before.
    """
    if isinstance(kernel, Operator):
        return OperatorKernel(kernel, test)
    return StoredKernel(kernel, test)


@jax.jit
def _unit(rows: Array) -> Array:
    return power_of_two(largest_magnitude(rows))


def _over_blocks(fn: Callable[..., Any], blocks: Array, columns: Array) -> Any:
    """`fn` of each matrix in turn: a `cond` in it stays one, which under `vmap` it does not."""
    if len(blocks) == 1:
        return jax.tree.map(lambda a: a[None], fn(blocks[0], columns[0]))
    return jax.lax.map(lambda pair: fn(*pair), (blocks, columns))
