r"""What the structured contraction of kernels knows of a layer: how it is affine in its weights.

    z_p = multiplier W a_p + bias_multiplier b        at each position p

A layer states its rule in a method `contraction_rule()`; a layer of another library is told of by
`register_contraction_rule`. `corrections` reads the rules, and says which calls they hold for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float

from zoo.common import checks

Patches = Callable[[Any, Array], Float[Array, "positions size"]]


def _always(_: Any) -> bool:
    return True


def _one(_: Any) -> tuple[float, float]:
    return 1.0, 1.0


@dataclass(frozen=True)
class Transposed:
    """How W^T acts on a cotangent of the output as one product, patches @ matrix.

    It is the fast way, for layers with many positions; without it W^T takes the transpose of
    `ContractionRule.patches`, which scatters.

    **Arguments:**

    - `patches`: from the layer and a cotangent, which is like the output z, to what each position
      of the input sees of it, (positions of the input, size). Linear in the cotangent; positions in
      the order of the input's axes, channels on the axis that they have in the output.
    - `matrix`: from the layer and a matrix that acts on the rule's patches as W does, (out, size of
      a patch), to the one that acts on these patches, (size, channels of the input).
    - `applies`: whether it holds for a layer (default: always).

    **Raises:** `TypeError` for what is no function.
    """

    patches: Patches
    matrix: Callable[[Any, Array], Float[Array, "size channels"]]
    applies: Callable[[Any], bool] = _always

    def __post_init__(self):
        _check_functions(self, ("patches", "matrix", "applies"))


@dataclass(frozen=True)
class ContractionRule:
    """How a layer z_p = multiplier W a_p + bias_multiplier b is taken apart.

    The layer is called as `layer(a)`. Its only parameters are `layer.weight`, W in any layout, and
    `layer.bias` (None, or no such attribute: there is none). A dense layer has the rule
    `ContractionRule(lambda layer, a: a[None])`; one that acts on each token of (tokens, in)
    `ContractionRule(lambda layer, a: a, channel_axis=-1)`.

    **Arguments:**

    - `patches`: from the layer and its input to what enters each position, (positions, size),
      linear in the input; positions in the order of the output's axes (row-major, the channel axis
      left out). The order of the entries of a patch is the rule's own: W is never looked at.
    - `multipliers`: from the layer to its two multipliers (default: 1).
    - `channel_axis`: which axis of the output holds the `out` channels, in the order of the bias;
      the others are positions. 0 is channel-first, as in the layers of the zoo. With `transposed`
      the channels of the input are on the same axis. A function of the layer says which axes,
      where several hold them.
    - `applies`: whether the rule holds for a layer of this type (default: always). Where it does
      not, the layer's parameters take the Jacobian.
    - `transposed`: a faster way for W^T (default: there is none).
    - `rows`: of a lookup, z_p = the row of a table that the integer input names, from the layer to
      the number of rows: a_p is one-hot, and `patches` gives its place, (positions, 1). The layer's
      input is then an array of integers, which reaches `patches` as floating-point numbers.

    A rule that is wrong gives kernels that are wrong: compare with `ntk(..., method="jacobian")`.

    **Raises:** `TypeError` where what should be functions are none, or for other types.
    """

    patches: Patches
    multipliers: Callable[[Any], tuple[float, float]] = _one
    channel_axis: int | Callable[[Any], tuple[int, ...]] = 0
    applies: Callable[[Any], bool] = _always
    transposed: Transposed | None = None
    rows: Callable[[Any], int] | None = None

    def __post_init__(self):
        _check_functions(self, ("patches", "multipliers", "applies"))
        if self.rows is not None:
            _check_functions(self, ("rows",))
        if not callable(self.channel_axis):
            checks.instance("channel_axis", self.channel_axis, int, "an axis of the output")
        expected = "a `zoo.Transposed` or None"
        checks.instance("transposed", self.transposed, Transposed | None, expected)


def register_contraction_rule(layer_type: type, rule: ContractionRule) -> None:
    """Tells the kernels that a type of layer is affine in its weights, so that they are contracted.

    For the layers of another library; your own state theirs in a method `contraction_rule()`. Of a
    Flax class, linen or NNX, the layer that the functions of the rule are given has the parameters
    `weight` and `bias` (under whatever name) and a `module` with the options of the class.

    **Arguments:**

    - `layer_type`: the rule holds for this very class, not for its subclasses, which may compute
      something else.
    - `rule`: that of its layers; it goes before a method of theirs.

    Register before kernels of such models are computed: what is compiled already stays as it is.

    **Raises:** `TypeError` where `layer_type` is no class or `rule` no `ContractionRule`.
    """
    checks.instance("layer_type", layer_type, type, "a class")
    checks.instance("rule", rule, ContractionRule, "a `zoo.ContractionRule`")
    _RULES[layer_type] = rule


_RULES: dict[type, ContractionRule] = {}
_METHOD = "contraction_rule"


def registered_rule(layer_type: type) -> ContractionRule | None:
    """The rule that this very class was registered with, if it was."""
    return _RULES.get(layer_type)


def has_contraction_rule(node: Any) -> bool:
    """Whether this very type of layer has a rule. One that a subclass inherits does not count."""
    return type(node) in _RULES or _METHOD in vars(type(node))


def contraction_rule_of(layer: Any) -> ContractionRule:
    """The rule of a layer whose type has one.

    **Raises:** `TypeError` where its method gives something else.
    """
    if type(layer) in _RULES:
        return _RULES[type(layer)]
    rule = layer.contraction_rule()
    name = f"{type(layer).__name__}.{_METHOD}()"
    checks.instance(name, rule, ContractionRule, "a `zoo.ContractionRule`")
    return rule


def _check_functions(rule: Any, names: tuple[str, ...]) -> None:
    for name in names:
        checks.function(name, getattr(rule, name), "a function of a layer")
