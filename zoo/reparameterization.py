r"""From one parameterization to another: the same function, other learning rates.

A tensor that enters a layer as multiplier x parameter gives the same function as
multiplier' x parameter' with parameter' = parameter x multiplier / multiplier'. Gradient descent
then follows the same path where the learning rate takes the factor (multiplier / multiplier')^2.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import PyTree

from zoo import checks
from zoo.layers import Dense
from zoo.parameterization import Parameterization, TensorScaling

_Model = TypeVar("_Model")
_TENSORS = ("weight", "bias")


def reparameterize(model: _Model, parameterization: Parameterization) -> _Model:
    """The same function (to rounding) with its layers in another parameterization.

    **Arguments:**

    - `model`: a model of zoo layers. Frozen copies inside it stay as they are.
    - `parameterization`: of the result.

    **Raises:** `ValueError` where a layer of zero std has no multiplier to divide by.
    """

    def moved(layer: Dense) -> Dense:
        template = eqx.filter_eval_shape(
            Dense,
            layer.fans["fan_in"],
            layer.fans["fan_out"],
            role=layer.role,
            parameterization=parameterization,
            weight_std=layer.weight_std,
            bias_std=layer.bias_std,
            key=jr.key(0),
        )
        for name in _TENSORS:
            tensor = getattr(layer, name)
            if tensor is not None:
                own = _multiplier(layer, layer.parameterization, name)
                other = _multiplier(layer, parameterization, name)
                if other == 0:
                    raise ValueError(_no_multiplier(name, parameterization))
                template = eqx.tree_at(
                    lambda new, name=name: getattr(new, name), template, own / other * tensor
                )
        return template

    return _map_layers(moved, model)


def learning_rates(
    model: PyTree,
    *,
    equivalent_to: Parameterization | None = None,
    optimizer: Literal["sgd", "adam"] = "sgd",
) -> PyTree:
    """The learning-rate multiplier of each parameter: the `metric` of kernels and flows.

    **Arguments:**

    - `model`: a model of zoo layers.
    - `equivalent_to`: another parameterization, `NTK` say: the multipliers under which (stochastic)
      gradient descent follows the same path in function space as the same network written in
      `equivalent_to` does under its own learning rates. Each is that rate times
      (its multiplier / own multiplier)^2.
    - `optimizer`: "sgd" (gradient flow too) or "adam".

    **Returns:** a tree like `equinox.filter(model, equinox.is_inexact_array)`, one number a leaf.

    **Raises:** `ValueError` for parameters outside zoo layers, a parameterization that does not say
    what Adam's rates are, `equivalent_to` together with "adam" (Adam's path is not equivariant), a
    layer of zero std.
    """
    checks.choice("optimizer", optimizer, ("sgd", "adam"))
    if equivalent_to is not None and optimizer == "adam":
        raise ValueError(
            '`equivalent_to` was given with `optimizer="adam"`, expected "sgd": Adam divides the '
            "gradient's scale out, so no learning rates make it follow another parameterization."
        )

    def rates(layer: Dense) -> Dense:
        result: Any = layer
        for name in _TENSORS:
            if getattr(layer, name) is not None:
                result = eqx.tree_at(
                    lambda new, name=name: getattr(new, name), result, rate(layer, name)
                )
        return result

    def rate(layer: Dense, name: str) -> float:
        if equivalent_to is None:
            scaling = _scaling(layer, layer.parameterization, name)
            law = scaling.sgd if optimizer == "sgd" else scaling.adam
            if law is None:
                raise ValueError(
                    f"{layer.parameterization.name} does not say what Adam's learning rates are, "
                    'expected `optimizer="sgd"` or a parameterization that does, such as MUP.'
                )
            return law(std=_std(layer, name), **layer.fans)
        own = _multiplier(layer, layer.parameterization, name)
        if own == 0:
            raise ValueError(_no_multiplier(name, layer.parameterization))
        their_rate = _scaling(layer, equivalent_to, name).sgd(std=_std(layer, name), **layer.fans)
        return their_rate * (_multiplier(layer, equivalent_to, name) / own) ** 2

    result = _map_layers(rates, eqx.filter(model, eqx.is_inexact_array))
    outside = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(result)
        if eqx.is_array(leaf)
    ]
    if outside:
        raise ValueError(
            f"`model` has parameters outside zoo layers ({', '.join(outside)}), expected zoo "
            "layers only: a parameterization says nothing about others."
        )
    return result


def _map_layers(fn: Callable[[Dense], Dense], model: _Model) -> _Model:
    """`fn` on every layer with parameters; what is frozen holds none."""

    def is_layer(node: Any) -> bool:
        return isinstance(node, Dense)

    def mapped(node: Any) -> Any:
        return fn(node) if is_layer(node) and eqx.is_inexact_array(node.weight) else node

    return jax.tree.map(mapped, model, is_leaf=is_layer)


def _scaling(layer: Dense, parameterization: Parameterization, name: str) -> TensorScaling:
    return getattr(parameterization.scaling(layer.role), name)


def _std(layer: Dense, name: str) -> float:
    return getattr(layer, f"{name}_std")


def _multiplier(layer: Dense, parameterization: Parameterization, name: str) -> float:
    law = _scaling(layer, parameterization, name).multiplier
    return law(std=_std(layer, name), **layer.fans)


def _no_multiplier(name: str, parameterization: Parameterization) -> str:
    return (
        f"a layer has `{name}_std` 0 and so the multiplier 0 in {parameterization.name}, expected "
        "a positive std: there is nothing to divide by."
    )
