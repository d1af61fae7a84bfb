"""What the parameters of a model are."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from tests.models import stateful_network
from zoo import Frozen, parameters, summary
from zoo.common.trainable import partitioned


def test_state_is_no_parameter():
    model = stateful_network()
    found = jax.tree.leaves(parameters(model))
    layers = model.layers
    expected = [layers.dense.weight, layers.dense.bias, layers.norm.weight, layers.norm.bias]
    assert len(found) == len(expected)
    assert all(a is b for a, b in zip(found, expected, strict=True))
    assert summary(model, (3,)).parameters == sum(leaf.size for leaf in expected)


def test_parts_make_the_model_again():
    model = stateful_network()
    params, rest = partitioned(model)
    x = jr.normal(jr.key(3), (3,))
    np.testing.assert_array_equal(eqx.combine(params, rest)(x), model(x))
    assert not jax.tree.leaves(parameters(rest))


def test_trees_like_the_parameters_are_their_own_parameters():
    """Also where somebody has left the state in: optimisers and directions made by hand."""
    model = stateful_network()
    params = parameters(model)
    assert eqx.tree_equal(parameters(params), params)
    assert eqx.tree_equal(parameters(eqx.filter(model, eqx.is_inexact_array)), params)


def test_integers_and_what_is_frozen_are_no_parameters():
    tree = {"a": jnp.ones(2), "b": jnp.arange(3), "c": Frozen(jnp.ones(4)), "d": "text"}
    assert [leaf.shape for leaf in jax.tree.leaves(parameters(tree))] == [(2,)]
