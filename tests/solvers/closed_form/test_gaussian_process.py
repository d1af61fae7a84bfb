"""The posterior against textbook formulas, its limits, and iterative against exact solves."""

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from corrections import ntk, NTKOperator
from corrections.symmetric.layouts import RoundingWarning
from solvers.closed_form.gaussian import Gaussian, PredictionError
from solvers.closed_form.gaussian_process import posterior
from solvers.closed_form.mse import mse_flow
from solvers.frozen_kernel.kernel_blocks import KernelBlocks
from solvers.result import RESULTS
from tests.models import inputs, one_hot, tanh_mlp

N, M, K = 12, 4, 2
X = inputs(N + M, 3, seed=1)
Y = inputs(N, K, seed=2)
F0 = inputs(N + M, K, seed=3)
NOISE = 0.1


def rbf(x1, x2):
    return jnp.exp(-jnp.sum((x1[:, None] - x2[None]) ** 2, axis=-1) / 4)


PRIOR = rbf(X, X)
TEST = {"kernel_test": PRIOR[N:, :N], "kernel_test_test": PRIOR[N:, N:]}
MEANS = {"f0": F0[:N], "f0_test": F0[N:]}


def textbook(prior, noise, gap):
    """Rasmussen & Williams (2006), eqs. 2.23-2.24, on training points, then test points."""
    n = len(gap)
    gain = np.linalg.solve(prior[:n, :n] + noise * np.eye(n), prior[:n]).T
    return gain @ gap, prior - gain @ prior[:n]


@pytest.mark.smoke
def test_posterior_is_the_textbook():
    found = posterior(PRIOR[:N, :N], Y, noise=NOISE, **TEST, **MEANS)
    mean, covariance = textbook(PRIOR, NOISE, Y - F0[:N])
    for part, rows in ((found.train, slice(None, N)), (found.test, slice(N, None))):
        np.testing.assert_allclose(part.mean, F0[rows] + mean[rows], atol=1e-10)
        np.testing.assert_allclose(part.covariance, covariance[rows, rows], atol=1e-10)
        variance = np.diag(covariance)[rows, None]
        np.testing.assert_allclose(part.std**2, np.tile(variance, K), atol=1e-10)
    density = multivariate_normal(cov=PRIOR[:N, :N] + NOISE * np.eye(N))
    expected = sum(density.logpdf(column) for column in np.asarray(Y - F0[:N]).T)
    np.testing.assert_allclose(found.log_marginal_likelihood, expected, rtol=1e-10)
    assert bool(found.successful)


def test_full_kernel_is_one_process_over_points_and_outputs():
    outputs = jnp.array([[1.0, 0.6], [0.6, 2.0]])
    full = jnp.einsum("ab,kl->akbl", PRIOR, outputs)
    test = {"kernel_test": full[N:, :, :N], "kernel_test_test": full[N:, :, N:]}
    found = posterior(full[:N, :, :N], Y, noise=NOISE, **test)
    side = (N + M) * K
    mean, covariance = textbook(full.reshape(side, side), NOISE, Y.reshape(-1, 1))
    np.testing.assert_allclose(found.test.mean.reshape(-1, 1), mean[N * K :], atol=1e-10)
    block = found.test.covariance.reshape(M * K, M * K)
    np.testing.assert_allclose(block, covariance[N * K :, N * K :], atol=1e-10)
    assert found.train.covariance.shape == (N, K, N, K)
    np.testing.assert_allclose(
        found.test.std.ravel() ** 2, np.diag(covariance)[N * K :], atol=1e-10
    )
    assert found.test.sample(jr.key(0), 5).shape == (5, M, K)


def test_without_noise_it_is_gradient_flow_in_the_limit_and_certain_where_it_was_told():
    found = posterior(PRIOR[:N, :N], Y, **TEST, **MEANS)
    rows = {"kernel_test": PRIOR[N:, :N], "f0": F0[:N], "f0_test": F0[N:]}
    flow = mse_flow(PRIOR[:N, :N], Y, [jnp.inf], **rows)
    np.testing.assert_allclose(found.test.mean, flow.test[0], atol=1e-9)
    np.testing.assert_allclose(found.train.mean, Y, atol=1e-9)
    np.testing.assert_array_equal(found.train.covariance, 0)
    told = posterior(PRIOR[:N, :N], Y, kernel_test=PRIOR[:N, :N], kernel_test_test=PRIOR[:N, :N])
    np.testing.assert_allclose(told.test.covariance, 0, atol=1e-12)


def test_singular_kernel_is_solved_in_its_range():
    """A point that is there twice says as much as its two observations' mean."""
    x = jnp.concatenate([X[:N], X[:1]])
    prior = rbf(jnp.concatenate([x, X[N:]]), jnp.concatenate([x, X[N:]]))
    n = N + 1
    y = jnp.concatenate([Y, Y[:1] + 1.0])
    test = {"kernel_test": prior[n:, :n], "kernel_test_test": prior[n:, n:]}
    with pytest.warns(RoundingWarning, match="1 directions of `kernel`"):
        found = posterior(prior[:n, :n], y, **test)
    assert int(found.dropped) == 1
    once = posterior(PRIOR[:N, :N], Y.at[0].add(0.5), **TEST)
    np.testing.assert_allclose(found.test.mean, once.test.mean, atol=1e-8)
    np.testing.assert_allclose(found.test.covariance, once.test.covariance, atol=1e-10)
    assert bool(jnp.isnan(found.log_marginal_likelihood))
    noisy = posterior(prior[:n, :n], y, noise=NOISE, **test)
    assert int(noisy.dropped) == 0
    mean, covariance = textbook(prior, NOISE, y)
    np.testing.assert_allclose(noisy.test.mean, mean[n:], atol=1e-10)
    np.testing.assert_allclose(noisy.test.covariance, covariance[n:, n:], atol=1e-10)


OPERATORS = {
    "stored": lambda: (PRIOR[:N, :N], PRIOR[N:, :N]),
    "blocks": lambda: (
        KernelBlocks(rbf, X[:N], batch_size=5),
        KernelBlocks(rbf, X[N:], X[:N], batch_size=5),
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_iterative_is_exact(name):
    kernel, kernel_test = OPERATORS[name]()
    exact = posterior(PRIOR[:N, :N], Y, noise=NOISE, **TEST, **MEANS)
    test = {"kernel_test": kernel_test, "kernel_test_test": PRIOR[N:, N:]}
    options = {"method": "iterative", "rtol": 1e-7, "noise": NOISE, **MEANS}
    found = posterior(kernel, Y, **test, **options)
    np.testing.assert_allclose(found.train.mean, exact.train.mean, atol=1e-6)
    np.testing.assert_allclose(found.test.mean, exact.test.mean, atol=1e-6)
    np.testing.assert_allclose(found.test.covariance, exact.test.covariance, atol=1e-12)
    assert found.log_marginal_likelihood is None
    assert float(found.stats["error"]) < 1e-7


@pytest.mark.long
def test_iterative_on_a_network_couples_outputs():
    """The NTK-GP of a finite network, whose kernel is never formed on the training points."""
    model, x, x_test, y = tanh_mlp(), inputs(5), inputs(2, seed=4), one_hot(5, 2)
    corner = ntk(model, x_test)
    exact = posterior(
        ntk(model, x), y, kernel_test=ntk(model, x_test, x), kernel_test_test=corner, noise=NOISE
    )
    operators = NTKOperator(model, x), NTKOperator(model, x_test, x)
    found = posterior(
        operators[0], y, kernel_test=operators[1], kernel_test_test=corner, noise=NOISE
    )
    np.testing.assert_allclose(found.test.mean, exact.test.mean, atol=1e-5)
    np.testing.assert_allclose(found.test.covariance, exact.test.covariance, atol=1e-9)


def test_samples_have_mean_and_covariance():
    """Within five standard errors, of a covariance that is singular as well."""
    root = inputs(3, 2, seed=5)
    gaussian = Gaussian(inputs(3, 2, seed=6), root @ root.T)
    samples = np.asarray(gaussian.sample(jr.key(1), 4000))
    covariance = np.asarray(gaussian.covariance)
    error = np.sqrt(np.diag(covariance))[:, None] / 4000**0.5
    assert np.all(np.abs(samples.mean(axis=0) - gaussian.mean) < 5 * error)
    deviation = samples - np.asarray(gaussian.mean)[None]
    found = np.einsum("spk,sqk->pqk", deviation, deviation) / 4000
    variances = np.diag(covariance)
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / 4000)
    assert np.all(np.abs(found - covariance[..., None]) < 5 * error[..., None])
    null = np.cross(*np.asarray(root).T)
    np.testing.assert_allclose(np.einsum("spk,p->sk", deviation, null), 0, atol=1e-6)
    assert abs(np.mean(deviation[:, 0, 0] * deviation[:, 0, 1])) < 5 * variances[0] / 4000**0.5


def test_samples_at_several_times_and_of_a_coupled_covariance():
    covariance = jnp.stack([jnp.eye(3), 4 * jnp.eye(3)])
    samples = Gaussian(jnp.zeros((2, 3, 2)), covariance).sample(jr.key(0), 2000)
    assert samples.shape == (2000, 2, 3, 2)
    np.testing.assert_allclose(samples.std(axis=(0, 2, 3)), [1, 2], rtol=0.05)
    coupled = jnp.array([[1.0, 0.9], [0.9, 1.0]]).reshape(1, 2, 1, 2)
    samples = Gaussian(jnp.zeros((1, 2)), coupled).sample(jr.key(0), 2000)
    np.testing.assert_allclose(jnp.mean(samples[:, 0, 0] * samples[:, 0, 1]), 0.9, atol=0.2)


@pytest.mark.parametrize("method", ["exact", "iterative"])
def test_kernel_that_is_not_positive_is_refused(method):
    kernel, options = PRIOR[:N, :N] - 0.3 * jnp.eye(N), {"noise": 1.0, "method": method}
    found = posterior(kernel, Y, throw=False, **TEST, **options)
    assert found.result == RESULTS.kernel_not_positive
    assert bool(jnp.isnan(found.train.mean).all())
    with pytest.raises(PredictionError, match="positive semidefinite") as error:
        posterior(kernel, Y, **TEST, **options)
    assert error.value.partial.result == RESULTS.kernel_not_positive
    inconsistent = TEST | {"kernel_test_test": 0.01 * PRIOR[N:, N:]}
    found = posterior(PRIOR[:N, :N], Y, throw=False, **inconsistent, **options)
    assert found.result == RESULTS.kernel_not_positive


def test_solve_that_was_cut_short_is_refused():
    with pytest.raises(PredictionError, match=r"did not converge\. It came to the relative"):
        posterior(PRIOR[:N, :N], Y, method="iterative", max_iterations=1, preconditioner_rank=0)
    options = {"max_iterations": 1, "preconditioner_rank": 0, "throw": False}
    found = posterior(PRIOR[:N, :N], Y, method="iterative", **options)
    assert found.result == RESULTS.max_steps_reached
    assert bool(jnp.isnan(found.train.mean).all())


def test_in_32_bits_and_under_jit():
    kernel, y = PRIOR[:N, :N].astype("float32"), Y.astype("float32")
    found = posterior(kernel, y, noise=NOISE)
    assert found.train.covariance.dtype == jnp.float32
    exact = posterior(PRIOR[:N, :N], Y, noise=NOISE)
    np.testing.assert_allclose(found.train.mean, exact.train.mean, atol=1e-4)
    jitted = jax.jit(lambda k: posterior(k, Y, noise=NOISE).log_marginal_likelihood)
    expected = exact.log_marginal_likelihood
    np.testing.assert_allclose(jitted(PRIOR[:N, :N]), expected, rtol=1e-12)


def test_bad_arguments_are_named(unchecked):
    kernel = PRIOR[:N, :N]
    with pytest.raises(ValueError, match=r"`kernel` has shape \(12, 16\), expected \(n, n\) or"):
        posterior(PRIOR[:N], Y)
    with pytest.raises(ValueError, match="`kernel` is not symmetric: entries differ"):
        posterior(jnp.triu(kernel), Y)
    with pytest.raises(ValueError, match="`kernel` has 1 entries out of 144 that are not finite"):
        posterior(kernel.at[0, 0].set(jnp.inf), Y)
    with pytest.raises(ValueError, match=r"`y` has shape \(3, 2\), expected"):
        posterior(kernel, Y[:3])
    with pytest.raises(ValueError, match=r"`kernel_test` has shape \(4, 3\), expected \(m, 12\)"):
        posterior(kernel, Y, kernel_test=PRIOR[N:, :3])
    with pytest.raises(ValueError, match=r"`kernel_test_test` has shape \(4, 3\), expected \(4, 4"):
        posterior(kernel, Y, kernel_test=PRIOR[N:, :N], kernel_test_test=PRIOR[N:, :3])
    with pytest.raises(ValueError, match="`kernel_test_test` was given without `kernel_test`"):
        posterior(kernel, Y, kernel_test_test=PRIOR[N:, N:])
    with pytest.raises(ValueError, match=r"`noise` is -1, expected a finite number >= 0"):
        posterior(kernel, Y, noise=-1)
    with pytest.raises(ValueError, match="`method` is 'cg', expected one of"):
        posterior(kernel, Y, method="cg")
    operator = lx.MatrixLinearOperator(kernel, lx.symmetric_tag)
    with pytest.raises(ValueError, match='`method` is "exact" and `kernel` an operator'):
        posterior(operator, Y, method="exact")
    with pytest.raises(TypeError, match="`kernel_test` is an operator, expected an array"):
        posterior(kernel, Y, kernel_test=operator)
    with pytest.raises(ValueError, match=r"`f0` has shape \(3, 2\), expected \(12, 2\)"):
        posterior(kernel, Y, f0=Y[:3])
    with pytest.raises(ValueError, match="Only the mean is known here"):
        posterior(kernel, Y, method="iterative", noise=NOISE).train.sample(jr.key(0), 1)
