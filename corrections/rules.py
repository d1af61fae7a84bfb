r"""Which layers are affine in their weights, and how.

    z_p = multiplier W a_p + bias_multiplier b        at each position p

What the structured contraction knows of a layer is in its `AffineRule`. The layers of the zoo and
of Equinox have theirs; `register_layer` gives one to a layer of your own.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo import Conv, Dense
from zoo.convolution import cotangent_matrix, cotangent_patches, patches, window_patches

Patches = Callable[[Any, Array], Float[Array, "positions in"]]
Multipliers = Callable[[Any], tuple[float, float]]


class Transposed(NamedTuple):
    """How W^T acts on a cotangent of the output as one product, where `applies`.

    - `patches`: from the layer and the cotangent to what each input position sees of it.
    - `matrix`: from the layer and a matrix like W on its patches to the matrix on those.
    """

    applies: Callable[[Any], bool]
    patches: Patches
    matrix: Callable[[Any, Array], Float[Array, "size in"]]


class AffineRule(NamedTuple):
    """How a layer z = multiplier W a + bias_multiplier b is taken apart; see `register_layer`."""

    patches: Patches
    multipliers: Multipliers
    channel_axis: int
    applies: Callable[[Any], bool]
    transposed: Transposed | None = None


def _one(_: Any) -> tuple[float, float]:
    return 1.0, 1.0


def _always(_: Any) -> bool:
    return True


# By type, not by `isinstance`: a subclass may compute something else.
_RULES: dict[type, AffineRule] = {}


def register_layer(
    layer_type: type,
    patches: Patches,
    *,
    multipliers: Multipliers = _one,
    channel_axis: int = 0,
    applies: Callable[[Any], bool] = _always,
) -> None:
    """Tells the kernels that a type of layer is affine in its weights, so that they are contracted.

    The layer is called as `layer(a)` and gives z_p = multiplier W a_p + bias_multiplier b at each
    position p of its output. Its only parameters are `layer.weight`, W in any layout, and
    `layer.bias` (None, or no such attribute: there is none). A dense layer of your own is
    registered by `register_layer(MyDense, lambda layer, a: a[None])`, one that acts on each token
    of (tokens, in) by `register_layer(MyDense, lambda layer, a: a, channel_axis=-1)`.

    **Arguments:**

    - `layer_type`: the rule holds for this very class, not for its subclasses.
    - `patches`: from the layer and its input to what enters each position, (positions, in), linear
      in the input; positions in the order of the output's axes.
    - `multipliers`: from the layer to its two multipliers (default: 1).
    - `channel_axis`: which axis of the output holds the `out` channels; the others are positions.
    - `applies`: whether the rule holds for a layer of this type (default: always). Where it does
      not, the layer's parameters take the Jacobian.

    Register before kernels of such models are computed: what is compiled already stays as it is. A
    rule that is wrong gives kernels that are wrong: compare with `ntk(..., method="jacobian")`.

    **Raises:** `TypeError` where `layer_type` is no class, or what should be functions are none.
    """
    if not isinstance(layer_type, type):
        raise TypeError(f"`layer_type` is a {type(layer_type).__name__}, expected a class.")
    named = {"patches": patches, "multipliers": multipliers, "applies": applies}
    for name, fn in named.items():
        if not callable(fn):
            raise TypeError(f"`{name}` is {fn!r}, expected a function of a layer.")
    if not isinstance(channel_axis, int):
        raise TypeError(f"`channel_axis` is {channel_axis!r}, expected an axis of the output.")
    _RULES[layer_type] = AffineRule(patches, multipliers, channel_axis, applies)


def has_rule(node: Any) -> bool:
    """Whether layers of this type may be ruled: where a walk through a model stops."""
    return type(node) in _RULES


def rule_of(node: Any, metric: Any) -> AffineRule | None:
    """The rule of a layer, given the metric in its shape.

    None where it has none, the metric is not one number a tensor, or the layer holds other
    parameters than those a rule knows of.
    """
    rule = _RULES.get(type(node))
    if rule is None or not rule.applies(node):
        return None
    weight, bias = getattr(node, "weight", None), getattr(node, "bias", None)
    tensors = [tensor for tensor in (weight, bias) if eqx.is_inexact_array(tensor)]
    parameters = jax.tree.leaves(eqx.filter(node, eqx.is_inexact_array))
    if not eqx.is_inexact_array(weight) or len(parameters) != len(tensors):
        return None
    numbers = all(jnp.ndim(m) == 0 for m in jax.tree.leaves(metric))
    return rule if numbers else None


class RuledLayer(NamedTuple):
    """A layer with its rule, and the metric of its weight and its bias."""

    layer: Any
    rule: AffineRule
    metric: Any

    @property
    def multiplier(self) -> float:
        """That of the weight."""
        return self.rule.multipliers(self.layer)[0]

    def metrics(self, dtype: Any) -> tuple[Any, Any]:
        """The metric of the weight, and that of the bias times its multiplier squared, or None."""
        weight = _cast(self.metric.weight, dtype)
        if not eqx.is_inexact_array(getattr(self.layer, "bias", None)):
            return weight, None
        return weight, self.rule.multipliers(self.layer)[1] ** 2 * _cast(self.metric.bias, dtype)

    def positions(self, z: jax.ShapeDtypeStruct) -> int:
        """Positions of an output like `z`."""
        return math.prod(z.shape) // z.shape[self.rule.channel_axis]

    def to_positions(self, delta: Float[Array, "k ..."]) -> Float[Array, "k positions out"]:
        """Cotangents of an output, position by position."""
        moved = jax.vmap(lambda d: jnp.moveaxis(d, self.rule.channel_axis, -1))(delta)
        return moved.reshape(delta.shape[0], -1, moved.shape[-1])

    def from_positions(
        self, z: Float[Array, "positions out"], like: jax.ShapeDtypeStruct
    ) -> Float[Array, "..."]:
        """An output, or an input with channels on the same axis, from its positions."""
        axis = self.rule.channel_axis % len(like.shape)
        space = like.shape[:axis] + like.shape[axis + 1 :]
        return jnp.moveaxis(z.reshape(*space, z.shape[-1]), -1, axis)

    @property
    def transposed(self) -> Transposed | None:
        """How W^T acts, where the rule of this layer says."""
        rule = self.rule.transposed
        return rule if rule is not None and rule.applies(self.layer) else None


def ruled_layer(node: Any, metric: Any) -> RuledLayer:
    """A layer that has a rule, with it."""
    rule = rule_of(node, metric)
    assert rule is not None
    return RuledLayer(node, rule, metric)


def _cast(metric: Any, dtype: Any) -> Any:
    """Python numbers promote nothing; arrays might."""
    return metric if isinstance(metric, int | float) else jnp.asarray(metric, dtype)


def _multipliers(layer: Dense | Conv) -> tuple[float, float]:
    return layer.weight_multiplier, layer.bias_multiplier


def _as_position(_: Any, a: Array) -> Array:
    return a[None]


def _conv_patches(layer: Conv, a: Array) -> Array:
    kernel = layer.weight.shape[2:]
    return patches(a, kernel=kernel, stride=layer.stride, padding=layer.padding)


def _stride_1(layer: Conv) -> bool:
    return set(layer.stride) == {1}


def _conv_cotangent_patches(layer: Conv, cotangent: Array) -> Array:
    return cotangent_patches(cotangent, kernel=layer.weight.shape[2:], padding=layer.padding)


def _conv_cotangent_matrix(layer: Conv, matrix: Array) -> Array:
    return cotangent_matrix(matrix, kernel=layer.weight.shape[2:])


def _equinox_conv_patches(layer: eqx.nn.Conv, a: Array) -> Array:
    padding = layer.padding
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(a.shape[1:], layer.kernel_size, layer.stride, padding)
    mode = {"ZEROS": "constant", "REFLECT": "reflect", "REPLICATE": "edge", "CIRCULAR": "wrap"}
    padded = jnp.pad(a, ((0, 0), *padding), mode[layer.padding_mode])
    return window_patches(padded, kernel=layer.kernel_size, stride=layer.stride)


def _plain(layer: eqx.nn.Conv) -> bool:
    return layer.groups == 1 and set(layer.dilation) == {1}


def _vector_to_vector(layer: eqx.nn.Linear) -> bool:
    return "scalar" not in (layer.in_features, layer.out_features)


register_layer(Dense, _as_position, multipliers=_multipliers)
_RULES[Conv] = AffineRule(
    _conv_patches,
    _multipliers,
    channel_axis=0,
    applies=_always,
    transposed=Transposed(_stride_1, _conv_cotangent_patches, _conv_cotangent_matrix),
)
register_layer(eqx.nn.Linear, _as_position, applies=_vector_to_vector)
for _conv in (eqx.nn.Conv, eqx.nn.Conv1d, eqx.nn.Conv2d, eqx.nn.Conv3d):
    register_layer(_conv, _equinox_conv_patches, applies=_plain)
