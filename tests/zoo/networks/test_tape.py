import itertools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tests.models import inputs, tanh_mlp
from zoo import centered, Dense, Frozen, record, scaled, WideResNet


def test_every_layer_is_recorded_in_the_order_of_the_calls():
    model, x = tanh_mlp(), inputs(1)[0]
    outputs, calls = record(model, x)
    np.testing.assert_allclose(outputs, model(x), rtol=1e-13)
    kinds = [type(call.layer).__name__ for call in calls]
    assert kinds == ["Flatten", "Dense", "Activation", "Dense", "Activation", "Dense"]
    assert [call.path for call in calls] == [f".body.layers[{i}]" for i in range(6)]
    for call in calls:
        np.testing.assert_allclose(call.layer(call.input), call.output, rtol=1e-13)
    for before, after in itertools.pairwise(calls):
        np.testing.assert_array_equal(before.output, after.input)


def test_it_works_under_transformations():
    model, xs = tanh_mlp(), inputs(4)

    @eqx.filter_jit
    def signals(model, xs):
        return jax.vmap(lambda x: [call.output for call in record(model, x)[1]])(xs)

    batched = signals(model, xs)
    for i in range(4):
        for got, call in zip(batched, record(model, xs[i])[1], strict=True):
            np.testing.assert_allclose(got[i], call.output, rtol=1e-12)
    gradient = jax.grad(lambda x: jnp.sum(record(model, x)[1][1].output))(xs[0])
    np.testing.assert_allclose(gradient, jax.grad(lambda x: jnp.sum(model.layers[0](x)))(xs[0]))


class Twice(eqx.Module):
    layer: Dense
    table: Frozen

    def __call__(self, x):
        return self.layer(jnp.sin(self.layer(x))) + self.table.value(x)


def test_any_model_that_calls_zoo_layers_can_be_recorded():
    """A layer used twice is two calls; what is frozen is none."""
    layer = Dense(3, 3, key=jr.key(0))
    _, calls = record(Twice(layer, Frozen(layer)), inputs(1)[0])
    assert [call.path for call in calls] == [".layer", ".layer"]


class Masked(eqx.Module):
    layer: Dense

    def __call__(self, example):
        return self.layer(jnp.where(example["mask"], example["x"], 0.0))


def test_examples_may_be_trees():
    model, x = Masked(Dense(3, 2, key=jr.key(0))), inputs(1)[0]
    example = {"mask": jnp.array([True, False, True]), "x": x}
    outputs, (call,) = record(model, example)
    np.testing.assert_array_equal(call.input, x * jnp.array([1.0, 0.0, 1.0]))
    np.testing.assert_array_equal(outputs, model.layer(call.input))


@pytest.mark.long
def test_transforms_and_residuals_are_looked_into():
    model = WideResNet((1, 4, 4), 2, base_channels=2, key=jr.key(0))
    x = jr.normal(jr.key(1), (1, 4, 4))
    outputs, calls = record(scaled(centered(model), 2.0), x)
    np.testing.assert_array_equal(outputs, 0)
    assert sum(type(call.layer).__name__ == "Conv" for call in calls) == 9
    assert calls[-1].path == ".model.model.body.layers[8]"


class Dispatching(eqx.Module):
    """Places its activations by asking for the type of a layer."""

    layers: list[Dense]
    is_dense: Callable = eqx.field(static=True)

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x)) if self.is_dense(layer) else layer(x)
        return x


def test_models_that_look_at_types_are_recorded_as_they_are_or_refused():
    layers, x = [Dense(3, 3, key=key) for key in jr.split(jr.key(0))], inputs(1)[0]
    model = Dispatching(layers, lambda layer: isinstance(layer, Dense))
    outputs, calls = record(model, x)
    np.testing.assert_allclose(outputs, model(x), rtol=1e-13)
    assert len(calls) == 2
    fields = len(vars(layers[0]))
    for is_dense in (lambda layer: type(layer) is Dense, lambda layer: len(vars(layer)) == fields):
        with pytest.raises(ValueError, match="`model` computes something else where its layers"):
            record(Dispatching(layers, is_dense), x)


class Perceptron(eqx.Module):
    layers: list[eqx.nn.Linear]

    def __call__(self, x):
        return self.layers[1](jnp.tanh(self.layers[0](x)))


def test_layers_of_equinox_are_recorded():
    layers = [eqx.nn.Linear(3, 4, key=jr.key(0)), eqx.nn.Linear(4, 2, key=jr.key(1))]
    model, x = Perceptron(layers), inputs(1)[0]
    outputs, calls = record(model, x)
    assert [call.path for call in calls] == [".layers[0]", ".layers[1]"]
    np.testing.assert_array_equal(calls[0].input, x)
    np.testing.assert_allclose(calls[0].output, model.layers[0](x), rtol=1e-13)
    np.testing.assert_array_equal(calls[1].output, outputs)
