import functools
import io
import sys

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

from corrections import ntk, o3, taylorize
from solvers import hierarchy_flow, MeanSquaredError, parameter_flow
from tests.models import inputs, one_hot, tanh_mlp
from zoo import forward_train, Frozen, STANDARD
from zoo.flax import from_flax

# Flax computes in float32 unless told otherwise, and does not promote by itself under the strict
# promotion of these tests.
FLOAT64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}


class LinenMLP(nn.Module):
    dtypes: tuple = tuple(FLOAT64.items())
    sizes: tuple | list = (4, 2)

    @nn.compact
    def __call__(self, x):
        *hidden, out = self.sizes
        for size in hidden:
            x = nn.tanh(nn.Dense(size, **dict(self.dtypes))(x))
        return nn.Dense(out, **dict(self.dtypes))(x)


class LinenCNN(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(3, (3, 3), **FLOAT64)(x)
        x = nn.BatchNorm(use_running_average=not train, **FLOAT64)(x)
        x = nn.tanh(x).mean(axis=(1, 2))
        return nn.Dense(2, **FLOAT64)(x)


class LinenDropout(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=False):
        return nn.Dropout(0.5)(nn.Dense(2, **FLOAT64)(x), deterministic=deterministic)


class NNXCNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs, **FLOAT64)
        self.norm = nnx.BatchNorm(3, rngs=rngs, **FLOAT64)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.readout = nnx.Linear(3, 2, rngs=rngs, **FLOAT64)

    def __call__(self, x, **options):
        x = nnx.tanh(self.norm(self.conv(x), **options)).mean(axis=(1, 2))
        return self.readout(self.dropout(x))


class NNXUnhashable(nnx.Module):
    def __init__(self):
        self.sizes = {1, 2}
        self.weight = nnx.Param(jnp.ones((2, 3)))


def statistics(seed=5):
    """A mean and a variance of three channels that are not those of the start."""
    mean_key, var_key = jr.split(jr.key(seed))
    return {"mean": jr.normal(mean_key, (3,)), "var": jr.uniform(var_key, (3,)) + 0.5}


def images(n=3):
    return jr.normal(jr.key(8), (n, 4, 4, 2))


def linen_mlp():
    module = LinenMLP()
    return module, module.init(jr.key(0), inputs(1))


def linen_cnn():
    module = LinenCNN()
    with jax.numpy_dtype_promotion("standard"):  # Flax starts its statistics in float32
        params = module.init(jr.key(0), images(1))["params"]
    return module, {"params": params, "batch_stats": {"BatchNorm_0": statistics()}}


def nnx_mlp():
    rngs = nnx.Rngs(0)
    first = nnx.Linear(3, 4, rngs=rngs, **FLOAT64)
    return nnx.Sequential(first, jnp.tanh, nnx.Linear(4, 2, rngs=rngs, **FLOAT64))


def nnx_cnn():
    module = NNXCNN(nnx.Rngs(0))
    for name, value in statistics().items():
        setattr(module.norm, name, nnx.BatchStat(value))
    return module


def cnn(kind):
    """The model of a network with batch normalization."""
    return from_flax(*linen_cnn()) if kind == "linen" else from_flax(nnx_cnn())


def in_inference_mode(module):
    module = nnx.clone(module)
    module.eval()
    return module


def of_the_zoo():
    """A network whose corrections and dynamics are tested elsewhere."""
    return tanh_mlp(width=4, depth=1, parameterization=STANDARD)


def copied_into_flax(kind):
    """The network of the zoo, in Flax."""
    weights = [{"kernel": layer.weight.T, "bias": layer.bias} for layer in of_the_zoo().layers]
    if kind == "linen":
        params = {f"Dense_{i}": weight for i, weight in enumerate(weights)}
        return from_flax(LinenMLP(), {"params": params})
    module = nnx_mlp()
    for layer, weight in zip(module.layers[::2], weights, strict=True):
        layer.kernel, layer.bias = nnx.Param(weight["kernel"]), nnx.Param(weight["bias"])
    return from_flax(module)


@functools.cache
def corrections_and_dynamics_of_the_zoo():
    return corrections_and_dynamics(of_the_zoo())


def corrections_and_dynamics(model):
    x, y = inputs(3), one_hot(3, 2)
    further = jax.tree.map(lambda leaf: 1.2 * leaf if eqx.is_inexact_array(leaf) else leaf, model)
    quadratic = eqx.tree_at(lambda t: t.model, taylorize(model, 2), further)
    solve = {"loss": MeanSquaredError(), "rtol": 1e-8}
    return {
        "outputs": jax.vmap(model)(x),
        "kernel": ntk(model, x),
        "o3": o3(model, x),
        "quadratic": jax.vmap(quadratic)(x),
        "training": parameter_flow(model, x, y, [0.3, 1.0], **solve).train,
        "prediction": hierarchy_flow(model, x, y, [0.3, 1.0], order=3, **solve).train,
    }


def kernel_of(apply, params):
    """J J^T of a batch of outputs (n, k), by the plain Jacobian in the raw parameters."""
    jacobians = jax.tree.leaves(jax.jacrev(apply)(params))
    return sum(jnp.einsum("aip,bjp->aibj", j, j) for j in map(_flattened, jacobians))


def _flattened(jacobian):
    return jacobian.reshape(*jacobian.shape[:2], -1)


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))


def frozen_values(model):
    """The values of everything that the model does not train."""
    nodes = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, Frozen))
    return [node.value for node in nodes if isinstance(node, Frozen)]


def frozen_arrays(model):
    return jax.tree.leaves(eqx.filter(frozen_values(model), eqx.is_inexact_array))


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


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_the_same_network_in_flax_and_in_the_zoo_has_the_same_corrections_and_dynamics(kind):
    expected = corrections_and_dynamics_of_the_zoo()
    for name, value in corrections_and_dynamics(copied_into_flax(kind)).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-10, atol=1e-12, err_msg=name)
    assert not np.allclose(expected["quadratic"], expected["outputs"])


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

    class Scalar(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1, **FLOAT64)(x)[..., 0]

    module = Scalar()
    model = from_flax(module, module.init(jr.key(0), inputs(1)))
    with pytest.raises(ValueError, match=r"shape=\(\).*expected a vector of k outputs"):
        ntk(model, inputs(2))


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
