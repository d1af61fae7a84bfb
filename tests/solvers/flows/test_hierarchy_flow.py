import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import KinkWarning, ntk
from solvers import (
    CrossEntropy,
    gradient_flow,
    hierarchy_flow,
    MeanSquaredError,
    parameter_flow,
    RESULTS,
    SolverError,
)
from solvers.flows.jet_products import JetProducts
from solvers.flows.matrix_free import matrix_free_flow, state_at_start
from tests.models import inputs, one_hot, tanh_mlp, TwoLayerLinear
from zoo import CNN, WideResNet

TIGHT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.smoke
@pytest.mark.parametrize("loss", [CrossEntropy(), MeanSquaredError()], ids=["ce", "mse"])
@pytest.mark.parametrize(
    "order", [2, *(pytest.param(order, marks=pytest.mark.long) for order in (3, 4))]
)
def test_matrix_free_equals_dense(order, loss):
    """One stores the kernels, the other never forms one; with test points and a metric."""
    model, x, x_test, y = tanh_mlp(), inputs(4), inputs(3, seed=11), one_hot(4, 2)
    metric = jax.tree.map(
        lambda p: 0.5 if p.ndim == 2 else 2.0, eqx.filter(model, eqx.is_inexact_array)
    )
    dense, matrix_free = (
        hierarchy_flow(
            model,
            x,
            y,
            [0.0, 0.1, 0.5, 1.0],
            loss=loss,
            order=order,
            method=method,
            x_test=x_test,
            metric=metric,
            **TIGHT,
        )
        for method in ("dense", "matrix_free")
    )
    np.testing.assert_allclose(matrix_free.train, dense.train, atol=1e-9)
    np.testing.assert_allclose(matrix_free.test, dense.test, atol=1e-9)


def _dense(*args, **options):
    return hierarchy_flow(*args, method="dense", order=2, **options)


def _in_batches(*args, **options):
    return hierarchy_flow(*args, order=2, batch_size=3, **options)


def _at_order_3(*args, **options):
    return hierarchy_flow(*args, order=3, **options)


@pytest.mark.parametrize(
    "flow",
    [
        _dense,
        *(
            pytest.param(f, marks=pytest.mark.long)
            for f in (_in_batches, _at_order_3, parameter_flow)
        ),
    ],
)
def test_examples_of_weight_0_only_fill_up_a_set(flow):
    """Of 5 examples 3 count; the mean over 5 is then that over 3."""
    model, x, y = tanh_mlp(), inputs(5), one_hot(5, 2)
    counted = jnp.array([0, 2, 3])
    weights = jnp.zeros(5).at[counted].set(5 / 3)
    options = {"loss": CrossEntropy(), "rtol": 1e-8, "atol": 1e-10}
    alone = flow(model, x[counted], y[counted], [0.5, 2.0], x_test=x, **options)
    filled = flow(model, x, y, [0.5, 2.0], weights=weights, **options)
    np.testing.assert_allclose(filled.train, alone.test, atol=1e-7)
    with pytest.raises(ValueError, match=r"`weights` holds -1.0 \(at index 0\)"):
        flow(model, x, y, [0.5], weights=-jnp.ones(5), **options)


@pytest.mark.slow
@pytest.mark.parametrize("order", [3, 4])
@pytest.mark.parametrize("architecture", ["cnn", "wide_resnet"])
def test_matrix_free_equals_dense_on_images(architecture, order):
    options = {"activation": "gelu", "key": jr.key(3)}
    if architecture == "cnn":
        model = CNN((1, 4, 4), 2, channels=3, depth=2, readout="flatten", **options)
    else:
        model = WideResNet((1, 4, 4), 2, depth=10, base_channels=2, **options)
    x, x_test = (jr.normal(jr.key(seed), (2, 1, 4, 4)) for seed in (4, 5))
    problem = (model, x, one_hot(2, 2), [0.2, 0.5])
    options = {"loss": CrossEntropy(), "order": order, "x_test": x_test, **TIGHT}
    dense, free = (hierarchy_flow(*problem, method=m, **options) for m in ("dense", "matrix_free"))
    np.testing.assert_allclose(free.train, dense.train, atol=1e-9)
    np.testing.assert_allclose(free.test, dense.test, atol=1e-9)
    frozen = hierarchy_flow(*problem, **(options | {"order": order - 1}))
    assert np.max(np.abs(frozen.test - dense.test)) > 1e-7  # the order is seen


@pytest.mark.parametrize("order", [3, 4])
def test_a_right_hand_side_takes_no_more_operations_in_a_loop_than_alone(order):
    """What is computed twice is merged there too (`corrections.taylor.jets.held`)."""
    model, x, y = tanh_mlp(width=64), inputs(32), one_hot(32, 2)
    flow = matrix_free_flow(JetProducts(model, (x,)), y, loss=CrossEntropy())
    arrays, rest = eqx.partition(flow, eqx.is_array)

    def velocity(arrays, state):
        return eqx.combine(arrays, rest).velocity(state)

    def steps(arrays, state):
        return jax.lax.fori_loop(0, 5, lambda _, state: velocity(arrays, state), state)

    alone, looped = (
        jax.jit(fn).lower(arrays, state_at_start(model, order)).compile().cost_analysis()["flops"]
        for fn in (velocity, steps)
    )
    assert looped == pytest.approx(alone, rel=0.02)


@pytest.mark.long
def test_batches_pairs_and_restarts_of_the_matrix_free_flow():
    """Batches that do not come out even; the kernel on pairs; half the way and on from there."""
    model, x, x_test, y = tanh_mlp(), inputs(5), inputs(3, seed=11), one_hot(5, 2)
    options = {"loss": CrossEntropy(), "order": 3, "x_test": x_test, **TIGHT}
    dense = hierarchy_flow(model, x, y, [0.25, 0.5], method="dense", **options)
    batched = {"batch_size": 2, "kernel_pairs": (x_test, x)}
    half = hierarchy_flow(model, x, y, [0.25], **options, **batched)
    whole = hierarchy_flow(model, x, y, [0.25], start=half.final, **options, **batched)
    for part, row in ((half, 0), (whole, 1)):
        for name in ("train", "test"):
            found, expected = (getattr(one, name) for one in (part, dense))
            np.testing.assert_allclose(found[-1], expected[row], atol=1e-9)
    np.testing.assert_allclose(whole.kernel[-1], dense.final[1][len(x) :], atol=1e-9)
    half = hierarchy_flow(model, x, y, [0.25], method="dense", **options)
    again = hierarchy_flow(model, x, y, [0.25], method="dense", start=half.final, **options)
    np.testing.assert_allclose(again.final[1], dense.final[1], atol=1e-9)


@pytest.mark.parametrize("method", ["dense", pytest.param("matrix_free", marks=pytest.mark.long)])
def test_a_float32_model_is_solved_in_float32_where_the_default_is_float64(method):
    model, x, y = tanh_mlp(), inputs(4), one_hot(4, 2)
    single = jax.tree.map(lambda p: p.astype("float32") if eqx.is_inexact_array(p) else p, model)
    options = {"loss": MeanSquaredError(), "method": method}
    solved = hierarchy_flow(single, x.astype("float32"), y, [0.0, 0.5], **options)
    assert solved.train.dtype == jnp.float32
    expected = hierarchy_flow(model, x, y, [0.0, 0.5], **options)
    np.testing.assert_allclose(solved.train, expected.train, atol=1e-5)


@pytest.mark.long
def test_at_kinks_it_works_almost_everywhere_and_warns():
    """ReLU: no derivative of second order of its own, so that dense and matrix-free agree."""
    model, x, y = tanh_mlp(activation="relu"), inputs(3), one_hot(3, 2)
    options = {"loss": MeanSquaredError(), "order": 3, **TIGHT}
    solved = []
    for method in ("dense", "matrix_free"):
        with pytest.warns(KinkWarning, match="`model` has the activation relu"):
            solved.append(hierarchy_flow(model, x, y, [0.5], method=method, **options).train)
    np.testing.assert_allclose(*solved, atol=1e-9)
    frozen = hierarchy_flow(model, x, y, [0.5], **(options | {"order": 2})).train
    assert np.max(np.abs(frozen - solved[0])) > 1e-4


@pytest.mark.long
def test_order_2_is_the_frozen_kernel():
    model, x, y = tanh_mlp(), inputs(4), one_hot(4, 2)
    solved = hierarchy_flow(
        model, x, y, [0.5, 2.0], loss=CrossEntropy(), order=2, method="dense", **TIGHT
    )
    kernel = ntk(model, x)
    expected = gradient_flow(
        kernel, y, [0.5, 2.0], loss=CrossEntropy(), f0=jax.vmap(model)(x), **TIGHT
    )
    np.testing.assert_allclose(solved.train, expected.train, atol=1e-10)
    assert solved.kernel is not None
    np.testing.assert_allclose(solved.kernel[-1], kernel, rtol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_error_grows_with_the_order_th_power_of_time(order):
    """Against the exact flow of a two-layer linear network: t^p in f, t^(p-1) in the kernel."""
    model, x, y = TwoLayerLinear(8, key=jr.key(1)), jnp.ones((1, 1)), jnp.array([[2.0]])
    ts = np.array([0.01, 0.02, 0.04]) * {2: 1, 3: 1, 4: 1.5, 5: 2}[order]
    options = {"loss": MeanSquaredError(), "rtol": 1e-12, "atol": 1e-14}
    truth = parameter_flow(model, x, y, ts, **options)
    if order == 5:
        options |= {"kernel_pairs": (x, x)}
    else:
        options |= {"method": "dense"}
    predicted = hierarchy_flow(model, x, y, ts, order=order, **options)
    f = truth.train[:, 0, 0]
    # Theta^2 - 4 f^2 / n is conserved, which gives the true kernel at every time
    theta_0, f_0 = jnp.squeeze(ntk(model, x)), model(x[0])[0]
    theta = jnp.sqrt(theta_0**2 + 4 * (f**2 - f_0**2) / 8)
    assert predicted.kernel is not None
    for error, power in (
        (jnp.abs(predicted.train[:, 0, 0] - f), order),
        (jnp.abs(predicted.kernel.reshape(3) - theta), order - 1),
    ):
        slope = np.polyfit(np.log(ts), np.log(error), 1)[0]
        assert slope == pytest.approx(power, abs=0.3)


@pytest.mark.slow
def test_order_3_follows_a_network_better_than_the_frozen_kernel():
    model, x, x_test = tanh_mlp(width=64), inputs(4), inputs(5, seed=11)
    y, ts = one_hot(4, 2), [0.1]
    options = {"loss": CrossEntropy(), "x_test": x_test}
    truth = parameter_flow(model, x, y, ts, **options, **TIGHT)
    errors = [
        float(
            jnp.max(
                jnp.abs(
                    hierarchy_flow(model, x, y, ts, order=order, **options, **TIGHT).test
                    - truth.test
                )
            )
        )
        for order in (2, 3)
    ]
    assert errors[1] < errors[0] / 10


@pytest.mark.parametrize("method", ["dense", "matrix_free"])
def test_breakdown_is_noticed_and_marked(method):
    """Y = -5 f_0 at width 2: O_3 = 4 f_0/n frozen drives Theta below zero before f reaches y."""
    model = TwoLayerLinear(2, key=jr.key(1))
    model = eqx.tree_at(lambda m: (m.u, m.v), model, (jnp.ones((2, 1)), jnp.ones(2)))
    x, f0 = jnp.ones((1, 1)), float(model(jnp.ones(1))[0])
    arguments = (model, x, jnp.array([[-5 * f0]]), [0.0, 0.05, 50.0])
    options = {"loss": MeanSquaredError(), "order": 3, "method": method}
    marked = hierarchy_flow(*arguments, **options, throw=False)
    assert bool(marked.result == RESULTS.kernel_not_positive)
    np.testing.assert_array_equal(marked.valid, [True, True, False])
    assert bool(jnp.all(jnp.isfinite(marked.train[:2])))
    assert bool(jnp.all(jnp.isnan(marked.train[2])))
    assert 0.05 < float(marked.t_reached) < 50
    with pytest.raises(SolverError, match="late times; stop at an earlier time"):
        hierarchy_flow(*arguments, **options)


@pytest.mark.long
def test_late_times_without_breakdown_reach_the_targets():
    model, x, y = tanh_mlp(width=256), inputs(3), inputs(3, 2, seed=20)
    solved = hierarchy_flow(model, x, y, [1e3], loss=MeanSquaredError(), method="dense")
    np.testing.assert_allclose(solved.train[-1], y, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": 7}, "`order` is 7, expected one of 2, 3, 4, 5"),
        ({"order": 5, "method": "dense"}, "`order` is 5, expected one of 2, 3, 4"),
        ({"batch_size": 2, "method": "dense"}, '`batch_size` was given with `method="dense"`'),
        ({"batch_size": 0}, "`batch_size` is 0, expected"),
        ({"kernel_pairs": (inputs(2),)}, "expected two batches of examples (x1, x2)"),
        ({"kernel_pairs": (inputs(2), inputs(2, d=5))}, "an example of `kernel_pairs[1]`"),
        (
            {"start": (jnp.zeros(4),), "method": "dense"},
            "of shape [(4,)], expected [(4, 2), (4, ",
        ),
        ({"start": (jnp.zeros((4, 2)),)}, "has parts of shape [(4, 2)], expected [(8, 3), "),
        ({"method": "sparse"}, "`method` is 'sparse', expected one of 'matrix_free', 'dense'"),
        ({"ts": [-1.0]}, "`ts` has the negative time -1.0"),
        ({"y": one_hot(4, 3)}, "`y` has shape (4, 3), expected (4, 2)"),
        ({"x_test": inputs(2, d=5)}, "`model` does not take an example of `x_test`"),
        ({"x_test": inputs(2).reshape(2, 3, 1)}, "`x_test` holds examples of shape (3, 1) and"),
        ({"metric": jnp.nan}, "`metric` has 1 entries out of 1 that are not finite"),
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
        hierarchy_flow(**(defaults | arguments))
