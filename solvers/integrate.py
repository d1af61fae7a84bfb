"""The one place where an ODE is solved: adaptive diffrax, checked, with its breakdowns marked."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jaxtyping import Array, Float, PyTree

from solvers.chebyshev import (
    ChebyshevState,
    RungeKuttaChebyshev,
    some_direction,
    spectral_radius,
)
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
    """How a flow is solved; `solver=None` leaves the choice to `integrate`."""

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


class Ending(NamedTuple):
    """What ends a solve before its last time.

    - `margin`: of a state, a number that passes through zero where the solve should stop; or true
      where it should.
    - `settles`: whether it ends where the outputs have settled.
    - `spread`: smallest over largest eigenvalue of the kernel, of those that are not zero: so much
      slower than the fastest the slowest outputs are.
    """

    margin: Callable[[State], Array] | None = None
    settles: bool = False
    spread: float = 1.0


_EXPLICIT_STEPS = 500
"""Steps of Tsit5 before stiffness is looked at."""
_STIFF = 2000
"""Steps of Tsit5 that stability would still ask for, from which on a problem counts as stiff."""
_STABLE_STEP = 3.3
"""Of Tsit5, times the spectral radius."""


def integrate(
    flow: Flow,
    state: State,
    ts: Float[Array, " t"],
    *,
    tolerances: Tolerances,
    throw: bool,
    ending: Ending | None = None,
    stabilise: bool = False,
) -> Trajectory:
    """Solves `flow` from `state` at t = 0 and observes it at `ts`, the last of which may be inf.

    The solver is Tsit5 unless the user gives one. With `stabilise`, for flows whose Jacobian has
    real eigenvalues, it takes the first 500 steps, which is all that most problems need. If it has
    not arrived then, and stability alone would ask for 2000 steps more, the stabilised method goes
    on (`solvers.chebyshev`). Inside `jax.jit`, where the choice cannot wait, that goes on anyway.

    The loss of a gradient flow never rises where the kernel is positive. The solve therefore adds
    up the relative rise, the integral of max(dL/dt, 0) / (L + atol) dt, and stops where it passes
    eps^(1/4) of the state's dtype (1e-4 in float64, 2e-2 in float32): `kernel_not_positive`. Rows
    that were not reached, or that lie beyond the breakdown, are NaN and not valid.

    The limit t = inf is the state that differs from itself some time t / 10 ago by no more than the
    tolerance, once the slowest outputs have had the time to move; if there is none, `no_limit`.
    """
    known = checks.concrete(ts)
    limit = known is not None and bool(np.isinf(known[-1]))
    ending = Ending() if ending is None else ending
    given = tolerances.solver is not None
    first = tolerances._replace(solver=tolerances.solver or diffrax.Tsit5())
    switches = stabilise and not given and tolerances.max_steps > _EXPLICIT_STEPS
    if switches:
        first = first._replace(max_steps=_EXPLICIT_STEPS)
    leg, trajectory = _first_leg(flow, state, ts, first, ending, limit)
    if switches:
        second = first._replace(max_steps=tolerances.max_steps - _EXPLICIT_STEPS)
        unfinished = checks.concrete(leg.unfinished)
        if unfinished is None:
            trajectory = _perhaps_second_leg(flow, leg, ts, second, ending, limit)
        elif unfinished:
            if _is_stiff(flow, leg):
                second = second._replace(solver=_stabilised(second, leg))
            trajectory = _second_leg(flow, leg, ts, second, ending, limit)
    return finish(trajectory, throw=throw)


Whole = tuple[Any, ...]
"""A state, the relative rise, and, for one that settles, where it was a while ago."""


class _Leg(NamedTuple):
    """A part of a solve. Rows are those of the finite times.

    - `observed`, `rises`, `reached`: what was seen, the relative rise, and whether, at each row.
    - `state`, `lag`, `rise`, `t`, `end`: where it is now, where it was about t / 10 ago, and the
      time that it was to reach.
    - `ended`: by which event it was: "rises", "margin", "settled".
    - `unfinished`: whether it ran out of steps.
    """

    observed: Observation
    rises: Float[Array, " rows"]
    reached: Array
    state: State
    lag: State
    rise: Float[Array, ""]
    t: Float[Array, ""]
    end: Float[Array, ""]
    ended: dict[str, Array]
    unfinished: Array
    result: Any
    stats: dict[str, Array]


@eqx.filter_jit
def _first_leg(
    flow: Flow, state: State, ts: Array, tolerances: Tolerances, ending: Ending, limit: bool
) -> tuple[_Leg, Trajectory]:
    dtype = jnp.result_type(*jax.tree.leaves(state))
    finite_ts = (ts[:-1] if limit else ts).astype(dtype)
    slowest = jnp.zeros((), dtype)
    if limit or ending.settles:
        slowest = _slowest(flow, state, ending.spread)
    end = _time_limit(flow, state, slowest) if limit else finite_ts[-1]
    start = jnp.zeros((2,), dtype)
    leg = _leg(flow, state, state, start, end, finite_ts, tolerances, ending, slowest)
    return leg, _trajectory(flow, leg, ts, limit)


@eqx.filter_jit
def _second_leg(
    flow: Flow, leg: _Leg, ts: Array, tolerances: Tolerances, ending: Ending, limit: bool
) -> Trajectory:
    finite_ts = (ts[:-1] if limit else ts).astype(leg.t.dtype)
    slowest = jnp.zeros_like(leg.t)
    if limit or ending.settles:
        slowest = _slowest(flow, leg.state, ending.spread)
    start = jnp.stack([leg.t, leg.rise])
    following = _leg(
        flow, leg.state, leg.lag, start, leg.end, finite_ts, tolerances, ending, slowest
    )

    def later(before: Array, after: Array) -> Array:
        is_later = (finite_ts > leg.t).reshape(-1, *[1] * (after.ndim - 1))
        return jnp.where(is_later, after, before)

    rows = [(one.observed, one.rises, one.reached) for one in (leg, following)]
    observed, rises, reached = jax.tree.map(later, *rows)
    stats = {name: leg.stats[name] + following.stats[name] for name in leg.stats}
    whole = following._replace(observed=observed, rises=rises, reached=reached, stats=stats)
    return _trajectory(flow, whole, ts, limit)


def _perhaps_second_leg(
    flow: Flow,
    leg: _Leg,
    ts: Array,
    tolerances: Tolerances,
    ending: Ending,
    limit: bool,
) -> Trajectory:
    """For traced solves, in which nobody knows yet whether the first leg arrived."""
    tolerances = tolerances._replace(solver=_stabilised(tolerances, leg))
    return jax.lax.cond(
        leg.unfinished,
        lambda: _second_leg(flow, leg, ts, tolerances, ending, limit),
        lambda: _trajectory(flow, leg, ts, limit),
    )


def _stabilised(tolerances: Tolerances, leg: _Leg) -> RungeKuttaChebyshev:
    """Rounding grows with the square of the stages: it should stay below the tolerance."""
    most = (tolerances.rtol / (10 * float(jnp.finfo(leg.t.dtype).eps))) ** 0.5
    return RungeKuttaChebyshev(max_stages=int(min(max(most, 32), 4096)))


@eqx.filter_jit
def _is_stiff(flow: Flow, leg: _Leg) -> Array:
    radius = _radius(flow, leg.state)
    return radius * (leg.end - leg.t) > _STABLE_STEP * _STIFF


def _radius(flow: Flow, state: State) -> Array:
    return spectral_radius(flow.velocity, state, flow.velocity(state), some_direction(state))[0]


def _slowest(flow: Flow, state: State, spread: float) -> Array:
    """The rate of the slowest outputs."""
    return _radius(flow, state) * spread


def _time_limit(flow: Flow, state: State, slowest: Array) -> Array:
    """The time at which waiting for a limit ends: long past that of the slowest outputs."""
    size, speed = _largest_rms(state), _largest_rms(flow.velocity(state))
    rate = jnp.where(slowest > 0, slowest, speed / (1 + size))
    return jnp.where(rate > 0, 1e8 / jnp.where(rate > 0, rate, 1), 1)


def _leg(
    flow: Flow,
    state: State,
    lag: State,
    start: Float[Array, "2"],
    end: Array,
    ts: Array,
    tolerances: Tolerances,
    ending: Ending,
    slowest: Array,
) -> _Leg:
    """Solves from `start` = (t, rise) to `end`."""
    dtype = start.dtype
    t0, rise0 = start
    most_rise = float(jnp.finfo(dtype).eps) ** 0.25
    # Errors below rounding cannot be seen: a solve that tries takes ever smaller steps.
    rtol = max(tolerances.rtol, 10 * float(jnp.finfo(dtype).eps))
    atol = tolerances.atol

    def velocity(t: Any, whole: Whole, args: Any) -> Whole:
        state, _, *lag = whole
        moved = flow.velocity(state)
        loss, rate = flow.loss_and_rate(state, moved)
        rise = (jnp.maximum(rate, 0) / (loss + atol)).astype(dtype)
        if not lag:
            return moved, rise
        pace = 10 * slowest / (1 + jnp.asarray(t, dtype) * slowest)
        behind = jax.tree.map(
            lambda now, then: pace.astype(now.dtype) * (now - then), state, lag[0]
        )
        return moved, rise, behind

    def save(t: Any, whole: Whole, args: Any) -> tuple[Observation, Array]:
        return flow.observe(whole[0]), whole[1]

    def rises(whole: Whole) -> Array:
        return whole[1] > most_rise

    def settled(t: Any, whole: Whole) -> Array:
        state, _, *lag = whole
        if not lag:
            return jnp.asarray(False)
        scaled = jax.tree.map(
            lambda now, then: (now - then) / (atol + min(rtol, 1e-3) * jnp.abs(now)), state, lag[0]
        )
        rests = _largest_rms(flow.velocity(state)) == 0
        return rests | ((_largest_rms(scaled) < 2) & (jnp.asarray(t, dtype) * slowest >= 100))

    def ends(t: Any, y: Whole, args: Any, **kwargs: Any) -> Array:
        at_once = rises(y) | settled(t, y)
        if ending.margin is None:
            return at_once
        margin = ending.margin(y[0])
        if margin.dtype == bool:
            return at_once | margin
        return jnp.where(at_once, -1 - jnp.abs(margin), margin)

    begin = (state, rise0, lag) if ending.settles else (state, rise0)
    # A velocity that is not finite would be tried again with smaller steps for ever.
    at_start = velocity(t0, begin, None)
    healthy = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(at_start)]).all()
    done, finder = jnp.asarray(False), None
    if ending.margin is not None:
        margin = ending.margin(state)
        done = _is_past(margin)
        if margin.dtype != bool:
            finder = optimistix.Bisection(rtol=rtol, atol=atol)
    # In the state's dtype: diffrax would promote the state to that of the times.
    end_reached = jnp.where(healthy & ~done, end, t0)
    times = jnp.clip(ts, t0, end_reached)
    progress = tolerances.progress
    solver = tolerances.solver
    assert solver is not None
    subs = [diffrax.SubSaveAt(t1=True)]
    if len(ts):
        subs.append(diffrax.SubSaveAt(ts=times, fn=save))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        solver,
        t0=t0,
        t1=end_reached,
        dt0=None,
        y0=begin,
        saveat=diffrax.SaveAt(subs=subs, solver_state=True),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=_largest_part),
        event=diffrax.Event(ends, finder),
        max_steps=tolerances.max_steps,
        progress_meter=diffrax.NoProgressMeter() if progress is None else progress,
        throw=False,
    )
    assert solution.ts is not None
    assert solution.ys is not None
    final = jax.tree.map(lambda leaf: leaf[-1], solution.ys[0])
    if len(ts):
        row_ts, (observed, rise_rows) = solution.ts[1], solution.ys[1]
    else:
        seen = jax.tree.map(lambda leaf: leaf[None][:0], flow.observe(state))
        row_ts, observed, rise_rows = ts, seen, ts
    result = RESULTS.promote(solution.result)
    t = jnp.where(healthy & ~done, solution.ts[0][-1], t0)
    ended = {"rises": rises(final), "settled": healthy & settled(t, final)}
    by_event = (result == RESULTS.event_occurred) & ~ended["rises"] & ~ended["settled"]
    ended["margin"] = done | by_event
    return _Leg(
        observed=observed,
        rises=rise_rows,
        reached=jnp.isfinite(row_ts) & healthy & (ts <= t),
        state=final[0],
        lag=final[-1] if ending.settles else final[0],
        rise=final[1],
        t=t,
        end=end,
        ended=ended,
        unfinished=(result == RESULTS.max_steps_reached) & ~ended["settled"],
        result=RESULTS.where(healthy, result, RESULTS.diverged),  # pyright: ignore
        stats=_stats(solution, solver, ending),
    )


def _is_past(margin: Array) -> Array:
    """Whether a solve that ends at this margin need not begin."""
    return margin if margin.dtype == bool else margin <= 0


def _stats(
    solution: diffrax.Solution, solver: diffrax.AbstractSolver, ending: Ending
) -> dict[str, Array]:
    names = ("num_steps", "num_accepted_steps", "num_rejected_steps")
    stats = {name: jnp.asarray(solution.stats[name]) for name in names}
    steps, accepted = stats["num_steps"], stats["num_accepted_steps"]
    if isinstance(solver, RungeKuttaChebyshev):
        assert isinstance(solution.solver_state, ChebyshevState)
        count = solution.solver_state.velocities * steps // jnp.maximum(accepted, 1)
    elif isinstance(solver, diffrax.Tsit5):
        count = 6 * steps + 3
    else:
        return stats
    return stats | {"num_velocities": count + (steps if ending.settles else 0)}


def _trajectory(flow: Flow, leg: _Leg, ts: Array, limit: bool) -> Trajectory:
    """What a solve has shown, where it is valid, and how it ended."""
    dtype = leg.t.dtype
    most_rise = float(jnp.finfo(dtype).eps) ** 0.25
    observed, rises, reached = leg.observed, leg.rises, leg.reached
    settled = leg.ended["settled"]
    if limit:
        last = (flow.observe(leg.state), leg.rise, settled)
        rows = (observed, rises, reached)
        observed, rises, reached = jax.tree.map(
            lambda row, one: jnp.concatenate([row, one[None]]), rows, last
        )
        # Settled is settled: what comes later is there too.
        observed = jax.tree.map(
            lambda rows: jnp.where(_as_rows((ts > leg.t) & settled, rows), rows[-1:], rows),
            observed,
        )
        reached = reached | settled
    finite = jnp.stack(
        [
            jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))
            for leaf in jax.tree.leaves(observed)
        ]
    ).all(axis=0)
    valid = jnp.cumprod(reached & finite & (rises <= most_rise)).astype(bool)

    result = leg.result
    where: Any = RESULTS.where
    if limit:
        to_the_end = (result == RESULTS.successful) & ~settled
        result = where(to_the_end, RESULTS.no_limit, result)
        result = where(settled, RESULTS.successful, result)
    result = where(leg.ended["margin"], RESULTS.event_occurred, result)
    broke_down = leg.ended["rises"] | jnp.any(reached & (rises > most_rise))
    lost = (leg.result == RESULTS.diverged) | jnp.any(reached & ~finite)
    result = where(lost, RESULTS.diverged, result)
    result = where(broke_down, RESULTS.kernel_not_positive, result)

    observed = jax.tree.map(lambda rows: jnp.where(_as_rows(valid, rows), rows, jnp.nan), observed)
    return Trajectory(
        ts=ts,
        train=observed.train,
        test=observed.test,
        kernel=observed.kernel,
        valid=valid,
        t_reached=leg.t,
        result=result,
        stats=leg.stats,
        final=leg.state,
    )


def _as_rows(mask: Array, rows: Array) -> Array:
    return mask.reshape(-1, *[1] * (rows.ndim - 1))


def _largest_part(whole: Whole) -> Float[Array, ""]:
    state, rise, *lag = whole
    return _largest_rms((*state, rise, *(lag[0] if lag else ())))


def _largest_rms(state: State) -> Float[Array, ""]:
    return jnp.max(jnp.stack([optimistix.rms_norm(part) for part in state]))
