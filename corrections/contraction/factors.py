"""The factors of an example's gradients, and how its calls move with the parameters."""

from typing import NamedTuple

from jaxtyping import Array


class Factors(NamedTuple):
    """The gradients of an example's k outputs, in factors. `vmap` adds axes in front.

    - `inputs`: for each ruled layer a, (positions, in), times the weight's multiplier.
    - `cotangents`: for each ruled layer delta, (k, positions, out); without k for one output.
    - `rest`: the Jacobian of the parameters that no rule covers, (k, parameters), likewise.
    """

    inputs: tuple[Array, ...]
    cotangents: tuple[Array, ...]
    rest: Array


class Tangent(NamedTuple):
    """What moving the parameters does to the calls of an example. `vmap` adds axes in front.

    - `shifts`: of the outputs of the calls.
    - `pulls`: on the cotangents of their inputs, for each output of the model.
    - `rest`: the parameters that no rule covers, or a direction of them.
    """

    shifts: list[Array]
    pulls: list[Array]
    rest: Array
