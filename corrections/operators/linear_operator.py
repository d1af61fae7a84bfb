"""The operators of the library are operators of lineax: sums, multiples, products with one another
and solves work as they do there.

What lineax asks of an operator by its type is answered here, from `symmetric` and `positive`.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from zoo.common.memory import check_fits
from zoo.common.precision import full_precision
from zoo.common.tiles import in_tiles


class LinearOperator(lx.AbstractLinearOperator):
    """A linear operator that is not stored: `mv`, `transpose()`, `.T`, `in_structure()`,
    `out_structure()`, `as_matrix()`; `+`, `-`, `@`, and `*` by numbers.
    """

    @property
    @abc.abstractmethod
    def symmetric(self) -> bool:
        """Whether it is its own transpose, as it was made."""

    @property
    def positive(self) -> bool:
        """Whether it is positive semidefinite, as it was made."""
        return False

    @property
    def columns_at_once(self) -> int:
        """How many columns of its matrix are computed together."""
        return 1

    def prepared(self) -> lx.AbstractLinearOperator:
        """The same operator, with what all its products share computed."""
        return self

    def as_matrix(self) -> Float[Array, "rows size"]:
        """The operator as a dense matrix, in the order of `jax.flatten_util.ravel_pytree`.

        **Raises:** `MemoryError` where it does not fit.
        """
        dtype = jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(self.in_structure())))
        check_fits("the matrix of the operator", (self.out_size(), self.in_size()), dtype)
        return _matrix(self)


class FlatOperator(NamedTuple):
    """An operator on flat vectors, their size and dtype, and the way back to what it takes."""

    product: Callable[[Array], Array]
    size: int
    dtype: Any
    unravel: Callable[[Array], PyTree]


def flat_operator(operator: lx.AbstractLinearOperator) -> FlatOperator:
    """What all products share is computed once: to be called inside the trace that uses it."""
    prepared = lx.linearise(operator)
    structure = operator.in_structure()
    vector, unravel = ravel_pytree(
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structure)
    )

    def product(flat: Array) -> Array:
        return ravel_pytree(prepared.mv(unravel(flat)))[0]

    return FlatOperator(product, vector.size, vector.dtype, unravel)


def vectors_like(name: str, structure: PyTree) -> jax.ShapeDtypeStruct:
    """The vectors of outputs that an operator takes or gives, by their structure.

    **Raises:** `ValueError` unless they are (n,) or (n, k).
    """
    shape = getattr(structure, "shape", None)
    if shape is None or len(shape) not in (1, 2):
        count = len(jax.tree.leaves(structure))
        shown = f"a tree of {count} arrays" if shape is None else f"arrays {shape}"
        raise ValueError(f"`{name}` acts on {shown}, expected vectors (n,) or (n, k).")
    return structure


@full_precision
@eqx.filter_jit
def _matrix(operator: LinearOperator) -> Array:
    product, size, dtype, _ = flat_operator(operator)
    return in_tiles(product, jnp.eye(size, dtype=dtype), operator.columns_at_once).T


def _never(operator: LinearOperator) -> bool:
    """Structure that no operator here is known to have."""
    del operator
    return False


for _asked in (
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.has_unit_diagonal,
    lx.is_negative_semidefinite,
):
    _asked.register(LinearOperator)(_never)


@lx.is_symmetric.register(LinearOperator)
def _(operator: LinearOperator) -> bool:
    return operator.symmetric


@lx.is_positive_semidefinite.register(LinearOperator)
def _(operator: LinearOperator) -> bool:
    return operator.positive


@lx.linearise.register(LinearOperator)
def _(operator: LinearOperator) -> lx.AbstractLinearOperator:
    return operator.prepared()


@lx.conj.register(LinearOperator)
def _(operator: LinearOperator) -> lx.AbstractLinearOperator:
    return operator  # it acts on real numbers


@lx.materialise.register(LinearOperator)
def _(operator: LinearOperator) -> lx.AbstractLinearOperator:
    known = {lx.symmetric_tag: operator.symmetric, lx.positive_semidefinite_tag: operator.positive}
    tags = frozenset(tag for tag, holds in known.items() if holds)
    return lx.materialise(lx.FunctionLinearOperator(operator.mv, operator.in_structure(), tags))


@lx.diagonal.register(LinearOperator)
def _(operator: LinearOperator) -> Array:
    return jnp.diagonal(operator.as_matrix())


@lx.tridiagonal.register(LinearOperator)
def _(operator: LinearOperator) -> tuple[Array, Array, Array]:
    matrix = operator.as_matrix()
    return jnp.diagonal(matrix), jnp.diagonal(matrix, -1), jnp.diagonal(matrix, 1)
