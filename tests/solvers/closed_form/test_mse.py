"""Closed forms of squared loss against matrix exponentials, loops, least squares and the ODE."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from scipy.linalg import expm

from corrections import ntk, taylorize
from corrections.parameters import split
from corrections.symmetric.layouts import RoundingWarning
from solvers import (
    gradient_flow,
    linearized_model,
    max_learning_rate,
    MeanSquaredError,
    mse_descent,
    mse_flow,
    RESULTS,
    SolverError,
)
from tests import oracles
from tests.corrections.contraction.test_gradient_factors import random_metric
from tests.models import inputs, one_hot, tanh_mlp
from tests.solvers.flows.test_kernel_flow import kernel_of

N, M, K = 4, 2, 3
Y = one_hot(N, K)
F0 = inputs(N + M, K)
TIMES = [0.0, 0.5, 3.0, 40.0]


def problem(kernel, **options):
    """The arguments for a kernel of N + M rows."""
    return (kernel[:N], Y), {
        "f0": F0[:N],
        "kernel_test": kernel[N:],
        "f0_test": F0[N:],
        **options,
    }


def full_kernel():
    return kernel_of((N + M) * K).reshape(N + M, K, N + M, K)[:, :, :N]


KERNELS = {
    "(n, n)": lambda: kernel_of(N, M),
    "(n, n, k)": lambda: jnp.stack([kernel_of(N, M, seed=s) for s in range(K)], axis=-1),
    "(n, k, n, k)": full_kernel,
}


def as_full(kernel):
    """Any kernel as a matrix over (example, output)."""
    if kernel.ndim == 2:
        kernel = jnp.einsum("ab,kl->akbl", kernel, jnp.eye(K))
    elif kernel.ndim == 3:
        kernel = jnp.einsum("abk,kl->akbl", kernel, jnp.eye(K))
    return np.asarray(kernel.reshape(kernel.shape[0] * K, N * K))


@pytest.mark.parametrize("name", KERNELS)
def test_flow_is_the_matrix_exponential(name):
    kernel = KERNELS[name]()
    args, options = problem(kernel)
    found = mse_flow(*args, TIMES, **options)
    matrix = as_full(kernel)
    theta, rows = matrix[: N * K], matrix[N * K :]
    gap = np.asarray(Y - F0[:N]).ravel()
    for t, train, test in zip(TIMES, found.train, found.test, strict=True):
        learned = (np.eye(N * K) - expm(-theta * t / N)) @ gap
        np.testing.assert_allclose(train.ravel(), F0[:N].ravel() + learned, atol=1e-10)
        expected = F0[N:].ravel() + rows @ np.linalg.solve(theta, learned)
        np.testing.assert_allclose(test.ravel(), expected, atol=1e-8)
    assert bool(found.successful)
    np.testing.assert_array_equal(found.train[0], F0[:N])


def test_flow_is_the_ode():
    args, options = problem(full_kernel())
    closed = mse_flow(*args, TIMES, **options)
    solved = gradient_flow(*args, TIMES, loss=MeanSquaredError(), rtol=1e-10, atol=1e-11, **options)
    np.testing.assert_allclose(closed.train, solved.train, atol=1e-8)
    np.testing.assert_allclose(closed.test, solved.test, atol=1e-8)


def test_infinity_is_the_limit_also_of_a_singular_kernel():
    """At t = inf and as t goes there the same; in the null space nothing moves; no NaN."""
    features = inputs(N + M, 2, seed=3)
    kernel = features @ features[:N].T
    args, options = problem(kernel)
    with pytest.warns(RoundingWarning, match="2 directions of `kernel`"):
        found = mse_flow(*args, [1e3, 1e8, 1e200, jnp.inf], **options)
    assert int(found.dropped) == 2
    for train, test in zip(found.train[1:], found.test[1:], strict=True):
        np.testing.assert_allclose(train, found.train[-1], atol=1e-12)
        np.testing.assert_allclose(test, found.test[-1], atol=1e-12)
    weights = np.linalg.lstsq(features[:N], Y - F0[:N])[0]
    np.testing.assert_allclose(found.test[-1], F0[N:] + features[N:] @ weights, atol=1e-9)
    residual = found.train[-1] - Y
    np.testing.assert_allclose(features[:N].T @ residual, 0, atol=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", KERNELS)
def test_descent_is_the_loop(name, momentum):
    kernel = KERNELS[name]()
    matrix = as_full(kernel)
    rate = 0.7 * float(max_learning_rate(kernel[:N], momentum=momentum))
    f, velocity = np.asarray(F0).ravel().copy(), np.zeros((N + M) * K)
    wanted, expected = [0, 1, 2, 7, 30], []
    for step in range(31):
        if step in wanted:
            expected.append(f.copy())
        residual = (f[: N * K] - np.asarray(Y).ravel()) / N
        velocity = momentum * velocity - rate * matrix @ residual
        f = f + velocity
    args, options = problem(kernel, learning_rate=rate, momentum=momentum)
    found = mse_descent(*args, wanted, **options)
    both = jnp.concatenate([found.train, found.test], axis=1).reshape(len(wanted), -1)
    np.testing.assert_allclose(both, np.stack(expected), atol=1e-10)


def test_small_steps_are_the_flow_and_tiny_eigenvalues_keep_their_digits():
    """Many small steps: 2^30 of them, against the flow, with eigenvalues over eight decades."""
    values = jnp.array([1.0, 1e-4, 1e-8])
    y, steps = jnp.ones((3, 1)), 2**30
    found = mse_descent(jnp.diag(values), y, [steps], learning_rate=3e-7)
    t = steps * 3e-7
    np.testing.assert_allclose(found.train[0, :, 0], -jnp.expm1(-values * t / 3), rtol=1e-6)
    exact = -jnp.expm1(steps * jnp.log1p(-values * 1e-7))
    np.testing.assert_allclose(found.train[0, :, 0], exact, rtol=1e-9)


@pytest.mark.long
def test_parameters_follow_and_reach_the_minimum_norm_solution():
    model, x, y = tanh_mlp(depth=1), inputs(3), one_hot(3, 2)
    metric = random_metric(model)
    kernel, f0 = ntk(model, x, metric=metric), jax.vmap(model)(x)
    found = mse_flow(kernel, y, [2.0, jnp.inf], f0=f0)
    moved = linearized_model(model, x, found.final, metric=metric)
    taylor = taylorize(moved, 1, at=model)
    np.testing.assert_allclose(jax.vmap(taylor)(x), found.train[-1], atol=1e-10)
    vector, outputs, m = oracles.flat(model, metric)
    jacobian = jax.jacrev(outputs)(vector, x).reshape(6, -1)
    root = jnp.sqrt(m)
    least = root * jnp.linalg.lstsq(jacobian * root[None], (y - f0).ravel())[0]
    np.testing.assert_allclose(ravel_pytree(split(moved)[0])[0] - vector, least, atol=1e-9)
    space = jnp.einsum("ak,akbl,bl->", found.final, kernel, found.final)
    np.testing.assert_allclose(space, jnp.sum((least / root) ** 2), rtol=1e-9)


@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_ridge_is_ridge_regression_in_the_limit(scale):
    kernel = kernel_of(N, M)
    args, options = problem(kernel, diag_reg=0.3, diag_reg_scale=scale)
    size = 0.3 * (jnp.trace(kernel[:N]) / N if scale == "relative" else 1)
    weights = jnp.linalg.solve(kernel[:N] + size * jnp.eye(N), Y - F0[:N])
    found = mse_flow(*args, [jnp.inf], **options)
    np.testing.assert_allclose(found.test[0], F0[N:] + kernel[N:] @ weights, atol=1e-10)
    np.testing.assert_allclose(found.train[0], F0[:N] + kernel[:N] @ weights, atol=1e-10)


def test_restart_equals_one_long_run_and_outputs_are_linear_in_targets():
    kernel = full_kernel()
    args, options = problem(kernel)
    whole = mse_flow(*args, [1.0, 3.0], **options)
    options = options | {"f0": whole.train[0], "f0_test": whole.test[0]}
    again = mse_flow(*args, [2.0], **options)
    np.testing.assert_allclose(again.test[0], whole.test[1], atol=1e-10)
    one, two = (mse_flow(kernel[:N], c * Y, [1.5]).train for c in (1.0, 2.0))
    np.testing.assert_allclose(2 * one, two, rtol=1e-12)


def test_failures_are_marked():
    kernel = jnp.diag(jnp.array([1.0, -0.5]))
    y = jnp.ones((2, 1))
    found = mse_flow(kernel, y, [1.0], throw=False)
    assert found.result == RESULTS.kernel_not_positive
    assert not bool(found.valid.any())
    assert bool(jnp.isnan(found.train).all())
    with pytest.raises(SolverError, match="stopped being positive"):
        mse_flow(kernel, y, [1.0])
    rising = mse_descent(jnp.eye(2), y, [10, 5000], learning_rate=9.0, throw=False)
    assert rising.result == RESULTS.diverged
    np.testing.assert_array_equal(rising.valid, [True, False])


def test_in_32_bits_and_under_jit():
    kernel = kernel_of(N).astype("float32")
    found = mse_flow(kernel, Y.astype("float32"), [1.0, jnp.inf])
    assert found.train.dtype == jnp.float32
    exact = mse_flow(kernel.astype(float), Y, [1.0, jnp.inf])
    np.testing.assert_allclose(found.train, exact.train, atol=2e-4)
    jitted = eqx.filter_jit(lambda k: mse_descent(k, Y, [3], learning_rate=0.1).train)(kernel_of(N))
    expected = mse_descent(kernel_of(N), Y, [3], learning_rate=0.1).train
    np.testing.assert_allclose(jitted, expected, rtol=1e-12)


def test_momentum_is_optax_sgd():
    """One parameter, L = lam theta^2 / 2: f = J theta with J^2 = lam."""
    lam, rate, m = 0.8, 0.9, 0.6
    optimizer = optax.sgd(rate, momentum=m)
    theta = jnp.array(1.0)
    state = optimizer.init(theta)
    path = [float(theta)]
    for _ in range(5):
        updates, state = optimizer.update(lam * theta, state)
        theta = theta + updates
        path.append(float(theta))
    found = mse_descent(
        jnp.array([[lam]]),
        jnp.zeros((1, 1)),
        list(range(6)),
        learning_rate=rate,
        momentum=m,
        f0=jnp.array([[lam**0.5]]),
    )
    np.testing.assert_allclose(found.train[:, 0, 0] / lam**0.5, path, rtol=1e-12)


def test_bad_arguments_are_named(unchecked):
    kernel = kernel_of(N)
    with pytest.raises(ValueError, match=r"`ts` is \[1. 0.\], expected strictly increasing"):
        mse_flow(kernel, Y, [1.0, 0.0])
    with pytest.raises(ValueError, match=r"`steps` is \[0.5\], expected whole numbers"):
        mse_descent(kernel, Y, [0.5], learning_rate=0.1)
    with pytest.raises(ValueError, match=r"`momentum` is 1\.0, expected a number in"):
        mse_descent(kernel, Y, [1], learning_rate=0.1, momentum=1.0)
    with pytest.raises(ValueError, match="`diag_reg_scale` is 'trace', expected one of"):
        mse_flow(kernel, Y, [1.0], diag_reg=0.1, diag_reg_scale="trace")
    with pytest.raises(ValueError, match="`learning_rate` is 0, expected a finite number > 0"):
        mse_descent(kernel, Y, [1], learning_rate=0)
    with pytest.raises(ValueError, match=r"`coefficients` has shape \(2, 2\), expected \(3, 2\)"):
        linearized_model(tanh_mlp(), inputs(3), jnp.ones((2, 2)))
