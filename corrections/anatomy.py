r"""A network taken apart: what enters each layer, what leaves it, and the rest of its parameters.

Layers that are affine in their weights are replaced by ones that record their input a on a tape
and add a shift s to their output; r is a pull on the cotangent of a. For one example this is
F(s, w) = (y, a), with w the parameters that no rule covers. Its VJP with the cotangents (e_k, r)
gives (delta_k, J_k), and (a, delta, J) at s = r = 0 are the factors of all gradients
(`corrections.contraction`).

Moving the weights along v is exactly ds = v a, dr = v^T delta, dw = v_w: every higher kernel is a
derivative of this one expression. No custom rules, no interpreters: tree surgery and one VJP.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from corrections.contraction import (
    along_direction,
    bias_product,
    Factors,
    layer_product,
    layer_product_along,
)
from corrections.parameters import Method, Metric, Model
from zoo import checks, Conv, Dense, Frozen
from zoo.convolution import patches


class AffineRule(NamedTuple):
    """How a layer z = multiplier W a + bias_multiplier b (at each position) is taken apart.

    - `multipliers`: from the layer to those of weight and bias.
    - `patches`: from the layer and its input to the inputs of its positions, (positions, in),
      linear in the input, entries in the order of `layer.weight.reshape(out, -1)`. The layer's
      output has `out` as its first axis, then the positions.

    The parameters are `layer.weight` and `layer.bias` (None: there is none).
    """

    multipliers: Callable[[Any], tuple[float, float]]
    patches: Callable[[Any, Array], Float[Array, "positions in"]]


class _Ruled(NamedTuple):
    """A ruled layer, and the metric of its weight and its bias."""

    layer: Any
    rule: AffineRule
    weight_metric: Any
    bias_metric: Any

    def metric(self, dtype: Any) -> tuple[Any, Any]:
        """The metric of the weight, and that of the bias times its multiplier squared."""
        _, multiplier = self.rule.multipliers(self.layer)
        bias = 0.0 if self.layer.bias is None else self.bias_metric
        return _cast(self.weight_metric, dtype), multiplier**2 * _cast(bias, dtype)


class _Call(NamedTuple):
    """A call of a ruled layer: which one, with what shapes."""

    ruled: int
    input: jax.ShapeDtypeStruct
    output: jax.ShapeDtypeStruct


class Anatomy:
    """A model taken apart: its ruled layers, their calls on an example, the rest of its parameters.

    To be made inside the trace that uses it. Layers that cannot be tapped, because they are called
    inside a transformation or their arrays are used elsewhere, belong to the rest.

    **Arguments:**

    - `model`, `metric`: as everywhere.
    - `x`: an example, or its shape and dtype.
    - `method`: "jacobian" puts all parameters into the rest; "structured" insists on the rule of
      every layer that has one.
    """

    def __init__(self, model: Model, x: Any, metric: Metric | None, *, method: Method = "auto"):
        nodes, self._structure = jax.tree.flatten(model, is_leaf=_is_end)
        metrics = _by_node(model, metric)
        x = jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))
        candidates = [
            i
            for i, pair in enumerate(zip(nodes, metrics, strict=True))
            if method != "jacobian" and _rule(*pair) is not None
        ]
        kept = _tappable(self._structure, nodes, candidates, x)
        if method == "structured" and len(kept) < len(candidates):
            dropped = ", ".join(type(nodes[i]).__name__ for i in candidates if i not in kept)
            raise ValueError(
                f'`method` is "structured" and the model calls {dropped} inside a transformation, '
                "or uses its parameters elsewhere, expected layers that are called as they are, or "
                '`method="auto"`.'
            )
        self._take_apart(nodes, metrics, kept, x)

    def _take_apart(
        self, nodes: list[Any], metrics: list[Any], chosen: list[int], x: jax.ShapeDtypeStruct
    ) -> None:
        self._places = chosen
        self.ruled = [_ruled(nodes[i], metrics[i]) for i in chosen]
        others = [None if i in chosen else node for i, node in enumerate(nodes)]
        parameters, self._static = eqx.partition(others, eqx.is_inexact_array)
        self.rest, self._unravel = ravel_pytree(parameters)
        scaled = [None if i in chosen else metric for i, metric in enumerate(metrics)]
        full = jax.tree.map(lambda m, p: jnp.full_like(p, 1) * m, scaled, parameters)
        self.rest_metric, _ = ravel_pytree(full)
        order: list[int] = []

        def called(x: Array) -> tuple[Array, list[tuple[Array, Array]]]:
            y, tape = self._run(None, self.rest, x)
            order.extend(ruled for ruled, _, _ in tape.calls)
            return y, [(a, z) for _, a, z in tape.calls]

        y, shapes = jax.eval_shape(called, x)
        self.outputs = y
        if self.rest.size == 0:  # of no type
            self.rest = self.rest_metric = jnp.zeros(0, y.dtype)
        self.calls = [_Call(ruled, *ends) for ruled, ends in zip(order, shapes, strict=True)]

    def _run(self, shifts: list[Array] | None, rest: Array, x: Array) -> tuple[Array, "_Tape"]:
        tape = _Tape(shifts)
        nodes = eqx.combine(self._unravel(rest), self._static)
        for i, (place, ruled) in enumerate(zip(self._places, self.ruled, strict=True)):
            nodes[place] = _Tapped(ruled.layer, i, tape)
        model: Any = jax.tree.unflatten(self._structure, nodes)
        return model(x), tape

    def factors(
        self,
        x: Array,
        shifts: list[Array] | None = None,
        pulls: list[Array] | None = None,
        rest: Array | None = None,
    ) -> Factors:
        """The factors of one example.

        `shifts` are added to the outputs of the calls, `pulls` (k, ...) to the cotangents of their
        inputs; both are zero where the weights are what they are.
        """
        shifts = self.no_shifts() if shifts is None else shifts
        pulls = self.no_pulls() if pulls is None else pulls
        rest = self.rest if rest is None else rest

        def outputs(shifts: list[Array], rest: Array) -> tuple[Array, list[Array]]:
            y, tape = self._run(shifts, rest, x)
            return y, [a for _, a, _ in tape.calls]

        (y, inputs), vjp = jax.vjp(outputs, shifts, rest)
        deltas, jacobian = jax.vmap(vjp)((jnp.eye(y.size, dtype=y.dtype), pulls))
        by_layer: list[tuple[list[Array], list[Array]]] = [([], []) for _ in self.ruled]
        for call, a, delta in zip(self.calls, inputs, deltas, strict=True):
            ruled = self.ruled[call.ruled]
            multiplier, _ = ruled.rule.multipliers(ruled.layer)
            by_layer[call.ruled][0].append(multiplier * ruled.rule.patches(ruled.layer, a))
            by_layer[call.ruled][1].append(_positions_first(delta))
        return Factors(
            tuple(jnp.concatenate(a) for a, _ in by_layer),
            tuple(jnp.concatenate(delta, axis=1) for _, delta in by_layer),
            jacobian,
        )

    def no_shifts(self) -> list[Array]:
        """Zero shifts of all calls."""
        return [jnp.zeros(call.output.shape, call.output.dtype) for call in self.calls]

    def no_pulls(self) -> list[Array]:
        """Zero pulls on all calls, for each output."""
        k = self.outputs.shape
        return [jnp.zeros((*k, *call.input.shape), call.input.dtype) for call in self.calls]

    def moved(self, at: Factors, along: Factors) -> tuple[list[Array], list[Array]]:
        """The shifts and pulls on the calls of an example, where the parameters move along
        M grad f_c.

        **Arguments:**

        - `at`: the factors of the example.
        - `along`: the factors of the one output f_c.
        """
        shifts_of, pulls_of = [], []
        for ruled, *factors in self._by_layer(at, along):
            a, delta, a_c, delta_c = factors
            weight, bias = ruled.metric(delta.dtype)
            multiplier, _ = ruled.rule.multipliers(ruled.layer)
            shift, pull = along_direction(a, delta, a_c, delta_c)
            shifts_of.append(weight * shift + bias * jnp.sum(delta_c, axis=0, keepdims=True))
            pulls_of.append(weight * multiplier * pull)
        used = [0] * len(self.ruled)
        shifts, pulls = [], []
        for call in self.calls:
            ruled = self.ruled[call.ruled]
            start = used[call.ruled]
            used[call.ruled] = stop = start + math.prod(call.output.shape[1:])
            shifts.append(shifts_of[call.ruled][start:stop].T.reshape(call.output.shape))
            gather = jax.linear_transpose(
                lambda a, ruled=ruled: ruled.rule.patches(ruled.layer, a), call.input
            )
            pulls.append(jax.vmap(lambda p, g=gather: g(p)[0])(pulls_of[call.ruled][:, start:stop]))
        return shifts, pulls

    def product(self, first: Factors, second: Factors) -> Float[Array, "k l"]:
        """<g_1, g_2>_M for all pairs of outputs of two examples."""
        total = (first.rest * self.rest_metric[None]) @ second.rest.T
        for ruled, a1, delta1, a2, delta2 in self._by_layer(first, second):
            weight, bias = ruled.metric(delta1.dtype)
            total += weight * layer_product(a1, delta1, a2, delta2)
            total += bias * bias_product(delta1, delta2)
        return total

    def product_along(
        self, first: Factors, tangent: Factors, second: Factors
    ) -> Float[Array, "k l"]:
        """The derivative of `product` in its first argument, along `tangent`."""
        total = (tangent.rest * self.rest_metric[None]) @ second.rest.T
        for ruled, a1, delta1, a1_dot, delta1_dot, a2, delta2 in self._by_layer(
            first, tangent, second
        ):
            weight, bias = ruled.metric(delta1.dtype)
            moved = (a1_dot, delta1_dot)
            total += weight * layer_product_along(a1, delta1, moved, a2, delta2)
            total += bias * bias_product(delta1_dot, delta2)
        return total

    def _by_layer(self, *factors: Factors) -> list[tuple[Any, ...]]:
        """For each ruled layer: itself, then inputs and cotangents of each of `factors`."""
        columns = [part for f in factors for part in (f.inputs, f.cotangents)]
        return list(zip(self.ruled, *columns, strict=True))


class _Tape:
    """What the tapped layers of one call of the model write, and the shifts they add."""

    def __init__(self, shifts: list[Array] | None):
        self._shifts = shifts
        self.calls: list[tuple[int, Array, Array]] = []

    def write(self, ruled: int, a: Array, z: Array) -> Array:
        if self._shifts is not None:
            z = z + self._shifts[len(self.calls)]
        self.calls.append((ruled, a, z))
        return z


class _Tapped(eqx.Module):
    """Stands in for a ruled layer."""

    layer: Any
    ruled: int = eqx.field(static=True)
    tape: _Tape = eqx.field(static=True)

    def __call__(self, a: Array, **options: Any) -> Array:
        return self.tape.write(self.ruled, a, self.layer(a, **options))


def _tappable(
    structure: Any, nodes: list[Any], candidates: list[int], x: jax.ShapeDtypeStruct
) -> list[int]:
    """The candidates whose every call is seen by the tape of the trace that calls the model.

    The model runs once on zeros, with values and not traced. A layer that is given a tracer even so
    is inside a transformation of the model's own (`vmap`, `scan`, `checkpoint`), and what it would
    write on the tape means nothing outside. One that makes the model fail is used in another way
    than by a call.
    """

    def zeros(leaf: Any) -> Any:
        is_number = eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.number)
        return jnp.zeros(leaf.shape, leaf.dtype) if is_number else leaf

    def hidden(chosen: list[int]) -> set[int]:
        """Those of `chosen` that a tracer reaches; all of them where the model fails."""
        tape, run = _Tape(None), list(values)
        for index in chosen:
            run[index] = _Tapped(values[index], index, tape)
        try:
            jax.tree.unflatten(structure, run)(jnp.zeros(x.shape, x.dtype))
        except (AttributeError, TypeError, ValueError):
            return set(chosen)
        return {index for index, a, _ in tape.calls if checks.concrete(a) is None}

    with jax.ensure_compile_time_eval():
        values = jax.tree.map(zeros, nodes)
        unseen = hidden(candidates)
        if unseen == set(candidates):
            unseen = {index for index in candidates if hidden([index])}
    return [index for index in candidates if index not in unseen]


# By type, not by `isinstance`: a subclass may compute something else.
_RULED_TYPES = (Dense, Conv, eqx.nn.Linear)


def _is_end(node: Any) -> bool:
    return type(node) in _RULED_TYPES or isinstance(node, Frozen)


def _rule(node: Any, metric: Any) -> AffineRule | None:
    """The rule of a layer; None where it has none, or its metric is not one number a tensor."""
    if type(node) not in _RULED_TYPES:
        return None
    if not eqx.is_inexact_array(node.weight) or jnp.ndim(metric.weight) > 0:
        return None
    if node.bias is not None and jnp.ndim(metric.bias) > 0:
        return None
    if isinstance(node, Dense):
        return AffineRule(_multipliers, lambda _, a: a[None])
    if isinstance(node, Conv):
        return AffineRule(_multipliers, _conv_patches)
    if "scalar" in (node.in_features, node.out_features):
        return None
    return AffineRule(lambda _: (1.0, 1.0), lambda _, a: a[None])


def _ruled(node: Any, metric: Any) -> _Ruled:
    rule = _rule(node, metric)
    assert rule is not None
    return _Ruled(node, rule, metric.weight, metric.bias)


def _multipliers(layer: Dense | Conv) -> tuple[float, float]:
    return layer.weight_multiplier, layer.bias_multiplier


def _conv_patches(layer: Conv, a: Array) -> Array:
    kernel = layer.weight.shape[2:]
    return patches(a, kernel=kernel, stride=layer.stride, padding=layer.padding)


def _by_node(model: Model, metric: Metric | None) -> list[Any]:
    """The metric of each node of `model`, with a number or an array for each parameter."""
    params = eqx.filter(model, eqx.is_inexact_array)
    full = jax.tree.map(
        lambda m, part: jax.tree.map(lambda _: m, part), 1.0 if metric is None else metric, params
    )
    placed = eqx.combine(full, jax.tree.map(lambda _: None, model))
    return jax.tree.structure(model, is_leaf=_is_end).flatten_up_to(placed)


def _cast(metric: Any, dtype: Any) -> Any:
    """Python numbers promote nothing; arrays might."""
    return metric if isinstance(metric, int | float) else jnp.asarray(metric, dtype)


def _positions_first(delta: Float[Array, "k out *space"]) -> Float[Array, "k positions out"]:
    return jnp.swapaxes(delta.reshape(*delta.shape[:2], -1), 1, 2)
