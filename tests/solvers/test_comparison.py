"""Networks beside their predictions."""

import re
from typing import get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from corrections import ntk
from solvers import (
    compare_predictions,
    CrossEntropy,
    hierarchy_flow,
    MeanSquaredError,
    mse_descent,
    parameter_flow,
    scale_by_metric,
    train,
    width_expansion,
)
from solvers.predictions import Prediction, SOLVES
from tests.models import inputs, one_hot, Polynomial, tanh_mlp
from zoo import learning_rates

TIGHT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::solvers.ValidityWarning")
def test_holds_what_the_solvers_give_and_the_distances():
    model, x, y, x_test = tanh_mlp(), inputs(3), inputs(3, 2, 4), inputs(2, 3, 7)
    ts, names = [0.0, 0.5, 2.0], []
    found = compare_predictions(
        model,
        x,
        y,
        ts,
        loss=MeanSquaredError(),
        predictions=("order 2", "Taylor 1", "width expansion"),
        x_test=x_test,
        metric=0.7,
        started=names.append,
        **TIGHT,
    )
    assert (
        names
        == ["network", *found.predictions]
        == ["network", "order 2", "Taylor 1", "width expansion"]
    )
    options = {"x_test": x_test, "metric": 0.7}
    loss = {"loss": MeanSquaredError(), **TIGHT}
    network = parameter_flow(model, x, y, ts, **loss, **options)
    expected = {
        "order 2": hierarchy_flow(model, x, y, ts, order=2, **loss, **options),
        "Taylor 1": hierarchy_flow(model, x, y, ts, order=2, **loss, **options),  # the same flow
        "width expansion": width_expansion(model, x, y, ts, **options),
    }
    np.testing.assert_allclose(found.network.test, network.test, atol=1e-12)
    largest, mean_square = found.errors(norm="max"), found.errors("train")
    for name, one in expected.items():
        np.testing.assert_allclose(found.predictions[name].test, one.test, atol=1e-8)
        gap = np.asarray(one.test - network.test)
        np.testing.assert_allclose(largest[name], np.abs(gap).max(axis=(1, 2)), atol=2e-8)
        gap = np.asarray(one.train - network.train)
        np.testing.assert_allclose(
            mean_square[name], np.sqrt((gap**2).mean(axis=(1, 2))), atol=2e-8
        )
        assert found.predictions[name].successful
        assert found.predictions[name].reason == ""


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::solvers.ValidityWarning")
def test_in_steps_the_network_is_trained_by_descent():
    model, x, y = tanh_mlp(width=256), inputs(3), inputs(3, 2, 4)
    found = compare_predictions(
        model,
        x,
        y,
        [0.0, 0.2, 0.8],
        loss=MeanSquaredError(),
        learning_rate=0.2,
        predictions=("order 2 descent", "width expansion descent"),
    )
    f, gradient = (
        model,
        jax.grad(lambda m: jnp.mean(jnp.sum((jax.vmap(m)(x) - y) ** 2 / 2, 1)), allow_int=True),
    )
    for step in range(4):
        f = jax.tree.map(lambda p, g: p - 0.2 * g if g.dtype == p.dtype else p, f, gradient(f))
        if step in (0, 3):
            np.testing.assert_allclose(
                found.network.train[1 + step // 3], jax.vmap(f)(x), atol=1e-12
            )
    errors = found.errors("train")
    assert errors["width expansion descent"][-1] < errors["order 2 descent"][-1] / 4
    with pytest.raises(ValueError, match="there were no test points"):
        found.errors()


@pytest.mark.long
def test_momentum_is_that_of_the_network_and_of_its_predictions():
    """A network that is linear in its parameters is its Taylor model, and its kernel stays."""
    model, x, y = eqx.nn.Linear(3, 2, key=jr.key(0)), inputs(4), one_hot(4, 2)
    rate, momentum, steps = 0.4, 0.8, np.array([0, 3, 20])
    names = ("order 2 descent", "Taylor 1 descent")
    options = {"learning_rate": rate, "momentum": momentum, "predictions": names}
    found = compare_predictions(
        model, x, y, rate * steps, loss=MeanSquaredError(), x_test=inputs(2, 3, 7), **options
    )
    exact = mse_descent(
        ntk(model, x), y, steps, learning_rate=rate, momentum=momentum, f0=jax.vmap(model)(x)
    )
    np.testing.assert_allclose(found.network.train, exact.train, atol=1e-12)
    for error in (*found.errors("train").values(), *found.errors("test").values()):
        np.testing.assert_allclose(error, np.zeros(3), atol=1e-12)
    metric = compare_predictions(
        model, x, y, rate * steps, loss=CrossEntropy(), metric=0.5, **options
    )
    assert max(error.max() for error in metric.errors("train").values()) < 1e-12
    assert not np.allclose(metric.network.train, found.network.train)


@pytest.mark.parametrize("optimizer", [optax.adam(0.05), optax.MultiSteps(optax.sgd(0.05), 2)])
def test_any_optimizer_trains_the_taylor_models_too(optimizer):
    """A cubic network is its third Taylor model; the one of second order is another."""
    w, b = jr.normal(jr.key(0), (2, 3)) / 3, jnp.array([0.5, -0.2])
    model, x, y = Polynomial(w, b), inputs(4), one_hot(4, 2)
    found = compare_predictions(
        model,
        x,
        y,
        [0, 1, 12],
        loss=CrossEntropy(),
        optimizer=optimizer,
        predictions=("Taylor 2 descent", "Taylor 3 descent"),
    )
    alone = train(model, x, y, loss=CrossEntropy(), optimizer=optimizer, steps=12, record_at=[12])
    np.testing.assert_allclose(found.network.train[-1], jax.vmap(alone.model)(x), rtol=1e-12)
    errors = found.errors("train")
    # What is gathered over steps is in float32.
    np.testing.assert_allclose(errors["Taylor 3 descent"], np.zeros(3), atol=1e-7)
    assert errors["Taylor 2 descent"][-1] > 1e-4
    np.testing.assert_array_equal(found.ts, [0, 1, 12])


def test_progress_is_shown_for_the_network_and_each_prediction(capsys):
    meter = diffrax.TextProgressMeter(0.5)
    model, x, y = tanh_mlp(width=4, depth=1), inputs(3), inputs(3, 2, 4)
    options = {"loss": MeanSquaredError(), "learning_rate": 0.1, "progress": meter}
    predictions = ("Taylor 1 descent", "order 2 descent")
    compare_predictions(model, x, y, [0.1, 0.4], predictions=predictions, **options)
    jax.effects_barrier()
    shown = capsys.readouterr().out.split()
    assert [shown.count(share) for share in ("0.00%", "100.00%")] == [2, 2]


def test_the_table_holds_every_prediction_once():
    assert tuple(SOLVES) == get_args(Prediction)


@pytest.mark.long
def test_what_breaks_down_is_marked_and_the_rest_is_there():
    model, x, y = tanh_mlp(width=4), inputs(3), inputs(3, 2, 4)
    found = compare_predictions(
        model, x, 5 * y, [1.0, 2000.0], loss=MeanSquaredError(), predictions=("order 2", "order 3"),
        method="dense",
    )  # fmt: skip
    broken, frozen = found.predictions["order 3"], found.predictions["order 2"]
    assert not broken.successful
    assert "stopped being positive" in broken.reason
    assert np.isnan(found.errors("train")["order 3"][-1])
    assert frozen.successful
    assert np.isfinite(found.errors("train")["order 2"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predictions": ("order 7",)}, "`predictions` is 'order 7', expected one of 'order 2'"),
        ({"predictions": ("order 2", "order 2")}, "`predictions`"),
        (
            {"predictions": ("order 2 descent",)},
            "expected predictions of gradient flow, or a `lear",
        ),
        ({"predictions": ("width expansion",)}, "which is for squared loss, expected `loss=MeanSq"),
        ({"learning_rate": 0.3}, "no whole multiples of `learning_rate` = 0.3"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0, expected"),
        ({"learning_rate": 0.1, "ts": [0.0]}, "`ts` is [0.], expected a time after at least one"),
        ({"batch_size": 0}, "`batch_size` is 0, expected"),
        (
            {"learning_rate": 0.1, "momentum": 0.9, "predictions": ("order 3",)},
            "`predictions` holds 'order 3', expected with `momentum` one of 'order 2 descent', 'Ta",
        ),
        (
            {"learning_rate": 0.1, "momentum": 0.9, "predictions": ("width expansion descent",)},
            "`predictions` holds 'width expansion descent', expected with `momentum` one of 'order",
        ),
        (
            {"optimizer": optax.adam(0.1), "predictions": ("order 2 descent",)},
            "`predictions` holds 'order 2 descent', expected with an `optimizer` one of 'Taylor 1 ",
        ),
        ({"momentum": 0.9}, "`momentum` is 0.9 without a `learning_rate`, expected both"),
        ({"momentum": 1.0, "learning_rate": 0.1}, "`momentum` is 1.0, expected a number in [0, 1"),
        ({"optimizer": 0.1}, "`optimizer` is 0.1, expected an optax transformation"),
        (
            {"optimizer": optax.adam(0.1), "learning_rate": 0.1},
            "`learning_rate` was given with an `optimizer`, expected it to be part of that",
        ),
        ({"optimizer": optax.adam(0.1), "metric": 2.0}, "`metric` was given with an `optimizer`"),
        (
            {"optimizer": optax.adam(0.1), "ts": [1.5]},
            "no whole multiples of 1, a step of `optimizer`",
        ),
        (
            {
                "optimizer": scale_by_metric(learning_rates(tanh_mlp())),
                "predictions": ("Taylor 1 descent",),
            },
            "`optimizer` does not take the parameters of 'Taylor 1 descent'",
        ),
        ({"progress": True}, "`progress` is True, expected"),
        ({"started": 3}, "`started` is 3, expected a function of a name"),
    ],
)
def test_bad_arguments_are_named_before_any_work(unchecked, arguments, message):
    started, problem = [], (tanh_mlp(), inputs(4), one_hot(4, 2))
    options = {"ts": [1.0], "loss": CrossEntropy(), "started": started.append} | arguments
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        compare_predictions(*problem, **options)
    assert not started
