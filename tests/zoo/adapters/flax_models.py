"""Networks in Flax, and the same in the zoo."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.random as jr
from flax import nnx

from corrections import ntk, o3, taylorize
from solvers import hierarchy_flow, MeanSquaredError, parameter_flow
from tests.models import inputs, one_hot, tanh_mlp
from zoo import Frozen, STANDARD
from zoo.adapters.flax import from_flax

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
