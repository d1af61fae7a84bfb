import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

pytest.importorskip("flax")

import flax.linen as nn
from flax import nnx

from corrections import ntk
from tests.models import inputs
from tests.zoo.adapters.flax_models import (
    FLOAT64,
    images,
    linen_cnn,
    linen_mlp,
    LinenDropout,
    LinenMLP,
    nnx_cnn,
    nnx_mlp,
    NNXUnhashable,
)
from zoo import limit, NoLimitError
from zoo.adapters.flax import from_flax


def test_training_mode_is_refused_with_advice(unchecked):
    module, variables = linen_cnn()
    with (
        jax.numpy_dtype_promotion("standard"),  # the moving average mixes weak types in
        pytest.raises(ValueError, match=r"updates its variables in a call.*train=False"),
    ):
        ntk(from_flax(module, variables, train=True), images())
    module = LinenDropout()
    variables = module.init(jr.key(0), inputs(1), deterministic=True)
    model = from_flax(module, variables)
    with pytest.raises(ValueError, match=r"draws random numbers in a call.*deterministic=True"):
        model(inputs(1)[0])
    for name in ("use_running_average", "deterministic"):
        with pytest.raises(ValueError, match=f"`{name}` is False, expected True"):
            from_flax(nnx_cnn(), **{name: False})


def test_examples_and_outputs_of_other_shapes_are_refused(unchecked):
    module, variables = linen_cnn()
    with pytest.raises(ValueError, match=r"`x1`, which has shape \(2, 4, 4\).*channel-last"):
        ntk(from_flax(module, variables), jnp.moveaxis(images(), -1, 1))

    class Flat(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, **FLOAT64)(x.reshape(-1))

    module = Flat()
    variables = module.init(jr.key(0), inputs(1)[0])
    with pytest.raises(
        ValueError, match=r"is an array of shape \(2,\), expected an array of shape \(1, k\).*batch"
    ):
        from_flax(module, variables)(inputs(1)[0])
    with pytest.raises(ValueError, match="is of type tuple, expected an array"):
        from_flax(module, variables, mutable=True)(inputs(1)[0])
    assert from_flax(module, variables, batched=False)(inputs(1)[0]).shape == (2,)


def test_bad_arguments_are_named(unchecked):
    module, variables = linen_mlp()
    with pytest.raises(TypeError, match="`module` is of type str, expected an instance of"):
        from_flax("MLP")
    with pytest.raises(TypeError, match=r"`variables` is of type NoneType.*`module\.init` gives"):
        from_flax(module)
    with pytest.raises(ValueError, match=r'has the collections \[\'Dense_0\'.*expected "params"'):
        from_flax(module, variables["params"])
    with pytest.raises(TypeError, match=r"a LinenMLP that is not hashable.*tuples in the place of"):
        from_flax(LinenMLP(sizes=[4, 2]), variables)
    with pytest.raises(TypeError, match="not hashable, expected an unbound module"):
        from_flax(module.bind(variables), variables)
    with pytest.raises(TypeError, match="`rngs` is of type dict, which is not hashable"):
        from_flax(module, variables, rngs={"dropout": jr.key(0)})
    with pytest.raises(TypeError, match="a NNXUnhashable that is not hashable"):
        from_flax(NNXUnhashable())
    with pytest.raises(TypeError, match=r"`variables` is of type dict, expected an `nnx\.State`"):
        from_flax(nnx_mlp(), variables)
    with pytest.raises(ValueError, match=r"`variables\['conv'\].*` has shape None, expected"):
        from_flax(nnx_cnn(), nnx.state(nnx_mlp()))
    other = nnx.Sequential(nnx.Linear(3, 5, rngs=nnx.Rngs(0), **FLOAT64))
    with pytest.raises(ValueError, match=r"has shape \(5,\), expected \(4,\)"):
        from_flax(nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0))), nnx.state(other))


def test_a_missing_flax_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)
    with pytest.raises(ImportError, match=r"`from_flax` needs Flax.*finite-width\[flax\]"):
        from_flax(None)


def test_a_network_of_flax_has_no_limit():
    model = from_flax(*linen_mlp())
    with pytest.raises(NoLimitError, match=r"`model` is a network of Flax.*expected its counterp"):
        limit(model)
