"""The layers that the structured contraction takes apart, by their rules.

What a layer says of itself is in its `zoo.ContractionRule`.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from corrections.contraction.capture import mapped
from zoo.contraction_rule import (
    contraction_rule_of,
    ContractionRule,
    has_contraction_rule,
    Patches,
    Transposed,
)


def applicable_rule(node: Any, metric: Any) -> ContractionRule | None:
    """The rule of a layer, given the metric in its shape.

    None where it has none, the metric is not one number for each tensor, or the layer holds other
    parameters than those a rule knows of.
    """
    if not has_contraction_rule(node):
        return None
    rule = contraction_rule_of(node)
    if not rule.applies(node):
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
    rule: ContractionRule
    metric: Any

    def under(self, depth: int) -> "RuledLayer":
        """The same, called under so many `jax.vmap`: their axes, in front, are positions."""
        return self._replace(rule=_mapped_rule(self.rule, depth)) if depth else self

    @property
    def multiplier(self) -> float:
        """That of the weight."""
        return self.rule.multipliers(self.layer)[0]

    def metrics(self, dtype: Any) -> tuple[Any, Any]:
        """The metric of the weight, and that of the bias times its multiplier squared, or None."""
        weight = _cast(self.metric.weight, dtype)
        if self.rows is not None:  # whose one-hot inputs are no numbers to be multiplied
            weight = self.multiplier**2 * weight
        if not eqx.is_inexact_array(getattr(self.layer, "bias", None)):
            return weight, None
        return weight, self.rule.multipliers(self.layer)[1] ** 2 * _cast(self.metric.bias, dtype)

    def positions(self, z: jax.ShapeDtypeStruct) -> int:
        """Positions of an output like `z`."""
        return math.prod(z.shape) // self.channels(z)

    def channels(self, z: jax.ShapeDtypeStruct) -> int:
        """Channels of an output like `z`."""
        return math.prod(z.shape[axis] for axis in self._axes(len(z.shape)))

    def _axes(self, ndim: int) -> tuple[int, ...]:
        """The axes of channels, of an output or input with so many axes."""
        given = self.rule.channel_axis
        axes = given(self.layer) if callable(given) else (given,)
        return tuple(axis % ndim for axis in axes)

    def to_positions(self, delta: Float[Array, "k ..."]) -> Float[Array, "k positions out"]:
        """Cotangents of an output, position by position."""
        axes = [axis + 1 for axis in self._axes(delta.ndim - 1)]
        moved = jnp.moveaxis(delta, axes, range(-len(axes), 0))
        channels = math.prod(delta.shape[axis] for axis in axes)
        return moved.reshape(delta.shape[0], -1, channels)

    def from_positions(
        self, z: Float[Array, "positions out"], like: jax.ShapeDtypeStruct
    ) -> Float[Array, "..."]:
        """An output, or an input with channels on the same axes, from its positions."""
        axes = self._axes(len(like.shape))
        space = [length for axis, length in enumerate(like.shape) if axis not in axes]
        last = z.reshape(*space, *(like.shape[axis] for axis in axes))
        return jnp.moveaxis(last, range(-len(axes), 0), axes)

    @property
    def rows(self) -> int | None:
        """Of a lookup, those of its table."""
        return None if self.rule.rows is None else self.rule.rows(self.layer)

    def entering(self, a: Array) -> Float[Array, "positions size"]:
        """What enters each position, with the multiplier of the weight, where `a` enters a call."""
        return self.rule.patches(self.layer, a if self.rows is not None else self.multiplier * a)

    def scattered(self, pull: Array, like: jax.ShapeDtypeStruct) -> Array:
        """A cotangent of what enters each position, without the multiplier, as one of the input of
        a call. A lookup has none: it is zero.
        """
        if self.rows is not None:
            return jnp.zeros(like.shape, like.dtype)
        scatter = jax.linear_transpose(lambda a: self.rule.patches(self.layer, a), like)
        return scatter(pull)[0]

    @property
    def transposed(self) -> Transposed | None:
        """How W^T acts, where the rule of this layer says."""
        rule = self.rule.transposed
        return rule if rule is not None and rule.applies(self.layer) else None


def _mapped_rule(rule: ContractionRule, depth: int) -> ContractionRule:
    def mapped_patches(patches: Patches) -> Patches:
        def of_entries(layer: Any, a: Array) -> Array:
            found = mapped(lambda a: patches(layer, a), depth)(a)
            return found.reshape(-1, found.shape[-1])

        return of_entries

    transposed, given = rule.transposed, rule.channel_axis

    def channel_axes(layer: Any) -> tuple[int, ...]:
        axes = given(layer) if callable(given) else (given,)
        return tuple(axis if axis < 0 else axis + depth for axis in axes)

    if transposed is not None:
        transposed = replace(transposed, patches=mapped_patches(transposed.patches))
    return replace(
        rule,
        patches=mapped_patches(rule.patches),
        channel_axis=channel_axes,
        transposed=transposed,
    )


def ruled_layer(node: Any, metric: Any) -> RuledLayer:
    """A layer that has a rule, with it."""
    rule = applicable_rule(node, metric)
    assert rule is not None
    return RuledLayer(node, rule, metric)


def _cast(metric: Any, dtype: Any) -> Any:
    """Python numbers promote nothing; arrays might."""
    return metric if isinstance(metric, int | float) else jnp.asarray(metric, dtype)
