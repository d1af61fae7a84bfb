"""How the layers of Flax are affine in their weights: contraction rules of linen and of NNX.

Imported where a Flax network is taken apart, so that Flax is needed by those alone who use it.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jaxtyping import Array, Float

from zoo.adapters.flax_layers import FlaxLayer
from zoo.contraction_rule import ContractionRule, register_contraction_rule
from zoo.convolution import window_patches

_PLAIN = (
    "promote_dtype",
    "dot_general",
    "dot_general_cls",
    "conv_general_dilated",
    "conv_general_dilated_cls",
    "preferred_element_type",
    "mask",
)
"""Options under which a layer is something else than its weight times its input."""


def _computes_plainly(layer: FlaxLayer) -> bool:
    """Whether it does, in the precision of its weight."""
    module = layer.module
    defaults = inspect.signature(type(module).__init__).parameters
    plain = all(
        getattr(module, name) is defaults[name].default for name in _PLAIN if name in defaults
    )
    return plain and module.dtype in (None, layer.weight.dtype)


def _rows(_: FlaxLayer, a: Array) -> Float[Array, "positions in"]:
    return a.reshape(-1, a.shape[-1])


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,)


# --- dense layers over several axes ---------------------------------------------------------------


def _merged_rows(layer: FlaxLayer, a: Array) -> Float[Array, "positions in"]:
    """The axes that are contracted, in one at the end."""
    axes = _tuple(layer.module.axis)
    last = jnp.moveaxis(a, axes, range(-len(axes), 0))
    return last.reshape(-1, math.prod(last.shape[a.ndim - len(axes) :]))


def _features_at_the_end(layer: FlaxLayer) -> tuple[int, ...]:
    module = layer.module
    features = module.features if isinstance(module, linen.DenseGeneral) else module.out_features
    return tuple(range(-len(_tuple(features)), 0))


def _has_no_batch_of_weights(layer: FlaxLayer) -> bool:
    module = layer.module
    batch = module.batch_dims if isinstance(module, linen.DenseGeneral) else module.batch_axis
    return not batch and _computes_plainly(layer)


# --- convolutions ---------------------------------------------------------------------------------


def _windows(layer: FlaxLayer, a: Array) -> Float[Array, "positions size"]:
    """Of images (*batch, *space, channels)."""
    kernel, stride, dilation = _geometry(layer)
    space = a.shape[-len(kernel) - 1 : -1]
    extent = [(size - 1) * apart + 1 for size, apart in zip(kernel, dilation, strict=True)]
    padding = layer.module.padding
    if isinstance(padding, str):
        pads = jax.lax.padtype_to_pads(space, extent, stride, padding)
    else:
        pads = [_tuple(pad) * (2 // len(_tuple(pad))) for pad in _each(padding, kernel)]

    def of_image(image: Array) -> Array:
        first = jnp.pad(jnp.moveaxis(image, -1, 0), ((0, 0), *pads))
        return window_patches(first, kernel=kernel, stride=stride, dilation=dilation)

    found = jax.vmap(of_image)(a.reshape(-1, *a.shape[-len(kernel) - 1 :]))
    return found.reshape(-1, found.shape[-1])


def _geometry(layer: FlaxLayer) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Kernel, strides and dilation, an entry for each axis of space."""
    module = layer.module
    kernel = _tuple(module.kernel_size)
    return kernel, _each(module.strides, kernel), _each(module.kernel_dilation, kernel)


def _each(value: Any, kernel: tuple[int, ...]) -> tuple[Any, ...]:
    """One value for each axis of space, where there may be one for all (None: 1)."""
    if value is None or isinstance(value, int):
        return (1 if value is None else value,) * len(kernel)
    return tuple(value)


def _is_one_product(layer: FlaxLayer) -> bool:
    """Whether all output channels see all input channels, in windows of zero-padded images."""
    module = layer.module
    undilated = set(_each(module.input_dilation, _tuple(module.kernel_size))) == {1}
    padded = not isinstance(module.padding, str) or module.padding in ("SAME", "VALID")
    one_group = module.feature_group_count == 1
    return undilated and padded and one_group and _computes_plainly(layer)


# --- lookups --------------------------------------------------------------------------------------


def _places(layer: FlaxLayer, a: Array) -> Float[Array, "positions 1"]:
    """Of the rows that are taken: negative ones count from the end."""
    return jnp.where(a < 0, a + layer.module.num_embeddings, a).reshape(-1, 1)


def _is_a_table(layer: FlaxLayer) -> bool:
    """Whether places are exact as numbers of the table's type."""
    countable = layer.module.num_embeddings < 2 / float(jnp.finfo(layer.weight.dtype).eps)
    return countable and _computes_plainly(layer)


_DENSE = ContractionRule(_rows, channel_axis=-1, applies=_computes_plainly)
_GENERAL = ContractionRule(
    _merged_rows, channel_axis=_features_at_the_end, applies=_has_no_batch_of_weights
)
_CONVOLUTION = ContractionRule(_windows, channel_axis=-1, applies=_is_one_product)
_LOOKUP = ContractionRule(
    _places,
    channel_axis=-1,
    applies=_is_a_table,
    rows=lambda layer: layer.module.num_embeddings,
)
for _class, _rule in (
    (linen.Dense, _DENSE),
    (linen.DenseGeneral, _GENERAL),
    (linen.Conv, _CONVOLUTION),
    (linen.Embed, _LOOKUP),
    (nnx.Linear, _DENSE),
    (nnx.LinearGeneral, _GENERAL),
    (nnx.Conv, _CONVOLUTION),
    (nnx.Embed, _LOOKUP),
):
    register_contraction_rule(_class, _rule)
