"""Exact solves in float32, on kernels as they come, held to the errors of textbook programs.

The truth is NumPy's in float64 of the same float32 kernel; beside it stand the errors of a float32
Cholesky program (with noise, and at t = inf) or of one float32 `eigh` (finite times).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.linalg import cho_solve

from corrections import spectrum
from corrections.symmetric.layouts import RoundingWarning
from solvers import ensemble, mse_descent, mse_flow, posterior
from zoo import limit, MLP

pytestmark = pytest.mark.usefixtures("float32")

SIZES = [100, 400, pytest.param(2000, marks=pytest.mark.slow)]
M = 50
EPS = float(np.finfo(np.float32).eps)


def images(count, seed=0):
    """Clusters of positive vectors, near one another as images of digits are."""
    rng = np.random.default_rng(seed)
    centers = rng.uniform(0, 1, (10, 60)) ** 3
    labels = rng.integers(0, 10, count)
    x = np.maximum(centers[labels] + 0.02 * rng.normal(size=(count, 60)), 0)
    return jnp.asarray(x, "float32"), labels


@functools.cache
def digits(n):
    """The tangent kernel of a wide ReLU network: condition 1e4, nothing of it below rounding, and
    at n = 400 a third of it below n eps lambda_max.
    """
    x, labels = images(n + M)
    network = limit(MLP(60, 1, width=8, depth=2, activation="relu", key=jax.random.key(0)))
    y = jnp.asarray(np.eye(10)[labels[:n]] - 0.1, "float32")
    return network.ntk(x), network.nngp(x), y


@functools.cache
def smooth(n):
    """Most of its eigenvalues are below rounding."""
    t = np.linspace(-1, 1, n + M)
    kernel = np.exp(-8 * (t[:, None] - t[None]) ** 2)
    y = np.stack([np.sin(4 * t[:n]), np.cos(7 * t[:n])], axis=1)
    return jnp.asarray(kernel, "float32"), jnp.asarray(y, "float32")


def largest(a, b):
    return float(np.abs(np.asarray(a, "float64") - np.asarray(b, "float64")).max())


def textbook(kernel, y, noise):
    """Mean, standard deviation, covariance on training points and evidence, in float64."""
    kernel, y = np.asarray(kernel, "float64"), np.asarray(y, "float64")
    n = len(y)
    noisy = kernel[:n, :n] + noise * np.eye(n)
    weights, gain = np.linalg.solve(noisy, y), np.linalg.solve(noisy, kernel[:n])
    left = kernel - kernel[:, :n] @ gain
    determinant = np.linalg.slogdet(noisy)[1]
    density = -0.5 * (np.sum(y * weights) + y.shape[1] * (determinant + n * np.log(2 * np.pi)))
    return kernel[n:, :n] @ weights, np.sqrt(np.diag(left)[n:]), left[:n, :n], density


@jax.jit
def by_cholesky(kernel, y, noise):
    """The same in float32."""
    n = len(y)
    factor = jnp.linalg.cholesky(kernel[:n, :n] + noise * jnp.eye(n))
    weights = cho_solve((factor, True), y)
    across = jax.scipy.linalg.solve_triangular(factor, kernel[:n], lower=True)
    left = kernel - across.T @ across
    determinant = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    density = -0.5 * (jnp.sum(y * weights) + y.shape[1] * (determinant + n * jnp.log(2 * jnp.pi)))
    return kernel[n:, :n] @ weights, jnp.sqrt(jnp.diagonal(left)[n:]), left[:n, :n], density


def held(found, expected, program, slack):
    """Errors within ten times the program's, or of the rounding that is said."""
    error = largest(found, expected)
    assert np.isfinite(np.asarray(found)).all()
    assert error <= 10 * largest(program, expected) + slack, error


def marked_where_float32_has_no_factor(found, kernel, y, noise):
    """Where noise is below the rounding of the largest eigenvalue: the directions that are left out
    are told, there is no evidence, and the mean is that of the directions that are there.
    """
    n = len(y)
    values, vectors = np.linalg.eigh(np.asarray(kernel[:n, :n], "float64"))
    assert noise < EPS * values[-1]
    kept = slice(int(found.dropped), None)
    assert values[kept][0] > 5 * EPS * values[-1]
    inside = vectors[:, kept].T @ np.asarray(y, "float64")
    weights = vectors[:, kept] @ (inside / (values[kept] + noise)[:, None])
    mean = np.asarray(kernel[n:, :n], "float64") @ weights
    # Directions turn by eps lambda_max over the gap, which is of the size of the smallest one kept.
    turned = EPS * values[-1] / values[kept][0]
    assert largest(found.test.mean, mean) < turned * np.abs(mean).max()
    assert np.isnan(found.log_marginal_likelihood)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("noise", [1e-5, 1e-3, 1.0])
@pytest.mark.parametrize("kind", ["digits", "smooth"])
def test_posterior_with_noise(kind, noise, n):
    kernel, y = digits(n)[1:] if kind == "digits" else smooth(n)
    noise = noise * float(jnp.mean(jnp.diagonal(kernel)))
    expected, program = textbook(kernel, y, noise), by_cholesky(kernel, y, noise)
    rows = {"kernel_test": kernel[n:, :n], "kernel_test_test": kernel[n:, n:]}
    if not np.isfinite(np.asarray(program[0])).all():
        with pytest.warns(RoundingWarning, match="directions of `kernel`"):
            found = posterior(kernel[:n, :n], y, **rows, noise=noise)
        marked_where_float32_has_no_factor(found, kernel, y, noise)
        return
    found = posterior(kernel[:n, :n], y, **rows, noise=noise)
    assert int(found.dropped) == 0
    parts = found.test.mean, found.test.std[:, 0], found.train.covariance
    for ours, right, other in zip(parts, expected[:3], program[:3], strict=True):
        held(ours, right, other, slack=20 * EPS * np.abs(right).max())
    density = float(found.log_marginal_likelihood)
    assert np.isfinite(density)
    held(density, expected[3], program[3], slack=20 * EPS * abs(expected[3]))


@pytest.mark.parametrize("n", SIZES)
def test_without_noise_and_in_the_limit_nothing_of_an_ordinary_kernel_is_dropped(n):
    theta, nngp, y = digits(n)
    program = by_cholesky(theta, y, 0.0)
    mean, std, _, _ = textbook(theta, y, 0.0)
    found = posterior(theta[:n, :n], y, kernel_test=theta[n:, :n], kernel_test_test=theta[n:, n:])
    assert int(found.dropped) == 0
    held(found.test.mean, mean, program[0], slack=20 * EPS * np.abs(mean).max())
    held(found.test.std[:, 0], std, program[1], slack=20 * EPS * std.max())
    flow = mse_flow(theta[:n, :n], y, [jnp.inf], kernel_test=theta[n:, :n])
    assert int(flow.dropped) == 0
    held(flow.test[0], mean, program[0], slack=20 * EPS * np.abs(mean).max())
    assert largest(flow.train[0], y) < 1e3 * EPS  # condition 1e4, residual of a backward stable one
    whole = jnp.arange(n + M, dtype="float32")[:, None]

    def stored(matrix):
        return lambda a, b: matrix[a[:, 0].astype(int)][:, b[:, 0].astype(int)]

    trained = ensemble(stored(nngp), stored(theta), whole[:n], y, [jnp.inf], x_test=whole[n:])
    assert int(trained.dropped) == 0
    held(trained.test.mean[0], mean, program[0], slack=20 * EPS * np.abs(mean).max())
    prior, tangent = (np.asarray(k, "float64") for k in (nngp, theta))
    gain = np.linalg.solve(tangent[:n, :n], tangent[:n, n:]).T
    left = np.concatenate([-gain, np.eye(M)], axis=1)
    variance = np.diag(left @ prior @ left.T)
    np.testing.assert_allclose(trained.test.std[0, :, 0] ** 2, variance, rtol=2e-2)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", ["digits", "smooth"])
def test_flow_and_descent_at_finite_times(kind, n):
    """Times from the fastest direction's to a thousandth of the slowest one's."""
    kernel, y = digits(n)[::2] if kind == "digits" else smooth(n)
    train, rows = kernel[:n, :n], kernel[n:, :n]
    exact = np.asarray(train, "float64")
    values, vectors = np.linalg.eigh(exact)
    ts = [float(scale * n / values[-1]) for scale in (1.0, 100.0, 1000.0)]
    found = mse_flow(train, y, ts, kernel_test=rows)

    @jax.jit
    def by_eigh(train, rows, y):
        values, vectors = jnp.linalg.eigh(train)
        values = jnp.maximum(values, EPS * values[-1])
        along = vectors.T @ y
        weights = [vectors @ ((-jnp.expm1(-values * t / n) / values)[:, None] * along) for t in ts]
        return [rows @ w for w in weights], [train @ w for w in weights]

    program = by_eigh(train, rows, y)
    for i, t in enumerate(ts):
        safe = np.maximum(values, 1e-12 * values[-1])
        weights = vectors @ ((-np.expm1(-safe * t / n) / safe)[:, None] * (vectors.T @ y))
        right = np.asarray(rows, "float64") @ weights
        held(found.test[i], right, program[0][i], slack=200 * EPS * np.abs(right).max())
        right = exact @ weights
        held(found.train[i], right, program[1][i], slack=200 * EPS * np.abs(right).max())
    rate = float(n / values[-1])
    steps = mse_descent(train, y, [1, 100, 1000], learning_rate=rate, kernel_test=rows)
    for i, count in enumerate((1, 100, 1000)):
        learned = (1 - (1 - rate * safe / n) ** count) / safe
        right = exact @ (vectors @ (learned[:, None] * (vectors.T @ y)))
        np.testing.assert_allclose(steps.train[i], right, atol=2e3 * EPS * np.abs(right).max())


def test_what_is_below_rounding_is_counted_and_said():
    kernel, y = smooth(200)
    train, rows, corner = kernel[:200, :200], kernel[200:, :200], kernel[200:, 200:]
    with pytest.warns(RoundingWarning, match="directions of `kernel` .* float32") as warned:
        found = posterior(train, y, kernel_test=rows, kernel_test_test=corner)
    values = np.linalg.eigvalsh(np.asarray(train, "float64"))
    below = int(np.sum(values < 10 * EPS * values[-1]))
    assert abs(int(found.dropped) - below) <= 2
    assert str(int(found.dropped)) in str(warned[0].message)
    assert found.test.std.min() >= 0
    early = mse_flow(train, y, [float(200 / values[-1])])
    assert int(early.dropped) == 0  # none could have moved by then


def test_condition_number_of_an_ordinary_kernel_is_a_number():
    theta, _, _ = digits(400)
    kernel = theta[:400, :400]
    values = np.linalg.eigvalsh(np.asarray(kernel, "float64"))
    found = spectrum(kernel)
    np.testing.assert_allclose(found.condition_number, values[-1] / values[0], rtol=0.05)
    assert values[0] < 400 * EPS * values[-1]  # which used to make it infinite
