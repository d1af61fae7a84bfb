"""The one place where a flow is solved: its segments, and what they have shown, marked."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from solvers.flows.chebyshev import radius_at, RungeKuttaChebyshev
from solvers.flows.flow import Ending, Flow, Observation, State, Tolerances
from solvers.flows.segment import largest_rms, most_rise, Segment, solve_segment
from solvers.result import ends_at_infinity, finish, in_rows, marked, RESULTS, Trajectory
from zoo.common import checks

_EXPLICIT_STEPS = 500
"""Steps of Tsit5 before stiffness is looked at."""
_STIFF = 2000
"""Steps of Tsit5 that stability would still ask for, from which on a problem counts as stiff."""
_STABLE_STEP = 3.3
"""Of Tsit5, times the spectral radius."""

_Shown = dict[str, Any]
"""The fields of a `Trajectory` but its times, and without marks: `jax_debug_nans` and
`jax_debug_infs` stop at programs that give NaN or infinity back."""


def integrate(
    flow: Flow,
    state: State,
    ts: Float[Array, " t"],
    *,
    tolerances: Tolerances,
    throw: bool,
    ending: Ending | None = None,
    stabilise: bool = False,
    unit: Float[Array, ""] | None = None,
) -> Trajectory:
    """Solves `flow` from `state` at t = 0 and observes it at `ts`, the last of which may be inf.

    The solver is Tsit5 unless the user gives one. With `stabilise`, for flows whose Jacobian has
    real eigenvalues, it takes the first 500 steps, which is all that most problems need. If it has
    not arrived then, and stability alone would ask for 2000 steps more, the stabilised method goes
    on (`solvers.flows.chebyshev`). Inside `jax.jit`, where the choice cannot wait, it goes on
    anyway.

    The loss of a gradient flow never rises where the kernel is positive. The solve therefore adds
    up the relative rise, the integral of max(dL/dt, 0) / (L + atol) dt, and stops where it passes
    eps^(1/4) of the state's dtype (1e-4 in float64, 2e-2 in float32): `kernel_not_positive`. Rows
    that were not reached, or that lie beyond the breakdown, are NaN and not valid.

    `unit`: of the rates of `flow`, whose time is `unit` times that of `ts`.

    The limit t = inf is the state that differs from itself some time t / 10 ago by no more than the
    tolerance, once the slowest outputs have had the time to move; if there is none, `no_limit`.
    """
    limit = ends_at_infinity(ts)
    ending = Ending() if ending is None else ending
    given = tolerances.solver is not None
    first = tolerances._replace(solver=tolerances.solver or diffrax.Tsit5())
    switches = stabilise and not given and tolerances.max_steps > _EXPLICIT_STEPS
    if switches:
        first = first._replace(max_steps=_EXPLICIT_STEPS)
    own_ts = ts if unit is None else _own_times(ts, unit)
    segment, shown = _first_segment(flow, state, own_ts, first, ending, limit)
    if switches:
        second = first._replace(max_steps=tolerances.max_steps - _EXPLICIT_STEPS)
        unfinished = checks.concrete(segment.unfinished)
        if unfinished is None:
            shown = _perhaps_second_segment(flow, segment, own_ts, second, ending, limit)
        elif unfinished:
            if _is_stiff(flow, segment):
                second = second._replace(solver=_stabilised(second, segment))
            shown = _second_segment(flow, segment, own_ts, second, ending, limit)
    if unit is not None:
        shown["t_reached"] = shown["t_reached"] / unit
    rows = marked({name: shown[name] for name in Observation._fields}, shown["valid"])
    return finish(
        Trajectory(ts=ts, **(shown | rows)),
        throw=throw,
        on_divergence="Check the loss at the outputs at t = 0, and try smaller times.",
    )


def _own_times(ts: Array, unit: Array) -> Array:
    """The times of a flow in which 1 is 1 / unit."""
    known, of_flow = checks.concrete(ts), checks.concrete(unit)
    if known is None or of_flow is None:
        return ts * unit.astype(ts.dtype)
    return checks.as_given(known * of_flow.astype(known.dtype))


@eqx.filter_jit
def _first_segment(
    flow: Flow, state: State, ts: Array, tolerances: Tolerances, ending: Ending, limit: bool
) -> tuple[Segment, _Shown]:
    dtype = jnp.result_type(*jax.tree.leaves(state))
    finite_ts = (ts[:-1] if limit else ts).astype(dtype)
    slowest = jnp.zeros((), dtype) if ending.slowest is None else ending.slowest(state)
    end = _time_limit(flow, state, slowest) if limit else finite_ts[-1]
    start = jnp.zeros((2,), dtype)
    segment = solve_segment(flow, state, state, start, end, finite_ts, tolerances, ending, slowest)
    return segment, _shown(flow, segment, ts, limit)


@eqx.filter_jit
def _second_segment(
    flow: Flow, segment: Segment, ts: Array, tolerances: Tolerances, ending: Ending, limit: bool
) -> _Shown:
    finite_ts = (ts[:-1] if limit else ts).astype(segment.t.dtype)
    slowest = jnp.zeros_like(segment.t) if ending.slowest is None else ending.slowest(segment.state)
    start = jnp.stack([segment.t, segment.rise])
    following = solve_segment(
        flow,
        segment.state,
        segment.lagged,
        start,
        segment.end,
        finite_ts,
        tolerances,
        ending,
        slowest,
    )

    def later(before: Array, after: Array) -> Array:
        return jnp.where(in_rows(finite_ts > segment.t, after), after, before)

    rows = [(one.observed, one.rises, one.reached) for one in (segment, following)]
    observed, rises, reached = jax.tree.map(later, *rows)
    stats = {name: segment.stats[name] + following.stats[name] for name in segment.stats}
    both = following._replace(observed=observed, rises=rises, reached=reached, stats=stats)
    return _shown(flow, both, ts, limit)


def _perhaps_second_segment(
    flow: Flow,
    segment: Segment,
    ts: Array,
    tolerances: Tolerances,
    ending: Ending,
    limit: bool,
) -> _Shown:
    """For traced solves, in which nobody knows yet whether the first segment arrived."""
    tolerances = tolerances._replace(solver=_stabilised(tolerances, segment))
    return jax.lax.cond(
        segment.unfinished,
        lambda: _second_segment(flow, segment, ts, tolerances, ending, limit),
        lambda: _shown(flow, segment, ts, limit),
    )


def _stabilised(tolerances: Tolerances, segment: Segment) -> RungeKuttaChebyshev:
    """Rounding grows with the square of the stages: it should stay below the tolerance."""
    most = (tolerances.rtol / (10 * float(jnp.finfo(segment.t.dtype).eps))) ** 0.5
    return RungeKuttaChebyshev(max_stages=int(min(max(most, 32), 4096)))


@eqx.filter_jit
def _is_stiff(flow: Flow, segment: Segment) -> Array:
    radius = radius_at(flow.velocity, segment.state)
    return radius * (segment.end - segment.t) > _STABLE_STEP * _STIFF


def _time_limit(flow: Flow, state: State, slowest: Array) -> Array:
    """The time at which waiting for a limit ends: long past that of the slowest outputs."""
    size, speed = largest_rms(state), largest_rms(flow.velocity(state))
    rate = jnp.where(slowest > 0, slowest, speed / (1 + size))
    return jnp.where(rate > 0, 1e8 / jnp.where(rate > 0, rate, 1), 1)


def _shown(flow: Flow, segment: Segment, ts: Array, limit: bool) -> _Shown:
    """What a solve has shown, where it is valid, and how it ended."""
    limit_of_rise = most_rise(segment.t.dtype)
    observed, rises, reached = segment.observed, segment.rises, segment.reached
    settled = segment.ended.settled
    if limit:
        last = (flow.observe(segment.state), segment.rise, settled)
        rows = (observed, rises, reached)
        observed, rises, reached = jax.tree.map(
            lambda row, one: jnp.concatenate([row, one[None]]), rows, last
        )
        # Settled is settled: what comes later is there too.
        observed = jax.tree.map(
            lambda rows: jnp.where(in_rows((ts > segment.t) & settled, rows), rows[-1:], rows),
            observed,
        )
        reached = reached | settled
    finite = jnp.stack(
        [
            jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))
            for leaf in jax.tree.leaves(observed)
        ]
    ).all(axis=0)
    valid = jnp.cumprod(reached & finite & (rises <= limit_of_rise)).astype(bool)

    result = segment.result
    where: Any = RESULTS.where
    if limit:
        to_the_end = (result == RESULTS.successful) & ~settled
        result = where(to_the_end, RESULTS.no_limit, result)
        result = where(settled, RESULTS.successful, result)
    result = where(segment.ended.margin, RESULTS.event_occurred, result)
    broke_down = segment.ended.rises | jnp.any(reached & (rises > limit_of_rise))
    lost = (segment.result == RESULTS.diverged) | jnp.any(reached & ~finite)
    result = where(lost, RESULTS.diverged, result)
    result = where(broke_down, RESULTS.kernel_not_positive, result)

    return observed._asdict() | {
        "valid": valid,
        "t_reached": segment.t,
        "result": result,
        "stats": segment.stats,
        "final": segment.state,
    }
