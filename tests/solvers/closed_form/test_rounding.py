"""Iterative solves where rounding, units or zeros decide: what they return and what they advise."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from solvers.closed_form.gaussian import PredictionError
from solvers.closed_form.gaussian_process import posterior
from solvers.closed_form.iterative import learned_at, solve
from solvers.closed_form.mse import mse_flow
from solvers.closed_form.mse_operator import mse_flow_operator
from solvers.frozen_kernel.kernel_blocks import KernelBlocks
from solvers.result import RESULTS, SolverError
from tests.models import inputs

EPS = float(np.finfo(np.float32).eps)
ITERATIVE = {"method": "iterative", "preconditioner_rank": 0}


def clusters(n):
    """The kernel of a ReLU network of two hidden layers on ten noisy clusters, and their labels.

    Without bias, by Cho & Saul (2009): a large first eigenvalue and a slow decay, as on images.
    """
    labels = np.arange(n) % 10
    x = np.maximum(np.asarray(inputs(10, 50))[labels] + 0.3 * np.asarray(inputs(n, 50, seed=1)), 0)
    kernel = x @ x.T
    for _ in range(2):
        norms = np.sqrt(np.diag(kernel))
        cosine = np.clip(kernel / np.outer(norms, norms), -1, 1)
        angle = np.arccos(cosine)
        kernel = np.outer(norms, norms) * (np.sin(angle) + (np.pi - angle) * cosine) / np.pi
    return kernel, np.eye(10)[labels] - 0.1


def smooth(n, length=0.05):
    """Squared distances on a line, singular to rounding; a smooth target, and one with noise."""
    x = np.linspace(0, 1, n)
    kernel = np.exp(-((x[:, None] - x[None]) ** 2) / (2 * length**2))
    step = np.sign(x - 0.5) + 0.1 * np.asarray(inputs(n, 1))[:, 0]
    return kernel, np.stack([np.sin(6 * x), step], axis=1)


def smoother(n):
    return smooth(n, length=0.3)


KERNELS = {"clusters": clusters, "smooth": smooth, "smoother": smoother}


def in_32_bits(*arrays):
    return tuple(jnp.asarray(array, "float32") for array in arrays)


def operator(kernel):
    return lx.MatrixLinearOperator(kernel, lx.positive_semidefinite_tag)


def largest(kernel):
    return float(np.linalg.eigvalsh(kernel)[-1])


def fitted(kernel, y, damping, time=np.inf):
    """K (1 - exp(-(K + damping) t)) / (K + damping) y in float64, and the norms of |K| |u|."""
    values, vectors = np.linalg.eigh(np.asarray(kernel, float))
    along = vectors.T @ np.asarray(y, float)
    along = along * (-np.expm1(-(values + damping) * time) / (values + damping))[:, None]
    size = values[-1] * np.linalg.norm(along, axis=0)
    return vectors @ (values[:, None] * along), size


def distances(found, exact):
    return np.linalg.norm(np.asarray(found, float) - exact, axis=0)


def message(call, error):
    with pytest.raises(error) as caught:
        call()
    return str(caught.value), caught.value


SIZES = [100, 300, pytest.param(600, marks=pytest.mark.long)]
RANKS = [0, pytest.param(8, marks=pytest.mark.long), 32]


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", KERNELS)
def test_float32_is_the_truth_to_the_residual_it_states(name, n, rank):
    """|K (u - u*)| <= |r|, as K (K + noise)^{-1} shrinks; and a residual that is too large is
    so by rounding: u is exact for a kernel that differs from this one by 30 eps or less.
    """
    kernel, y = in_32_bits(*KERNELS[name](n))
    norms = np.linalg.norm(y, axis=0)
    for relative in (0.0, 1e-6, 1e-3):
        if name != "clusters" and relative == 0:
            continue
        noise = relative * largest(kernel)
        options = {"noise": noise, "method": "iterative", "preconditioner_rank": rank}
        found = posterior(kernel, y, throw=False, **options)
        exact, size = fitted(kernel, y, noise)
        error, backward_error = (float(found.stats[key]) for key in ("error", "backward_error"))
        distance = distances(found.train.mean, exact)
        assert np.all(distance <= error * norms + EPS * (size + 2 * norms))
        assert bool(found.successful) == (error <= 1e-4)
        if relative == 1e-3:
            assert bool(found.successful)
        if not bool(found.successful):
            assert found.result == RESULTS.rounding
            assert backward_error < 30 * EPS
            assert error < 0.03
            assert int(found.stats["num_steps"]) < 1000


def test_starting_again_comes_below_the_rounding_of_the_first_start():
    kernel, y = in_32_bits(*smooth(100))
    found = posterior(kernel, y, noise=1e-3 * largest(kernel), rtol=1e-5, **ITERATIVE)
    assert bool(found.successful)


STAGNANT = {
    "clusters": lambda: (*clusters(100), 0.0, 1e-8),
    "smooth": lambda: (*smooth(300), 1e-6, 1e-4),
}


@pytest.mark.parametrize("rank", [0, 32])
@pytest.mark.parametrize("name", STAGNANT)
def test_stagnated_posterior_says_rounding_and_its_best_iterate_is_reachable(name, rank):
    *wide, relative, rtol = STAGNANT[name]()
    kernel, y = in_32_bits(*wide)
    noise = relative * largest(kernel)
    options = {"noise": noise, "method": "iterative", "preconditioner_rank": rank}
    text, error = message(lambda: posterior(kernel, y, rtol=rtol, **options), PredictionError)
    assert "rounding of float32" in text
    assert ("`noise`" in text) == (noise == 0)
    found = posterior(kernel, y, rtol=rtol, throw=False, **options)
    assert not bool(found.successful)
    assert found.result == RESULTS.rounding
    assert float(found.stats["error"]) > rtol
    np.testing.assert_array_equal(error.partial.train.mean, found.train.mean)
    # The numbers are as good as they say.
    exact, size = fitted(kernel, y, noise)
    bound = float(error.partial.stats["error"]) * np.linalg.norm(y, axis=0) + EPS * size
    assert np.all(distances(found.train.mean, exact) <= bound)
    # And what is advised helps.
    advised = float(re.search(r"`rtol` >= ([0-9.e-]+)", text).group(1).rstrip("."))
    assert bool(posterior(kernel, y, rtol=advised, **options).successful)
    assert "float64" in text
    assert bool(posterior(*map(jnp.asarray, wide), rtol=rtol, **options).successful)


@pytest.mark.long
@pytest.mark.parametrize("name", STAGNANT)
def test_stagnated_flow_says_rounding_and_its_best_iterate_is_reachable(name):
    """At finite times, by Lanczos' method, and in the limit."""
    *wide, relative, rtol = STAGNANT[name]()
    kernel, y = in_32_bits(*wide)
    reg, n = relative * largest(kernel), len(y)
    times = [0.0, 1e7 * n / largest(kernel), jnp.inf]
    options = {"diag_reg": reg, "preconditioner_rank": 0, "max_iterations": 1000}
    flow = operator(kernel)
    text, error = message(
        lambda: mse_flow_operator(flow, y, times, rtol=rtol, **options), SolverError
    )
    assert "rounding of float32" in text
    assert ("`diag_reg`" in text) == (reg == 0)
    found = mse_flow_operator(flow, y, times, rtol=rtol, throw=False, **options)
    assert found.result == RESULTS.rounding
    np.testing.assert_array_equal(found.valid, [True, False, False])
    np.testing.assert_array_equal(error.partial.train, found.train)
    np.testing.assert_array_equal(error.partial.final, found.final)
    assert bool(jnp.isfinite(error.partial.train).all())
    for row in (1, 2):
        exact, size = fitted(kernel, y, reg, times[row] / n)
        bound = float(found.stats["error"][row]) * np.linalg.norm(y, axis=0) + EPS * size
        assert np.all(distances(found.train[row], exact) <= bound)
        assert float(found.stats["backward_error"][row]) < 30 * EPS
    advised = float(re.search(r"`rtol` >= ([0-9.e-]+)", text).group(1).rstrip("."))
    assert bool(mse_flow_operator(flow, y, times, rtol=advised, **options).successful)
    kernel, y = map(jnp.asarray, wide)
    assert bool(mse_flow_operator(operator(kernel), y, times, rtol=rtol, **options).successful)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("noise", [0.0, 1e-20])
def test_singular_kernel_is_named_and_the_noise_that_is_advised_helps(dtype, noise):
    """Two observations of one point that differ."""
    kernel, y = clusters(30)
    twice = np.r_[np.arange(30), 0]
    kernel, y = kernel[np.ix_(twice, twice)], y[twice]
    y[-1] += 1
    kernel, y = jnp.asarray(kernel, dtype), jnp.asarray(y, dtype)
    text, error = message(lambda: posterior(kernel, y, noise=noise, **ITERATIVE), PredictionError)
    assert f"singular to the rounding of {dtype}" in text
    assert ("is lost" in text) == (noise > 0)
    assert bool(jnp.isfinite(error.partial.train.mean).all())
    assert 0.1 < float(error.partial.stats["error"]) < 1
    relative = float(re.search(r"`noise` of ([0-9.e-]+) times", text).group(1))
    found = posterior(kernel, y, noise=relative * largest(kernel), **ITERATIVE)
    assert bool(found.successful)


def test_solve_of_too_few_steps_advises_more_or_a_preconditioner():
    kernel, y = (jnp.asarray(array) for array in clusters(100))
    noise = 1e-6 * largest(kernel)
    options = {"noise": noise, "method": "iterative", "max_iterations": 30}
    text, error = message(
        lambda: posterior(kernel, y, preconditioner_rank=0, **options), PredictionError
    )
    assert "`max_iterations` = 30" in text
    assert "`preconditioner_rank`" in text
    assert "`noise`" not in text
    assert float(error.partial.stats["error"]) < 1e-2
    assert bool(jnp.isfinite(error.partial.train.mean).all())
    assert bool(posterior(kernel, y, preconditioner_rank=90, **options).successful)
    assert bool(posterior(kernel, y, **options | {"max_iterations": 1000}).successful)
    text, _ = message(
        lambda: posterior(
            kernel, y, preconditioner_rank=100, **options | {"max_iterations": 1, "rtol": 1e-12}
        ),
        PredictionError,
    )
    assert "`preconditioner_rank`" not in text


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_default_tolerance_can_be_reached(dtype):
    """Of six points, and of a network on clusters."""
    points, features = inputs(6, 2), inputs(6, 8, seed=1)
    for kernel, y in ((features @ features.T, points), clusters(100)):
        kernel, y = jnp.asarray(kernel, dtype), jnp.asarray(y, dtype)
        times = [len(y) / largest(kernel), jnp.inf]
        found = mse_flow_operator(operator(kernel), y, times)
        exact = mse_flow(kernel.astype(float), y.astype(float), times)
        tolerance = 1e-4 if dtype == "float32" else 1e-6
        assert float(found.stats["error"].max()) <= tolerance
        for row, truth in zip(found.train, exact.train, strict=True):
            bound = 1.1 * tolerance * np.linalg.norm(y, axis=0)
            assert np.all(distances(row, truth) <= bound)
        assert float(posterior(kernel, y, **ITERATIVE).stats["error"]) <= tolerance


FEATURES = np.asarray(inputs(13, 20))
PRIOR, Y = FEATURES @ FEATURES.T / 20, np.asarray(inputs(10, 2, seed=1))


@pytest.mark.parametrize("of_targets", [1e-30, 1e-20, 1.0, 1e20, 1e30])
@pytest.mark.parametrize("of_kernel", [1e-30, 1e-20, 1.0, 1e20])
def test_units_do_not_matter(of_kernel, of_targets):
    """Squares of such numbers, and their quotients, are out of the range of float32."""
    prior, y = in_32_bits(of_kernel * PRIOR, of_targets * Y)
    test = {"kernel_test": prior[10:, :10], "kernel_test_test": prior[10:, 10:]}
    exact = posterior(PRIOR[:10, :10], Y, kernel_test=PRIOR[10:, :10])
    gain = PRIOR[10:, :10] @ np.linalg.inv(PRIOR[:10, :10])
    covariance = PRIOR[10:, 10:] - gain @ PRIOR[:10, 10:]
    for rank in (0, 4):
        options = ITERATIVE | {"preconditioner_rank": rank}
        found = posterior(prior[:10, :10], y, **test, **options)
        mean, spread = (
            np.asarray(array, float) for array in (found.test.mean, found.test.covariance)
        )
        np.testing.assert_allclose(mean / of_targets, exact.test.mean, atol=1e-3)
        np.testing.assert_allclose(spread / of_kernel, covariance, atol=1e-5)
    times = np.array([0.0, 30.0, jnp.inf])
    exact = mse_flow(PRIOR[:10, :10], Y, times, kernel_test=PRIOR[10:, :10])
    rows = lx.MatrixLinearOperator(prior[10:, :10])
    found = mse_flow_operator(
        operator(prior[:10, :10]), y, times / of_kernel, kernel_test=rows, preconditioner_rank=4
    )
    for part in ("train", "test"):
        numbers = np.asarray(getattr(found, part), float) / of_targets
        np.testing.assert_allclose(numbers, getattr(exact, part), atol=1e-3)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zeros_are_numbers(rank, dtype):
    zero, y = jnp.zeros((6, 6), dtype), jnp.ones((6, 2), dtype)
    options = {"method": "iterative", "preconditioner_rank": rank}
    kernel = operator(zero)
    reg = {"diag_reg": 2.0, "preconditioner_rank": rank}
    for found in (
        posterior(zero, 0 * y, **options).train.mean,
        posterior(zero, y, noise=2.0, **options).train.mean,
        posterior(jnp.eye(6, dtype=dtype), 0 * y, **options).train.mean,
        mse_flow_operator(kernel, 0 * y, [1.0, jnp.inf], preconditioner_rank=rank).train,
        mse_flow_operator(kernel, y, [1.0, 1e30]).train,
        mse_flow_operator(kernel, y, [1.0, jnp.inf], **reg).train,
    ):
        np.testing.assert_array_equal(found, 0)
    failed = mse_flow_operator(kernel, y, [1.0, jnp.inf], preconditioner_rank=rank, throw=False)
    np.testing.assert_array_equal(failed.valid, [True, False])
    np.testing.assert_array_equal(failed.train[0], 0)
    inconsistent = posterior(zero, y, throw=False, **options)
    assert not bool(inconsistent.successful)


def test_column_that_is_not_finite_stays_alone():
    kernel, y = (jnp.asarray(array) for array in clusters(30))
    b = y[:, :3].at[0, 1].set(jnp.nan)
    options = {"damping": jnp.asarray(0.1), "rtol": jnp.asarray(1e-8), "max_iterations": 100}
    exact = np.linalg.solve(kernel + 0.1 * np.eye(30), y[:, :3])
    found = eqx.filter_jit(solve)(operator(kernel), b, preconditioner_rank=4, **options)
    alone = eqx.filter_jit(learned_at)(operator(kernel), b, jnp.array([1e6]), **options)
    for solution, error in ((found.solution, found.error), (alone.solution[0], alone.error[0])):
        np.testing.assert_array_equal(jnp.isnan(error), [False, True, False])
        np.testing.assert_allclose(solution[:, ::2], exact[:, ::2], atol=1e-6)
    assert bool(found.positive)
    assert bool(alone.positive)


X = inputs(12, 3, seed=1)


def rbf(x1, x2, length):
    return jnp.exp(-jnp.sum((x1[:, None] - x2[None]) ** 2, axis=-1) / length)


def stored(length):
    return {"kernel": rbf(X[:9], X[:9], length), "kernel_test": rbf(X[9:], X[:9], length)}


def in_blocks(length):
    """Of a function that closes over what is differentiated."""

    def kernel(x1, x2):
        return rbf(x1, x2, length)

    train = KernelBlocks(kernel, X[:9], batch_size=4)
    return {"kernel": train, "kernel_test": KernelBlocks(kernel, X[9:], X[:9], batch_size=4)}


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("kernels", [stored, in_blocks])
def test_derivatives_of_iterative_solves_are_those_of_exact_ones(kernels, rank):
    """In a parameter of the kernel and in the targets, forwards and backwards."""
    y = X[:9, :2].at[:, 1].set(0.0)
    options = {"noise": 0.1, "throw": False, "rtol": 1e-10}

    def exact(length, y):
        test = {"kernel_test_test": rbf(X[9:], X[9:], length)}
        found = posterior(y=y, method="exact", **stored(length), **test, **options)
        return jnp.sum(found.test.mean**2) + jnp.sum(found.test.covariance)

    def iterative(length, y):
        test = {"kernel_test_test": rbf(X[9:], X[9:], length), "preconditioner_rank": rank}
        found = posterior(y=y, method="iterative", **kernels(length), **test, **options)
        return jnp.sum(found.test.mean**2) + jnp.sum(found.test.covariance)

    length = jnp.asarray(4.0)
    expected = jax.grad(exact, argnums=(0, 1))(length, y)
    found = jax.grad(iterative, argnums=(0, 1))(length, y)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-8)
    _, slope = jax.jvp(lambda s: iterative(s, y), (length,), (jnp.asarray(1.0),))
    np.testing.assert_allclose(slope, expected[0], atol=1e-8)


def test_derivatives_of_the_limit_of_a_flow():
    def limit(length):
        kernels = stored(length)
        found = mse_flow_operator(
            operator(kernels["kernel"]),
            X[:9, :1],
            [jnp.inf],
            kernel_test=lx.MatrixLinearOperator(kernels["kernel_test"]),
            diag_reg=0.1,
            rtol=1e-10,
            throw=False,
        )
        return found.test.sum()

    def exact(length):
        kernels = stored(length)
        weights = jnp.linalg.solve(kernels["kernel"] + 0.1 * jnp.eye(9), X[:9, :1])
        return jnp.sum(kernels["kernel_test"] @ weights)

    np.testing.assert_allclose(jax.grad(limit)(4.0), jax.grad(exact)(4.0), atol=1e-8)


@pytest.mark.long
def test_solves_can_be_batched():
    """Each with its own steps."""
    lengths = jnp.array([1.0, 8.0])

    def mean(length):
        options = {"noise": 1e-3, "throw": False, **ITERATIVE}
        return posterior(y=X[:9, :2], **stored(length), **options).test.mean

    together = jax.vmap(mean)(lengths)
    alone = jnp.stack([mean(length) for length in lengths])
    np.testing.assert_allclose(together, alone, atol=1e-5)
