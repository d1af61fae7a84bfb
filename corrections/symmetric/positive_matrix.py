r"""The inverse and the determinant of a positive matrix: Cholesky, and eigenvectors where it fails.

A kernel with noise or a ridge is factorised as it is, nothing of it left out; so is one without
whose smallest eigenvalue is told from zero. Eigenvectors, ten times the work, are taken where the
factorisation breaks down or that eigenvalue is rounding: then what cannot be told from zero is left
out of the inverse, and counted.

Derivatives are those of the equations, A x = b and d log det A = tr A^{-1} dA, at any order where
the factorisation holds, and not those of its steps.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from corrections.symmetric.layouts import NEGATIVE, rounding, ZERO
from corrections.symmetric.matrix_functions import Eigenbasis, eigenbasis, Relaxation

_PROBES = 4
_ITERATIONS = 2


class PositiveMatrix(eqx.Module):
    """A positive matrix A, ready to be solved with; see `positive_matrix`.

    - `matrix`: A; derivatives pass through it alone.
    - `factor`: L of A = L L^T, not finite where there is none.
    - `basis`: its eigenvectors where L is not used, else zeros.
    - `factorised`: whether L is used.
    """

    matrix: Float[Array, "n n"]
    factor: Float[Array, "n n"]
    basis: Eigenbasis
    factorised: Bool[Array, ""]

    @property
    def positive(self) -> Bool[Array, ""]:
        """Whether A is positive semidefinite, to rounding."""
        return self.factorised | self.basis.positive

    @property
    def dropped(self) -> Int[Array, ""]:
        """Directions in which A cannot be told from zero: they are left out of the inverse."""
        return jnp.where(self.factorised, 0, jnp.sum(~self.basis.seen))

    def solve(self, columns: Float[Array, "n c"]) -> Float[Array, "n c"]:
        """A^{-1} columns, in the range of A."""

        def by_factor(columns: Array) -> Array:
            return _solved_by_factor(self.matrix, self.factor, columns)

        def by_eigenvectors(columns: Array) -> Array:
            return _solved_in_range(self.basis, columns)

        return jax.lax.cond(self.factorised, by_factor, by_eigenvectors, columns)

    def inverse(self) -> Float[Array, "n n"]:
        """A^{-1}, in the range of A."""
        return self.solve(jnp.eye(len(self.matrix), dtype=self.matrix.dtype))

    def log_determinant(self) -> Float[Array, ""]:
        """Log det A; NaN where A cannot be told from a singular matrix."""
        return _log_determinant(self, self.matrix)


def positive_matrix(
    kernel: Float[Array, "n n"], shift: Float[ArrayLike, ""] = 0.0
) -> PositiveMatrix:
    """A = K + shift for a symmetric K that should be positive and a shift >= 0, factorised."""
    matrix, factor, factorised = _factorised(kernel, shift)

    def nothing(fixed: Array) -> tuple[Array, Array]:
        return jnp.zeros(len(fixed), fixed.dtype), jnp.zeros_like(fixed)

    def decomposed(fixed: Array) -> tuple[Array, Array]:
        basis = eigenbasis(fixed)
        return basis.values, basis.vectors

    values, vectors = jax.lax.cond(factorised, nothing, decomposed, jax.lax.stop_gradient(matrix))
    return PositiveMatrix(matrix, factor, Eigenbasis(matrix, values, vectors), factorised)


def solve_positive(
    kernel: Float[Array, "n n"], columns: Float[Array, "n c"], shift: Float[ArrayLike, ""] = 0.0
) -> tuple[Float[Array, "n c"], Bool[Array, ""], Int[Array, ""]]:
    """`positive_matrix(kernel, shift).solve(columns)` with its `.positive` and `.dropped`, where
    nothing else is asked: eigenvectors, or zeros in their place, are not stored.
    """
    matrix, factor, factorised = _factorised(kernel, shift)

    def by_factor(matrix: Array, columns: Array) -> tuple[Array, Array, Array]:
        found = _solved_by_factor(matrix, factor, columns)
        return found, jnp.asarray(True), jnp.zeros((), int)

    def by_eigenvectors(matrix: Array, columns: Array) -> tuple[Array, Array, Array]:
        basis = eigenbasis(matrix)
        return _solved_in_range(basis, columns), basis.positive, jnp.sum(~basis.seen)

    return jax.lax.cond(factorised, by_factor, by_eigenvectors, matrix, columns)


def is_positive(
    matrix: Float[Array, "n n"], largest: Float[Array, ""] | None = None
) -> Bool[Array, ""]:
    """Whether a symmetric matrix is positive semidefinite, to the rounding of one whose largest
    eigenvalue is `largest` (default: its own).
    """
    fixed = jax.lax.stop_gradient(matrix)
    largest = largest_eigenvalue_bound(fixed) if largest is None else largest
    slack = NEGATIVE * rounding(jnp.where(largest > 0, largest, 1))
    factor = jnp.linalg.cholesky(fixed + slack * jnp.eye(len(fixed), dtype=fixed.dtype))
    return jnp.all(jnp.isfinite(jnp.diagonal(factor)))


def largest_eigenvalue_bound(matrix: Float[Array, "n n"]) -> Float[Array, ""]:
    """A bound on the largest magnitude of an eigenvalue, within a small factor for kernels."""
    # Sums, each over the matrix as it is: a scaled copy of it would take longer than they do.
    scale = jnp.maximum(jnp.max(matrix), -jnp.min(matrix))
    squares = jnp.sum((matrix / jnp.where(scale > 0, scale, 1)) ** 2)
    rows = jnp.max(jnp.sum(jnp.abs(matrix), axis=1))
    return jnp.minimum(rows, scale * jnp.sqrt(squares))


def _factorised(kernel: Array, shift: Any) -> tuple[Array, Array, Bool[Array, ""]]:
    """A = K + shift, its factor, and whether that means something."""
    shift = jnp.asarray(shift, kernel.dtype)
    matrix = kernel + shift * jnp.eye(len(kernel), dtype=kernel.dtype)
    fixed = jax.lax.stop_gradient(matrix)
    factor = jnp.linalg.cholesky(fixed)
    return matrix, factor, _is_resolved(fixed, factor, jax.lax.stop_gradient(shift))


def _solved_by_factor(matrix: Array, factor: Array, columns: Array) -> Array:
    """A^{-1} columns, with the derivatives of the equation in the matrix."""
    factor = jax.lax.stop_gradient(factor)
    return jax.lax.custom_linear_solve(
        lambda x: matrix @ x, columns, lambda _, b: cho_solve((factor, True), b), symmetric=True
    )


def _solved_in_range(basis: Eigenbasis, columns: Array) -> Array:
    return basis.apply(Relaxation(jnp.asarray(jnp.inf, columns.dtype)), columns)


def _is_resolved(matrix: Array, factor: Array, shift: Array) -> Bool[Array, ""]:
    """Whether there is a factor that means something: a singular matrix may well have one, with
    rounding for its last pivots. No pivot is below the shift, if that is more than the rounding of
    a pivot; else the smallest eigenvalue that a few steps of inverse iteration find has to be told
    from zero.
    """
    of_pivot = len(matrix) ** 0.5 * rounding(jnp.max(jnp.diagonal(matrix)))
    shifted = (shift > of_pivot) & jnp.all(jnp.isfinite(jnp.diagonal(factor)))
    unit = largest_eigenvalue_bound(matrix)
    unit = jnp.where(unit > 0, unit, 1)
    vectors = jr.normal(jr.key(0), (len(matrix), _PROBES), matrix.dtype)
    growth = jnp.zeros((), matrix.dtype)
    # Always: handed to a branch, the factor is copied twice, which takes longer than this.
    for _ in range(_ITERATIONS):
        vectors = vectors / jnp.linalg.norm(vectors, axis=0, keepdims=True)
        vectors = unit * cho_solve((factor, True), vectors)
        growth = jnp.max(jnp.linalg.norm(vectors, axis=0))
    # In units of the largest eigenvalue; False for NaN.
    return shifted | (growth * ZERO * jnp.finfo(matrix.dtype).eps < 1)


@jax.custom_jvp
def _log_determinant(positive: PositiveMatrix, matrix: Array) -> Array:
    by_factor = 2 * jnp.sum(jnp.log(jnp.diagonal(positive.factor)))
    values = positive.basis.values
    seen = jnp.all(positive.basis.seen)
    by_values = jnp.where(seen, jnp.sum(jnp.log(jnp.where(seen, values, 1))), jnp.nan)
    return jnp.where(positive.factorised, by_factor, by_values)


@_log_determinant.defjvp
def _log_determinant_jvp(
    primals: tuple[PositiveMatrix, Array], tangents: Any
) -> tuple[Array, Array]:
    return _log_determinant(*primals), jnp.vdot(primals[0].inverse(), tangents[1])
