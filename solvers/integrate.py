"""The one place where an ODE is solved: adaptive diffrax, checked, with its breakdowns marked."""

import abc
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix
from jaxtyping import Array, Float, PyTree

from solvers.result import finish, RESULTS, Trajectory
from zoo import checks


class Observation(NamedTuple):
    """What a flow shows of its state: outputs on training and test points, and its kernel."""

    train: Float[Array, "n k"]
    test: Float[Array, "m k"] | None
    kernel: Float[Array, "n k n k"] | None


State = tuple[PyTree, ...]
"""The parts of a flow's state, such as outputs and parameters: a step's error is held below the
tolerance in each part on its own, or a large part would hide a small one."""


class Flow(eqx.Module):
    """An autonomous ODE y' = velocity(y) with outputs to observe."""

    @abc.abstractmethod
    def velocity(self, state: State) -> State:
        """y', shaped like the state."""

    @abc.abstractmethod
    def observe(self, state: State) -> Observation:
        """The outputs in this state."""

    @abc.abstractmethod
    def loss_falls(self, state: State) -> Array:
        """Whether the training loss falls, dL/dt <= 0 up to rounding: a scalar boolean."""


class Tolerances(NamedTuple):
    """How a flow is solved; `solver=None` means Tsit5."""

    solver: diffrax.AbstractSolver | None
    rtol: float
    atol: float
    max_steps: int
    progress: diffrax.AbstractProgressMeter | None


def check_tolerances(tolerances: Tolerances) -> None:
    """**Raises:** `ValueError` / `TypeError` for tolerances that are not positive, step counts
    that are not, a solver or a progress meter that is none.
    """
    checks.nonnegative_number("rtol", tolerances.rtol, strictly=True)
    checks.nonnegative_number("atol", tolerances.atol, strictly=True)
    checks.positive_integer("max_steps", tolerances.max_steps)
    for name, value, kind in (
        ("solver", tolerances.solver, diffrax.AbstractSolver),
        ("progress", tolerances.progress, diffrax.AbstractProgressMeter),
    ):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"`{name}` is {value!r}, expected a diffrax {kind.__name__} or None.")


def positivity_slack(dtype: Any, rtol: float) -> float:
    """How far below zero g^T Theta g may be, relative to its scale, by rounding and step errors."""
    return float(jnp.finfo(dtype).eps) ** 0.5 + 10 * rtol


def integrate(
    flow: Flow, state: State, ts: Float[Array, " t"], *, tolerances: Tolerances, throw: bool
) -> Trajectory:
    """Solves `flow` from `state` at t = 0 and observes it at `ts`.

    The solve stops where the training loss would rise (`RESULTS.kernel_not_positive`). Rows that
    were not reached, or that lie beyond the breakdown, are NaN and not valid.
    """
    return finish(_integrate(flow, state, ts, tolerances), throw=throw)


@eqx.filter_jit
def _integrate(
    flow: Flow, state: State, ts: Float[Array, " t"], tolerances: Tolerances
) -> Trajectory:
    def save(t: Any, state: State, args: Any) -> tuple[Observation, Array]:
        return flow.observe(state), flow.loss_falls(state)

    def rises(t: Any, state: State, args: Any, **kwargs: Any) -> Array:
        return ~flow.loss_falls(state)

    # diffrax would promote the state to the dtype of the times
    times = ts.astype(jnp.result_type(*jax.tree.leaves(state)))
    progress = tolerances.progress
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, state, args: flow.velocity(state)),
        diffrax.Tsit5() if tolerances.solver is None else tolerances.solver,
        t0=0.0,
        t1=times[-1],
        dt0=None,
        y0=state,
        saveat=diffrax.SaveAt(
            subs=(diffrax.SubSaveAt(ts=times, fn=save), diffrax.SubSaveAt(t1=True))
        ),
        stepsize_controller=diffrax.PIDController(
            rtol=tolerances.rtol, atol=tolerances.atol, norm=_largest_rms
        ),
        event=diffrax.Event(rises),
        max_steps=tolerances.max_steps,
        progress_meter=diffrax.NoProgressMeter() if progress is None else progress,
        throw=False,
    )
    assert solution.ts is not None
    assert solution.ys is not None
    (saved_ts, final_ts), ((observed, falling), final) = solution.ts, solution.ys

    finite = jnp.stack(
        [
            jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))
            for leaf in jax.tree.leaves(observed)
        ]
    ).all(axis=0)
    reached = jnp.isfinite(saved_ts)
    valid = jnp.cumprod(reached & finite & falling).astype(bool)

    result = RESULTS.promote(solution.result)
    broke_down = (result == RESULTS.event_occurred) | jnp.any(reached & finite & ~falling)
    result = RESULTS.where(jnp.any(reached & ~finite), RESULTS.diverged, result)
    result = RESULTS.where(broke_down, RESULTS.kernel_not_positive, result)

    def masked(leaf: Array) -> Array:
        return jnp.where(valid.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, jnp.nan)

    observed = jax.tree.map(masked, observed)
    return Trajectory(
        ts=ts,
        train=observed.train,
        test=observed.test,
        kernel=observed.kernel,
        valid=valid,
        t_reached=final_ts[-1],
        result=result,
        stats=solution.stats,
        final=jax.tree.map(lambda leaf: leaf[-1], final),
    )


def _largest_rms(state: State) -> Float[Array, ""]:
    return jnp.max(jnp.stack([optimistix.rms_norm(part) for part in state]))
