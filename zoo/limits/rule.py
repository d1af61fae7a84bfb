r"""What a layer does to the kernels of infinite width.

A layer states its rule in a method `limit_rule(widths)`; a layer of another library is told of by
`register_limit_rule`.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx

from zoo.common import checks
from zoo.limits.kernels import LayerKernels, LimitNeeds
from zoo.limits.widths import LimitWidths, NoLimitError


class LimitRule(eqx.Module):
    """How one layer moves the kernels; its arrays (standard deviations) can be differentiated.

    Examples are vectors, or channel-first: all axes but the first are positions.
    """

    def needs(self, after: LimitNeeds) -> LimitNeeds:
        """What it needs of its input to give what is needed of its output."""
        return after

    @abc.abstractmethod
    def __call__(self, kernels: LayerKernels) -> LayerKernels:
        """The kernels of its output."""


MakeRule = Callable[[Any, LimitWidths], LimitRule]


def register_limit_rule(layer_type: type, make_rule: MakeRule) -> None:
    """Tells `limit` what a type of layer does to the kernels of infinite width.

    For the layers of another library; your own state theirs in a method `limit_rule(widths)`.

    **Arguments:**

    - `layer_type`: the rule holds for this very class, not for its subclasses, which may compute
      something else.
    - `make_rule`: from a layer and the `LimitWidths` of its place to its `LimitRule`; it goes
      before a method of theirs.

    **Raises:** `TypeError` where `layer_type` is no class or `make_rule` no function.
    """
    checks.instance("layer_type", layer_type, type, "a class")
    checks.function("make_rule", make_rule, "a function of a layer and `zoo.LimitWidths`")
    _MAKE_RULE[layer_type] = make_rule


_MAKE_RULE: dict[type, MakeRule] = {}
_METHOD = "limit_rule"


def limit_rule_of(layer: Any, widths: LimitWidths) -> LimitRule:
    """The rule of a layer, at the place that `widths` knows.

    **Raises:** `NoLimitError` where it has none; `TypeError` where its method gives something else.
    """
    kind = type(layer)
    make_rule = _MAKE_RULE.get(kind)
    if make_rule is None and not _states_a_rule(kind):
        name = getattr(layer, "__name__", kind.__name__)
        raise NoLimitError(
            f"`model{widths.path}` is {name}, which has no rule for infinite width, expected a "
            "layer of the zoo, or one with a method `limit_rule(widths)` that returns a "
            "`zoo.LimitRule` (stated by the class that has its `__call__`, or a subclass), or of a "
            "type that `zoo.register_limit_rule` was told of. A pointwise function becomes a layer "
            "by `zoo.activation_function(function)`."
        )
    if make_rule is None:
        told, rule = f"{kind.__name__}.{_METHOD}(widths)", layer.limit_rule(widths)
    else:
        told, rule = f"make_rule({kind.__name__}, widths)", make_rule(layer, widths)
    checks.instance(told, rule, LimitRule, "a `zoo.LimitRule`")
    return rule


def _states_a_rule(kind: type) -> bool:
    """Whether it has a method that was written for its `__call__`, not for that of a base class."""
    for base in kind.__mro__:
        if _METHOD in vars(base):
            return True
        if "__call__" in vars(base):
            return False
    return False
