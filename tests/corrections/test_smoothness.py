import functools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from corrections import KinkWarning, ntk, o3, taylor_terms, taylorize
from corrections.smoothness import warn_at_kinks
from solvers import CrossEntropy, hierarchy_flow
from tests.models import inputs, one_hot, tanh_mlp
from zoo import Activation, ACTIVATIONS, centered, with_output


def flow(model, order, method="matrix_free"):
    problem = (model, inputs(2), one_hot(2, 2), jnp.array([0.0, 0.1]))
    return hierarchy_flow(*problem, loss=CrossEntropy(), order=order, method=method)


def displaced(model):
    return jax.tree.map(jnp.ones_like, model)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: o3(model, inputs(2)),
        lambda model: taylorize(model, 2),
        lambda model: taylor_terms(model, inputs(2), displaced(model), 2),
        lambda model: flow(model, 3),
        lambda model: flow(model, 3, "dense"),
        lambda model: o3(centered(model), inputs(2)),
    ],
)
def test_second_derivatives_at_kinks_warn(unchecked, call):
    with pytest.warns(KinkWarning, match="activation relu, which has fewer than 2 con") as found:
        call(tanh_mlp(activation="relu"))
    assert len(found) == 1


@pytest.mark.parametrize(
    "hide",
    [
        lambda relu: with_output(tanh_mlp(), relu),  # in a static field
        lambda relu: eqx.filter_jit(tanh_mlp(activation=relu)),
        lambda relu: jax.jit(tanh_mlp(activation=relu)),
        lambda relu: functools.partial(tanh_mlp(activation=relu)),
        lambda relu: tanh_mlp(activation=relu).__call__,
        lambda relu: eqx.nn.Lambda(lambda x: relu(tanh_mlp()(x))),  # in a closure
    ],
)
def test_kinks_are_seen_wherever_the_model_holds_them(hide):
    for name, count in (("relu", 1), ("tanh", 0)):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            warn_at_kinks(hide(ACTIVATIONS[name]), 2)
        assert [one.category for one in found] == [KinkWarning] * count


@pytest.mark.parametrize(
    ("activation", "calls"),
    [
        ("relu", [lambda m: ntk(m, inputs(2)), lambda m: taylorize(m, 1), lambda m: flow(m, 2)]),
        ("gelu", [lambda m: o3(m, inputs(2)), lambda m: taylorize(m, 5)]),
        (jax.nn.swish, [lambda m: o3(m, inputs(2))]),
        (lambda a: jnp.maximum(a, 0.0), [lambda m: o3(m, inputs(2))]),  # of unknown smoothness
    ],
)
def test_nothing_else_warns(activation, calls):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in calls:
            call(tanh_mlp(activation=activation))


def test_a_stated_smoothness_counts():
    spline = Activation("spline", lambda a: jnp.maximum(a, 0.0) ** 3, smoothness=2)
    model = tanh_mlp(activation=spline)
    taylorize(model, 2)
    with pytest.warns(KinkWarning, match="activation spline, which has fewer than 3 con"):
        taylorize(model, 3)
