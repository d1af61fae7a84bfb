"""What enters and leaves the layers of a model, seen from outside.

Layers are replaced by stand-ins (`zoo.tracing.stand_in`) that write down what enters them, inside
one trace of the model; of a layer that the model calls under its own `jax.vmap` what enters all of
the calls together. For which layers that is right, `corrections.contraction.contractible` says.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array

from zoo.adapters.equinox_rules import called
from zoo.tracing.stand_in import OnCall, stand_in


class Call(NamedTuple):
    """A call of a layer: which one, with what shapes, under how many `jax.vmap` of the model's own,
    whose axes are in front.
    """

    layer: int
    input: jax.ShapeDtypeStruct
    output: jax.ShapeDtypeStruct
    depth: int


Seen = Callable[[Any, Array, int], Array]
"""A layer, what enters its call, and under how many `jax.vmap` it is -> what leaves it."""


def seen_from_outside(
    layer: Any, a: Array, seen: Seen, is_outside: Callable[[Array, int], bool], depth: int = 0
) -> Array:
    """`seen(layer, a, depth)`, outside of the `jax.vmap`s around this call: `a` has their axes in
    front, the outermost first.

    **Arguments:**

    - `is_outside`: from what enters the call, and from how many `jax.vmap` have been left, to
      whether none is left around it. Where that never holds the call is the layer's own.
    """
    if is_outside(a, depth):
        return seen(layer, a, depth)
    arrays, static = eqx.partition(layer, eqx.is_array)

    @custom_vmap
    def call(arrays: Any, a: Array) -> Array:
        return mapped(eqx.combine(arrays, static), depth)(a)

    @call.def_vmap
    def _(size: int, batched: Any, arrays: Any, a: Array) -> tuple[Array, bool]:
        of_arrays, of_input = batched
        if any(jax.tree.leaves(of_arrays)):
            raise ValueError(f"{type(layer).__name__} has weights of its own for each entry.")
        entries = a if of_input else jnp.broadcast_to(a, (size, *a.shape))
        outer = eqx.combine(arrays, static)
        return seen_from_outside(outer, entries, seen, is_outside, depth + 1), True

    return call(arrays, a)


def as_numbers(a: Array, dtype: Any) -> Array:
    """What enters a call, integers (of a lookup) as floating-point numbers that do not move."""
    return a if jnp.issubdtype(a.dtype, jnp.floating) else a.astype(dtype)


def mapped(fn: Callable[[Array], Array], depth: int) -> Callable[[Array], Array]:
    """`fn` over so many axes in front."""
    for _ in range(depth):
        fn = jax.vmap(fn)
    return fn


class Stage:
    """Where a model is called with stand-ins: their calls are handed on until it returns.

    What calls a layer after that is a derivative of the model, and not the model.
    """

    def __init__(self):
        self._open = True

    def stand_in(self, layer: Any, on_call: OnCall) -> Any:
        """A stand-in for `layer`, whose calls `on_call` is handed while the model runs."""

        def while_open(layer: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            return on_call(layer, args, options) if self._open else layer(*args, **options)

        return stand_in(layer, while_open)

    def run(self, model: Callable[[Any], Array], x: Any) -> Array:
        """The outputs of the model."""
        try:
            return model(x)
        finally:
            self._open = False


class Capture(Stage):
    """What the captured layers of one call of the model write, and the shifts they add.

    **Arguments:**

    - `expected`: the calls there are.
    - `shifts`: of the outputs of the calls; None: zero.
    """

    def __init__(self, expected: Sequence[Call], shifts: Sequence[Array] | None):
        super().__init__()
        self._expected, self._shifts = expected, shifts
        self.inputs: list[Array] = []

    def captured(self, layer: Any, index: int) -> Any:
        """A stand-in for `layer`, whose calls are those of the layer `index`."""

        def on_call(layer: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Array:
            del options  # those that change something have kept the layer from being captured
            here = len(self.inputs)
            self._check(here < len(self._expected) and self._expected[here].layer == index)

            def seen(layer: Any, a: Array, depth: int) -> Array:
                z = mapped(lambda a: called(layer, a), depth)(a)
                self.inputs.append(as_numbers(a, z.dtype))
                return z if self._shifts is None else z + self._shifts[here]

            depth = self._expected[here].depth
            return seen_from_outside(layer, args[0], seen, lambda _, left: left == depth)

        return self.stand_in(layer, on_call)

    def run(self, model: Callable[[Any], Array], x: Any) -> Array:
        """**Raises:** `ValueError` where the calls are not those that are expected."""
        y = super().run(model, x)
        self._check(len(self.inputs) == len(self._expected))
        return y

    def _check(self, as_expected: bool) -> None:
        if not as_expected:
            raise ValueError(
                "`model` calls other layers when it is traced again, expected a function of its "
                "arrays and the example alone."
            )
