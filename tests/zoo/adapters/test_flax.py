import io

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

pytest.importorskip("flax")

import flax.linen as nn
from flax import nnx
from flax.core import freeze

from corrections import ntk, taylorize
from solvers import MeanSquaredError, parameter_flow
from tests.models import inputs, one_hot
from tests.zoo.adapters.flax_models import (
    cnn,
    copied_into_flax,
    corrections_and_dynamics,
    corrections_and_dynamics_of_the_zoo,
    count,
    FLOAT64,
    frozen_arrays,
    frozen_values,
    images,
    in_inference_mode,
    kernel_of,
    linen_cnn,
    linen_mlp,
    LinenDropout,
    LinenMLP,
    nnx_cnn,
    nnx_mlp,
    statistics,
)
from zoo import forward_train
from zoo.adapters.flax import from_flax


@pytest.mark.smoke
def test_a_linen_mlp_is_a_model_with_its_parameters_and_kernel():
    module, variables = linen_mlp()
    model, x = from_flax(module, variables), inputs(3)
    np.testing.assert_allclose(jax.vmap(model)(x), module.apply(variables, x), rtol=1e-12)
    assert count(model) == 3 * 4 + 4 + 4 * 2 + 2
    assert eqx.tree_equal(model.params, variables["params"])
    expected = kernel_of(lambda p: module.apply({"params": p}, x), variables["params"])
    np.testing.assert_allclose(ntk(model, x), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.smoke
def test_an_nnx_mlp_is_a_model_with_its_parameters_and_kernel():
    module, x = nnx_mlp(), inputs(3)
    model = from_flax(module)
    np.testing.assert_allclose(jax.vmap(model)(x), module(x), rtol=1e-12)
    graph, params = nnx.split(module)
    assert count(model) == 3 * 4 + 4 + 4 * 2 + 2
    expected = kernel_of(lambda p: nnx.merge(graph, p)(x), params)
    np.testing.assert_allclose(ntk(model, x), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.long
def test_a_linen_cnn_takes_its_gathered_statistics_and_does_not_count_them():
    module, variables = linen_cnn()
    model, x = from_flax(module, variables, train=False), images()
    np.testing.assert_allclose(jax.vmap(model)(x), module.apply(variables, x), rtol=1e-12)
    assert count(model) == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    expected = kernel_of(lambda p: module.apply(variables | {"params": p}, x), variables["params"])
    np.testing.assert_allclose(ntk(model, x), expected, rtol=1e-11, atol=1e-13)


def test_an_nnx_cnn_takes_its_gathered_statistics_and_does_not_count_them():
    module, x = nnx_cnn(), images()
    model, inferring = from_flax(module), in_inference_mode(module)
    np.testing.assert_allclose(jax.vmap(model)(x), inferring(x), rtol=1e-12)
    graph, params, rest = nnx.split(inferring, nnx.Param, ...)
    assert count(model) == sum(leaf.size for leaf in jax.tree.leaves(params))
    expected = kernel_of(lambda p: nnx.merge(graph, p, rest)(x), params)
    np.testing.assert_allclose(ntk(model, x), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_statistics_are_never_trained(kind):
    model, x = cnn(kind), images()
    params = eqx.filter(model, eqx.is_inexact_array)
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    gradient = eqx.filter_grad(lambda m: jnp.sum(jax.vmap(m)(x) ** 2))(model)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers in
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    trained = eqx.apply_updates(model, updates)
    assert not eqx.tree_equal(trained.params, model.params)
    assert len(frozen_values(model)) == 1
    assert eqx.tree_equal(frozen_values(trained), frozen_values(model))
    assert any(np.array_equal(leaf, statistics()["mean"]) for leaf in frozen_arrays(trained))
    outputs, moved = forward_train(model, x)
    np.testing.assert_array_equal(outputs, jax.vmap(model)(x))
    assert eqx.tree_equal(moved, model)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_the_same_network_in_flax_and_in_the_zoo_has_the_same_corrections_and_dynamics(kind):
    expected = corrections_and_dynamics_of_the_zoo()
    for name, value in corrections_and_dynamics(copied_into_flax(kind)).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-10, atol=1e-12, err_msg=name)
    assert not np.allclose(expected["quadratic"], expected["outputs"])


@pytest.mark.long
def test_a_network_with_statistics_and_noise_trains_and_taylorizes():
    model, x, y = from_flax(nnx_cnn()), images(), one_hot(3, 2)
    trained = parameter_flow(model, x, y, [5.0], loss=MeanSquaredError()).final
    assert not np.allclose(jax.vmap(trained)(x), jax.vmap(model)(x))
    assert eqx.tree_equal(frozen_values(trained), frozen_values(model))
    linear = taylorize(model, 1)
    np.testing.assert_allclose(ntk(linear, x), ntk(model, x), rtol=1e-11, atol=1e-13)


def test_later_training_of_an_nnx_module_does_not_move_the_model_nor_the_reverse():
    module, x = nnx_cnn(), images()
    model = from_flax(module)
    assert not module.norm.use_running_average
    assert not module.dropout.deterministic
    before, of_module = jax.vmap(model)(x), in_inference_mode(module)(x)
    ones = jax.tree.map(jnp.ones_like, eqx.filter(model, eqx.is_inexact_array))
    moved = eqx.apply_updates(model, ones)
    np.testing.assert_array_equal(in_inference_mode(module)(x), of_module)
    assert not np.allclose(jax.vmap(moved)(x), before)
    with jax.numpy_dtype_promotion("standard"):  # the moving average mixes weak types in
        module(x)  # moves the statistics and the random numbers
    gradient = nnx.grad(lambda m: jnp.sum(m(x) ** 2))(in_inference_mode(module))
    params = nnx.state(module, nnx.Param)
    nnx.update(module, jax.tree.map(jnp.subtract, params, gradient))
    assert not np.allclose(in_inference_mode(module)(x), of_module)
    np.testing.assert_array_equal(jax.vmap(model)(x), before)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_the_model_outlives_the_buffers_it_was_made_from(kind):
    if kind == "linen":
        module, source = linen_cnn()
        model = from_flax(module, source)
    else:
        module = nnx_cnn()
        model, source = from_flax(module), nnx.state(module)
    before = model(images()[0])
    for leaf in jax.tree.leaves(source):
        leaf.delete()  # as a step of training does to what it was donated
    np.testing.assert_array_equal(model(images()[0]), before)


def test_a_state_takes_the_place_of_an_nnx_module_s_own():
    module, x = nnx_cnn(), images()
    doubled = jax.tree.map(
        lambda leaf: 2 * leaf if eqx.is_inexact_array(leaf) else leaf, nnx.state(module)
    )
    other = nnx_cnn()
    nnx.update(other, doubled)
    np.testing.assert_allclose(
        jax.vmap(from_flax(module, doubled))(x), in_inference_mode(other)(x), rtol=1e-12
    )
    assert not np.allclose(in_inference_mode(module)(x), in_inference_mode(other)(x))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_model_can_be_saved_and_compiled(kind):
    model, x = cnn(kind), images()
    expected = jax.vmap(model)(x)
    traced = 0

    @eqx.filter_jit
    def compiled(network, x):
        nonlocal traced
        traced += 1
        return jax.vmap(network)(x)

    np.testing.assert_allclose(compiled(model, x), expected, rtol=1e-12)
    compiled(cnn(kind), x)
    assert traced == 1  # a model made anew from the same module is the same program
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, model)
    file.seek(0)
    zeros = jax.tree.map(jnp.zeros_like, model)
    assert not eqx.tree_equal(zeros, model)
    restored = eqx.tree_deserialise_leaves(file, zeros)
    assert eqx.tree_equal(restored, model)
    np.testing.assert_array_equal(jax.vmap(restored)(x), expected)


def test_random_keys_survive():
    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.scale = nnx.Param(jnp.ones(2))
            self.rngs = rngs

        def __call__(self, x):
            return self.scale * jr.normal(self.rngs.noise(), (2,))

    model = from_flax(Noisy(nnx.Rngs(noise=3)), batched=False)
    expected = jr.normal(nnx.Rngs(noise=3).noise(), (2,))
    for _ in range(2):  # that the module has counted the first call is thrown away
        np.testing.assert_array_equal(model(jnp.ones(1)), expected)


def test_variables_may_be_frozen_boxed_or_numpy():
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            start = nn.with_partitioning(nn.initializers.normal(), (None, None))
            return nn.Dense(2, kernel_init=start, **FLOAT64)(x)

    module, x = Boxed(), inputs(3)
    variables = module.init(jr.key(0), x)
    assert isinstance(variables["params"]["Dense_0"]["kernel"], nn.Partitioned)
    model = from_flax(module, freeze(variables))
    assert type(model.params) is dict
    assert isinstance(model.params["Dense_0"]["kernel"], jax.Array)
    np.testing.assert_allclose(jax.vmap(model)(x), module.apply(variables, x), rtol=1e-12)

    arrays = jax.tree.map(np.array, nn.meta.unbox(variables))
    loaded = from_flax(module, arrays)
    assert eqx.tree_equal(loaded, model)
    arrays["params"]["Dense_0"]["kernel"][:] = 0
    assert eqx.tree_equal(loaded, model)


def test_options_reach_every_call():
    class TwoHeads(nn.Module):
        def setup(self):
            self.body, self.head = nn.Dense(3, **FLOAT64), nn.Dense(2, **FLOAT64)

        def __call__(self, x, scale=1.0):
            return scale * self.head(self.features(x))

        def features(self, x):
            return nn.tanh(self.body(x))

    module, x = TwoHeads(), inputs(3)
    variables = module.init(jr.key(0), x)
    outputs = module.apply(variables, x)
    scaled = from_flax(module, variables, scale=3.0)
    np.testing.assert_allclose(jax.vmap(scaled)(x), 3 * outputs, rtol=1e-12)
    features = from_flax(module, variables, method="features")
    expected = module.apply(variables, x, method="features")
    np.testing.assert_allclose(jax.vmap(features)(x), expected, rtol=1e-12)

    dropout = LinenDropout()
    variables = dropout.init(jr.key(0), x, deterministic=True)
    np.testing.assert_allclose(
        jax.vmap(from_flax(dropout, variables, deterministic=True))(x),
        dropout.apply(variables, x, deterministic=True),
        rtol=1e-12,
    )


class LinenScalar(nn.Module):
    """A module whose outputs are a number for each example."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, param_dtype=float)(x)[..., 0]


def test_a_module_of_numbers_has_one_output():
    module, x = LinenScalar(), inputs(3)
    kernel = ntk(from_flax(module, module.init(jr.key(0), x)), x)
    np.testing.assert_allclose(kernel[:, 0, :, 0], x @ x.T + 1, rtol=1e-12)


class LinenMasked(nn.Module):
    """A dense layer on what a mask leaves of an example."""

    @nn.compact
    def __call__(self, example):
        return nn.Dense(2, param_dtype=float)(jnp.where(example["mask"], example["x"], 0.0))


def test_modules_of_several_inputs():
    module, x = LinenMasked(), {"mask": inputs(3) > 0, "x": inputs(3)}
    variables = module.init(jr.key(0), x)
    model = from_flax(module, variables)
    np.testing.assert_allclose(jax.vmap(model)(x), module.apply(variables, x), rtol=1e-12)
    expected = kernel_of(lambda p: module.apply({"params": p}, x), variables["params"])
    np.testing.assert_allclose(ntk(model, x), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_module_without_a_batch_axis_is_called_on_the_example_itself(kind):
    x = inputs(3)
    if kind == "linen":
        module, variables = linen_mlp()
        batched = from_flax(module, variables)
        single = from_flax(module, variables, batched=False)
    else:
        module = nnx_mlp()
        batched, single = from_flax(module), from_flax(module, batched=False)
    np.testing.assert_allclose(jax.vmap(single)(x), jax.vmap(batched)(x), rtol=1e-12)


def test_float32(float32):
    module = LinenMLP(dtypes=())
    x = inputs(3)
    variables = module.init(jr.key(0), x)
    model = from_flax(module, variables)
    assert jax.tree.leaves(model.params)[0].dtype == jnp.float32
    np.testing.assert_allclose(jax.vmap(model)(x), module.apply(variables, x), rtol=1e-5)
    kernel = ntk(model, x)
    assert kernel.dtype == jnp.float32
    expected = kernel_of(lambda p: module.apply({"params": p}, x), variables["params"])
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-5)
