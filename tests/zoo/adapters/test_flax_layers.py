"""Layers of Flax networks, seen from outside of their kernels."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

pytest.importorskip("flax")

import flax.linen as nn
from flax import nnx

from corrections import activation_distance
from tests.zoo.adapters.flax_models import FLOAT64
from zoo import from_flax, record


@pytest.fixture(autouse=True)
def promoting():
    """Flax promotes types by itself."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        hidden = nn.Dense(5, **FLOAT64, name="inner")(x)
        return nn.Dense(2, **FLOAT64, name="outer")(nn.relu(hidden))


class NNX(nnx.Module):
    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.inner = nnx.Linear(3, 5, rngs=rngs, **FLOAT64)
        self.outer = nnx.Linear(5, 2, rngs=rngs, **FLOAT64)

    def __call__(self, x):
        return self.outer(nnx.relu(self.inner(x)))


def linen(seed):
    module = Linen()
    return from_flax(module, module.init(jr.key(seed), jnp.ones((1, 3))))


def nnx_model(seed):
    return from_flax(NNX(seed))


X = jr.normal(jr.key(7), (6, 3))


def weights(model):
    """Kernel and bias of the first layer."""
    first = model.params["inner"]
    return np.asarray(first["kernel"]), np.asarray(first["bias"])


@pytest.mark.parametrize("make", [linen, nnx_model])
def test_layers_are_recorded(make):
    model = make(0)
    outputs, (inner, outer) = record(model, X[0])
    kernel, bias = weights(model)
    np.testing.assert_array_equal(inner.input, X[:1])
    np.testing.assert_allclose(inner.output, np.asarray(X[:1]) @ kernel + bias, rtol=1e-12)
    np.testing.assert_allclose(outer.input, np.maximum(inner.output, 0), rtol=1e-12)
    np.testing.assert_allclose(outer.output[0], outputs, rtol=1e-12)


@pytest.mark.parametrize("make", [linen, nnx_model])
def test_activation_patterns_by_what_the_layers_give(make):
    """The part of hidden units that differ in sign, by NumPy."""
    first, second = make(0), make(1)

    def hidden(model, x):
        return record(model, x)[1][0].output

    signs = [np.asarray(X) @ w + b > 0 for w, b in map(weights, (first, second))]
    found = activation_distance(first, second, X, preactivations=hidden)
    np.testing.assert_allclose(found, np.mean(signs[0] != signs[1]), rtol=1e-12)


def test_without_that_the_error_says_how():
    with pytest.raises(ValueError, match="expected `preactivations`, a function of a model"):
        activation_distance(linen(0), linen(1), X)
