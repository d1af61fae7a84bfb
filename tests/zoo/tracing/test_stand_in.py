"""Stand-ins are of the layer's own type, and tell of their calls."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from zoo import ACTIVATIONS, BatchNorm, Conv, Dense, Flatten
from zoo.tracing.stand_in import stand_in


class Keyed(Dense):
    """A user's layer, which takes a key and holds a numpy table and a key for random numbers."""

    table: np.ndarray
    seed: jax.Array

    def __init__(self, *, key):
        super().__init__(3, 2, key=key)
        self.table, self.seed = np.arange(3.0), jr.key(1)

    def __call__(self, a, *, key=None):
        return super().__call__(a + self.table)


class Plain:
    """No module at all."""

    def __init__(self, slope):
        self.slope = slope

    def __call__(self, a, *, twice=False):
        return (2 if twice else 1) * self.slope * a


LAYERS = {
    "Dense": (Dense(3, 2, bias_std=0.5, key=jr.key(0)), (3,)),
    "Conv": (Conv(1, 2, kernel_size=(2, 2), key=jr.key(0)), (1, 3, 3)),
    "batch normalization": (BatchNorm(2), (2, 3)),
    "activation": (ACTIVATIONS["tanh"], (3,)),
    "Flatten": (Flatten(), (3, 2)),
    "Linear of Equinox": (eqx.nn.Linear(3, 2, key=jr.key(0)), (3,)),
    "convolution of Equinox": (eqx.nn.Conv1d(1, 2, 3, key=jr.key(0)), (1, 5)),
    "layer with a key": (Keyed(key=jr.key(0)), (3,)),
    "no module": (Plain(3.0), (3,)),
}


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_stand_in_is_like_its_layer_and_hands_on_its_calls(layer, shape):
    heard = []

    def on_call(layer, args, options):
        heard.append((type(layer), args, options))
        return layer(*args, **options)

    standing, a = stand_in(layer, on_call), jr.normal(jr.key(2), shape)
    assert isinstance(standing, type(layer))
    assert type(standing).__name__ == type(layer).__name__
    assert type(stand_in(layer, on_call)) is type(standing)
    np.testing.assert_array_equal(standing(a), layer(a))
    assert [(of_type, options) for of_type, _, options in heard] == [(type(layer), {})]
    assert heard[0][1][0] is a


def test_options_are_handed_on():
    layer = LAYERS["no module"][0]
    standing = stand_in(layer, lambda layer, args, options: layer(*args, **options))
    assert standing(1.0, twice=True) == 6.0


def test_maps_over_arrays_reach_the_layer_that_is_called():
    layer = LAYERS["Dense"][0]
    standing = stand_in(layer, lambda layer, args, _: layer(*args))
    doubled = jax.tree.map(lambda w: 2 * w, standing)
    assert isinstance(doubled, Dense)
    np.testing.assert_allclose(doubled(jnp.ones(3)), 2 * layer(jnp.ones(3)), rtol=1e-13)
    assert jax.tree.leaves(standing)[0] is layer.weight


def test_what_has_no_fields_of_its_own_cannot_be_stood_in_for():
    with pytest.raises(TypeError):
        stand_in(jnp.tanh, lambda layer, args, _: layer(*args))
