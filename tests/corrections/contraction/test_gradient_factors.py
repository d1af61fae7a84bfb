"""The structured contraction against kernels by their definition, whatever a model is made of."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import dntk, ntk, o3
from corrections.contraction.gradient_factors import GradientFactors
from tests import oracles
from tests.corrections.test_architectures import residual
from tests.models import inputs, tanh_mlp
from zoo import (
    astype,
    centered,
    CNN,
    Dense,
    learning_rates,
    MEAN_FIELD,
    MUP,
    Sequential,
    with_output,
)

SMALL = {"activation": "tanh", "bias_std": 0.3, "key": jr.key(0)}


def convolutional(**options):
    return CNN((2, 5, 4), 2, **({"channels": (3, 3)} | SMALL | options))


class InnerMap(eqx.Module):
    """Calls a layer inside `vmap`, and another one outside."""

    inner: eqx.nn.Linear
    outer: eqx.nn.Linear

    def __call__(self, x):
        return self.outer(jnp.sin(jax.vmap(self.inner)(x.reshape(2, -1))).ravel())


class InnerScan(eqx.Module):
    inner: Dense
    outer: Dense

    def __call__(self, x):
        h, _ = jax.lax.scan(lambda h, _: (jnp.sin(self.inner(h)), None), x, length=3)
        return self.outer(eqx.filter_checkpoint(self.inner)(h))


class Shared(eqx.Module):
    """One layer used twice, and another whose weight is used by itself."""

    layer: Dense
    tied: Dense

    def __call__(self, x):
        h = self.layer(jnp.sin(self.layer(x)))
        return jnp.tanh(self.tied(h)) + self.tied.weight[:, 0]


class Sine(eqx.nn.Linear):
    """Is a layer that has a rule, and computes something else."""

    def __call__(self, x, *, key=None):
        return jnp.sin(jnp.sin(self.weight) @ x)


class Attention(eqx.Module):
    """A user's own: no layers at all, and parameters of its own beside a ruled layer."""

    query: jax.Array
    key: jax.Array
    readout: eqx.nn.Linear

    def __call__(self, x):
        tokens = x.reshape(3, -1)
        weights = jax.nn.softmax((tokens @ self.query) @ (tokens @ self.key).T)
        return self.readout((weights @ tokens).ravel())


def linear(inputs, outputs, seed=0):
    return eqx.nn.Linear(inputs, outputs, key=jr.key(seed))


def dense(inputs, outputs, seed=0):
    return Dense(inputs, outputs, bias_std=0.5, key=jr.key(seed))


# Model, shape of an example, how many of its layers are tapped.
MODELS = {
    "MLP": (lambda: tanh_mlp(), (3,), 3),
    "MLP without biases": (lambda: tanh_mlp(bias_std=None, parameterization=MUP), (3,), 3),
    "CNN": (lambda: convolutional(stride=2, parameterization=MEAN_FIELD), (2, 5, 4), 3),
    "CNN circular mean": (
        lambda: convolutional(padding="CIRCULAR", readout="mean", kernel_size=2),
        (2, 5, 4),
        3,
    ),
    "CNN valid, many channels": (
        lambda: convolutional(padding="VALID", kernel_size=2, channels=[20, 1]),
        (2, 5, 4),
        3,
    ),
    "softmax of a centered residual network": (
        lambda: with_output(centered(residual()), "softmax"),
        (1, 4, 4),
        4,
    ),
    "Equinox": (lambda: eqx.nn.MLP(3, 2, 5, 2, activation=jnp.tanh, key=jr.key(0)), (3,), 3),
    "inner vmap": (lambda: InnerMap(linear(2, 3), linear(6, 2)), (4,), 2),
    "inner scan": (lambda: InnerScan(dense(3, 3), dense(3, 2)), (3,), 1),
    "shared and tied": (lambda: Shared(dense(3, 3), dense(3, 2)), (3,), 1),
    "attention": (
        lambda: Attention(jr.normal(jr.key(0), (2, 2)), jr.normal(jr.key(1), (2, 2)), linear(6, 2)),
        (6,),
        1,
    ),
    "subclass": (lambda: Sequential([Sine(3, 2, key=jr.key(0)), jnp.tanh]), (3,), 0),
    "one layer twice in the tree": (
        lambda: Sequential([layer := dense(3, 3), jnp.tanh, layer]),
        (3,),
        2,
    ),
}
QUICK = ("MLP", "inner vmap", "shared and tied", "subclass")
CASES = [
    pytest.param(*case, id=name, marks=() if name in QUICK else pytest.mark.slow)
    for name, case in MODELS.items()
]


def batches(shape):
    return (jr.normal(jr.key(seed), (n, *shape)) for seed, n in ((1, 3), (2, 2), (3, 4)))


def tapped_layers(model, x, metric=None):
    """How many layers of a model the contraction has in factors."""
    count = []
    eqx.filter_eval_shape(lambda m: count.append(len(GradientFactors(m, x, metric).ruled)), model)
    return count[0]


def close(result, expected, tolerance=1e-12):
    np.testing.assert_allclose(result, expected, atol=tolerance * float(jnp.abs(expected).max()))


def random_metric(model):
    """A number for each parameter."""
    leaves, structure = jax.tree.flatten(eqx.filter(model, eqx.is_inexact_array))
    values = np.random.default_rng(0).uniform(0, 2, len(leaves))
    return jax.tree.unflatten(structure, [float(v) for v in values])


@pytest.mark.smoke
@pytest.mark.parametrize(("make", "shape", "tapped"), MODELS.values(), ids=MODELS)
def test_every_layer_that_can_be_tapped_is(make, shape, tapped):
    assert tapped_layers(make(), jnp.zeros(shape)) == tapped


@pytest.mark.smoke
@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.silu, "relu", "gelu"])
def test_activations_with_derivatives_of_their_own_do_not_hide_layers(activation):
    """Some versions of JAX trace these where all else is evaluated."""
    model = tanh_mlp(activation=activation)
    assert tapped_layers(model, jnp.zeros(3)) == 3
    functions = eqx.nn.MLP(3, 2, 5, 2, activation=jax.nn.relu, key=jr.key(0))
    assert tapped_layers(functions, jnp.zeros(3)) == 3


@pytest.mark.long
@pytest.mark.parametrize(("make", "shape", "tapped"), CASES)
def test_structured_kernels_are_their_definition(make, shape, tapped):
    """Rectangular sets, random metric: 1e-12."""
    model = make()
    metric = random_metric(model)
    x1, x2, x3 = batches(shape)
    assert tapped_layers(model, x1[0], metric) == tapped
    expected = oracles.kernel(model, x1, x2, metric)
    close(ntk(model, x1, x2, metric=metric), expected)
    close(ntk(model, x1, x2, metric=metric, method="jacobian"), expected)
    close(ntk(model, x1, x2, metric=metric, batch_size=2), expected)
    diagonal = jnp.einsum("akbk->abk", expected)
    close(ntk(model, x1, x2, metric=metric, outputs="diagonal"), diagonal)
    close(ntk(model, x1, x2, metric=metric, outputs="mean", batch_size=2), diagonal.mean(axis=-1))
    close(ntk(model, x1), oracles.kernel(model, x1, x1))
    expected = oracles.third(model, x1, x2, x3, metric)
    close(o3(model, x1, x2, x3, metric=metric), expected)
    close(o3(model, x1, x2, x3, metric=metric, method="jacobian", batch_size=3), expected)
    halves = [dntk(model, a, b, x3, metric=metric) for a, b in ((x1, x2), (x2, x1))]
    close(halves[0] + jnp.transpose(halves[1], (2, 3, 0, 1, 4, 5)), expected)
    close(o3(model, x1, x3=x3), oracles.third(model, x1, x1, x3))


def test_dntk_is_symmetric_in_its_last_two_slots():
    model, (x1, x2, x3) = tanh_mlp(), batches((3,))
    half = dntk(model, x1, x2, x3)
    close(half, jnp.transpose(dntk(model, x1, x3, x2), (0, 1, 4, 5, 2, 3)))


def test_a_metric_of_arrays_sends_that_layer_to_the_jacobian():
    model, (x1, x2, x3) = tanh_mlp(), batches((3,))
    metric = eqx.tree_at(
        lambda m: m.layers[1].weight, learning_rates(model), jnp.linspace(0, 1, 64).reshape(8, 8)
    )
    close(ntk(model, x1, x2, metric=metric), oracles.kernel(model, x1, x2, metric))
    close(o3(model, x1, x2, x3, metric=metric), oracles.third(model, x1, x2, x3, metric))
    factored = []
    eqx.filter_eval_shape(lambda m: factored.append(GradientFactors(m, x1[0], metric)), model)
    assert len(factored[0].ruled) == 2
    assert factored[0].rest.shape == (64 + 8,)


def test_structured_names_the_layer_that_cannot_be_tapped(unchecked):
    model, (x1, _, _) = InnerScan(dense(3, 3), dense(3, 2)), batches((3,))
    with pytest.raises(
        ValueError, match=r"cannot be contracted: Dense `model\.inner` is called inside a"
    ):
        ntk(model, x1, method="structured")
    ntk(tanh_mlp(), next(batches((3,))), method="structured")
    with pytest.raises(ValueError, match="`method` is 'fast', expected one of 'auto'"):
        o3(model, x1, method="fast")
    with pytest.raises(ValueError, match="`batch_size` is 0, expected an integer >= 1"):
        ntk(model, x1, batch_size=0)


@pytest.mark.slow
def test_float32_models_in_float32():
    model = astype(convolutional(), "float32")
    x1, x2, x3 = (x.astype("float32") for x in batches((2, 5, 4)))
    kernel = ntk(model, x1, x2)
    assert kernel.dtype == jnp.float32
    close(kernel, oracles.kernel(convolutional(), *(x.astype(float) for x in (x1, x2))), 1e-5)
    third = o3(model, x1, x2, x3)
    assert third.dtype == jnp.float32
    exact = oracles.third(convolutional(), *(x.astype(float) for x in (x1, x2, x3)))
    close(third, exact, 1e-5)


@pytest.mark.smoke
def test_kernels_work_under_jit_and_differentiate():
    """The derivative of the kernel along a direction of the parameters, through the contraction."""
    model, (x1, x2, _) = tanh_mlp(), batches((3,))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def theta(params):
        return ntk(eqx.combine(params, static), x1, x2)

    direction = jax.tree.map(jnp.cos, params)
    _, along = jax.jvp(jax.jit(theta), (params,), (direction,))
    step = 1e-5
    ahead, behind = (
        theta(jax.tree.map(lambda p, d, s=s: p + s * step * d, params, direction)) for s in (1, -1)
    )
    np.testing.assert_allclose(along, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


def test_profiles_show_the_parts_of_a_kernel():
    """By the names that their operations carry in the program."""
    model, x = tanh_mlp(), inputs(3)

    def program(fn):
        return jax.jit(fn).lower(x).as_text(debug_info=True)

    text = program(lambda x: ntk(model, x))
    assert all(name in text for name in ("gradient_factors", "kernel_products"))
    assert 'loc("S/' in program(lambda x: o3(model, x))
