"""Rules of layers: Equinox's, a user's own, and where none applies."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from corrections import ntk, o3, register_layer
from corrections.anatomy import Anatomy
from tests import oracles
from tests.corrections.test_anatomy import close, random_metric
from zoo import Dense, Flatten, Sequential

KEY = jr.key(0)


def tapped(model, x, metric=None):
    count = []
    eqx.filter_eval_shape(lambda m: count.append(len(Anatomy(m, x[0], metric).ruled)), model)
    return count[0]


def agrees(model, x):
    metric = random_metric(model)
    close(ntk(model, x, metric=metric), oracles.kernel(model, x, x, metric))
    close(o3(model, x[:2], metric=metric), oracles.third(model, x[:2], x[:2], x[:2], metric))


CONVOLUTIONS = {
    "1d, SAME_LOWER": (eqx.nn.Conv1d(2, 3, 4, padding="SAME_LOWER", key=KEY), (2, 5), 2),
    "2d, stride 2, uneven padding": (
        eqx.nn.Conv2d(2, 3, (3, 2), stride=2, padding=((1, 0), (2, 1)), key=KEY),
        (2, 5, 4),
        2,
    ),
    "2d, reflected": (
        eqx.nn.Conv2d(1, 2, 3, padding=1, padding_mode="REFLECT", use_bias=False, key=KEY),
        (1, 4, 4),
        2,
    ),
    "2d, periodic": (
        eqx.nn.Conv2d(1, 2, 3, padding="SAME", padding_mode="CIRCULAR", key=KEY),
        (1, 4, 4),
        2,
    ),
    "2d, groups": (eqx.nn.Conv2d(2, 4, 3, groups=2, key=KEY), (2, 4, 4), 1),
    "2d, dilated": (eqx.nn.Conv2d(1, 2, 2, dilation=2, key=KEY), (1, 4, 4), 1),
}


@pytest.mark.parametrize(
    "name",
    [
        name if "uneven" in name else pytest.param(name, marks=pytest.mark.slow)
        for name in CONVOLUTIONS
    ],
)
def test_convolutions_of_equinox(name):
    conv, shape, rules = CONVOLUTIONS[name]
    x = jr.normal(jr.key(1), (3, *shape))
    size = eqx.filter_eval_shape(conv, x[0]).size
    model = Sequential([conv, jnp.tanh, Flatten(), eqx.nn.Linear(size, 2, key=KEY)])
    assert tapped(model, x) == rules
    agrees(model, x)


class TokenDense(eqx.Module):
    """Acts on each token of (tokens, in); its weight is laid out (in, out)."""

    weight: jax.Array

    def __call__(self, a):
        return 0.5 * (a @ self.weight)


class Scaled(eqx.Module):
    """Holds a parameter that no affine rule knows of."""

    weight: jax.Array
    scale: jax.Array

    def __call__(self, a):
        return self.scale * (self.weight @ a)


def test_a_layer_of_your_own_is_registered_in_one_line():
    x = jr.normal(jr.key(1), (3, 4, 2))
    layers = [TokenDense(jr.normal(KEY, (2, 3))), jnp.tanh, Flatten(), Dense(12, 2, key=KEY)]
    model = Sequential(layers)
    before = ntk(model, x)
    assert tapped(model, x) == 1
    register_layer(
        TokenDense, lambda layer, a: a, multipliers=lambda layer: (0.5, 1.0), channel_axis=-1
    )
    assert tapped(model, x) == 2
    jax.clear_caches()
    close(ntk(model, x, method="structured"), before)
    agrees(model, x)


def test_a_layer_with_other_parameters_takes_the_jacobian():
    register_layer(Scaled, lambda layer, a: a[None])
    x = jr.normal(jr.key(1), (3, 2))
    model = Sequential([Scaled(jr.normal(KEY, (2, 2)), jnp.array(0.7)), jnp.tanh])
    assert tapped(model, x) == 0
    agrees(model, x)


def test_bad_rules_are_refused(unchecked):
    with pytest.raises(TypeError, match="`layer_type` is a Dense, expected a class"):
        register_layer(Dense(2, 2, key=KEY), lambda layer, a: a[None])
    with pytest.raises(TypeError, match="`patches` is None, expected a function of a layer"):
        register_layer(Scaled, None)
    with pytest.raises(TypeError, match="`channel_axis` is 'last', expected an axis"):
        register_layer(Scaled, lambda layer, a: a[None], channel_axis="last")
