"""The infinite ensemble against exact solutions, drawn models, and wide networks that train."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.linalg import expm

from corrections.symmetric.layouts import RoundingWarning
from solvers.closed_form.gaussian import PredictionError
from solvers.closed_form.gaussian_process import posterior
from solvers.closed_form.infinite_ensemble import ensemble
from solvers.closed_form.mse import mse_flow
from solvers.result import RESULTS
from tests.models import inputs
from zoo import MLP

N, M, K = 6, 3, 2
X, X_TEST = inputs(N), inputs(M, seed=4)
BOTH = jnp.concatenate([X, X_TEST])
Y = inputs(N, K, seed=5)
TIMES = [0.0, 0.5, 3.0, 40.0]
ALL = jnp.concatenate
FREQUENCIES = [inputs(10, seed=6), inputs(7, seed=7)]


def features(which, x):
    """Two sets of features: phi, whose weights start at N(0, 1), and psi, whose start at 0."""
    return jnp.sin(x @ FREQUENCIES[which].T.astype(x.dtype) + 0.3)


def phi_kernel(x1, x2):
    return features(0, x1) @ features(0, x2).T


def both_kernel(x1, x2):
    """The tangent kernel of f = a . phi + b . psi."""
    return phi_kernel(x1, x2) + features(1, x1) @ features(1, x2).T


def jacobian(x):
    return np.concatenate([features(0, x), features(1, x)], axis=1)


def propagators(t):
    """F, G of theta(t) = F theta(0) + G y, which solves theta' = -J^T (J theta - y) / n."""
    j = jacobian(X)
    size = j.shape[1]
    generator = np.zeros((size + N, size + N))
    generator[:size] = np.concatenate([-j.T @ j, j.T], axis=1) / N
    solution = expm(generator * t)[:size]
    return solution[:, :size], solution[:, size:]


@pytest.fixture(scope="module")
def found():
    """For f = a . phi + b . psi, linear in its parameters: nngp != ntk, at any width."""
    return ensemble(phi_kernel, both_kernel, X, Y, TIMES, x_test=X_TEST)


@pytest.mark.smoke
def test_mean_and_covariance_are_those_of_models_linear_in_their_parameters(found):
    starts = np.diag([1.0] * 10 + [0.0] * 7)
    j = jacobian(BOTH)
    for t, mean, covariance in zip(TIMES, found.points.mean, found.points.covariance, strict=True):
        start, target = propagators(t)
        np.testing.assert_allclose(mean, j @ target @ Y, atol=1e-9)
        moved = j @ start
        np.testing.assert_allclose(covariance, moved @ starts @ moved.T, atol=1e-9)
    assert bool(found.valid.all())
    np.testing.assert_array_equal(found.train.mean, found.points.mean[:, :N])
    np.testing.assert_array_equal(found.test.covariance, found.points.covariance[:, N:, N:])
    np.testing.assert_allclose(found.points.covariance, found.points.covariance.mT, atol=1e-14)


@pytest.mark.smoke
def test_200_trained_linear_models_agree_within_statistical_error(found):
    """Five standard errors, of means and of covariances, at each time and point."""
    draws = 200
    starts = np.zeros((draws, 17, K))
    starts[:, :10] = np.random.default_rng(0).standard_normal((draws, 10, K))
    for t, mean, covariance in zip(TIMES, found.points.mean, found.points.covariance, strict=True):
        start, target = propagators(t)
        outputs = jacobian(BOTH) @ (start @ starts + target @ np.asarray(Y))
        spread = np.sqrt(np.diag(covariance))[:, None] / draws**0.5
        assert np.all(np.abs(outputs.mean(axis=0) - mean) < 5 * spread + 1e-9)
        deviation = outputs - np.asarray(mean)
        estimate = np.einsum("spk,sqk->pq", deviation, deviation) / (K * draws)
        variance = np.diag(covariance)
        error = np.sqrt((np.outer(variance, variance) + covariance**2) / (K * draws))
        assert np.all(np.abs(estimate - covariance) < 5 * error + 1e-9)


def test_at_the_start_it_is_the_prior_and_infinity_is_the_limit():
    times = [0.0, 1e6, 1e9, 1e200, jnp.inf]
    found = ensemble(phi_kernel, both_kernel, X, Y, times, x_test=X_TEST)
    np.testing.assert_array_equal(found.points.mean[0], 0)
    np.testing.assert_allclose(found.points.covariance[0], phi_kernel(BOTH, BOTH), atol=1e-13)
    for part in (found.points.mean, found.points.covariance):
        np.testing.assert_allclose(part[2:4], ALL([part[-1:]] * 2), atol=1e-9)
    np.testing.assert_allclose(found.train.mean[-1], Y, atol=1e-10)
    np.testing.assert_allclose(found.train.covariance[-1], 0, atol=1e-20)
    mean = mse_flow(both_kernel(X, X), Y, [jnp.inf], kernel_test=both_kernel(X_TEST, X)).test[0]
    np.testing.assert_allclose(found.test.mean[-1], mean, atol=1e-10)


def test_training_the_readout_only_is_the_posterior_without_noise():
    """Matthews et al. (2017): with ntk = nngp, samples from the posterior by gradient descent."""
    found = ensemble(phi_kernel, phi_kernel, X, Y, [jnp.inf], x_test=X_TEST)
    exact = posterior(
        phi_kernel(X, X),
        Y,
        kernel_test=phi_kernel(X_TEST, X),
        kernel_test_test=phi_kernel(X_TEST, X_TEST),
    )
    np.testing.assert_allclose(found.test.mean[0], exact.test.mean, atol=1e-10)
    np.testing.assert_allclose(found.test.covariance[0], exact.test.covariance, atol=1e-10)


def test_point_that_is_there_twice_is_learned_as_one():
    """Its two targets pull at their mean, with twice the weight; nothing is NaN."""
    x, y = ALL([X, X[:1]]), ALL([Y, Y[:1] + 1.0])
    with pytest.warns(RoundingWarning, match="1 directions of `ntk`"):
        found = ensemble(phi_kernel, both_kernel, x, y, [1.0, jnp.inf], x_test=X_TEST)
    once = ensemble(phi_kernel, both_kernel, X, Y.at[0].add(0.5), [jnp.inf], x_test=X_TEST)
    np.testing.assert_allclose(found.test.mean[-1], once.test.mean[-1], atol=1e-9)
    np.testing.assert_allclose(found.test.covariance[-1], once.test.covariance[-1], atol=1e-9)
    np.testing.assert_allclose(found.train.mean[:, 0], found.train.mean[:, -1], atol=1e-12)
    samples = found.train.sample(jr.key(0), 3)
    np.testing.assert_allclose(samples[:, :, 0], samples[:, :, -1], atol=1e-6)


def test_features_fewer_than_points_leave_what_they_cannot_fit():
    def few(x1, x2):
        return x1 @ x2.T

    with pytest.warns(RoundingWarning, match=f"{N - 3} directions of `ntk`"):
        found = ensemble(few, few, X, Y, [jnp.inf], x_test=X_TEST)
    assert int(found.dropped) == N - 3
    weights = np.linalg.lstsq(X, Y)[0]
    np.testing.assert_allclose(found.points.mean[0], BOTH @ weights, atol=1e-10)
    np.testing.assert_allclose(found.points.covariance[0], 0, atol=1e-12)


@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_ridge_is_ridge_regression_in_the_limit(scale):
    kernel = both_kernel(X, X)
    size = 0.2 * (jnp.trace(kernel) / N if scale == "relative" else 1)
    reach = jnp.linalg.solve(kernel + size * jnp.eye(N), both_kernel(X, BOTH)).T
    left = features(0, BOTH) - reach @ features(0, X)
    options = {"diag_reg": 0.2, "diag_reg_scale": scale, "x_test": X_TEST}
    found = ensemble(phi_kernel, both_kernel, X, Y, [jnp.inf], **options)
    np.testing.assert_allclose(found.points.mean[0], reach @ Y, atol=1e-10)
    np.testing.assert_allclose(found.points.covariance[0], left @ left.T, atol=1e-10)


def test_kernel_that_is_not_positive_is_refused():
    def indefinite(x1, x2):
        return phi_kernel(x1, x2) - 2 * x1 @ x2.T

    for kernels in ((indefinite, both_kernel), (phi_kernel, indefinite)):
        found = ensemble(*kernels, X, Y, [1.0], throw=False)
        assert found.result == RESULTS.kernel_not_positive
        assert not bool(found.valid.any())
        assert bool(jnp.isnan(found.train.covariance).all())
        with pytest.raises(PredictionError, match="positive semidefinite"):
            ensemble(*kernels, X, Y, [1.0])


def test_negative_eigenvalues_of_the_size_of_rounding_are_zero():
    def rounded(x1, x2):
        return x1 @ x2.T - 1e-15 * (x1[:, None] == x2[None]).all(axis=-1).astype(x1.dtype)

    def exactly(x1, x2):
        return x1 @ x2.T

    with pytest.warns(RoundingWarning):
        found = ensemble(rounded, rounded, X, Y, [2.0, jnp.inf])
    with pytest.warns(RoundingWarning):
        exact = ensemble(exactly, exactly, X, Y, [2.0, jnp.inf])
    np.testing.assert_allclose(found.train.mean, exact.train.mean, atol=1e-12)


def test_in_32_bits_under_jit_and_without_test_points():
    single = ensemble(
        phi_kernel, both_kernel, X.astype("float32"), Y.astype("float32"), [1.0, 30.0], throw=False
    )
    exact = ensemble(phi_kernel, both_kernel, X, Y, [1.0, 30.0])
    assert exact.test is None
    assert exact.points.covariance.shape == (2, N, N)
    jitted = eqx.filter_jit(
        lambda y: ensemble(phi_kernel, both_kernel, X, y, [1.0, 30.0]).train.mean
    )
    np.testing.assert_allclose(jitted(Y), exact.train.mean, rtol=1e-12)
    assert single.train.mean.dtype == jnp.float32
    np.testing.assert_allclose(single.train.mean, exact.train.mean, atol=1e-3)


def test_a_small_ridge_costs_float32_no_more_than_a_solve_does():
    """An inverse that is multiplied by the kernel afterwards is ten times worse."""
    n, ridge = 400, 1e-2
    x = jnp.linspace(-5.0, 5.0, n, dtype=jnp.float32)[:, None]
    y = jnp.sin(x) + 0.1 * jr.normal(jr.key(0), x.shape, jnp.float32)
    kernel = jnp.exp(-((x - x.T) ** 2) / 2)
    found = ensemble(lambda a, b: kernel, lambda a, b: kernel, x, y, [jnp.inf], diag_reg=ridge)
    double = np.asarray(kernel, np.float64)
    system = double + ridge * np.eye(n)
    exact = double @ np.linalg.solve(system, np.asarray(y, np.float64))
    left = ridge * np.linalg.inv(system)
    assert found.train.mean.dtype == jnp.float32
    np.testing.assert_allclose(found.train.mean[0], exact, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.train.covariance[0], left @ double @ left, rtol=0, atol=2e-6)


def test_bad_arguments_are_named(unchecked):
    def call(nngp=phi_kernel, ntk=both_kernel, x=X, y=Y, ts=(1.0,), **options):
        return ensemble(nngp, ntk, x, y, ts, **options)

    with pytest.raises(TypeError, match="`ntk` is of type ArrayImpl, expected a function"):
        call(ntk=phi_kernel(X, X))
    with pytest.raises(ValueError, match=r"`nngp\(x1, x2\)` has shape \(6,\), expected \(6, 6\)"):
        call(nngp=lambda a, b: a[:, 0])
    with pytest.raises(ValueError, match=r"`ntk\(x1, x2\)` is not symmetric"):
        call(ntk=lambda a, b: a @ jnp.triu(jnp.ones((3, 3))) @ b.T)
    with pytest.raises(ValueError, match=r"`nngp\(x1, x2\)` has 36 entries out of 36 that are not"):
        call(nngp=lambda a, b: phi_kernel(a, b) * jnp.nan)
    with pytest.raises(ValueError, match=r"`y` has shape \(2, 2\), expected"):
        call(y=Y[:2])
    with pytest.raises(ValueError, match=r"`y` has shape \(6,\), expected targets \(n, k\)"):
        call(y=Y[:, 0])
    with pytest.raises(
        ValueError, match=r"`x_test` holds examples of shape \(2,\) .*, expected those of"
    ):
        call(x_test=X_TEST[:, :2])
    with pytest.raises(ValueError, match="`ts`"):
        call(ts=[2.0, 1.0])
    with pytest.raises(ValueError, match="`diag_reg` is -1, expected a finite number >= 0"):
        call(diag_reg=-1)
    with pytest.raises(ValueError, match="`diag_reg_scale` is 'trace', expected one of"):
        call(diag_reg_scale="trace")


def relu_kernels(x1, x2):
    """NNGP and NTK of a ReLU network with one hidden layer, weight_std sqrt(2): arc-cosine kernels
    (Cho & Saul 2009), from theory section 7.
    """
    d = x1.shape[1]
    k12 = 2 * x1 @ x2.T / d
    scale = jnp.sqrt(
        (2 * jnp.sum(x1**2, axis=1) / d)[:, None] * (2 * jnp.sum(x2**2, axis=1) / d)[None]
    )
    cosine = jnp.clip(k12 / scale, -1, 1)
    angle = jnp.arccos(cosine)
    nngp = scale * (jnp.sqrt(1 - cosine**2) + (jnp.pi - angle) * cosine) / jnp.pi
    return nngp, nngp + k12 * (jnp.pi - angle) / jnp.pi


@pytest.mark.slow
def test_wide_networks_that_train_agree_within_5_percent():
    """32 pairs of ReLU networks of width 2048, each of a network and the one with the opposite
    readout, whose outputs at the start cancel, trained by small steps of descent on 32 points.
    """
    n, m, d, pairs, rate = 32, 16, 8, 32, 0.05
    x = inputs(n + m, d, seed=11)
    y = jnp.sin(x[:n, :1] + x[:n, 1:2] * x[:n, 2:3])
    times = [1.0, 5.0, 25.0]
    kernels = [lambda a, b, i=i: relu_kernels(a, b)[i] for i in (0, 1)]
    predicted = ensemble(*kernels, x[:n], y, times, x_test=x[n:])

    def trained(key, sign):
        model = MLP(d, 1, width=2048, depth=1, key=key)
        *hidden, readout = jax.tree.leaves(model)
        weights = [*hidden, sign * readout]
        like = jax.tree.structure(model)

        def outputs(weights, points):
            return jax.vmap(jax.tree.unflatten(like, weights))(points)

        def loss(weights):
            return jnp.sum((outputs(weights, x[:n]) - y) ** 2) / (2 * n)

        def step(_, weights):
            return jax.tree.map(lambda w, g: w - rate * g, weights, jax.grad(loss)(weights))

        found = []
        for start, end in itertools.pairwise([0.0, *times]):
            weights = jax.lax.fori_loop(0, round((end - start) / rate), step, weights)
            found.append(outputs(weights, x))
        return jnp.stack(found)

    keys = jnp.repeat(jr.split(jr.key(0), pairs), 2)
    signs = jnp.tile(jnp.array([1.0, -1.0]), pairs)
    found = np.asarray(jax.jit(lambda *args: jax.lax.map(lambda a: trained(*a), args))(keys, signs))
    gap = np.linalg.norm(found.mean(axis=0) - predicted.points.mean, axis=(1, 2))
    assert np.all(gap < 0.05 * np.linalg.norm(predicted.points.mean, axis=(1, 2)))
    for part, rows in ((predicted.train, slice(None, n)), (predicted.test, slice(n, None))):
        spread = np.sqrt(np.mean(found[:, :, rows].std(axis=0) ** 2, axis=(1, 2)))
        expected = np.sqrt(np.mean(part.std**2, axis=(1, 2)))
        np.testing.assert_allclose(spread, expected, rtol=0.15)
