"""Layers and networks of the zoo are called as Equinox's are: `layer(a, *, key=None)`."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import zoo
from zoo import (
    Activation,
    BatchNorm,
    centered,
    CNN,
    Conv,
    Dense,
    Flatten,
    Frozen,
    GlobalAveragePool,
    GroupNorm,
    LimitRule,
    MLP,
    Residual,
    scaled,
    Sequential,
    WideResNet,
    with_output,
)

KEY = jr.key(0)
IMAGE, VECTOR = (1, 4, 4), (3,)


def plain():
    return Sequential([Dense(3, 3, key=KEY), jnp.tanh])


MODULES = {
    Activation: (lambda: zoo.activation_function("tanh"), VECTOR),
    BatchNorm: (lambda: BatchNorm(1), IMAGE),
    CNN: (lambda: CNN(IMAGE, 2, channels=2, depth=1, key=KEY), IMAGE),
    Conv: (lambda: Conv(1, 2, kernel_size=(3, 3), bias_std=0.5, key=KEY), IMAGE),
    Dense: (lambda: Dense(3, 2, bias_std=0.5, key=KEY), VECTOR),
    Flatten: (Flatten, IMAGE),
    Frozen: (lambda: Frozen(plain()), VECTOR),
    GlobalAveragePool: (GlobalAveragePool, IMAGE),
    GroupNorm: (lambda: GroupNorm(1), IMAGE),
    MLP: (lambda: MLP(3, 2, width=4, depth=1, key=KEY), VECTOR),
    Residual: (lambda: Residual(plain()), VECTOR),
    Sequential: (plain, VECTOR),
    WideResNet: (lambda: WideResNet(IMAGE, 2, base_channels=2, key=KEY), IMAGE),
    zoo.FlaxModel: (lambda: flax_model(), VECTOR),
    type(centered(plain())): (lambda: centered(plain()), VECTOR),
    type(scaled(plain(), 2.0)): (lambda: scaled(plain(), 2.0), VECTOR),
    type(with_output(plain(), "tanh")): (lambda: with_output(plain(), "tanh"), VECTOR),
}


def flax_model():
    linen = pytest.importorskip("flax.linen")
    module = linen.Dense(2, param_dtype=jnp.float64)
    return zoo.from_flax(module, module.init(KEY, jnp.ones((1, 3))))


def test_every_callable_module_is_in_the_table():
    """Those that the package exports, but for rules and what is abstract."""
    exported = {
        value
        for value in vars(zoo).values()
        if isinstance(value, type)
        and issubclass(value, eqx.Module)
        and not issubclass(value, LimitRule)
        and any("__call__" in vars(base) for base in value.__mro__)
        and not inspect.isabstract(value)
    }
    assert exported <= set(MODULES)
    assert all(issubclass(kind, eqx.Module) for kind in MODULES)


@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.__name__)
def test_they_stand_in_a_sequential_of_equinox(kind):
    make, shape = MODULES[kind]
    layer, a = make(), jr.normal(jr.key(1), shape)
    key = inspect.signature(kind.__call__).parameters["key"]
    assert (key.kind, key.default) == (key.KEYWORD_ONLY, None)
    among = eqx.nn.Sequential([eqx.nn.Identity(), layer])
    expected = eqx.filter_jit(layer)(a)
    for given in ({}, {"key": jr.key(2)}):
        np.testing.assert_array_equal(eqx.filter_jit(among)(a, **given), expected)


class Noise(eqx.Module):
    """Draws, where it is given a key."""

    def __call__(self, a, *, key=None):
        return a if key is None else a + jr.normal(key, a.shape)


def noise(a, key):
    return jr.normal(key, a.shape)


def test_containers_hand_a_key_on_to_the_layers_that_take_one():
    a, key = jnp.ones(3), jr.key(3)
    first, _, third = jr.split(key, 3)
    model = Sequential([Noise(), jnp.abs, Noise()])
    once = jnp.abs(a + noise(a, first))
    np.testing.assert_array_equal(model(a, key=key), once + noise(once, third))
    np.testing.assert_array_equal(model(a), a)
    branch, shortcut = jr.split(key)
    added = 2 * a + noise(a, branch) + noise(a, shortcut)
    np.testing.assert_allclose(Residual(Noise(), Noise())(a, key=key), added, rtol=1e-15)
    np.testing.assert_array_equal(Frozen(Noise())(a, key=key), a + noise(a, key))
    np.testing.assert_array_equal(scaled(Noise(), 2.0)(a, key=key), 2 * (a + noise(a, key)))
    np.testing.assert_array_equal(centered(Noise())(a, key=key), jnp.zeros(3))
    drawn = jax.nn.softmax(a + noise(a, key))
    np.testing.assert_array_equal(with_output(Noise(), "softmax")(a, key=key), drawn)


def test_a_key_that_is_none_is_named(unchecked):
    with pytest.raises(TypeError, match="`key` is 5, expected a key"):
        Sequential([Noise()])(jnp.ones(3), key=5)
    with pytest.raises(TypeError, match="`key` is 5, expected a key"):
        scaled(Noise(), 2.0)(jnp.ones(3), key=5)
