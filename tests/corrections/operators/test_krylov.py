"""Extreme eigenpairs of matrices whose spectra are known."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections.operators.krylov import extreme_eigenpairs, lanczos


def rotated(values, seed=0):
    """A symmetric matrix with these eigenvalues."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))
    return jnp.asarray(q @ np.diag(values) @ q.T)


def pairs(matrix, count=1, **options):
    options = {"which": "largest", "matvecs": 300, "rtol": 1e-9} | options
    starts = jr.normal(jr.key(0), (count, len(matrix)), matrix.dtype)
    with jax.numpy_dtype_promotion("standard"):
        return jax.jit(lambda: extreme_eigenpairs(lambda v: matrix @ v, starts, **options))()


WANTED = {
    "largest": lambda values: np.sort(values)[::-1],
    "smallest": np.sort,
    "magnitude": lambda values: values[np.argsort(-np.abs(values))],
}


@pytest.mark.parametrize("which", WANTED)
def test_ends_of_an_indefinite_spectrum(which):
    values = np.concatenate([[9.0, 7.5, -8.0, -6.0], np.linspace(-3, 3, 96)])
    matrix = rotated(values)
    found = pairs(matrix, which=which, count=3)
    np.testing.assert_allclose(found.values, WANTED[which](values)[:3], rtol=1e-12)
    assert bool(jnp.all(found.converged))
    np.testing.assert_allclose(found.vectors @ found.vectors.T, jnp.eye(3), atol=1e-12)
    images = found.vectors @ matrix
    np.testing.assert_allclose(images, found.values[:, None] * found.vectors, atol=1e-7)


@pytest.mark.parametrize("which", WANTED)
def test_low_rank_and_multiple_eigenvalues(which):
    """Krylov spaces that end at once are no failure: pairs are found one after the other."""
    values = np.array([3.0, 3.0, -5.0] + [0.0] * 37)
    found = pairs(rotated(values), which=which, count=4)
    np.testing.assert_allclose(found.values, WANTED[which](values)[:4], atol=1e-12)
    assert bool(jnp.all(found.converged))


def test_smallest_sizes():
    assert float(pairs(jnp.array([[-2.0]]), which="magnitude").values[0]) == -2.0
    np.testing.assert_allclose(pairs(jnp.eye(3), count=3).values, 1.0, rtol=1e-15)
    nothing = pairs(jnp.zeros((4, 4)), count=2)
    np.testing.assert_array_equal(nothing.values, 0.0)
    assert bool(jnp.all(nothing.converged))


def test_what_is_cut_short_does_not_pass_as_converged():
    values = np.linspace(1, 1.1, 400)
    short = pairs(rotated(values), matvecs=20, rtol=1e-6)
    assert not bool(short.converged[0])
    assert float(short.values[0]) < 1.1 - 1e-6
    nearest = np.abs(values - float(short.values[0])).min()
    assert nearest <= float(short.residuals[0])
    assert float(pairs(rotated(values), matvecs=20000, rtol=1e-6).values[0]) == pytest.approx(
        1.1, rel=1e-9
    )


def test_in_32_bits():
    values = np.concatenate([[4.0], np.linspace(-1, 1, 50)])
    found = pairs(rotated(values).astype("float32"), rtol=1e-5)
    assert found.values.dtype == jnp.float32
    assert float(found.values[0]) == pytest.approx(4.0, rel=1e-5)
    assert bool(found.converged[0])


def test_ritz_pairs_end_where_the_krylov_space_does():
    matrix = rotated([2.0, -1.0, 0.0, 0.0, 0.0, 0.0])
    with jax.numpy_dtype_promotion("standard"):
        found = lanczos(lambda v: matrix @ v, jr.normal(jr.key(0), (6,)), 6)
    assert int(jnp.sum(found.exists)) == 3
    np.testing.assert_allclose(found.values[found.exists], [-1.0, 0.0, 2.0], atol=1e-12)
    np.testing.assert_allclose(jnp.sum(found.weights), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(found.weights[~found.exists], 0.0)
