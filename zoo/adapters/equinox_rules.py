"""What the layers of Equinox compute, for the kernels."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from zoo.contraction_rule import ContractionRule, register_contraction_rule
from zoo.convolution import are_outside_loops, kernel_matrix, window_patches

_CONVOLUTIONS = (eqx.nn.Conv, eqx.nn.Conv1d, eqx.nn.Conv2d, eqx.nn.Conv3d)


def _as_position(_: Any, a: Array) -> Array:
    return a.reshape(1, -1)


def _channels(layer: eqx.nn.Linear) -> tuple[int, ...]:
    return () if layer.out_features == "scalar" else (0,)


def _equinox_conv_patches(layer: eqx.nn.Conv, a: Array) -> Array:
    padding = layer.padding
    if isinstance(padding, str):
        extent = [(k - 1) * d + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        padding = jax.lax.padtype_to_pads(a.shape[1:], extent, layer.stride, padding)
    mode = {"ZEROS": "constant", "REFLECT": "reflect", "REPLICATE": "edge", "CIRCULAR": "wrap"}
    padded = jnp.pad(a, ((0, 0), *padding), mode[layer.padding_mode])
    return window_patches(
        padded, kernel=layer.kernel_size, stride=layer.stride, dilation=layer.dilation
    )


def _plain(layer: eqx.nn.Conv) -> bool:
    return layer.groups == 1


def called(layer: Any, a: Array) -> Array:
    """`layer(a)`, of Equinox's convolutions in the way that is fast inside loops on CPUs
    (`zoo.convolution`).
    """
    if type(layer) not in _CONVOLUTIONS or not _plain(layer) or are_outside_loops():
        return layer(a)

    arrays, static = eqx.partition(layer, eqx.is_array)

    def by_patches(arrays: Any, a: Array) -> Array:
        layer = eqx.combine(arrays, static)
        z = _equinox_conv_patches(layer, a) @ kernel_matrix(layer.weight).T
        z = jnp.moveaxis(z.reshape(*space, -1), -1, 0)
        return z if layer.bias is None else z + layer.bias

    def native(arrays: Any, a: Array) -> Array:
        return eqx.combine(arrays, static)(a)

    space = jax.eval_shape(native, arrays, a).shape[1:]
    return jax.lax.platform_dependent(arrays, a, cpu=by_patches, default=native)


def _place(layer: eqx.nn.Embedding, a: Array) -> Array:
    """Of the row that indexing with `a` gives: from the end if it is negative, and never beyond."""
    place = jnp.where(a < 0, a + layer.num_embeddings, a)
    return jnp.clip(place, 0, layer.num_embeddings - 1)[None, None]


def _countable(layer: eqx.nn.Embedding) -> bool:
    """Whether places are exact as numbers of the table's type."""
    return layer.num_embeddings < 2 / float(jnp.finfo(layer.weight.dtype).eps)


register_contraction_rule(
    eqx.nn.Embedding,
    ContractionRule(_place, applies=_countable, rows=lambda layer: layer.num_embeddings),
)
register_contraction_rule(eqx.nn.Linear, ContractionRule(_as_position, channel_axis=_channels))
for _conv in _CONVOLUTIONS:
    register_contraction_rule(_conv, ContractionRule(_equinox_conv_patches, applies=_plain))
