"""What enters and leaves the layers of a model, seen from outside.

Layers are replaced by stand-ins (`zoo.tracing.stand_in`) that write down what enters them, inside
one trace of the model. For which layers that is right, `corrections.contraction.contractible` says.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from zoo.tracing.stand_in import OnCall, stand_in


class Call(NamedTuple):
    """A call of a layer: which one, with what shapes."""

    layer: int
    input: jax.ShapeDtypeStruct
    output: jax.ShapeDtypeStruct


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
            (a,) = args
            here = len(self.inputs)
            self._check(here < len(self._expected) and self._expected[here].layer == index)
            self.inputs.append(a)
            return layer(a) if self._shifts is None else layer(a) + self._shifts[here]

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
