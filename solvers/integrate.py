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
    def loss_and_rate(self, state: State, velocity: State) -> tuple[Array, Array]:
        """The training loss L and dL/dt, two scalars, in this state with this velocity."""


class Tolerances(NamedTuple):
    """How a flow is solved; `solver=None` means Tsit5."""

    solver: diffrax.AbstractSolver | None
    rtol: float
    atol: float
    max_steps: int
    progress: diffrax.AbstractProgressMeter | None


def check_tolerances(tolerances: Tolerances) -> None:
    """**Raises:** `ValueError` / `TypeError` for tolerances that are not positive, step counts
    that are not, a solver that cannot adapt its steps, a progress meter that is none.
    """
    checks.nonnegative_number("rtol", tolerances.rtol, strictly=True)
    checks.nonnegative_number("atol", tolerances.atol, strictly=True)
    checks.integer("max_steps", tolerances.max_steps)
    for name, value, kind in (
        ("solver", tolerances.solver, diffrax.AbstractAdaptiveSolver),
        ("progress", tolerances.progress, diffrax.AbstractProgressMeter),
    ):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"`{name}` is {value!r}, expected a diffrax {kind.__name__} or None.")


def integrate(
    flow: Flow, state: State, ts: Float[Array, " t"], *, tolerances: Tolerances, throw: bool
) -> Trajectory:
    """Solves `flow` from `state` at t = 0 and observes it at `ts`.

    The loss of a gradient flow never rises where the kernel is positive. The solve therefore adds
    up the relative rise, the integral of max(dL/dt, 0) / (L + atol) dt, and stops where it passes
    eps^(1/4) of the state's dtype (1e-4 in float64, 2e-2 in float32): `kernel_not_positive`. Rows
    that were not reached, or that lie beyond the breakdown, are NaN and not valid.
    """
    return finish(_integrate(flow, state, ts, tolerances), throw=throw)


@eqx.filter_jit
def _integrate(
    flow: Flow, state: State, ts: Float[Array, " t"], tolerances: Tolerances
) -> Trajectory:
    dtype = jnp.result_type(*jax.tree.leaves(state))
    most_rise = float(jnp.finfo(dtype).eps) ** 0.25

    def velocity(t: Any, state_and_rise: State, args: Any) -> State:
        *state, _ = state_and_rise
        moved = flow.velocity(tuple(state))
        loss, rate = flow.loss_and_rate(tuple(state), moved)
        return *moved, (jnp.maximum(rate, 0) / (loss + tolerances.atol)).astype(dtype)

    def save(t: Any, state_and_rise: State, args: Any) -> tuple[Observation, Array]:
        *state, rise = state_and_rise
        return flow.observe(tuple(state)), rise

    def rises(t: Any, state_and_rise: State, args: Any, **kwargs: Any) -> Array:
        return state_and_rise[-1] > most_rise

    start = (*state, jnp.zeros((), dtype))
    # A velocity that is not finite would be tried again with smaller steps for ever.
    healthy = jnp.stack(
        [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(velocity(0.0, start, None))]
    ).all()
    # In the state's dtype: diffrax would promote the state to that of the times.
    times = jnp.where(healthy, ts, 0).astype(dtype)
    progress = tolerances.progress
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        diffrax.Tsit5() if tolerances.solver is None else tolerances.solver,
        t0=0.0,
        t1=times[-1],
        dt0=None,
        y0=start,
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
    (saved_ts, final_ts), ((observed, rise), final) = solution.ts, solution.ys

    finite = jnp.stack(
        [
            jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))
            for leaf in jax.tree.leaves(observed)
        ]
    ).all(axis=0)
    reached = jnp.isfinite(saved_ts) & healthy
    valid = jnp.cumprod(reached & finite & (rise <= most_rise)).astype(bool)

    result = RESULTS.promote(solution.result)
    broke_down = (result == RESULTS.event_occurred) | jnp.any(reached & (rise > most_rise))
    result = RESULTS.where(~healthy | jnp.any(reached & ~finite), RESULTS.diverged, result)
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
        final=jax.tree.map(lambda leaf: leaf[-1], final[:-1]),
    )


def _largest_rms(state: State) -> Float[Array, ""]:
    return jnp.max(jnp.stack([optimistix.rms_norm(part) for part in state]))
