"""What enters and leaves the layers of a model, seen from outside.

Layers are replaced by stand-ins (`zoo.stand_in`) that write on a tape, which lives inside one trace
of the model. For which layers that is right, `corrections.contractible` says.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Array

from zoo.stand_in import stand_in


class Tape:
    """What the tapped layers of one call of the model write, and the shifts they add."""

    def __init__(self, shifts: Sequence[Array] | None):
        self._shifts = shifts
        self._open = True
        self.calls: list[tuple[int, Array, Array]] = []

    def tapped(self, layer: Any, index: int) -> Any:
        """A stand-in for `layer`, whose calls are written under `index`."""

        def on_call(layer: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Array:
            if not self._open:
                return layer(*args, **options)
            (a,) = args
            z = layer(a)  # options that change something would have kept it from being tapped
            if self._shifts is not None:
                z = z + self._shifts[len(self.calls)]
            self.calls.append((index, a, z))
            return z

        return stand_in(layer, on_call)

    def close(self) -> None:
        """The model has been called: what calls a layer from here on is one of its derivatives."""
        self._open = False
