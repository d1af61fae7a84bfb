r"""What a layer does to the kernels of infinite width.

A layer owns its rule: it has a method `limit_rule(widths)` that returns a `LimitRule`. So can a
layer of your own.
"""

import abc
from typing import Any

import equinox as eqx

from zoo.limits.kernels import LayerKernels, Needs
from zoo.limits.widths import NoLimitError, Widths


class LimitRule(eqx.Module):
    """How one layer moves the kernels; its arrays (standard deviations) can be differentiated."""

    def needs(self, after: Needs) -> Needs:
        """What it needs of its input to give what is needed of its output."""
        return after

    @abc.abstractmethod
    def __call__(self, kernels: LayerKernels) -> LayerKernels:
        """The kernels of its output."""


def rule_of(layer: Any, widths: Widths) -> LimitRule:
    """The rule of a layer, at the place that `widths` knows.

    **Raises:** `NoLimitError` where it has none.
    """
    if not hasattr(layer, "limit_rule"):
        name = getattr(layer, "__name__", type(layer).__name__)
        raise NoLimitError(
            f"`model{widths.path}` is {name}, which has no rule for infinite width, expected a "
            "layer of the zoo, or one with a method `limit_rule(widths)` that returns a "
            "`zoo.LimitRule`. A pointwise function becomes a layer by "
            "`zoo.activation_function(function)`."
        )
    return layer.limit_rule(widths)
