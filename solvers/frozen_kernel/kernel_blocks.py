r"""A kernel function as an operator: K(x1, x2) g, a tile of the kernel at a time.

    (K g)_a = sum_b k(x_a, x_b) g_b

so that regression on large sets needs no kernel in memory (`mse_flow_operator`, `posterior`).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree, Shaped

from corrections.operators.linear_operator import LinearOperator
from corrections.symmetric.layouts import check_symmetric
from zoo.common import checks
from zoo.common.examples import checked_batch, count, described, rows_of
from zoo.common.precision import full_precision
from zoo.common.tiles import over_pairs, Tiling

KernelFunction = Callable[..., Any]
"""Two batches of examples in, (n1, ...) and (n2, ...), their kernel (n1, n2) out."""


class KernelBlocks(LinearOperator):
    """The kernel of a function k(x1, x2), evaluated in tiles as it is multiplied.

    It maps g, (n2,), to K g, (n1,), and stands for K (x) I_k where there are k outputs: it takes
    them together, (n2, k). A product evaluates the kernel once, whatever k is, and never holds more
    than `batch_size`^2 numbers of it; of a set with itself it evaluates only the tiles on and above
    the diagonal. It is an operator of lineax: sums, multiples and solves work on it.
    """

    kernel_fn: KernelFunction
    x1: PyTree[Shaped[Array, "n1 ..."]]
    x2_given: PyTree[Shaped[Array, "n2 ..."]] | None
    batch_size: int = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        kernel_fn: KernelFunction,
        x1: PyTree[Shaped[ArrayLike, "n1 ..."]],
        x2: PyTree[Shaped[ArrayLike, "n2 ..."]] | None = None,
        *,
        batch_size: int,
    ):
        """**Arguments:**

        - `kernel_fn`: k(x1, x2) -> (n1, n2) for two batches of examples, such as the kernel of an
          infinitely wide network. Written in JAX.
        - `x1`, `x2`: batches of examples, (n1, ...) and (n2, ...); a missing `x2` means `x1`, and
          the kernel has to be symmetric and positive semidefinite.
        - `batch_size`: the most examples on each side of a tile.

        **Raises:** `ValueError` / `TypeError` for batches that are empty, not finite or not
        real, sizes below 1, a function whose first tile is not (n1, n2), not finite or, of a
        set with itself, not symmetric.
        """
        batch_size = checks.integer("batch_size", batch_size)
        self.kernel_fn, self.batch_size = kernel_fn, batch_size
        self.x1 = checked_batch("x1", x1)
        self.x2_given = None if x2 is None else checked_batch("x2", x2)
        row, column = (rows_of(x, slice(batch_size)) for x in (self.x1, self.x2))
        first = kernel_between("kernel_fn", kernel_fn, row, column, self.symmetric)
        self.dtype = first.dtype

    @property
    def symmetric(self) -> bool:
        """Whether both sets are the same."""
        return self.x2_given is None

    @property
    def x2(self) -> PyTree[Shaped[Array, "n2 ..."]]:
        """The examples that the operator takes vectors on."""
        return self.x1 if self.x2_given is None else self.x2_given

    @property
    def positive(self) -> bool:
        """Of a set with itself it has to be."""
        return self.symmetric

    @property
    def columns_at_once(self) -> int:
        """All: they share the kernel."""
        return count(self.x2)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape (n2,) and dtype of what the operator takes."""
        return jax.ShapeDtypeStruct((count(self.x2),), self.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """Shape (n1,) and dtype of what it gives."""
        return jax.ShapeDtypeStruct((count(self.x1),), self.dtype)

    @full_precision
    def mv(self, vector: Float[Array, "n2 *k"]) -> Float[Array, "n1 *k"]:
        """The operator applied to a vector, (n2,), or to any number of columns, (n2, k).

        **Raises:** `ValueError` / `TypeError` for an array of another shape or no floating type.
        """
        vector = checks.real_array("vector", vector, expected="an array (n2,) or (n2, k)")
        columns = ("k",) * (vector.ndim == 2)
        checks.shape("vector", vector, (count(self.x2), *columns), "a row for each example of `x2`")
        found = _product(self, vector.reshape(count(self.x2), -1).astype(self.dtype))
        return found.reshape(-1, *vector.shape[1:])

    def transpose(self) -> "KernelBlocks":
        """K(x2, x1) = K(x1, x2)^T: takes (n1,), gives (n2,). `kernel_fn` has to say the same of two
        examples in either order.
        """
        if self.x2_given is None:
            return self
        return eqx.tree_at(lambda op: (op.x1, op.x2_given), self, (self.x2_given, self.x1))


def kernel_between(
    name: str, kernel_fn: KernelFunction, x1: PyTree, x2: PyTree, symmetric: bool
) -> Float[Array, "n1 n2"]:
    """The kernel that the argument `name` gives between two batches.

    **Raises:** `TypeError` / `ValueError` unless it is a finite matrix, (n1, n2); with `symmetric`,
    unless its first n2 rows are symmetric.
    """
    if not callable(kernel_fn):
        raise TypeError(
            f"`{name}` is of type {type(kernel_fn).__name__}, expected a function "
            "k(x1, x2) -> (n1, n2)."
        )
    value = f"{name}(x1, x2)"
    try:
        found = kernel_fn(x1, x2)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{value}` failed for two batches, the first of {described(x1)}, the second of "
            f"{described(x2)}: {error}"
        ) from error
    kernel = checks.real_array(value, found, expected="a kernel (n1, n2)", half="refused")
    checks.shape(value, kernel, (count(x1), count(x2)), "an entry for each pair of examples")
    checks.finite(value, kernel)
    if symmetric:
        check_symmetric(value, kernel[: count(x2)])
    return kernel


@eqx.filter_jit
def _product(operator: KernelBlocks, vector: Array) -> Array:
    rows = Tiling(count(operator.x1), operator.batch_size)
    columns = Tiling(count(operator.x2), operator.batch_size)
    # Examples that fill up the last tile are there already: they count once.
    first = jnp.arange(columns.count * columns.size) < columns.n
    g = columns.split(vector) * first.reshape(columns.count, columns.size, 1).astype(vector.dtype)

    def visit(total: Array, row: PyTree, column: PyTree, i: Array, j: Array) -> Array:
        tile = jnp.asarray(operator.kernel_fn(row, column))
        total = total.at[i].add(tile @ g[j])
        if operator.symmetric:
            mirrored = jnp.where(i == j, 0, tile.T @ g[i])
            total = total.at[j].add(mirrored)
        return total

    zero = jnp.zeros((rows.count, rows.size, vector.shape[1]), vector.dtype)
    return rows.join(over_pairs(visit, zero, (operator.x1, operator.x2_given), (rows, columns)))
