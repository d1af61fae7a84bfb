"""Networks beside their predictions."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import (
    compare_predictions,
    CrossEntropy,
    hierarchy_flow,
    MeanSquaredError,
    parameter_flow,
    width_expansion,
)
from tests.models import inputs, one_hot, tanh_mlp

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
        ({"started": 3}, "`started` is 3, expected a function of a name"),
    ],
)
def test_bad_arguments_are_named_before_any_work(unchecked, arguments, message):
    started, problem = [], (tanh_mlp(), inputs(4), one_hot(4, 2))
    options = {"ts": [1.0], "loss": CrossEntropy(), "started": started.append} | arguments
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        compare_predictions(*problem, **options)
    assert not started
