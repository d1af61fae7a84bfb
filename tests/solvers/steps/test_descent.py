import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from corrections import ntk, NTKOperator, taylorize
from solvers import (
    CrossEntropy,
    gradient_descent,
    gradient_flow,
    Hinge,
    MeanSquaredError,
    mse_descent,
    RESULTS,
    SolverError,
)
from tests.models import inputs, one_hot, tanh_mlp

N, M, K = 4, 2, 2
MODEL = tanh_mlp()
X, X_TEST = inputs(N), inputs(M, seed=1)


def kernel_on(n, seed=0):
    features = jr.normal(jr.key(seed), (n, n + 2))
    return features @ features.T


FULL = kernel_on(N + M)
KERNEL, KERNEL_TEST = FULL[:N, :N], FULL[N:, :N]
Y = one_hot(N, K)
F0, F0_TEST = jr.normal(jr.key(1), (N, K)), jr.normal(jr.key(2), (M, K))


def features_loop(loss_gradient, optimizer, steps, batches=None):
    """Optax on the parameters of f = phi . theta, whose kernel is phi phi^T."""
    root = np.linalg.cholesky(np.asarray(FULL))
    phi, phi_test = jnp.asarray(root[:N]), jnp.asarray(root[N:])
    theta = jnp.zeros((N + M, K))
    state, rows = optimizer.init(theta), []
    for s in range(steps):
        batch = jnp.arange(N) if batches is None else batches[s % len(batches)]
        f = F0 + phi @ theta
        g = loss_gradient(f[batch], Y[batch]) / len(batch)
        updates, state = optimizer.update(phi[batch].T @ g, state, theta)
        theta = optax.apply_updates(theta, updates)
        rows.append((F0 + phi @ theta, F0_TEST + phi_test @ theta))
    return rows


def cross_entropy_gradient(f, y):
    e = jnp.exp(f - jnp.max(f, axis=1, keepdims=True))
    return e / jnp.sum(e, axis=1, keepdims=True) - y


@pytest.mark.smoke
@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_are_those_of_optax_on_the_parameters(nesterov):
    schedule = optax.exponential_decay(0.3, 5, 0.7)
    batches = jnp.array([[0, 1], [2, 3], [1, 2]])
    options = {"learning_rate": schedule, "momentum": 0.8, "nesterov": nesterov}
    rows = features_loop(cross_entropy_gradient, optax.sgd(**options), 7, batches)
    found = gradient_descent(
        KERNEL,
        Y,
        [1, 7],
        loss=CrossEntropy(),
        batches=batches,
        f0=F0,
        kernel_test=KERNEL_TEST,
        f0_test=F0_TEST,
        **options,
    )
    for i, s in enumerate((1, 7)):
        np.testing.assert_allclose(found.train[i], rows[s - 1][0], rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(found.test[i], rows[s - 1][1], rtol=1e-11, atol=1e-12)


def test_squared_loss_is_the_closed_form_and_a_restart_goes_on():
    options = {"learning_rate": 0.2, "momentum": 0.5}
    steps = [0, 3, 40]
    found = gradient_descent(KERNEL, Y, steps, loss=MeanSquaredError(), f0=F0, **options)
    exact = mse_descent(KERNEL, Y, steps, f0=F0, **options)
    np.testing.assert_allclose(found.train, exact.train, atol=1e-12)
    half = gradient_descent(KERNEL, Y, [17], loss=MeanSquaredError(), f0=F0, **options)
    rest = gradient_descent(KERNEL, Y, [23], loss=MeanSquaredError(), start=half.final, **options)
    assert jnp.array_equal(rest.train[-1], found.train[-1])


def test_an_operator_and_weights_are_the_dense_kernel_with_repeated_points():
    operator = NTKOperator(MODEL, X)
    f0 = jnp.zeros((N, K))
    options = {"loss": CrossEntropy(), "learning_rate": 0.1, "weights": jnp.array([1.0, 0, 2, 1])}
    matrix_free = gradient_descent(operator, Y, [5], f0=f0, **options)
    dense = gradient_descent(ntk(MODEL, X), Y, [5], f0=f0, **options)
    np.testing.assert_allclose(matrix_free.train, dense.train, atol=1e-12)
    chosen = jnp.array([0, 2, 2, 3])  # weights as repetitions, of four points too
    repeated = gradient_descent(
        ntk(MODEL, X[chosen]),
        Y[chosen],
        [5],
        loss=CrossEntropy(),
        learning_rate=0.1,
        f0=f0,
    )
    np.testing.assert_allclose(dense.train[0, chosen], repeated.train[0], atol=1e-12)


def test_hinge_stops_at_its_margin_and_chatters_no_further_than_a_step():
    labels = jnp.array([0, 1, 1, 0])
    rate = 0.05
    found = gradient_descent(KERNEL, labels, [4000], loss=Hinge(), learning_rate=rate)
    f = found.train[-1]
    wanted = jnp.eye(2)[labels]
    margin = jnp.sum(wanted * f, axis=1) - jnp.sum((1 - wanted) * f, axis=1)
    # One step moves a margin by no more than 2 rate |Theta|_inf / n.
    assert float(jnp.min(margin)) > 1 - 2 * rate * float(jnp.max(jnp.sum(jnp.abs(KERNEL), 1))) / N


def test_small_steps_with_momentum_are_the_flow_with_friction_to_first_order():
    """Theory, section 1: time sqrt(eta) x steps, c = (1 - m) / sqrt(eta)."""
    c, t, errors = 1.5, 2.0, []
    flow = gradient_flow(
        KERNEL, Y, [t], loss=CrossEntropy(), f0=F0, friction=c, rtol=1e-10, atol=1e-12
    )
    for count in (100, 200, 400):
        h = t / count
        steps = gradient_descent(
            KERNEL,
            Y,
            [count],
            loss=CrossEntropy(),
            f0=F0,
            learning_rate=h**2,
            momentum=1 - c * h,
        )
        errors.append(float(jnp.max(jnp.abs(steps.train - flow.train))))
    slopes = np.diff(np.log(errors)) / np.log(0.5)
    assert np.all(np.abs(slopes - 1) < 0.1)


def test_a_descent_that_diverges_stops_at_its_last_finite_step():
    options = {"loss": MeanSquaredError(), "learning_rate": 100.0, "f0": F0}
    found = gradient_descent(KERNEL, Y, [1, 10_000], throw=False, **options)
    assert found.result == RESULTS.diverged
    assert found.valid.tolist() == [True, False]
    assert bool(jnp.all(jnp.isfinite(found.final[0])))
    last = int(found.t_reached)
    before = gradient_descent(KERNEL, Y, [last], **options)
    np.testing.assert_array_equal(before.train[0], found.final[0])
    with pytest.raises(SolverError, match="not finite"):
        gradient_descent(KERNEL, Y, [last + 1], **options)


def test_training_the_linearised_network_follows_the_kernel():
    x, y = X, one_hot(N, K)
    model = taylorize(MODEL, 1)
    f0 = jnp.stack([MODEL(example) for example in x])
    found = gradient_descent(ntk(MODEL, x), y, [3], loss=CrossEntropy(), learning_rate=0.1, f0=f0)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    for _ in range(3):
        outputs, pull = jax.vjp(lambda p: jax.vmap(eqx.combine(p, static))(x), params)
        (gradient,) = pull(cross_entropy_gradient(outputs, y) / N)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    np.testing.assert_allclose(found.train[0], jax.vmap(eqx.combine(params, static))(x), atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0, expected a finite number > 0."),
        ({"learning_rate": lambda s: 0.1 * jnp.ones(2)}, "`learning_rate` gives f64[2] for step s"),
        ({"learning_rate": lambda s: None}, "`learning_rate` gives None for step s, expected a"),
        ({"learning_rate": lambda s: 0.1j}, "`learning_rate` gives 0.1j for step s"),
        ({"momentum": 1.0}, "`momentum` is 1.0, expected a number in [0, 1)."),
        ({"steps": [2, 1]}, "`steps` is [2 1], expected strictly increasing"),
        ({"steps": [0.5]}, "expected whole numbers >= 0."),
        ({"batches": jnp.array([[0, 4]])}, "`batches` holds indices from 0 to 4, expected 0 to 3."),
        ({"weights": -jnp.ones(N)}, "`weights` holds -1.0 (at index 0)"),
        ({"start": (F0,)}, "`start` has parts of shape [(4, 2)], expected [(4, 2), (4, 2), ()]"),
    ],
)
def test_bad_arguments_are_named(unchecked, arguments, message):
    defaults = {
        "kernel": KERNEL,
        "y": Y,
        "steps": [1],
        "loss": CrossEntropy(),
        "learning_rate": 0.1,
    }
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        gradient_descent(**(defaults | arguments))
