r"""A network taken apart: what enters each layer, what leaves it, and the rest of its parameters.

Layers that are affine in their weights are replaced by ones that record their input a
and add a shift s to their output; r is a pull on the cotangent of a. For one example this is
F(s, w) = (y, a), with w the parameters that no rule covers. Its VJP with the cotangents (e_k, r)
gives (delta_k, J_k), and (a, delta, J) at s = r = 0 are the factors of all gradients
(`corrections.contraction.products`).

Moving the weights along v is exactly ds = v a, dr = v^T delta, dw = v_w: every higher kernel is a
derivative of this one expression. No custom rules, no interpreters: tree surgery and one VJP.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from corrections.contraction.capture import Call, Capture
from corrections.contraction.contractible import Program
from corrections.contraction.factors import Factors, Tangent
from corrections.contraction.products import (
    Deferred,
    Direction,
    Gradients,
    LayerGradients,
    materialized,
    Metrics,
    pairs_are_cheaper,
    product,
    Term,
)
from corrections.contraction.rules import applicable_rule, ruled_layer, RuledLayer
from corrections.parameters import as_vector, Method, Metric, Model
from zoo import Frozen, parameters
from zoo.adapters.flax import exposing
from zoo.adapters.flax_layers import class_name
from zoo.contraction_rule import has_contraction_rule


class GradientFactors:
    """A model taken apart: its ruled layers, their calls on an example, the rest of its parameters.

    To be made inside the trace that uses it. Layers that are not shown to be contractible
    (`corrections.contraction.contractible`) belong to the rest. What no output uses, or only behind
    `jax.lax.stop_gradient`, belongs to neither: its gradients are zero.

    **Arguments:**

    - `model`, `metric`: as everywhere.
    - `x`: an example, by its shapes and dtypes.
    - `method`: "jacobian" puts all parameters into the rest; "structured" insists on the rule of
      every layer that has one.

    What it knows of the model: `nodes`, the path of each layer or array, what it is, how many
    parameters it has and whether the outputs have derivatives in it; the `places` of the ruled
    layers among them; and for layers that have a rule and are not contracted why they are
    `refused`.
    """

    def __init__(self, model: Model, x: Any, metric: Metric | None, *, method: Method = "auto"):
        self._unit_metric = metric is None
        self._precision = jnp.result_type(*jax.tree.leaves(parameters(model)))
        x = jax.eval_shape(self._precise, x)
        expose = exposing(model, x)
        placed_metric, model = expose(_placed(metric, model)), expose(model)
        paths, self._structure = jax.tree_util.tree_flatten_with_path(model, is_leaf=_is_end)
        nodes, metrics = [node for _, node in paths], self._structure.flatten_up_to(placed_metric)
        program = Program(self._structure, nodes, x)
        ruled = [i for i, node in enumerate(nodes) if has_contraction_rule(node)]
        candidates = [i for i in ruled if applicable_rule(nodes[i], metrics[i]) is not None]
        found = program.contractible([] if method == "jacobian" else candidates)
        self.nodes = [
            (jax.tree_util.keystr(path), node, _count(node, of_node), any(jax.tree.leaves(used)))
            for (path, node), of_node, used in zip(paths, metrics, program.used, strict=True)
        ]
        self.refused = {i: _NO_RULE for i in ruled if i not in candidates} | found.refused
        if method == "structured":
            _insist_on_none(
                f"{class_name(nodes[i])} `model{self.nodes[i][0]}` {self.refused[i]}"
                for i in sorted(self.refused)
            )
        self.outputs, self.calls = program.outputs, found.calls
        self._moving, self._ends_in_call = found.moving, found.ends_in_call
        self.places = found.nodes
        self.ruled = [ruled_layer(nodes[i], metrics[i]) for i in found.nodes]
        chosen = set(found.nodes)
        others = (
            [None if i in chosen else node for i, node in enumerate(of_all)]
            for of_all in (nodes, metrics, program.used)
        )
        self._split(*others)

    def _split(self, nodes: list[Any], metrics: list[Any], used: list[Any]) -> None:
        """Parameters that no rule covers, and all else, of the nodes that have no rule."""

        def is_rest(_: Any, use: bool | None, metric: Any) -> bool:
            return use is True and metric is not None  # which only parameters have

        of_rest = jax.tree.map(is_rest, nodes, used, metrics)
        parameters, self._static = eqx.partition(nodes, of_rest)
        self.rest, self._unravel = ravel_pytree(parameters)
        scaled = jax.tree.map(lambda use, m: m if use else None, of_rest, metrics)
        full = jax.tree.map(lambda m, p: jnp.full_like(p, 1) * m, scaled, parameters)
        self.rest_metric, _ = ravel_pytree(full)
        if self.rest.size == 0:  # of no type
            self.rest = self.rest_metric = jnp.zeros(0, self.outputs.dtype)

    def _run(self, shifts: list[Array] | None, rest: Array, x: PyTree) -> tuple[Array, list[Array]]:
        """The outputs, and what enters the calls."""
        capture = Capture(self.calls, shifts)
        nodes = eqx.combine(self._unravel(rest), self._static)
        for i, (place, ruled) in enumerate(zip(self.places, self.ruled, strict=True)):
            nodes[place] = capture.captured(ruled.layer, i)
        y = capture.run(jax.tree.unflatten(self._structure, nodes), self._precise(x))
        return as_vector(y), capture.inputs

    def _precise(self, x: PyTree) -> PyTree:
        """An example in the precision of the parameters, if that is higher: what enters the first
        layer is a factor of its gradient.
        """

        def of_leaf(x: Array) -> Array:
            if not jnp.issubdtype(x.dtype, jnp.floating):
                return x
            return x.astype(jnp.promote_types(x.dtype, self._precision))

        return jax.tree.map(of_leaf, x)

    # --- one example ---------------------------------------------------------------------------

    @jax.named_scope("gradient_factors")
    def factors(
        self,
        x: PyTree,
        tangent: Tangent | None = None,
        basis: Float[Array, "j k"] | None = None,
    ) -> Factors:
        """The factors of one example, where its calls move along a tangent; of sums of its outputs
        with the weights `basis` (default: of each output).
        """
        shifts, pulls, rest = (None, None, self.rest) if tangent is None else tangent
        shifts = self.zero_tangent().shifts if shifts is None else shifts

        def outputs(shifts: list[Array], rest: Array) -> tuple[Array, list[Array]]:
            return self._run(shifts, rest, x)

        if basis is None:
            basis = jnp.eye(*self.outputs.shape, dtype=self.outputs.dtype)
        if pulls is None:
            _, vjp, inputs = jax.vjp(outputs, shifts, rest, has_aux=True)
            deltas, jacobian = jax.vmap(vjp)(basis)
        else:
            (_, inputs), vjp = jax.vjp(outputs, shifts, rest)
            deltas, jacobian = jax.vmap(vjp)((basis, pulls))
        by_layer: list[tuple[list[Array], list[Array]]] = [([], []) for _ in self.ruled]
        for call, a, delta in zip(self.calls, inputs, deltas, strict=True):
            ruled = self._ruled_at(call)
            by_layer[call.layer][0].append(ruled.entering(a))
            by_layer[call.layer][1].append(ruled.to_positions(delta))
        return Factors(
            tuple(jnp.concatenate(a) for a, _ in by_layer),
            tuple(jnp.concatenate(delta, axis=1) for _, delta in by_layer),
            jacobian,
        )

    def readout(self) -> tuple[Any, Callable[[PyTree], Array]]:
        """The layer that is called last, and its input as a function of the example.

        **Raises:** `ValueError` where it is not a dense layer that gives the model's k outputs, or
        parameters reach these in another way.
        """
        last = self.calls[-1] if self.calls and self._ends_in_call else None
        ruled = None if last is None else self._ruled_at(last)
        if (
            last is None
            or ruled is None
            or ruled.rows is not None
            or ruled.positions(last.output) != 1
            or math.prod(last.output.shape) != self.outputs.size
        ):
            raise ValueError(
                "`model` does not end in a dense layer that gives its outputs, expected a readout "
                "such as `zoo.Dense` or `equinox.nn.Linear`."
            )

        def hidden(x: PyTree) -> Array:
            return ruled.rule.patches(ruled.layer, self._run(None, self.rest, x)[1][-1])[0]

        return ruled.layer, hidden

    def zero_tangent(self, outputs: int | None = None) -> Tangent:
        """Zero shifts and pulls for so many outputs (default: all), the parameters as they are."""
        k = self.outputs.shape if outputs is None else (outputs,)
        return Tangent(
            [jnp.zeros(call.output.shape, call.output.dtype) for call in self.calls],
            [jnp.zeros((*k, *call.input.shape), call.input.dtype) for call in self.calls],
            self.rest,
        )

    def unfolded(self, at: Factors) -> list[Array | None]:
        """For each call what its input's positions see of its output's cotangents, where its layer
        has a rule for that: (k, positions, size).
        """
        unfolded = []
        for ruled, call, places in self.calls_with_places():
            rule = ruled.transposed
            if rule is None:
                unfolded.append(None)
                continue
            images = jax.vmap(lambda d, r=ruled, c=call: r.from_positions(d, c.output))(
                at.cotangents[call.layer][:, places]
            )
            unfolded.append(
                jax.vmap(lambda d, r=rule, layer=ruled.layer: r.patches(layer, d))(images)
            )
        return unfolded

    def tangent_along(
        self,
        at: Factors,
        along: Factors,
        unfolded: list[Array | None],
        *,
        derivative: bool = False,
    ) -> Tangent:
        """The direction in which the calls of an example move with the parameters along M
        grad f_c.

        **Arguments:**

        - `at`: the factors of the example.
        - `along`: the factors of the one output f_c.
        - `unfolded`: those of `at`.
        - `derivative`: `at` is a derivative of factors. The result is linear in it, but for what
          does not depend on it: the shifts by the bias and the rest, which are then zero.
        """
        factors = zip(along.inputs, along.cotangents, self.ruled, strict=True)
        directions = [Direction(a, delta, ruled.rows) for a, delta, ruled in factors]
        shifts, pulls = [], []
        for (ruled, call, places), unfolded_cotangents in zip(
            self.calls_with_places(), unfolded, strict=True
        ):
            direction, delta = directions[call.layer], at.cotangents[call.layer]
            weight, bias = ruled.metrics(delta.dtype)
            entering = at.inputs[call.layer][places]
            # What a lookup is given does not move, and has no place in a derivative.
            fixed = ruled.rows is not None and derivative
            pushed = jnp.zeros_like(delta[0, places]) if fixed else direction.push(entering)
            shift = weight * pushed
            if bias is not None and not derivative:
                shift += bias * jnp.sum(along.cotangents[call.layer], axis=0, keepdims=True)
            shifts.append(ruled.from_positions(shift, call.output))
            scale = weight * ruled.multiplier
            pulls.append(
                scale * _pulled(ruled, call, direction, delta[:, places], unfolded_cotangents)
            )
        rest = jnp.zeros_like(self.rest) if derivative else self.rest_metric * along.rest
        return Tangent(shifts, pulls, rest)

    def _ruled_at(self, call: Call) -> RuledLayer:
        """The layer of a call, its rule being one of the axes that the call has."""
        return self.ruled[call.layer].under(call.depth)

    def calls_with_places(self) -> list[tuple[RuledLayer, Call, slice]]:
        """Each call with its layer, and its positions among those of all calls of that layer."""
        used, found = [0] * len(self.ruled), []
        for call in self.calls:
            ruled, start = self._ruled_at(call), used[call.layer]
            used[call.layer] = stop = start + ruled.positions(call.output)
            found.append((ruled, call, slice(start, stop)))
        return found

    # --- many examples -------------------------------------------------------------------------

    def materialize(self, *, pairs: int, partners: int) -> list[bool]:
        """For each ruled layer whether its gradients are materialized.

        **Arguments:**

        - `pairs`: pairs of outputs that are contracted for each pair of examples.
        - `partners`: examples that share the cost of forming an example's gradients.
        """
        k, (sizes, _) = self.outputs.shape[0], self.sizes()
        return [
            not pairs_are_cheaper(
                *size, outputs=k, pairs=pairs, partners=partners, one_hot=ruled.rows is not None
            )
            for size, ruled in zip(sizes, self.ruled, strict=True)
        ]

    def sizes(self) -> tuple[list[tuple[int, int, int]], int]:
        """For each ruled layer its positions, len(a) and len(delta); entries of all calls."""
        sizes = [(0, 0, 0)] * len(self.ruled)
        entries = 0
        for call in self.calls:
            ruled = self._ruled_at(call)
            positions, size = jax.eval_shape(ruled.entering, call.input).shape
            size = ruled.rows or size
            out = ruled.channels(call.output)
            sizes[call.layer] = (sizes[call.layer][0] + positions, size, out)
            entries += math.prod(call.input.shape) + math.prod(call.output.shape)
        return sizes, entries

    def bytes_per_example(self, materialize: list[bool]) -> tuple[int, int]:
        """What the gradients of an example take, and what is needed to compute them."""
        (sizes, entries), k = self.sizes(), self.outputs.shape[0]
        stored = k * self.rest.size
        working = stored + (1 + k) * entries
        for (positions, size, out), form in zip(sizes, materialize, strict=True):
            stored += k * out * (size + 1) if form else positions * (size + k * out)
            working += k * positions * size if positions > 1 else 0
        itemsize = self.outputs.dtype.itemsize
        return max(1, stored * itemsize), max(1, working * itemsize)

    @jax.named_scope("gradients")
    def gradients(
        self, at: Factors, materialize: list[bool], *, deferred: bool = False
    ) -> Gradients:
        """The gradients of a batch; `deferred`: to be formed as they are contracted."""
        factors = zip(at.inputs, at.cotangents, self.ruled, strict=True)
        layers = [[Term(a, delta, True, ruled.rows)] for a, delta, ruled in factors]
        return _gradients(layers, at.rest, materialize, _deferred if deferred else materialized)

    @jax.named_scope("gradient_derivatives")
    def derivative(self, at: Factors, dot: Factors, materialize: list[bool]) -> Gradients:
        """The derivatives of the gradients of a batch where its factors move along `dot`."""
        layers = []
        for i, (a, delta, da, ddelta) in enumerate(
            zip(at.inputs, at.cotangents, dot.inputs, dot.cotangents, strict=True)
        ):
            moving = [Term(da, delta, False)] if i in self._moving else []
            layers.append([*moving, Term(a, ddelta, True, self.ruled[i].rows)])
        return _gradients(layers, dot.rest, materialize)

    @jax.named_scope("gradient_second_derivatives")
    def second_derivative(
        self, at: Factors, dots: tuple[Factors, Factors], ddot: Factors, materialize: list[bool]
    ) -> Gradients:
        """The mixed second derivatives of the gradients of a batch along two directions: `dots` are
        the derivatives of its factors along each, `ddot` those along both.
        """
        layers = []
        columns = [part for f in (at, *dots, ddot) for part in (f.inputs, f.cotangents)]
        for i, (a, d, a3, d3, a4, d4, a34, d34) in enumerate(zip(*columns, strict=True)):
            moving = [Term(a34, d, False), Term(a3, d4, False), Term(a4, d3, False)]
            still = Term(a, d34, True, self.ruled[i].rows)
            layers.append([*(moving if i in self._moving else []), still])
        return _gradients(layers, ddot.rest, materialize)

    def metrics(self) -> Metrics:
        """The metric, as products of gradients take it."""
        of_layers = [ruled.metrics(self.outputs.dtype) for ruled in self.ruled]
        return Metrics(of_layers, None if self._unit_metric else self.rest_metric)

    def product(self, first: Gradients, second: Gradients) -> Float[Array, "n1 k n2 l"]:
        """<g_1, g_2>_M for all pairs of examples and outputs of two batches."""
        return product(self.metrics(), first, second)


def _pulled(
    ruled: RuledLayer,
    call: Call,
    direction: Direction,
    delta: Float[Array, "k positions out"],
    unfolded_cotangents: Float[Array, "k in_positions size"] | None,
) -> Float[Array, "k ..."]:
    """v^T of the cotangents of a call: those of its input."""
    rule = ruled.transposed
    if unfolded_cotangents is not None and rule is not None and direction.matrix is not None:
        pulled = unfolded_cotangents @ rule.matrix(ruled.layer, direction.matrix)
        return jax.vmap(lambda p: ruled.from_positions(p, call.input))(pulled)
    return jax.vmap(lambda p: ruled.scattered(p, call.input))(direction.pull(delta))


def _deferred(terms: list[Term]) -> Deferred:
    (term,) = terms
    return Deferred(term)


def _gradients(
    layers: list[list[Term]],
    rest: Array,
    materialize: list[bool],
    form: Callable[[list[Term]], LayerGradients] = materialized,
) -> Gradients:
    entries = [form(terms) if of else terms for terms, of in zip(layers, materialize, strict=True)]
    return Gradients(entries, rest)


_NO_RULE = "has options, parameters or a metric that its rule does not cover"


def _insist_on_none(refused: Iterable[str]) -> None:
    """**Raises:** `ValueError` where there are layers that have a rule and are refused."""
    texts = list(refused)
    if texts:
        raise ValueError(
            f'`method` is "structured" and these layers cannot be contracted: {"; ".join(texts)}. '
            'Expected layers that are called as they are, or `method="auto"`.'
        )


def _is_end(node: Any) -> bool:
    return has_contraction_rule(node) or isinstance(node, Frozen)


def _count(node: Any, metric: Any) -> int:
    """How many parameters a node has, by the metric of each: what has none is no parameter."""
    sizes = jax.tree.map(
        lambda m, part: 0 if m is None else part.size, metric, node, is_leaf=lambda m: m is None
    )
    return sum(jax.tree.leaves(sizes))


def _placed(metric: Metric | None, model: Model) -> PyTree:
    """The metric in the places of the parameters of `model`, a number or an array for each."""
    params = parameters(model)
    full = jax.tree.map(
        lambda m, part: jax.tree.map(lambda _: m, part), 1.0 if metric is None else metric, params
    )
    return eqx.combine(full, jax.tree.map(lambda _: None, model))
