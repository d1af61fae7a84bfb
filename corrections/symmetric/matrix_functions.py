r"""Functions of a symmetric matrix, in its eigenvectors, with derivatives that need no distance
between eigenvalues.

With K = V diag(lambda) V^T and divided differences f[.., ..] of the function,

    f(K)          = V diag(f(lambda)) V^T
    D f(K)[E]     = V (f[lambda_i, lambda_j] o E~) V^T,                         E~ = V^T E V
    D^2 f(K)[E,E] = 2 V Q V^T,      Q_ij = sum_k f[lambda_i, lambda_k, lambda_j] E~_ik E~_kj

(Daleckii & Krein), which are finite for equal eigenvalues, where the derivatives of eigenvectors
are not. Of second order no array with three indices is needed: with F_ij = f[lambda_i, lambda_j]
and G_ij = f[lambda_i, lambda_i, lambda_j],

    Q = (X - X^T)_ij / (lambda_i - lambda_j),   X = (F o E~) E~     for eigenvalues that lie apart
    Q = (Y + Y^T)_ij / 2,                       Y = (G o E~) E~     for close ones

the second to second order in their distance, which is exact where they are equal.

Eigenvalues that cannot be told from zero (`corrections.symmetric.layouts`) are zero here, and where
a function tells such values apart it is cut off there: f(0) := 0. So a singular matrix is inverted
in its range, and nothing is made of rounding. `Eigenbasis.dropped` counts them.

Sources: Daleckii & Krein (1965); Higham (2008), "Functions of Matrices", theorem 3.11.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from corrections.symmetric.exponentials import divided_exponential
from corrections.symmetric.layouts import positive, resolved, rounding, ZERO
from corrections.taylor.symbolic_zeros import is_zero


class MatrixFunction(eqx.Module):
    """A function of positive eigenvalues with its divided differences. Its parameters are arrays;
    derivatives in them are those of the formulas.
    """

    @abc.abstractmethod
    def divided(self, *nodes: Array) -> Array:
        """f[z_0, .., z_r] for r + 1 nodes that broadcast, r <= 2; nodes may be equal. They are > 0,
        or >= 0 where `reach` lets them.
        """

    @abc.abstractmethod
    def reach(self) -> Float[Array, ""]:
        """1 over the eigenvalue at which f begins to fall; inf where it does from 0 on."""

    @abc.abstractmethod
    def scale(self, values: Array) -> Array:
        """The distance over which f changes by a part of itself, at each eigenvalue."""


class Relaxation(MatrixFunction):
    """(1 - e^{-z t}) / z, what gradient flow has made of a unit residual at time t; 1 / z at
    t = inf.
    """

    t: Float[Array, ""]

    def divided(self, *nodes: Array) -> Array:
        order = len(nodes) - 1
        ended = jnp.isinf(self.t)
        inverse = jnp.ones((), nodes[0].dtype)
        for node in nodes:
            inverse = inverse / node
        zero = jnp.zeros((), nodes[0].dtype)
        running = divided_exponential((zero, *nodes), jnp.where(ended, 1, self.t))
        return (-1) ** order * jnp.where(ended, inverse, running)

    def reach(self) -> Array:
        return self.t

    def scale(self, values: Array) -> Array:
        return jnp.maximum(values, 1 / jnp.maximum(self.t, jnp.finfo(values.dtype).tiny))


class SquareRoot(MatrixFunction):
    """sqrt(z)."""

    def divided(self, *nodes: Array) -> Array:
        roots = [jnp.sqrt(node) for node in nodes]
        if len(nodes) == 1:
            return roots[0]
        if len(nodes) == 2:
            return 1 / (roots[0] + roots[1])
        a, b, c = roots
        return -1 / ((a + b) * (b + c) * (a + c))

    def reach(self) -> Array:
        return jnp.asarray(jnp.inf)

    def scale(self, values: Array) -> Array:
        return values


class Eigenbasis(eqx.Module):
    """A symmetric matrix in its eigenvectors. Derivatives pass through `matrix` alone.

    - `values`: in ascending order, as they were found.
    - `vectors`: in columns.
    """

    matrix: Float[Array, "n n"]
    values: Float[Array, " n"]
    vectors: Float[Array, "n n"]

    @property
    def seen(self) -> Bool[Array, " n"]:
        """Which eigenvalues are told from zero."""
        return resolved(self.values)

    def dropped(self, function: MatrixFunction) -> Int[Array, ""]:
        """In how many directions a function is cut off."""
        return jnp.sum(~_kept(function, self.values))

    @property
    def positive(self) -> Bool[Array, ""]:
        """Whether the matrix is positive semidefinite, to rounding."""
        return positive(self.values)

    def apply(self, function: MatrixFunction, columns: Float[Array, "n c"]) -> Float[Array, "n c"]:
        """f(K) columns, differentiable twice in the matrix, in the columns and in what f holds.

        **Raises:** `NotImplementedError` for derivatives of third order in the matrix.
        """
        return _applied(function, self.values, self.vectors, self.matrix, columns)


def eigenbasis(matrix: Float[Array, "n n"]) -> Eigenbasis:
    """The eigenvectors of a symmetric matrix."""
    values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(matrix))
    return Eigenbasis(matrix, values, vectors)


_LINEAR = 1e-2
"""Of an eigenvalue times the reach of a function: below that it does not tell it from zero."""


def _kept(function: MatrixFunction, values: Array) -> Bool[Array, " n"]:
    """The eigenvalues at which a function is not cut off."""
    unit = ZERO * rounding(jnp.max(jnp.abs(values)))
    return resolved(values) | (unit * function.reach().astype(values.dtype) < _LINEAR)


@jax.custom_jvp
def _applied(
    function: MatrixFunction, values: Array, vectors: Array, matrix: Array, columns: Array
) -> Array:
    kept = _kept(function, values)
    weights = jnp.where(kept, function.divided(jnp.where(kept, jnp.maximum(values, 0), 1)), 0)
    return vectors @ (weights[:, None] * (vectors.T @ columns))


def _applied_jvp(primals: tuple[Any, ...], tangents: Any) -> tuple[Array, Array]:
    function, values, vectors, matrix, columns = primals
    leaves, structure = jax.tree.flatten((function, _displacement(matrix), columns))
    directions = jax.tree.leaves((tangents[0], tangents[3], tangents[4]))
    moving = [not is_zero(direction) for direction in directions]

    def near(*moved: Array) -> Array:
        given = iter(moved)
        at = [next(given) if m else leaf for m, leaf in zip(moving, leaves, strict=True)]
        function, displacement, columns = jax.tree.unflatten(structure, at)
        unit = _third_order(matrix)
        return _expanded(function, values, vectors, displacement, columns, unit)

    at = tuple(leaf for m, leaf in zip(moving, leaves, strict=True) if m)
    along = tuple(d for m, d in zip(moving, directions, strict=True) if m)
    value = _applied(*primals)
    return value, jax.jvp(near, at, along)[1] if at else jnp.zeros_like(value)


_applied.defjvp(_applied_jvp, symbolic_zeros=True)


def _expanded(
    function: MatrixFunction,
    values: Array,
    vectors: Array,
    moved: Array,
    columns: Array,
    unit: Array,
) -> Array:
    """f(K + moved) columns to second order in a displacement that is zero: its derivatives of first
    and second order are those of f, whichever way they are taken. `unit` is 1.
    """
    seen = _kept(function, values)
    safe = jnp.where(seen, jnp.maximum(values, 0), 1)
    f = jnp.where(seen, function.divided(safe), 0)
    first, second = _divided_differences(function, safe, seen)
    rotated = vectors.T @ ((moved + moved.T) / 2) @ vectors
    eta = jnp.finfo(values.dtype).eps ** (1 / 3)
    scale = function.scale(safe)
    zeroed = jnp.where(seen, safe, 0)
    gap = zeroed[:, None] - zeroed[None]
    close = jnp.abs(gap) < eta * jnp.minimum(scale[:, None], scale[None])
    close = jnp.where(seen[:, None] & seen[None], close, ~(seen[:, None] | seen[None]))
    apart = (first * rotated) @ rotated
    together = (second * rotated) @ rotated
    quadratic = jnp.where(
        close, (together + together.T) / 2, (apart - apart.T) / jnp.where(close, 1, gap)
    )
    along = vectors.T @ columns
    return vectors @ (f[:, None] * along + (first * rotated + unit * quadratic) @ along)


def _divided_differences(
    function: MatrixFunction, safe: Array, seen: Array
) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    """f[i, j] and f[i, i, j] of the function that is cut off at the eigenvalue zero."""
    rows, columns = safe[:, None], safe[None]
    both, row, column = seen[:, None] & seen[None], seen[:, None], seen[None]
    single = function.divided(safe)
    divisor = jnp.where(safe > 0, safe, 1)
    of_row, of_column = (single / divisor)[:, None], (single / divisor)[None]
    first = jnp.where(both, function.divided(rows, columns), 0)
    first = jnp.where(row & ~column, of_row, first)
    first = jnp.where(column & ~row, of_column, first)
    slope = function.divided(safe, safe)[:, None]
    second = jnp.where(both, function.divided(rows, rows, columns), 0)
    second = jnp.where(row & ~column, (slope - of_row) / divisor[:, None], second)
    second = jnp.where(column & ~row, of_column / divisor[None], second)
    return first, second


@jax.custom_jvp
def _displacement(matrix: Array) -> Array:
    """How far the matrix is from where it is: zero, with the derivative one."""
    return jnp.zeros_like(matrix)


@_displacement.defjvp
def _displacement_jvp(primals: tuple[Array], tangents: Any) -> tuple[Array, Array]:
    return _displacement(*primals), tangents[0]


@jax.custom_jvp
def _third_order(matrix: Array) -> Array:
    """1, which refuses to be differentiated twice."""
    return jnp.ones((), matrix.dtype)


@_third_order.defjvp
def _third_order_jvp(primals: tuple[Array], tangents: Any) -> tuple[Array, Array]:
    return _third_order(*primals), _refused(*primals) * jnp.sum(tangents[0])


@jax.custom_jvp
def _refused(matrix: Array) -> Array:
    return jnp.zeros((), matrix.dtype)


@_refused.defjvp
def _refused_jvp(primals: tuple[Array], tangents: Any) -> tuple[Array, Array]:
    raise NotImplementedError(
        "Functions of a kernel have derivatives of first and second order in it, and one of third "
        "order was asked for."
    )
