"""What is solved in time: a flow, how closely, and what ends it."""

import abc
from collections.abc import Callable
from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from zoo.common import checks


class Observation(NamedTuple):
    """What a flow shows of its state: outputs on training and test points, its kernel, and how far
    its parameters are from their start.
    """

    train: Float[Array, "n k"]
    test: Float[Array, "m k"] | None
    kernel: Float[Array, "n1 k n2 k"] | None
    displacement: Float[Array, ""] | None = None


State = tuple[PyTree, ...]
"""The parts of a flow's state, such as outputs and parameters: a step's error is held below the
tolerance in each part on its own, or a large part would hide a small one."""


class Motion(NamedTuple):
    """How a flow moves: y', shaped like the state; what it descends and that thing's rate dL/dt."""

    velocity: State
    loss: Float[Array, ""]
    rate: Float[Array, ""]


class Flow(eqx.Module):
    """An autonomous ODE y' = velocity(y) with outputs to observe."""

    @abc.abstractmethod
    def motion(self, state: State) -> Motion:
        """How it moves from this state."""

    def velocity(self, state: State) -> State:
        """y', shaped like the state."""
        return self.motion(state).velocity

    @abc.abstractmethod
    def observe(self, state: State) -> Observation:
        """The outputs in this state."""

    def outputs_to_first_order(self, state: State) -> Float[Array, "points k"] | None:
        """Outputs whose errors are held below the tolerance beside those of the state; to first
        order in the state, which is what errors need. None: the state's own errors are enough.
        """
        return None

    def outputs_moved(self, state: State, change: State) -> tuple[Array | None, Array | None]:
        """These outputs, and what they move by along a change of the state."""
        return jax.jvp(self.outputs_to_first_order, (state,), (change,))


class Tolerances(NamedTuple):
    """How a flow is solved; `solver=None` leaves the choice to `integrate`."""

    solver: diffrax.AbstractSolver | None
    rtol: float
    atol: float
    max_steps: int
    progress: diffrax.AbstractProgressMeter | None


def check_tolerances(tolerances: Tolerances) -> Tolerances:
    """The same, with its count as an integer of Python.

    **Raises:** `ValueError` / `TypeError` for tolerances that are not positive, step counts
    that are not, a solver that cannot adapt its steps, a progress meter that is none.
    """
    checks.nonnegative_number("rtol", tolerances.rtol, strictly=True)
    checks.nonnegative_number("atol", tolerances.atol, strictly=True)
    max_steps = checks.integer("max_steps", tolerances.max_steps)
    for name, value, kind in (
        ("solver", tolerances.solver, diffrax.AbstractAdaptiveSolver),
        ("progress", tolerances.progress, diffrax.AbstractProgressMeter),
    ):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"`{name}` is {value!r}, expected a diffrax {kind.__name__} or None.")
    return tolerances._replace(max_steps=max_steps)


class Ending(NamedTuple):
    """What ends a solve before its last time.

    - `margin`: of a state, a number that passes through zero where the solve should stop; or true
      where it should.
    - `slowest`: of a state, the rate of the slowest outputs, for a solve that ends where they have
      settled; else None.
    """

    margin: Callable[[State], Array] | None = None
    slowest: Callable[[State], Array] | None = None
