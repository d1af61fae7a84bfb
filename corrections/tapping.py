"""What enters and leaves the layers of a model, seen from outside.

Layers are replaced by ones that write on a tape. The tape lives inside one trace of the model.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from zoo import checks

_T = TypeVar("_T")


class Tape:
    """What the tapped layers of one call of the model write, and the shifts they add."""

    def __init__(self, shifts: list[Array] | None):
        self._shifts = shifts
        self.calls: list[tuple[int, Array, Array]] = []

    def write(self, ruled: int, a: Array, z: Array) -> Array:
        if self._shifts is not None:
            z = z + self._shifts[len(self.calls)]
        self.calls.append((ruled, a, z))
        return z


class Tapped(eqx.Module):
    """Stands in for a ruled layer."""

    layer: Any
    ruled: int = eqx.field(static=True)
    tape: Tape = eqx.field(static=True)

    def __call__(self, a: Array, **options: Any) -> Array:
        return self.tape.write(self.ruled, a, self.layer(a, **options))


def tappable(
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
        values, tape = jax.tree.map(zeros, nodes), Tape(None)
        for index in chosen:
            values[index] = Tapped(values[index], index, tape)
        try:
            jax.tree.unflatten(structure, values)(jnp.zeros(x.shape, x.dtype))
        except (AttributeError, TypeError, ValueError):
            return set(chosen)
        return {index for index, a, _ in tape.calls if checks.concrete(a) is None}

    def unseen() -> set[int]:
        found = hidden(candidates)
        if found == set(candidates):
            found = {index for index in candidates if hidden([index])}
        return found

    with jax.ensure_compile_time_eval():
        dropped = unseen()
    if dropped:
        dropped &= _outside_traces(unseen)
    return [index for index in candidates if index not in dropped]


def _outside_traces(fn: Callable[[], _T]) -> _T:
    """What `fn` gives where nothing is traced: on a thread of its own.

    Early versions of JAX (0.6 to 0.8 at least) trace functions with derivatives of their own, such
    as `jax.nn.relu`, under `jax.ensure_compile_time_eval()` too.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(fn).result()
