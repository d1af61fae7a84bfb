r"""From one parameterization to another: the same function, other learning rates.

A tensor that enters a layer as multiplier x parameter gives the same function as
multiplier' x parameter' with parameter' = parameter x multiplier / multiplier'. Gradient descent
then follows the same path where the learning rate takes the factor (multiplier / multiplier')^2.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
from jaxtyping import PyTree

from zoo.common import checks
from zoo.common.trainable import parameters
from zoo.layers.frozen import Frozen
from zoo.parameterization import check_parameterization, Parameterization
from zoo.parameterized_layer import ParameterizedLayer

_Model = TypeVar("_Model")


def reparameterize(model: _Model, parameterization: Parameterization) -> _Model:
    """The same function (to rounding) with its layers in another parameterization.

    **Arguments:**

    - `model`: a model of zoo layers. Frozen copies inside it stay as they are; the point about
      which a Taylor model is expanded moves with it.
    - `parameterization`: of the result.

    **Raises:** `ValueError` where a layer of zero std has no multiplier to divide by.
    """
    checks.function("model", model, "a model of zoo layers")
    check_parameterization("parameterization", parameterization)

    def moved(layer: ParameterizedLayer) -> ParameterizedLayer:
        tensors = {}
        for name in layer.tensors:
            own, other = layer.multiplier(name), layer.multiplier(name, parameterization)
            if other == 0:
                raise ValueError(_no_multiplier(name, parameterization))
            tensors[name] = own / other * getattr(layer, name)
        return _with_tensors(layer.like(parameterization), tensors)

    def mapped(node: Any) -> Any:
        if isinstance(node, ParameterizedLayer):
            return moved(node)
        together = getattr(node, "reparameterized", None)
        return node if together is None else together(lambda m: reparameterize(m, parameterization))

    def is_whole(node: Any) -> bool:
        return _is_layer(node) or hasattr(node, "reparameterized")

    return jax.tree.map(mapped, model, is_leaf=is_whole)


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

    **Returns:** a tree like `zoo.parameters(model)`, one number for each leaf.

    **Raises:** `ValueError` for parameters outside zoo layers, a parameterization that does not say
    what Adam's rates are, `equivalent_to` together with "adam" (Adam's path is not equivariant), a
    layer of zero std.
    """
    checks.choice("optimizer", optimizer, ("sgd", "adam"))
    if equivalent_to is not None:
        check_parameterization("equivalent_to", equivalent_to)
    if equivalent_to is not None and optimizer == "adam":
        raise ValueError(
            '`equivalent_to` was given with `optimizer="adam"`, expected "sgd": Adam divides the '
            "gradient's scale out, so no learning rates make it follow another parameterization."
        )

    def rates(layer: ParameterizedLayer) -> ParameterizedLayer:
        return _with_tensors(layer, {name: rate(layer, name) for name in layer.tensors})

    def rate(layer: ParameterizedLayer, name: str) -> float:
        if equivalent_to is None:
            return layer.learning_rate(name, optimizer)
        own, other = layer.multiplier(name), layer.multiplier(name, equivalent_to)
        if own == 0:
            raise ValueError(_no_multiplier(name, layer.parameterization))
        return layer.learning_rate(name, parameterization=equivalent_to) * (other / own) ** 2

    result = _map_layers(rates, parameters(model))
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


def _map_layers(fn: Callable[[ParameterizedLayer], ParameterizedLayer], model: _Model) -> _Model:
    """`fn` on every layer with parameters; what is frozen holds none."""

    def mapped(node: Any) -> Any:
        return fn(node) if isinstance(node, ParameterizedLayer) else node

    return jax.tree.map(mapped, model, is_leaf=_is_layer)


def _is_layer(node: Any) -> bool:
    return isinstance(node, ParameterizedLayer | Frozen)


def _with_tensors(layer: ParameterizedLayer, tensors: dict[str, Any]) -> ParameterizedLayer:
    names = list(tensors)
    return eqx.tree_at(
        lambda new: [getattr(new, name) for name in names], layer, [tensors[n] for n in names]
    )


def _no_multiplier(name: str, parameterization: Parameterization) -> str:
    return (
        f"a layer has `{name}_std` 0 and so the multiplier 0 in {parameterization.name}, expected "
        "a positive std: there is nothing to divide by."
    )
