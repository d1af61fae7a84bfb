"""Steps as large as the outputs allow, where the state of a flow does not hold them."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax.numpy as jnp
import optimistix
from jaxtyping import PyTree

Norm = Callable[[PyTree], Any]


class OutputErrors(diffrax.AbstractAdaptiveStepSizeController):
    """A `diffrax.PIDController` that sees (state, outputs) where the solver has the state alone:
    the error of the outputs is what they move by along the state's.
    """

    controller: diffrax.PIDController
    norm: Norm
    outputs: Callable[[PyTree], PyTree]
    moved: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]

    def __init__(
        self,
        *,
        rtol: float,
        atol: float,
        norm: Norm,
        outputs: Callable[[PyTree], PyTree],
        moved: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    ):
        """**Arguments:**

        - `rtol`, `atol`: the tolerances of both.
        - `norm`: of states; outputs have their root mean square.
        - `outputs`: those in a state; None where it holds them.
        - `moved`: the outputs in a state, and what they move by along a change of it.
        """

        def larger(both: tuple[PyTree, PyTree]) -> Any:
            y, outputs = both
            return (
                norm(y) if outputs is None else jnp.maximum(norm(y), optimistix.rms_norm(outputs))
            )

        self.controller = diffrax.PIDController(rtol=rtol, atol=atol, norm=larger)
        self.norm = norm
        self.outputs = outputs
        self.moved = moved

    @property
    def rtol(self) -> Any:
        return self.controller.rtol

    @property
    def atol(self) -> Any:
        return self.controller.atol

    def wrap(self, direction: Any) -> "OutputErrors":
        """As that controller's: nothing to know of the direction."""
        return self

    def init(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: PyTree,
        dt0: Any,
        args: Any,
        func: Callable[..., PyTree],
        error_order: Any,
    ) -> tuple[Any, Any]:
        """As that controller's."""

        def velocities(terms: Any, t: Any, both: tuple[PyTree, PyTree], args: Any) -> PyTree:
            y, _ = both
            velocity = func(terms, t, y, args)
            return velocity, self.moved(y, velocity)[1]

        both = (y0, self.outputs(y0))
        return self.controller.init(terms, t0, t1, both, dt0, args, velocities, error_order)

    def adapt_step_size(
        self,
        t0: Any,
        t1: Any,
        y0: PyTree,
        y1_candidate: PyTree,
        args: Any,
        y_error: PyTree,
        error_order: Any,
        controller_state: Any,
    ) -> tuple[Any, Any, Any, Any, Any, Any]:
        """As that controller's. Outputs are measured against those at the end of the step."""
        at_end, error = self.moved(y1_candidate, y_error)
        return self.controller.adapt_step_size(
            t0,
            t1,
            (y0, at_end),
            (y1_candidate, at_end),
            args,
            (y_error, error),
            error_order,
            controller_state,
        )
