"""Which layers of a model may be contracted: those whose program shows it.

Seen in traces of the model with stand-ins for its layers (`zoo.tracing.stand_in`), by shapes alone:

1. With the stand-ins the program is that of the model as it is (`zoo.tracing.programs`).
2. Each call is handed the layer's own arrays: not frozen, scaled, adapted or updated ones.
3. Each call is made by the model's program itself or under its `jax.vmap`, not by another
   transformation inside it (`scan`, `checkpoint`, `jit`). Under `jax.vmap` it is one call, with
   the axes of the `vmap` in front: with stand-ins that do not look at those, the program is again
   that of the model as it is.
4. Where what leaves a layer's calls is taken away, neither the outputs nor what enters a call
   depends on the layer's arrays, but for what `jax.lax.stop_gradient` has passed: they enter
   through these calls and no other way.

Then the outputs are a function of the calls' outputs z = W a + b, and the gradient of W is the sum
over the calls of delta (x) a, whatever else the model does.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Array, PyTree

from corrections.contraction.capture import as_numbers, Call, mapped, seen_from_outside, Stage
from corrections.parameters import as_vector
from corrections.taylor.symbolic_zeros import noticing_tangents
from zoo.common import checks
from zoo.contraction_rule import contraction_rule_of
from zoo.tracing.programs import dependence, mark, marked, needed, same_program, without_gradient

_ARRAYS = "is called with other arrays than its own (frozen, scaled, updated or mapped ones)"
_ELSEWHERE = "has arrays that are also used outside of its calls"
_INPUT = "is called with something else than one array of real floating-point numbers"
_INSIDE = "is called inside a transformation (such as `scan`, `checkpoint`, `jit` or `grad`)"
_NARROW = "is called with numbers of less precision than its own"
_TYPE = "is told apart from a layer of a subclass of its type"


class Contractible(NamedTuple):
    """The layers that are contracted, and their calls.

    - `nodes`: the places of the layers among the model's nodes.
    - `calls`: in the order of the program; `Call.layer` counts in `nodes`.
    - `moving`: the layers, counted likewise, whose input depends on parameters.
    - `ends_in_call`: whether parameters reach the outputs through the last call only, frozen ones
      (`jax.lax.stop_gradient`) included.
    - `refused`: for each candidate that is not contracted, why.
    """

    nodes: list[int]
    calls: list[Call]
    moving: set[int]
    ends_in_call: bool
    refused: dict[int, str]


class Program:
    """The program of a model on an example.

    **Arguments:**

    - `structure`, `nodes`: the model, taken apart into layers and leaves. The arrays may be traced.
    - `x`: an example, by its shapes and dtypes.
    """

    def __init__(self, structure: Any, nodes: list[Any], x: PyTree[jax.ShapeDtypeStruct]):
        self._structure, self._x = structure, x
        self._arrays, self._static = eqx.partition(nodes, is_array)
        self._plain, self.outputs = jax.make_jaxpr(
            lambda arrays, x: as_vector(self._model(eqx.combine(arrays, self._static))(x)),
            return_shape=True,
        )(self._arrays, x)
        leaves, of_arrays = jax.tree.flatten(self._arrays)
        alive = needed(self._plain.jaxpr, ends=without_gradient(self._plain.jaxpr))
        used = [variable in alive for variable in self._plain.jaxpr.invars[: len(leaves)]]
        self.used: list[Any] = jax.tree.unflatten(of_arrays, used)
        """For each node which of its arrays the outputs have derivatives in, in its structure."""
        self._owners = [
            i for i, node in enumerate(self._arrays) for _ in range(len(jax.tree.leaves(node)))
        ]

    def contractible(self, candidates: list[int]) -> Contractible:
        """The candidates that are shown to be, but for those whose gradients are always zero."""
        used = [i for i in candidates if any(jax.tree.leaves(self.used[i]))]
        refused: dict[int, str] = {}
        return self._shown(used, refused)._replace(refused=refused)

    def _model(self, nodes: list[Any]) -> Any:
        return jax.tree.unflatten(self._structure, nodes)

    def _shown(self, chosen: list[int], refused: dict[int, str]) -> Contractible:
        """All at once where that is right; halves where the model tells some stand-in apart."""
        if not chosen:
            return Contractible([], [], set(), False, {})
        attempt = self._attempt(chosen)
        if isinstance(attempt, Contractible):
            return attempt
        if attempt:
            refused.update(attempt)
            return self._shown([i for i in chosen if i not in attempt], refused)
        if len(chosen) == 1:
            refused[chosen[0]] = _TYPE
            return self._shown([], refused)
        middle = len(chosen) // 2
        first, second = (self._shown(part, refused) for part in (chosen[:middle], chosen[middle:]))
        if first.nodes + second.nodes != chosen:
            return self._shown(first.nodes + second.nodes, refused)
        refused.update(dict.fromkeys(second.nodes, _TYPE))  # each by itself, but not both
        return first

    def _attempt(self, chosen: list[int]) -> Contractible | dict[int, str]:
        """What stand-ins for `chosen` show, or which of them are refused and why.

        None are where the program is not that of the model: that may be the fault of any.
        """
        refused: dict[int, str] = {}
        calls: list[Call] = []
        try:
            program = compared = self._probed(chosen, _Probe(calls, refused))
            if any(call.depth for call in calls):
                compared = self._probed(chosen, _AsTheyAre())
        except Exception:  # whatever a model does with a type that it does not know
            return refused or self._differentiated(chosen)
        # The arrays that a call uses are inputs of their own, beside all arrays of the model.
        count = len(self._owners)
        stands_for = list(range(count))
        for i in chosen:
            stands_for += [place for place, owner in enumerate(self._owners) if owner == i]
        found = self._read(program, chosen, calls, stands_for, refused)
        places_of_x = range(count, count + len(jax.tree.leaves(self._x)))
        if refused or not same_program(self._plain, compared, [*stands_for, *places_of_x]):
            return refused
        return found

    def _differentiated(self, chosen: list[int]) -> dict[int, str]:
        """Which of them the model differentiates in what enters them, under `jax.vmap` too: no call
        is seen from outside of that.
        """
        refused: dict[int, str] = {}
        try:
            self._probed(chosen, _Noticing(refused))
        except Exception:
            return {}
        return refused

    def _probed(self, chosen: list[int], probe: "_AsTheyAre") -> ClosedJaxpr:
        """The program with stand-ins of `probe` for `chosen`. Its inputs are the arrays of the
        model, those of the layers again, and the example.
        """

        def outputs(arrays: list[Any], inside: list[Any], x: PyTree) -> Array:
            nodes = eqx.combine(arrays, self._static)
            probe.tracer = type(jax.tree.leaves(x)[0])
            for number, (i, given) in enumerate(zip(chosen, inside, strict=True)):
                layer = eqx.combine(given, self._static[i])
                nodes[i] = probe.probed(nodes[i], i, number, layer)
            return as_vector(probe.run(self._model(nodes), x))

        inside = [self._arrays[i] for i in chosen]
        return jax.make_jaxpr(outputs)(self._arrays, inside, self._x)

    def _read(
        self,
        program: ClosedJaxpr,
        chosen: list[int],
        calls: list[Call],
        stands_for: list[int],
        refused: dict[int, str],
    ) -> Contractible:
        """What the program says of the calls, `refused` being told what speaks against a layer."""
        jaxpr, ends = program.jaxpr, marked(program.jaxpr)
        inputs, outputs = (
            [ends.get(f"{end} {number}", []) for number in range(len(calls))]
            for end in ("input", "output")
        )
        for call, of_input, of_output in zip(calls, inputs, outputs, strict=True):
            if len(of_input) != 1 or len(of_output) != 1:
                refused.setdefault(chosen[call.layer], _INSIDE)
        layers = {i: 1 << number for number, i in enumerate(chosen)}
        moving, around = 1 << len(chosen), 2 << len(chosen)  # of all parameters
        sources = {}
        for variable, place in zip(jaxpr.invars, stands_for, strict=False):
            is_parameter = jnp.issubdtype(variable.aval.dtype, jnp.inexact)
            of_all = moving | around if is_parameter else 0
            sources[variable] = of_all | layers.get(self._owners[place], 0)
        cuts = dict.fromkeys(without_gradient(jaxpr), around - 1)
        for call, equations in zip(calls, outputs, strict=True):
            of_call = layers[chosen[call.layer]] | (around if call is calls[-1] else 0)
            cuts |= {variable: of_call for e in equations for variable in e.outvars}
        bits = dependence(jaxpr, sources, cuts)
        entering = [bits.get(e.outvars[0], 0) for equations in inputs for e in equations]
        leaving = [bits.get(y, 0) for y in jaxpr.outvars if not isinstance(y, Literal)]
        for i, layer in layers.items():
            if any(seen & layer for seen in (*entering, *leaving)):
                refused.setdefault(i, _ELSEWHERE)
        moved = {
            call.layer
            for call, equations in zip(calls, inputs, strict=True)
            for equation in equations
            if bits.get(equation.outvars[0], 0) & moving
        }
        ends_in_call = bool(calls) and not any(seen & around for seen in leaving)
        return Contractible(chosen, calls, moved, ends_in_call, {})


class _AsTheyAre(Stage):
    """Stand-ins whose calls are those of their layers, with the arrays that they are given."""

    tracer: type
    """Of the values outside of all transformations."""

    def probed(self, layer: Any, node: int, number: int, inside: Any) -> Any:
        """A stand-in for `layer`, whose calls are those of `inside`: the same with other arrays."""
        own = _arrays(layer)

        def on_call(layer: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            if self._takes(layer, own, args, node):
                # Without the options: where they matter this is another program.
                return self._called(inside, args[0], node, number)
            return layer(*args, **options)

        return self.stand_in(layer, on_call)

    def _takes(self, layer: Any, own: list[Any], args: tuple[Any, ...], node: int) -> bool:
        del node
        return _reason(layer, own, args) is None

    def _called(self, inside: Any, a: Array, node: int, number: int) -> Array:
        del node, number
        return inside(a)


class _Noticing(_AsTheyAre):
    """Writes down which layers are differentiated in what enters them."""

    def __init__(self, refused: dict[int, str]):
        super().__init__()
        self._refused = refused

    def _called(self, inside: Any, a: Array, node: int, number: int) -> Array:
        def notice(_: int) -> None:
            self._refused.setdefault(node, _INSIDE)

        return inside(noticing_tangents(a, notice))


class _Probe(_AsTheyAre):
    """Writes down the calls of layers in a trace, and why some layers are refused."""

    def __init__(self, calls: list[Call], refused: dict[int, str]):
        super().__init__()
        self._calls, self._refused = calls, refused

    def _takes(self, layer: Any, own: list[Any], args: tuple[Any, ...], node: int) -> bool:
        reason = _reason(layer, own, args)
        if reason is not None:
            self._refused.setdefault(node, reason)
        return reason is None

    def _called(self, inside: Any, a: Array, node: int, number: int) -> Array:
        def seen(inside: Any, a: Array, depth: int) -> Array:
            name = len(self._calls)
            a = mark(a, f"input {name}")
            z = mapped(inside, depth)(a)
            numbers = jax.eval_shape(lambda: as_numbers(a, z.dtype))
            self._calls.append(Call(number, numbers, _shape(z), depth))
            return mark(z, f"output {name}")

        return seen_from_outside(inside, a, seen, self._is_outside)

    def _is_outside(self, a: Array, depth: int) -> bool:
        del depth
        return type(a) is self.tracer or checks.concrete(a) is not None


def _reason(layer: Any, own: list[Any], args: tuple[Any, ...]) -> str | None:
    """Why a call cannot be seen, if it cannot."""
    arrays = _arrays(layer)
    if len(arrays) != len(own) or any(a is not b for a, b in zip(arrays, own, strict=True)):
        return _ARRAYS
    if len(args) != 1 or not isinstance(args[0], jax.Array):
        return _INPUT
    if contraction_rule_of(layer).rows is not None:
        return None if jnp.issubdtype(args[0].dtype, jnp.integer) else _INPUT
    # Of a complex input the gradient is a real part; one of integers has no tangent.
    if not jnp.issubdtype(args[0].dtype, jnp.floating):
        return _INPUT
    if jnp.result_type(args[0], *filter(eqx.is_inexact_array, arrays)) != args[0].dtype:
        return _NARROW
    return None


def is_array(leaf: Any) -> bool:
    """Whether a leaf of a model is one of the arrays its program takes."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _arrays(layer: Any) -> list[Any]:
    return jax.tree.leaves(eqx.filter(layer, is_array))


def _shape(a: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, a.dtype)
