r"""Kernels as operators that solvers take: what they act on, and products with many vectors.

An operator on (n,) stands for K (x) I_k, the same kernel for each output, as `KernelBlocks` does;
one on (n, k) couples the outputs.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from einops import rearrange
from jaxtyping import Array, Float

from corrections.operators.linear_operator import vectors_like
from corrections.symmetric.layouts import check_linear_operator, check_symmetric_operator
from zoo.common import checks

Operator = lx.AbstractLinearOperator


class Space(NamedTuple):
    """What an operator acts on, and how its vectors are laid out as columns.

    - `points`: n.
    - `outputs`: k of an operator that couples the outputs: one column of n k numbers. None for one
      that acts on each output alike, K (x) I: a column for each, which share the products.
    - `dtype`: of the vectors.
    """

    points: int
    outputs: int | None
    dtype: Any

    @property
    def size(self) -> int:
        """Numbers in a column."""
        return self.points * (self.outputs or 1)

    def columns(self, vector: Float[Array, "n k"]) -> Float[Array, "size columns"]:
        """Outputs as columns."""
        return vector if self.outputs is None else vector.reshape(-1, 1)

    def rows(self, columns: Float[Array, "size columns"]) -> Float[Array, "n k"]:
        """The inverse of `columns`, also for another number of points."""
        return columns if self.outputs is None else columns.reshape(-1, self.outputs)


def space_of(name: str, operator: Operator, *, given: bool = False) -> Space:
    """The space that an operator takes its vectors from, or gives them in.

    **Raises:** `ValueError` unless they are (n,) or (n, k).
    """
    structure = operator.out_structure() if given else operator.in_structure()
    found = vectors_like(name, structure)
    shape = found.shape
    return Space(shape[0], shape[1] if len(shape) == 2 else None, found.dtype)


def check_kernel_operator(name: str, operator: Any) -> Space:
    """The space of the kernel of a set with itself.

    **Raises:** `TypeError` / `ValueError` for what is no operator, or not known to be symmetric.
    """
    check_symmetric_operator(name, operator)
    return space_of(name, operator)


def check_test_operator(name: str, operator: Any, space: Space) -> int:
    """The number of test points of an operator from the training points to them.

    **Raises:** `TypeError` / `ValueError` unless it is an operator on that space.
    """
    check_linear_operator(name, operator)
    taken, given = space_of(name, operator), space_of(name, operator, given=True)
    if taken != space or given.outputs != space.outputs:
        raise ValueError(
            f"`{name}` goes from {tuple(taken)} to {tuple(given)} (points, outputs that it couples,"
            f" dtype), expected it to take {tuple(space)}, as `kernel` does."
        )
    return given.points


def product(operator: Operator, columns: Float[Array, "size c"]) -> Float[Array, "rows c"]:
    """The operator applied to columns: one evaluation of the kernel where it couples no outputs."""
    space = space_of("operator", operator)
    if space.outputs is None:
        return jax.vmap(operator.mv, in_axes=1, out_axes=1)(columns)

    def single(column: Array) -> Array:
        return operator.mv(column.reshape(space.points, -1)).reshape(-1)

    return jax.lax.map(single, columns.T).T


def at_each(operator: Operator, vectors: Float[Array, "t size c"]) -> Float[Array, "t rows c"]:
    """The operator applied to columns at each time, in one product."""
    images = product(operator, rearrange(vectors, "t size c -> size (t c)"))
    return rearrange(images, "rows (t c) -> t rows c", t=len(vectors))


def times(operator: Operator, g: Float[Array, "n k"]) -> Float[Array, "points k"]:
    """The operator applied to vectors of outputs."""
    return operator.mv(g) if space_of("operator", operator).outputs else product(operator, g)


def outputs_or_zero(
    name: str,
    value: Any,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    what: str = "outputs at t = 0",
) -> Float[Array, "points k"]:
    """`value` as outputs of a shape; zero where there is none.

    **Raises:** `TypeError` / `ValueError` that names the argument which does not fit.
    """
    if value is None:
        return jnp.zeros(shape, dtype)
    array = checks.real_array(name, value, expected=f"{what}, {shape}")
    checks.shape(name, array, shape, because=f"{what}, one row for each point")
    checks.finite(name, array)
    return array.astype(dtype)
