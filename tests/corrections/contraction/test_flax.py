"""Layers of Flax networks: which are contracted, and the kernels of models that have them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

pytest.importorskip("flax")

import flax.linen as nn
from flax import nnx

from corrections import contraction_summary, nngp, ntk, NTKOperator, o3, o4
from corrections.contraction.gradient_factors import GradientFactors
from tests.foreign_models import jacobian
from tests.zoo.adapters.flax_models import FLOAT64
from zoo import centered, ContractionRule, from_flax, parameters, register_contraction_rule


@pytest.fixture(autouse=True)
def promoting():
    """Flax promotes types by itself."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def images(n, channels=4):
    return jr.normal(jr.key(3), (n, 5, 4, channels))


def vectors(n):
    return jr.normal(jr.key(4), (n, 3))


def tokens(n):
    return jr.randint(jr.key(5), (n, 6), 0, 5)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.tanh(nn.Dense(5, **FLOAT64)(x))
        return nn.Dense(2, **FLOAT64)(x)


class Shared(nn.Module):
    def setup(self):
        self.inner, self.outer = nn.Dense(3, **FLOAT64), nn.Dense(2, use_bias=False, **FLOAT64)

    def __call__(self, x):
        return self.outer(nn.tanh(self.inner(nn.tanh(self.inner(x)))))


class Images(nn.Module):
    """Strides, dilation, paddings, groups; channels last. The group stays with the Jacobian."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(4, (3, 2), strides=(2, 1), **FLOAT64)(x))
        x = nn.tanh(nn.Conv(4, (2, 2), kernel_dilation=2, padding=1, **FLOAT64)(x))
        x = nn.tanh(nn.Conv(4, (2, 2), feature_group_count=2, **FLOAT64)(x))
        x = nn.tanh(nn.Conv(3, (2, 2), padding=((1, 0), (0, 1)), use_bias=False, **FLOAT64)(x))
        return nn.Dense(2, **FLOAT64)(x.mean(axis=(-3, -2)))


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        skip = nn.Conv(3, (1, 1), **FLOAT64)(x)
        x = nn.BatchNorm(use_running_average=True, **FLOAT64)(nn.Conv(3, (3, 3), **FLOAT64)(x))
        x = nn.tanh(
            skip
            + nn.Conv(3, (3, 3), padding="VALID", **FLOAT64)(
                jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            )
        )
        return nn.Dense(2, **FLOAT64)(x.mean(axis=(1, 2)))


class Language(nn.Module):
    tied: bool = False

    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(5, 4, **FLOAT64)
        h = embed(x) + self.param("positions", nn.initializers.normal(), (1, 6, 4), float)
        normed = nn.LayerNorm(**FLOAT64)(h)
        h = h + nn.MultiHeadDotProductAttention(2, **FLOAT64)(normed, normed)
        h = h + nn.Dense(4, **FLOAT64)(nn.gelu(nn.Dense(6, **FLOAT64)(h)))
        h = h.mean(axis=-2)
        return embed.attend(h)[..., :2] if self.tied else nn.Dense(2, **FLOAT64)(h)


class General(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.tanh(nn.DenseGeneral((2, 3), axis=(-3, -1), **FLOAT64)(x))
        h = nn.tanh(nn.DenseGeneral(4, axis=(-1, -2), **FLOAT64)(h))
        return nn.DenseGeneral(2, axis=(-2, -1), **FLOAT64)(h)


class Lifted(nn.Module):
    """Layers inside transformations of linen's, and one that is called as it is."""

    @nn.compact
    def __call__(self, x):
        mapped = nn.vmap(
            nn.Dense, variable_axes={"params": None}, split_rngs={"params": False}, in_axes=0
        )
        h = mapped(4, name="mapped", **FLOAT64)(jnp.stack([x, x[..., ::-1]])).sum(0)
        own = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=0)
        h = h + own(4, name="own", **FLOAT64)(jnp.stack([x, 2 * x])).sum(0)
        h = nn.remat(nn.Dense)(4, name="kept", **FLOAT64)(nn.tanh(h))
        return nn.Dense(2, **FLOAT64)(nn.tanh(h))


def linen(module: Any, x: Callable[[int], jax.Array], **options: Any) -> Any:
    variables = module.init(jr.key(0), x(1))
    if "batch_stats" in variables:
        moved = jax.tree.map(lambda a: a.astype(float) + 0.5, variables["batch_stats"])
        variables = variables | {"batch_stats": moved}
    return from_flax(module, variables, **options)


class NNXNetwork(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        listed = getattr(nnx, "List", list)  # what holds modules in newer versions of Flax
        self.convs = listed(
            [
                nnx.Conv(4, 3, (3, 2), rngs=rngs, **FLOAT64),
                nnx.Conv(3, 4, (3, 2), strides=2, rngs=rngs, **FLOAT64),
            ]
        )
        self.norm = nnx.BatchNorm(4, rngs=rngs, **FLOAT64)
        self.shared = nnx.Linear(4, 4, rngs=rngs, **FLOAT64)
        self.again = self.shared
        self.readout = nnx.Linear(4, 2, rngs=rngs, **FLOAT64)

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.tanh(conv(x))
        x = self.norm(x).mean(axis=(1, 2))
        return self.readout(nnx.tanh(self.again(nnx.tanh(self.shared(x)))))


class NNXLanguage(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(1)
        self.embed = nnx.Embed(5, 4, rngs=rngs, **FLOAT64)
        self.attention = nnx.MultiHeadAttention(
            num_heads=2, in_features=4, decode=False, rngs=rngs, **FLOAT64
        )
        self.readout = nnx.Linear(4, 2, rngs=rngs, **FLOAT64)

    def __call__(self, x):
        h = self.embed(x)
        return self.readout(nnx.tanh(h + self.attention(h)).mean(axis=1))


class Case(NamedTuple):
    """A model, its examples, how many layers are contracted."""

    model: Callable[[], Any]
    x: Callable[[int], jax.Array]
    contracted: int


MODELS = {
    "MLP": Case(lambda: linen(MLP(), vectors), vectors, 3),
    "MLP without a batch": Case(
        lambda: linen(MLP(), lambda n: vectors(n)[0], batched=False), vectors, 3
    ),
    "shared": Case(lambda: linen(Shared(), vectors), vectors, 2),
    "images": Case(lambda: linen(Images(), images), images, 4),
    "residual": Case(lambda: linen(Residual(), images), images, 4),
    "language": Case(lambda: linen(Language(), tokens), tokens, 8),
    "tied language": Case(lambda: linen(Language(tied=True), tokens), tokens, 6),
    "general": Case(lambda: linen(General(), images), images, 3),
    "lifted": Case(lambda: linen(Lifted(), vectors), vectors, 2),
    "centered": Case(lambda: centered(linen(MLP(), vectors)), vectors, 3),
    "inside a module": Case(lambda: Outer(linen(MLP(), vectors)), vectors, 4),
    "NNX": Case(lambda: from_flax(NNXNetwork()), images, 4),
    "NNX language": Case(lambda: from_flax(NNXLanguage()), tokens, 6),
}


class Outer(eqx.Module):
    """A Flax network, called twice among Equinox's layers."""

    flax: Any
    last: eqx.nn.Linear

    def __init__(self, flax):
        self.flax, self.last = flax, eqx.nn.Linear(2, 2, key=jr.key(0))

    def __call__(self, x):
        return self.last(jnp.tanh(self.flax(x) * self.flax(x[::-1])))


def contracted(model, x):
    found = []
    eqx.filter_eval_shape(lambda m: found.append(GradientFactors(m, x, None)), model)
    return len(found[0].ruled)


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_contracted(name):
    make, x, expected = MODELS[name]
    assert contracted(make(), jax.eval_shape(lambda: x(1)[0])) == expected


@pytest.mark.parametrize("name", MODELS)
def test_tangent_kernels_are_those_of_plain_gradients(name):
    make, x, _ = MODELS[name]
    model, x = make(), x(3)
    metric = jax.tree.map(lambda p: 0.5 + p.ndim, parameters(model))
    root = jnp.concatenate(
        [jnp.full(p.size, 0.5 + p.ndim) ** 0.5 for p in jax.tree.leaves(parameters(model))]
    )
    j = jacobian(model, x) * np.asarray(root)
    expected = np.einsum("ikp,jlp->ikjl", j, j)
    tolerance = {"rtol": 1e-11, "atol": 1e-12 * np.abs(expected).max()}
    np.testing.assert_allclose(ntk(model, x, metric=metric), expected, **tolerance)
    np.testing.assert_allclose(
        ntk(model, x[:2], x, metric=metric, batch_size=2), expected[:2], **tolerance
    )


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_higher_kernels_and_operators_are_those_of_the_jacobian(name):
    make, x, _ = MODELS[name]
    model, x = make(), x(2)
    for kernel in (o3, o4):
        expected = kernel(model, x, method="jacobian")
        # The attention of JAX computes its weights in float32.
        rtol = 1e-6 if name == "NNX language" else 1e-10
        tolerance = {"rtol": rtol, "atol": rtol * float(jnp.abs(expected).max())}
        np.testing.assert_allclose(kernel(model, x), expected, **tolerance)
    g = jr.normal(jr.key(7), (2, 2))
    expected = jnp.einsum("ikjl,jl->ik", ntk(model, x, method="jacobian"), g)
    np.testing.assert_allclose(NTKOperator(model, x).mv(g), expected, rtol=rtol, atol=rtol)


class Scaled(nn.Module):
    """A layer of one's own, with a fixed factor."""

    features: int

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1], self.features)
        kernel = self.param("table", nn.initializers.normal(1.0), shape, float)
        bias = self.param("bias", nn.initializers.normal(1.0), (1, self.features), float)
        return 0.5 * (x @ kernel) + bias


class WithOwn(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, **FLOAT64)(nn.tanh(Scaled(4)(x)))


@pytest.mark.long
def test_classes_of_one_s_own_are_registered():
    model, x = linen(WithOwn(), vectors), vectors(3)
    expected = ntk(model, x, method="jacobian")
    assert contracted(model, jax.eval_shape(lambda: x[0])) == 1
    rule = ContractionRule(
        lambda layer, a: a.reshape(-1, a.shape[-1]), lambda layer: (0.5, 1.0), channel_axis=-1
    )
    register_contraction_rule(Scaled, rule)
    assert contracted(model, jax.eval_shape(lambda: x[0])) == 2
    jax.clear_caches()
    np.testing.assert_allclose(ntk(model, x, method="structured"), expected, rtol=1e-12)


def squared(lhs, rhs, *args, **options):
    return jax.lax.dot_general(lhs, rhs**2, *args, **options)


@pytest.mark.parametrize("options", [{"dot_general": squared}, {"dtype": jnp.float32}])
def test_layers_with_products_of_their_own_take_the_jacobian(options):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Dense(4, **(FLOAT64 | options))(x)).astype(float)
            return nn.Dense(2, **FLOAT64)(x)

    model, x = linen(Network(), vectors), vectors(3)
    assert contracted(model, jax.eval_shape(lambda: x[0])) == 1
    expected = ntk(model, x, method="jacobian")
    np.testing.assert_allclose(ntk(model, x), expected, rtol=1e-6)


def test_the_last_hidden_representation():
    model, x = linen(MLP(), vectors), vectors(3)
    hidden = x
    for name in ("Dense_0", "Dense_1"):
        hidden = jnp.tanh(hidden @ model.params[name]["kernel"] + model.params[name]["bias"][None])
    np.testing.assert_allclose(nngp(model, x), hidden @ hidden.T / 5, rtol=1e-12)


def test_the_summary_names_layers_as_flax_does():
    model, x = linen(Images(), images), images(1)
    rows = {row.path: row for row in contraction_summary(model, x).rows}
    first, third = rows[".layers['Conv_0']"], rows[".layers['Conv_2']"]
    assert (first.kind, first.parameters, first.positions) == ("Conv", 4 * 3 * 2 * 4 + 4, 3 * 4)
    with pytest.raises(ValueError, match=r"Conv `model\.layers\['Conv_2'\]` has options"):
        ntk(model, x, method="structured")
    assert third.positions is None
    assert (
        third.reason
        == "Jacobian: it has options, parameters or a metric that its rule does not cover"
    )
