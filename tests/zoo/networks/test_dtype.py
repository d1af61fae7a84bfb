import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tests.models import inputs, tanh_mlp
from zoo import astype, BatchNorm, centered, Conv, Flatten, forward_train, Sequential


def test_parameters_and_frozen_arrays_are_cast():
    layers = [Conv(1, 2, kernel_size=(3, 3), key=jr.key(0)), BatchNorm(2), Flatten()]
    _, model = forward_train(Sequential(layers), jr.normal(jr.key(1), (3, 1, 4, 4)))
    cast = astype(centered(model), "float32")
    assert {leaf.dtype for leaf in jax.tree.leaves(cast)} == {np.dtype("f4"), np.dtype("u4")}
    mean = model.layers[1].mean
    np.testing.assert_array_equal(cast.model.layers[1].mean, mean.astype("float32"))
    assert float(jnp.max(jnp.abs(mean))) > 0
    x = jr.normal(jr.key(2), (1, 4, 4), "float32")
    assert cast(x).dtype == jnp.float32
    back = astype(cast, jnp.float64)
    np.testing.assert_allclose(back.model(x.astype(float)), model(x.astype(float)), rtol=1e-5)


def test_what_is_no_float_stays():
    tree = (jnp.arange(3), jnp.ones(2), "name", jr.key(0), jnp.ones(2, complex))
    cast = astype(tree, jnp.bfloat16)
    assert cast[0].dtype == jnp.int64
    assert cast[1].dtype == jnp.bfloat16
    assert cast[2:4] == tree[2:4]
    assert cast[4].dtype == jnp.complex128


def test_float64_needs_to_be_switched_on(float32, unchecked):
    with pytest.raises(ValueError, match="`dtype` is float64 while JAX works in 32 bits, expected"):
        astype(tanh_mlp(), "float64")


@pytest.mark.parametrize("dtype", ["int32", "complex64", "float23"])
def test_other_types_are_refused(unchecked, dtype):
    with pytest.raises(TypeError, match=f"`dtype` is '{dtype}', expected a real floating-point"):
        astype(tanh_mlp(), dtype)


def test_a_float32_model_stays_so():
    model = astype(tanh_mlp(), jnp.float32)
    assert model(inputs(1)[0].astype("float32")).dtype == jnp.float32
