"""Models of one's own: Flax against Equinox for the same network, contraction against the Jacobian.

The rows of Flax are left out where it is not installed.
"""

import importlib.util
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from corrections import hessian_norm, ntk, NTKOperator, o3
from corrections.contraction.gradient_factors import GradientFactors
from corrections.contraction.hessian import FactorHessian
from corrections.operators.metric_coordinates import MetricCoordinates
from corrections.parameters import split
from scripts.benchmark.timing import Comparison, medians_in_turn
from zoo import from_flax
from zoo.common.tiles import in_tiles

_MLP = "MLP 784-512x3-10"
_CNN = "CNN 64x4-10"


def foreign(repeats: int) -> Iterator[Comparison]:
    """The NTK, O_3 and the operator of the same networks; a transformer; norms of Hessians."""
    mlp = _equinox_mlp()
    if importlib.util.find_spec("flax") is not None:
        yield from _flax_over_equinox(mlp, repeats)
    yield from _of_a_transformer(repeats)
    yield from _jacobian_path(mlp, repeats)
    yield from _hessians(mlp, repeats)


def _flax_over_equinox(mlp: Any, repeats: int) -> Iterator[Comparison]:
    x, small = jr.normal(jr.key(1), (64, 784)), jr.normal(jr.key(1), (8, 784))
    pixels = jr.normal(jr.key(1), (32, 3, 16, 16))
    images, last = _equinox_cnn(), jnp.moveaxis(pixels, 1, -1)
    in_flax, images_in_flax = _flax_mlp(), _flax_cnn()
    yield _compared("NTK", _MLP, ntk, (in_flax, x), (mlp, x), repeats)
    yield _compared("O_3", _MLP, o3, (in_flax, small), (mlp, small), repeats)
    yield _compared("Theta g", _MLP, _product, (in_flax, x), (mlp, x), repeats)
    of_images = (images_in_flax, last), (images, pixels)
    yield _compared("NTK", _CNN, ntk, *of_images, repeats)
    yield _compared("Theta g", _CNN, _product, *of_images, repeats)
    few = (images_in_flax, last[:2]), (images, pixels[:2])
    yield _compared("O_3", _CNN, o3, *few, repeats)


def _compared(
    task: str, name: str, fn: Any, ours: tuple[Any, Any], theirs: tuple[Any, Any], repeats: int
) -> Comparison:
    (model, x), (other, y) = ours, theirs
    seconds = medians_in_turn([lambda: fn(model, x), lambda: fn(other, y)], repeats)
    return Comparison(
        f"{task}, {name} in Flax, n = {len(x)}", seconds[0], "the same in Equinox", seconds[1]
    )


def _product(model: Any, x: Any) -> Any:
    operator = NTKOperator(model, x)
    return operator.mv(jnp.ones(operator.in_structure().shape))


def _of_a_transformer(repeats: int) -> Iterator[Comparison]:
    model = Transformer(128, blocks=2, key=jr.key(0))
    x = jr.normal(jr.key(1), (32, 32, 128))
    seconds = medians_in_turn([lambda: ntk(model, x), lambda: plain_kernel(model, x)], repeats)
    name = "transformer of width 128, 2 blocks, 32 tokens"
    yield Comparison(f"NTK, {name}, n = 32", seconds[0], "J J^T", seconds[1])
    few, operator = x[:2], NTKOperator(model, x)
    g = jnp.ones(operator.in_structure().shape)
    seconds = medians_in_turn(
        [lambda: o3(model, few), lambda: o3(model, few, method="jacobian")], repeats
    )
    yield Comparison(f"O_3, {name}, n = 2", seconds[0], 'method="jacobian"', seconds[1])
    seconds = medians_in_turn([lambda: operator.mv(g), lambda: plain_product(model, x, g)], repeats)
    yield Comparison(f"Theta g, {name}, n = 32", seconds[0], "a JVP along a VJP", seconds[1])


def _jacobian_path(model: Any, repeats: int) -> Iterator[Comparison]:
    for n in (16, 64):
        x = jr.normal(jr.key(1), (n, 784))
        seconds = medians_in_turn(
            [lambda x=x: ntk(model, x, method="jacobian"), lambda x=x: plain_kernel(model, x)],
            repeats,
        )
        yield Comparison(
            f'NTK by method="jacobian", {_MLP}, n = {n}', seconds[0], "J J^T", seconds[1]
        )


def _hessians(model: Any, repeats: int) -> Iterator[Comparison]:
    n = 50
    x = jr.normal(jr.key(1), (n, 784))
    ways = [
        lambda: hessian_norm(model, x, rtol=1e-4),
        lambda: _plain_products(model, x[0]),
        lambda: _products_of_factors(model, x),
    ]
    ours, one, all_ = medians_in_turn(ways, repeats)
    task = f"|H| of {n} examples x 10 outputs to 1e-4, {_MLP}"
    yield Comparison(task, ours, f"{_PRODUCTS} plain products of each", one * n * 10)
    yield Comparison(task, ours, f"{_PRODUCTS} products of each in the factors", all_)


_PRODUCTS = 60


def _powers(product: Any, start: Any) -> Any:
    return jax.lax.fori_loop(0, _PRODUCTS, lambda _, v: product(v) / jnp.linalg.norm(v), start)


@eqx.filter_jit
def _plain_products(model: Any, x: Any) -> Any:
    """Of the Hessian of one output of one example."""
    flat = MetricCoordinates(model, None)
    return _powers(flat.hessian_product(_first_output, x[None]), flat.vector)


@eqx.filter_jit
def _products_of_factors(model: Any, x: Any) -> Any:
    """Of those of all outputs of all examples."""
    factored = GradientFactors(model, jax.ShapeDtypeStruct(x.shape[1:], x.dtype), None)

    def of_output(x: Any, weights: Any) -> Any:
        hessian = FactorHessian(factored, x, weights)
        return _powers(hessian.product, jnp.ones(hessian.size))

    return in_tiles(lambda x: jax.vmap(lambda w: of_output(x, w))(jnp.eye(10)), x, 10)


def _first_output(apply: Any, params: Any, x: Any) -> Any:
    return apply(params, x)[0]


@eqx.filter_jit
def plain_kernel(model: Any, x: Any) -> Any:
    """J J^T as one writes it."""
    params, apply = split(model)
    gradients = jax.vmap(jax.jacrev(apply), in_axes=(None, 0))(params, x)
    flat = [g.reshape(*g.shape[:2], -1) for g in jax.tree.leaves(gradients)]
    return sum(jnp.einsum("ikp,jlp->ikjl", g, g) for g in flat)


@eqx.filter_jit
def plain_product(model: Any, x: Any, g: Any) -> Any:
    """J J^T g as one writes it."""
    params, apply = split(model)

    def outputs(params: Any) -> Any:
        return jax.vmap(lambda x: apply(params, x))(x)

    direction = jax.vjp(outputs, params)[1](g)
    return jax.jvp(outputs, (params,), direction)[1]


def _equinox_mlp() -> Any:
    return eqx.nn.MLP(784, 10, 512, 3, activation=jnp.tanh, key=jr.key(0))


class _Images(eqx.Module):
    convolutions: list[eqx.nn.Conv2d]
    readout: eqx.nn.Linear

    def __call__(self, x: Any) -> Any:
        for layer in self.convolutions:
            x = jax.nn.relu(layer(x))
        return self.readout(x.mean(axis=(1, 2)))


def _equinox_cnn() -> Any:
    keys = jr.split(jr.key(0), 5)
    channels = (3, 64, 64, 64, 64)
    layers = [
        eqx.nn.Conv2d(a, b, 3, padding=1, key=key)
        for a, b, key in zip(channels, channels[1:], keys, strict=False)
    ]
    return _Images(layers, eqx.nn.Linear(64, 10, key=keys[4]))


def _flax_mlp() -> Any:
    import flax.linen as nn

    layers = [layer for _ in range(3) for layer in (nn.Dense(512), jnp.tanh)]
    module = nn.Sequential((*layers, nn.Dense(10)))
    return from_flax(module, module.init(jr.key(0), jnp.ones((1, 784))))


def _flax_cnn() -> Any:
    import flax.linen as nn

    layers = [layer for _ in range(4) for layer in (nn.Conv(64, (3, 3)), jax.nn.relu)]
    module = nn.Sequential((*layers, _mean_of_pixels, nn.Dense(10)))
    return from_flax(module, module.init(jr.key(0), jnp.ones((1, 16, 16, 3))))


def _mean_of_pixels(x: Any) -> Any:
    return x.mean(axis=(1, 2))


class _Block(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    norms: list[eqx.nn.LayerNorm]
    mlp: eqx.nn.MLP

    def __call__(self, tokens: Any) -> Any:
        normed = jax.vmap(self.norms[0])(tokens)
        tokens = tokens + self.attention(normed, normed, normed)
        return tokens + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(tokens))


class Transformer(eqx.Module):
    """Blocks of attention and MLPs as Equinox writes them, and a readout of the mean token."""

    blocks: list[_Block]
    readout: eqx.nn.Linear

    def __init__(self, width: int, *, blocks: int, key: Any):
        *keys, last = jr.split(key, blocks + 1)
        self.blocks = []
        for block in keys:
            first, second = jr.split(block)
            attention = eqx.nn.MultiheadAttention(4, width, key=first)
            mlp = eqx.nn.MLP(width, width, 4 * width, 1, activation=jax.nn.gelu, key=second)
            norms = [eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)]
            self.blocks.append(_Block(attention, norms, mlp))
        self.readout = eqx.nn.Linear(width, 10, key=last)

    def __call__(self, tokens: Any) -> Any:
        for block in self.blocks:
            tokens = block(tokens)
        return self.readout(jnp.mean(tokens, axis=0))
