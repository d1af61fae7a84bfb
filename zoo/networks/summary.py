"""A table of a network for people: layers, shapes, scales, parameter counts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from zoo.common import checks
from zoo.common.trainable import parameters as parameters_of
from zoo.layers.activations import Activation
from zoo.networks.tape import record, ZOO_LAYERS
from zoo.parameterized_layer import ParameterizedLayer


@dataclass(frozen=True)
class TensorRow:
    """A parameter of a layer: its shape, its factor in the forward pass, how it starts.

    It starts as normal draws of standard deviation `init_std`, or with multiplier x parameter at
    `start` where that is not None.
    """

    name: str
    shape: tuple[int, ...]
    multiplier: float
    init_std: float
    start: float | None


@dataclass(frozen=True)
class LayerRow:
    """A layer at work."""

    path: str
    kind: str
    role: str | None
    out_shape: tuple[int, ...]
    tensors: tuple[TensorRow, ...]


@dataclass(frozen=True)
class Summary:
    """What `summary` found; `print` shows it as a table.

    - `rows`: the layers in the order they are called.
    - `in_shape`, `out_shape`: of one example and its outputs.
    - `parameters`: how many numbers are trained, `frozen`: how many are carried and not trained.
    - `outside`: how many of the parameters no zoo layer owns.
    """

    name: str
    rows: tuple[LayerRow, ...]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    parameters: int
    frozen: int
    outside: int

    def __str__(self) -> str:
        head = ("layer", "role", "output", "parameter", "shape", "count", "multiplier", "init")
        lines: list[tuple[str, ...]] = [head]
        for row in self.rows:
            first = (row.kind, row.role or "", _shape(row.out_shape))
            for tensor in row.tensors or (None,):
                lines.append((*first, *_cells(tensor)))
                first = ("", "", "")
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        texts = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        texts.insert(1, "-" * max(map(len, texts)))
        title = f"{self.name}: {_shape(self.in_shape)} -> {_shape(self.out_shape)}"
        total = f"{self.parameters:,} parameters"
        if self.outside:
            total += f", {self.outside:,} of them outside zoo layers"
        if self.frozen:
            total += f"; {self.frozen:,} frozen numbers"
        return "\n".join([title, "", *texts, "", total])


def summary(model: Callable[[Array], Array], in_shape: Sequence[int]) -> Summary:
    """The layers of `model` on an example of shape `in_shape`, for `print`.

    Nothing is computed: only shapes are traced, so that the largest network takes no time.

    **Arguments:**

    - `model`: a callable PyTree, with arrays or, from `eqx.filter_eval_shape`, with their shapes
      only. Layers of the zoo get a row each, in the order they are called; parameters that no zoo
      layer owns are counted.
    - `in_shape`: of one example.

    **Raises:** `ValueError` where `in_shape` is no shape or the model does not take it.
    """
    checks.function("model", model, "a callable PyTree")
    checks.sequence("in_shape", in_shape, "the shape of one example")
    for i, entry in enumerate(in_shape):
        checks.size(f"in_shape[{i}]", entry)
    rows: list[LayerRow] = []

    def traced(model: Callable[[Array], Array], x: Array) -> Array:
        outputs, calls = record(model, x)
        rows.extend(
            _row(call.path, call.layer, call.output.shape)
            for call in calls
            if isinstance(call.layer, ZOO_LAYERS)
        )
        return outputs

    arrays = jax.tree.leaves(eqx.filter_eval_shape(eqx.filter, model, eqx.is_array))
    floats = jax.tree.leaves(eqx.filter_eval_shape(parameters_of, model))
    dtype = (
        jnp.result_type(*(jnp.finfo(array.dtype).dtype for array in floats)) if floats else float
    )
    example = jax.ShapeDtypeStruct(tuple(in_shape), dtype)
    outputs = eqx.filter_eval_shape(traced, model, example)
    owned = {(row.path, t.name): t for row in rows for t in row.tensors}
    parameters = _count(floats)
    in_layers = sum(math.prod(tensor.shape) for tensor in owned.values())
    return Summary(
        name=type(model).__name__,
        rows=tuple(rows),
        in_shape=tuple(in_shape),
        out_shape=outputs.shape,
        parameters=parameters,
        frozen=_count(arrays) - parameters,
        outside=parameters - in_layers,
    )


def _row(path: str, layer: Any, out_shape: tuple[int, ...]) -> LayerRow:
    if isinstance(layer, Activation):
        return LayerRow(path, layer.name, None, out_shape, ())
    if not isinstance(layer, ParameterizedLayer):
        return LayerRow(path, type(layer).__name__, None, out_shape, ())
    tensors = tuple(
        TensorRow(
            name,
            getattr(layer, name).shape,
            layer.multiplier(name),
            layer.init_std(name),
            place.start,
        )
        for name, place in layer.tensors.items()
    )
    return LayerRow(path, type(layer).__name__, layer.role, out_shape, tensors)


def _cells(tensor: TensorRow | None) -> tuple[str, ...]:
    if tensor is None:
        return ("",) * 5
    return (
        tensor.name,
        _shape(tensor.shape),
        f"{math.prod(tensor.shape):,}",
        f"{tensor.multiplier:.4g}",
        f"N(0, {tensor.init_std:.4g}^2)" if tensor.start is None else f"{tensor.start:g}",
    )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _count(arrays: Sequence[Any]) -> int:
    return sum(math.prod(array.shape) for array in arrays)
