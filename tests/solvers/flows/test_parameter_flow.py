import re

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import ntk, taylorize
from solvers import (
    CrossEntropy,
    gradient_flow,
    hierarchy_flow,
    MeanSquaredError,
    parameter_flow,
    SolverError,
)
from tests.models import inputs, one_hot, tanh_mlp, TwoLayerLinear
from zoo import learning_rates, MLP, NTK, STANDARD


@pytest.mark.smoke
@pytest.mark.parametrize("loss", [MeanSquaredError(), lambda f, y: jnp.sum(jnp.cosh(f - y))])
def test_two_layer_linear_network_conserves_its_invariant(loss):
    """Theta^2 - 4 f^2 / n is constant in time for any loss (theory, section 6)."""
    n = 6
    model, x = TwoLayerLinear(n, key=jr.key(3)), jnp.ones((1, 1))

    def invariant(model):
        return jnp.squeeze(ntk(model, x)) ** 2 - 4 * jnp.squeeze(model(x[0])) ** 2 / n

    trained = parameter_flow(
        model,
        x,
        jnp.array([[2.0]]),
        [0.5, 3.0],
        loss=loss,
        solver=diffrax.Dopri8(),
        rtol=1e-13,
        atol=1e-14,
    )
    assert abs(float(trained.train[-1, 0, 0]) - float(model(x[0])[0])) > 0.5
    np.testing.assert_allclose(invariant(trained.final), invariant(model), rtol=1e-12)


def test_two_layer_linear_network_ends_at_its_exact_kernel():
    """Where f -> y, Theta_oo^2 = Theta_0^2 + 4 (y^2 - f_0^2) / n."""
    n, y = 6, 2.0
    model, x = TwoLayerLinear(n, key=jr.key(3)), jnp.ones((1, 1))
    trained = parameter_flow(
        model, x, jnp.array([[y]]), [60.0], loss=MeanSquaredError(), rtol=1e-11, atol=1e-12
    )
    np.testing.assert_allclose(trained.train[0, 0, 0], y, rtol=1e-9)
    theta_0, f_0 = float(jnp.squeeze(ntk(model, x))), float(model(x[0])[0])
    expected = np.sqrt(theta_0**2 + 4 * (y**2 - f_0**2) / n)
    np.testing.assert_allclose(jnp.squeeze(ntk(trained.final, x)), expected, rtol=1e-9)


@pytest.mark.long
@pytest.mark.smoke
def test_linearised_network_follows_the_frozen_kernel():
    """Two independent roads to one solution: parameter space and function space."""
    model, x, x_test, y = tanh_mlp(), inputs(4), inputs(3, seed=11), one_hot(4, 2)
    metric = jax.tree.map(
        lambda p: 0.5 if p.ndim == 2 else 2.0, eqx.filter(model, eqx.is_inexact_array)
    )
    ts = [0.0, 0.5, 2.0, 10.0]
    options = {"loss": CrossEntropy(), "rtol": 1e-10, "atol": 1e-11}
    linear = taylorize(model, 1)
    in_parameters = parameter_flow(
        linear,
        x,
        y,
        ts,
        x_test=x_test,
        metric=eqx.tree_at(lambda m: m.model, eqx.filter(linear, eqx.is_inexact_array), metric),
        **options,
    )
    in_functions = gradient_flow(
        ntk(model, x, metric=metric),
        y,
        ts,
        f0=jax.vmap(model)(x),
        kernel_test=ntk(model, x_test, x, metric=metric),
        f0_test=jax.vmap(model)(x_test),
        **options,
    )
    np.testing.assert_allclose(in_parameters.train, in_functions.train, atol=1e-8)
    np.testing.assert_allclose(in_parameters.test, in_functions.test, atol=1e-8)


@pytest.mark.long
def test_is_the_limit_of_small_gradient_descent_steps():
    """Error of eta-steps falls like eta: slope 1."""
    model, x, y, loss = tanh_mlp(), inputs(4), one_hot(4, 2), CrossEntropy()
    end = 1.0
    flow = parameter_flow(model, x, y, [end], loss=loss, rtol=1e-10, atol=1e-11)

    @eqx.filter_jit
    def descend(model, steps):
        params, static = eqx.partition(model, eqx.is_inexact_array)

        def step(_, params):
            def training_loss(p):
                return jnp.mean(jax.vmap(loss)(jax.vmap(eqx.combine(p, static))(x), y))

            gradient = jax.grad(training_loss)(params)
            return jax.tree.map(lambda p, g: p - end / steps * g, params, gradient)

        return eqx.combine(jax.lax.fori_loop(0, steps, step, params), static)

    counts = np.array([20, 80, 320])
    errors = [
        float(jnp.max(jnp.abs(jax.vmap(descend(model, int(c)))(x) - flow.train[0]))) for c in counts
    ]
    assert np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(-1, abs=0.05)


@pytest.mark.long
def test_ntk_and_standard_train_alike_under_the_metric():
    """Theory section 9: the metric is the squared ratio of the multipliers."""
    x, y, ts = inputs(4), one_hot(4, 2), [0.5, 3.0]
    model, standard = tanh_mlp(parameterization=NTK), tanh_mlp(parameterization=STANDARD)
    metric = eqx.tree_at(
        lambda m: [leaf for layer in m.layers for leaf in (layer.weight, layer.bias)],
        eqx.filter(standard, eqx.is_inexact_array),
        [s**2 for layer in model.layers for s in (layer.weight_multiplier, layer.bias_multiplier)],
    )
    options = {"loss": CrossEntropy(), "rtol": 1e-11, "atol": 1e-12}
    a = parameter_flow(model, x, y, ts, **options)
    b = parameter_flow(standard, x, y, ts, metric=metric, **options)
    np.testing.assert_allclose(a.train, b.train, atol=1e-9)


def test_final_is_the_trained_model_and_restarts():
    model, x, y = tanh_mlp(), inputs(4), one_hot(4, 2)
    options = {"loss": CrossEntropy(), "rtol": 1e-10, "atol": 1e-11}
    long = parameter_flow(model, x, y, [0.0, 1.0, 3.0], **options)
    np.testing.assert_allclose(long.train[0], jax.vmap(model)(x), rtol=1e-13)
    np.testing.assert_allclose(jax.vmap(long.final)(x), long.train[-1], rtol=1e-12)
    second = parameter_flow(
        parameter_flow(model, x, y, [1.0], **options).final, x, y, [2.0], **options
    )
    np.testing.assert_allclose(second.train[-1], long.train[-1], atol=1e-8)


def test_parameters_with_zero_metric_stay():
    model, x, y = tanh_mlp(), inputs(4), one_hot(4, 2)
    zero = jax.tree.map(lambda _: 0.0, eqx.filter(model, eqx.is_inexact_array))
    metric = eqx.tree_at(lambda m: m.layers[-1].weight, zero, 1.0)
    trained = parameter_flow(model, x, y, [2.0], loss=CrossEntropy(), metric=metric).final
    assert eqx.tree_equal(trained.layers[:-1], model.layers[:-1])
    assert not np.allclose(trained.layers[-1].weight, model.layers[-1].weight)


@pytest.mark.long
def test_float32_keeps_small_displacements(float32):
    """Displacements are integrated, not parameters: the outputs' change keeps its digits."""
    model = tanh_mlp(width=64)
    x, y = inputs(4), one_hot(4, 2).astype("float32")
    solved = parameter_flow(model, x, y, [0.0, 1e-3], loss=CrossEntropy(), rtol=1e-5)
    assert solved.train.dtype == jnp.float32
    kernel = np.asarray(ntk(model, x), "float64")
    g = (jax.nn.softmax(solved.train[0]) - y) / 4
    moved = np.asarray(solved.train[1] - solved.train[0])
    np.testing.assert_allclose(
        moved, -1e-3 * np.tensordot(kernel, np.asarray(g), axes=2), atol=1e-6
    )


@pytest.mark.long
def test_failures_carry_the_trajectory():
    model, x, y = tanh_mlp(), inputs(4), one_hot(4, 2)
    with pytest.raises(SolverError, match="Try increasing `max_steps`") as caught:
        parameter_flow(model, x, y, [0.0, 1e-3, 50.0], loss=CrossEntropy(), max_steps=3)
    found = caught.value.partial
    np.testing.assert_array_equal(found.valid, [True, True, False])
    exact = parameter_flow(model, x, y, [float(found.t_reached)], loss=CrossEntropy())
    np.testing.assert_allclose(jax.vmap(found.final)(x), exact.train[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ts": [1.0, 0.5]}, "`ts` is not sorted"),
        ({"x": inputs(3)}, "`y` has shape (4, 2), expected (3, 2)"),
        ({"x": inputs(4).at[2, 1].set(jnp.nan)}, "`x` has 1 entries out of 12 that are not finite"),
        ({"y": one_hot(4, 3)}, "`y` has shape (4, 3), expected (4, 2)"),
        ({"x_test": inputs(2, d=5)}, "`model` does not take an example of `x_test`"),
        ({"metric": -1.0}, "`metric` has the entry -1.0"),
        ({"rtol": -1.0}, "`rtol` is -1.0"),
    ],
)
def test_bad_arguments_are_named(unchecked, arguments, message):
    defaults = {
        "model": tanh_mlp(),
        "x": inputs(4),
        "y": one_hot(4, 2),
        "ts": [1.0],
        "loss": CrossEntropy(),
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        parameter_flow(**(defaults | arguments))


@pytest.mark.long
def test_it_shows_how_far_the_parameters_and_the_kernel_have_come():
    """Against the trained model itself; and order 2 moves the parameters as the linear model."""
    key = jr.key(2)
    model = MLP(3, 2, width=6, depth=1, activation="tanh", key=key)
    x, y = jr.normal(key, (4, 3)), jr.normal(jr.key(7), (4, 2))
    metric = learning_rates(model, equivalent_to=STANDARD)
    options = {"loss": MeanSquaredError(), "metric": metric}
    shown = parameter_flow(model, x, y, [0.0, 0.5, 2.0], kernel_pairs=(x[:2], x), **options)
    start, end = (
        jax.tree.leaves(eqx.filter(m, eqx.is_inexact_array)) for m in (model, shown.final)
    )
    rates = jax.tree.leaves(metric)
    squares = [jnp.sum((b - a) ** 2) / r for a, b, r in zip(start, end, rates, strict=True)]
    np.testing.assert_allclose(shown.displacement[-1], jnp.sqrt(sum(squares)), rtol=1e-10)
    assert shown.displacement[0] == 0
    expected = ntk(shown.final, x[:2], x, metric=metric)
    np.testing.assert_allclose(shown.kernel[-1], expected, rtol=1e-10)
    assert shown.kernel.shape == (3, 2, 2, 4, 2)

    linear = hierarchy_flow(model, x, y, [0.5, 2.0], order=2, rtol=1e-9, atol=1e-11, **options)
    taylor = taylorize(model, 1)
    of_taylor = taylor.lift_metric(metric)
    truth = parameter_flow(
        taylor,
        x,
        y,
        [0.5, 2.0],
        loss=MeanSquaredError(),
        metric=of_taylor,
        rtol=1e-9,
        atol=1e-11,
    )
    np.testing.assert_allclose(linear.displacement, truth.displacement, rtol=1e-7)
