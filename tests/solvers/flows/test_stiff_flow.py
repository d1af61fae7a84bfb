"""Flows that are stiff, against scipy's implicit Radau; and the stabilised method by itself."""

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.special import softmax

from solvers import CrossEntropy, gradient_flow, MeanSquaredError, mse_flow, RungeKuttaChebyshev
from tests.models import one_hot

N, K = 6, 3
LABELS = one_hot(N, K)
F0 = jr.normal(jr.key(3), (N, K))


def kernel_of_condition(condition, scale=1.0):
    """Eigenvalues from `scale` n down to scale n / condition, in random directions."""
    vectors, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(N, N)))
    kernel = N * scale * (vectors * np.geomspace(1, 1 / condition, N)) @ vectors.T
    return (kernel + kernel.T) / 2


def radau(kernel, ts, smoothing):
    target = (1 - smoothing) * np.asarray(LABELS) + smoothing / K

    def velocity(_, f):
        return -(kernel @ (softmax(f.reshape(N, K), axis=1) - target) / N).ravel()

    def jacobian(_, f):
        p = softmax(f.reshape(N, K), axis=1)
        hessian = np.zeros((N, K, N, K))
        for i in range(N):
            hessian[i, :, i, :] = np.diag(p[i]) - np.outer(p[i], p[i])
        whole = np.kron(kernel, np.eye(K)) @ hessian.reshape(N * K, N * K)
        return -whole / N

    solution = solve_ivp(
        velocity,
        (0, ts[-1]),
        np.asarray(F0).ravel(),
        method="Radau",
        t_eval=ts,
        rtol=1e-11,
        atol=1e-12,
        jac=jacobian,
    )
    assert solution.success
    return solution.y.T.reshape(-1, N, K)


@pytest.mark.long
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("condition", "scale", "last"),
    [(1e2, 1.0, 1e4), (1e8, 1.0, 1e6), (1e8, 1e-6, 1e6), (1e2, 1e6, 1e6)],
)
def test_cross_entropy_is_right_to_ten_tolerances_or_fails(smoothing, condition, scale, last):
    """`last` is lambda_max(Theta / n) t: stiffness."""
    kernel = kernel_of_condition(condition, scale)
    ts = np.geomspace(1, last, 4) / scale
    exact = radau(kernel, ts, smoothing)
    rtol, atol = 1e-6, 1e-8
    found = gradient_flow(
        kernel, LABELS, ts, loss=CrossEntropy(smoothing), f0=F0, rtol=rtol, atol=atol, throw=False
    )
    error = np.abs(np.asarray(found.train) - exact)[np.asarray(found.valid)]
    size = np.abs(exact)[np.asarray(found.valid)]
    print(
        f"smoothing {smoothing}, condition {condition:.0e}, scale {scale:.0e}, lambda t {last:.0e}:"
        f" {int(found.stats['num_velocities'])} right-hand sides, error {error.max():.1e}"
    )
    assert bool(found.successful)
    assert np.all(
        error < 10 * (atol + rtol * np.maximum(size, size.max(axis=(1, 2))[:, None, None]))
    )


@pytest.mark.long
def test_the_stabilised_method_takes_over_and_saves_right_hand_sides():
    kernel = kernel_of_condition(1e4)
    ts = [1e5, 1e6]
    options = {"loss": MeanSquaredError(), "f0": F0, "rtol": 1e-6}
    found = gradient_flow(kernel, LABELS, ts, **options)
    exact = mse_flow(kernel, LABELS, ts, f0=F0)
    np.testing.assert_allclose(found.train, exact.train, atol=1e-5)
    # Tsit5 is stable for steps up to 3.3 / lambda: 1.8e6 right-hand sides.
    assert int(found.stats["num_velocities"]) < 40_000
    jitted = jax.jit(lambda f0: gradient_flow(kernel, LABELS, ts, **(options | {"f0": f0})).train)
    np.testing.assert_allclose(jitted(F0), exact.train, atol=1e-5)


@pytest.mark.smoke
def test_the_stabilised_method_is_of_order_two_with_many_stages():
    rates = jnp.logspace(-3, 3, 7)
    # Fast rates ask for up to twenty stages; they start where they end, since a step of fixed size
    # takes no more than a twentieth of them away.
    start = jnp.where(rates > 1, 0.0, 1.0)
    errors = []
    for steps in (32, 64, 128):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: -rates * y * (1 + 0.1 * jnp.sin(t))),
            RungeKuttaChebyshev(),
            0.0,
            4.0,
            4.0 / steps,
            start,
        )
        exact = start * jnp.exp(-rates * (4 + 0.1 * (1 - jnp.cos(4.0))))
        errors.append(float(jnp.max(jnp.abs(solution.ys[0] - exact))))
    slopes = np.diff(np.log(errors)) / np.log(0.5)
    assert np.all(np.abs(slopes - 2) < 0.3)


def test_steps_that_need_too_many_stages_are_taken_smaller():
    rates = jnp.logspace(-2, 3, 6)

    def solve(stages):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: -rates * y),
            RungeKuttaChebyshev(max_stages=stages),
            0.0,
            10.0,
            None,
            jnp.ones(6),
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-8),
            max_steps=100_000,
        )

    few, many = solve(6), solve(4096)
    np.testing.assert_allclose(few.ys[0], jnp.exp(-10 * rates), atol=1e-5)
    # 6 stages are stable for steps up to 0.65 (6^2 - 1) / 1000 / 1.2.
    assert int(few.stats["num_accepted_steps"]) > 10 / (0.67 * 35 / 1200)
    assert int(many.stats["num_accepted_steps"]) < int(few.stats["num_accepted_steps"])


@pytest.mark.long
def test_in_32_bits(float32):
    kernel = kernel_of_condition(1e4).astype("float32")
    f0 = jnp.asarray(F0, "float32")
    ts = np.asarray([1e4, 1e5], "float32")
    y = jnp.asarray(LABELS, "float32")
    found = gradient_flow(kernel, y, ts, loss=MeanSquaredError(), f0=f0, rtol=1e-4, atol=1e-5)
    exact = mse_flow(kernel, y, ts, f0=f0)
    assert found.train.dtype == jnp.float32
    steps = int(found.stats["num_steps"])
    assert steps > 500  # the stabilised method has gone on, with two stages a step at least
    assert int(found.stats["num_velocities"]) >= 6 * 500 + 2 * (steps - 500)
    np.testing.assert_allclose(found.train, exact.train, atol=2e-3)


def test_labels_are_fitted_to_late_times_in_32_bits(float32):
    """One example, two classes, kernel 1: the margin d solves d + e^d = 2 t + 1. What is left of
    the residual is 1 / (2 t), which p - y would lose in rounding.
    """
    ts = np.asarray([1e4, 1e6, 1e8], "float32")
    found = gradient_flow(jnp.ones((1, 1)), jnp.eye(2)[:1], ts, loss=CrossEntropy())
    exact = [brentq(lambda d, t=float(t): d + np.exp(d) - 2 * t - 1, 0, 50) for t in ts]
    margins = found.train[:, 0, 0] - found.train[:, 0, 1]
    assert margins.dtype == jnp.float32
    np.testing.assert_allclose(margins, exact, rtol=1e-5)
