"""Solves and determinants against NumPy's; which kernels are factorised and which are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corrections.symmetric.positive_matrix import (
    is_positive,
    largest_eigenvalue_bound,
    positive_matrix,
)
from tests.corrections.symmetric.test_matrix_functions import (
    COLUMNS,
    DIRECTIONS,
    NESTINGS,
    SPECTRA,
    symmetric,
    WEIGHTS,
)
from tests.models import inputs


@pytest.mark.long
@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("spectrum", ["equal", "close"])
def test_derivatives_are_those_of_the_equations(spectrum, nesting):
    matrix, at = symmetric(SPECTRA[spectrum]), jnp.zeros(2)

    def moved(s):
        return matrix + jnp.tensordot(s, DIRECTIONS, axes=1)

    pairs = [
        (
            lambda s: jnp.sum(WEIGHTS * positive_matrix(moved(s)).solve(COLUMNS)),
            lambda s: jnp.sum(WEIGHTS * jnp.linalg.solve(moved(s), COLUMNS)),
        ),
        (
            lambda s: positive_matrix(moved(s)).log_determinant(),
            lambda s: jnp.linalg.slogdet(moved(s))[1],
        ),
    ]
    for ours, expected in pairs:
        np.testing.assert_allclose(jax.jit(ours)(at), expected(at), rtol=1e-12)
        found, right = jax.jit(jax.grad(ours))(at), jax.jit(jax.grad(expected))(at)
        np.testing.assert_allclose(found, right, rtol=1e-10)
        found, right = jax.jit(NESTINGS[nesting](ours))(at), jax.jit(jax.hessian(expected))(at)
        np.testing.assert_allclose(found, right, atol=1e-10 * jnp.abs(right).max())


def test_many_at_once():
    shifts = jnp.array([0.0, 0.5, 3.0])
    matrix = symmetric(SPECTRA["apart"])

    def value(shift):
        system = positive_matrix(matrix + shift * jnp.eye(len(matrix)))
        return system.log_determinant(), system.solve(COLUMNS)

    determinants, solutions = jax.jit(jax.vmap(value))(shifts)
    for shift, determinant, solution in zip(shifts, determinants, solutions, strict=True):
        shifted = np.asarray(matrix + shift * jnp.eye(len(matrix)))
        np.testing.assert_allclose(determinant, np.linalg.slogdet(shifted)[1], rtol=1e-12)
        np.testing.assert_allclose(solution, np.linalg.solve(shifted, COLUMNS), rtol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [60, 300])
def test_singular_matrices_are_not_factorised(size, dtype):
    """Rank size / 2: their last pivots are rounding, of either sign, and none may pass."""
    for seed in range(4):
        features = inputs(size, size // 2, seed=seed).astype(dtype)
        kernel = features @ features.T
        system = jax.jit(positive_matrix)(kernel)
        assert not bool(system.factorised)
        assert int(system.dropped) == size - size // 2
        assert bool(system.positive)
        assert bool(jnp.isnan(system.log_determinant()))
        columns = inputs(size, 2, seed=9).astype(dtype)
        exact = np.asarray(kernel, "float64")
        expected = np.linalg.pinv(exact, rcond=1e-5, hermitian=True) @ np.asarray(columns)
        rounding = (
            float(jnp.finfo(dtype).eps) * np.linalg.cond(np.asarray(features, "float64")) ** 2
        )
        error = np.abs(np.asarray(system.solve(columns)) - expected).max()
        assert error <= 100 * rounding * np.abs(expected).max()


def test_ordinary_kernels_in_float32_are_factorised():
    """Condition 1e5: n eps lambda_max is above most of its eigenvalues, rounding below all."""
    values = jnp.logspace(-5, 0, 200)
    rotation = jnp.linalg.qr(inputs(200, 200))[0]
    exact = rotation @ jnp.diag(values) @ rotation.T
    system = positive_matrix(exact.astype("float32"))
    assert bool(system.factorised)
    assert int(system.dropped) == 0
    right = inputs(200, 1, seed=2)
    found = system.solve(right.astype("float32"))
    found = np.asarray(found, "float64")
    residual = np.linalg.norm(exact @ found - right) / np.linalg.norm(found)
    assert residual < 100 * float(jnp.finfo("float32").eps)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_bound_of_the_largest_eigenvalue(scale):
    for seed in range(3):
        features = inputs(40, 10, seed=seed).astype("float32")
        kernel = features @ features.T * jnp.float32(scale)
        largest = np.linalg.eigvalsh(np.asarray(kernel, "float64"))[-1]
        bound = float(largest_eigenvalue_bound(kernel))
        assert largest <= bound * (1 + 1e-6)
        assert bound <= 40**0.5 * largest
        assert bool(is_positive(kernel))
        assert not bool(is_positive(kernel - 0.01 * bound * jnp.eye(40, dtype="float32")))


def test_zero_is_positive():
    assert bool(is_positive(jnp.zeros((3, 3))))
    system = positive_matrix(jnp.zeros((3, 3)))
    assert int(system.dropped) == 3
    np.testing.assert_array_equal(system.solve(jnp.ones((3, 1))), 0)
