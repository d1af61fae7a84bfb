"""Numbers as users have them: counts beyond float32, scalars of JAX, traced ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from corrections import ntk
from solvers import (
    ensemble,
    gradient_descent,
    gradient_flow,
    kernel_regression,
    max_learning_rate,
    MeanSquaredError,
    mse_descent,
    mse_flow,
    posterior,
    width_expansion_descent,
)
from solvers.steps.step_counts import check_steps
from tests.models import inputs, tanh_mlp

X, Y = inputs(6, 3), inputs(6, 2, seed=1)
KERNEL = X @ X.T + 0.1 * jnp.eye(6)


@pytest.mark.parametrize("count", [2**24 - 1, 2**24, 2**24 + 1, 10**8, 2**40, 2**40 + 1])
def test_any_number_of_steps_in_float32(float32, count):
    """1 - (1 - eta)^s, by logarithms in float64."""
    one, rate = jnp.ones((1, 1)), min(1e-8, 3.0 / count)
    found = mse_descent(one, one, [count], learning_rate=rate).train[0, 0, 0]
    exact = float(np.float32(rate))
    np.testing.assert_allclose(found, -np.expm1(count * np.log1p(-exact)), rtol=2e-5)


def test_counts_one_apart_are_told_apart_in_float32(float32):
    """At the rate 2 / lambda each step flips the sign of the error."""
    one = jnp.ones((1, 1))
    found = mse_descent(one, one, [2**30, 2**30 + 1], learning_rate=2.0).train[:, 0, 0]
    np.testing.assert_allclose(found, [0, 2], atol=1e-6)


@pytest.mark.parametrize(
    "steps", [[3, 70], np.array([3, 70]), jnp.array([3, 70]), jnp.array([3.0, 70.0]), (3.0, 70)]
)
def test_counts_of_every_type_are_the_same(steps):
    counts = check_steps(steps)
    np.testing.assert_array_equal(counts.as_integers(), [3, 70])
    np.testing.assert_array_equal(counts.shown, [3.0, 70.0])
    if isinstance(steps, jax.Array):
        traced = jax.jit(lambda s: check_steps(s).as_integers())(steps)
        np.testing.assert_array_equal(traced, [3, 70])


def test_what_goes_step_by_step_refuses_more_than_it_can_count(float32):
    with pytest.raises(ValueError, match=r"`steps` holds a count of 2\^31 or more"):
        gradient_descent(
            jnp.eye(2), jnp.ones((2, 1)), [2**31], loss=MeanSquaredError(), learning_rate=0.1
        )


@pytest.mark.parametrize("steps", [[0.5], [-1], [2, 1], [jnp.inf], [1, 1], [[1]], ["1"], [2.0**63]])
def test_bad_counts_are_named(steps):
    with pytest.raises((ValueError, TypeError), match="`steps`"):
        check_steps(steps)


MODEL = tanh_mlp(width=16)
IN = inputs(4, MODEL.in_size)
OUT = inputs(4, MODEL.out_size, seed=2)


def regression(ridge):
    return kernel_regression(MODEL, IN, OUT, ridge=ridge).train


# A function of the number, and a value of it.
SCALARS = {
    "noise": (lambda s: posterior(KERNEL, Y, noise=s).log_marginal_likelihood, 0.3),
    "noise, iterative": (
        lambda s: posterior(KERNEL, Y, noise=s, method="iterative").train.mean,
        0.3,
    ),
    "ridge of a flow": (lambda s: mse_flow(KERNEL, Y, [2.0], diag_reg=s).train, 0.2),
    "ridge of descent": (
        lambda s: mse_descent(KERNEL, Y, [5], learning_rate=0.1, diag_reg=s).train,
        0.2,
    ),
    "rate": (lambda s: mse_descent(KERNEL, Y, [5], learning_rate=s).train, 0.2),
    "momentum": (lambda s: mse_descent(KERNEL, Y, [5], learning_rate=0.1, momentum=s).train, 0.5),
    "ridge of an ensemble": (
        lambda s: ensemble(lambda a, b: a @ b.T, lambda a, b: a @ b.T, X, Y, [2.0], diag_reg=s)
        .points.covariance,
        0.2,
    ),
    "ridge of a regression": (regression, 0.2),
    "rate of any loss": (
        lambda s: gradient_descent(KERNEL, Y, [3], loss=MeanSquaredError(), learning_rate=s).train,
        0.2,
    ),
    "largest rate": (lambda s: max_learning_rate(KERNEL, momentum=s), 0.5),
    "friction": (
        lambda s: gradient_flow(KERNEL, Y, [1.0], loss=MeanSquaredError(), friction=s).train,
        0.5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALARS)
def test_a_scalar_of_jax_is_a_number_and_has_derivatives(name):
    fn, value = SCALARS[name]
    expected = fn(value)
    np.testing.assert_allclose(fn(jnp.asarray(value)), expected, rtol=1e-12)
    np.testing.assert_allclose(fn(np.float64(value)), expected, rtol=1e-12)
    _, slope = jax.jvp(fn, (jnp.asarray(value),), (jnp.ones(()),))
    h = 1e-5
    difference = (fn(value + h) - fn(value - h)) / (2 * h)
    # A solve by conjugate gradients or in time is known to its tolerance.
    loose = name in ("noise, iterative", "friction")
    scale = float(jnp.abs(difference).max())
    np.testing.assert_allclose(slope, difference, atol=(3e-2 if loose else 1e-6) * scale)


def test_many_numbers_at_once():
    noises = jnp.array([0.1, 1.0])
    found = jax.vmap(lambda s: posterior(KERNEL, Y, noise=s).log_marginal_likelihood)(noises)
    for noise, density in zip(noises, found, strict=True):
        expected = posterior(KERNEL, Y, noise=float(noise)).log_marginal_likelihood
        np.testing.assert_allclose(density, expected, rtol=1e-12)


@pytest.mark.long
def test_half_of_the_largest_rate_is_a_rate():
    rate = 0.5 * max_learning_rate(KERNEL)
    found = gradient_descent(KERNEL, Y, [3], loss=MeanSquaredError(), learning_rate=rate)
    closed = mse_descent(KERNEL, Y, [3], learning_rate=rate)
    np.testing.assert_allclose(found.train, closed.train, atol=1e-12)
    schedule = gradient_descent(
        KERNEL, Y, [3], loss=MeanSquaredError(), learning_rate=optax.constant_schedule(rate)
    )
    np.testing.assert_allclose(schedule.train, closed.train, atol=1e-12)
    kernel = ntk(MODEL, IN)
    slow = 0.01 * max_learning_rate(kernel)
    expansion = width_expansion_descent(MODEL, IN, OUT, [2], learning_rate=slow, throw=False)
    assert bool(jnp.isfinite(expansion.train0).all())


@pytest.mark.parametrize("bad", [-1.0, jnp.nan, jnp.inf, "1", 1j, jnp.ones(2), True, None])
def test_what_is_no_number_is_named(bad, unchecked):
    with pytest.raises((ValueError, TypeError), match="`noise`"):
        posterior(KERNEL, Y, noise=bad)
