"""One solve by diffrax, from a time to another, and how it ended."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix
from jaxtyping import Array, Float, PyTree

from solvers.flows.chebyshev import ChebyshevState, RungeKuttaChebyshev
from solvers.flows.flow import Ending, Flow, Motion, Observation, State, Tolerances
from solvers.flows.output_errors import OutputErrors
from solvers.result import in_rows, RESULTS
from zoo.common.norms import norm


def most_rise(dtype: Any) -> float:
    """The relative rise of the loss at which a flow is stopped."""
    return float(jnp.finfo(dtype).eps) ** 0.25


AugmentedState = tuple[Any, ...]
"""A state, the relative rise, and, for one that settles, where it was a while ago."""


class Events(NamedTuple):
    """What ends a solve before its time: conditions, or which of them did. The first that holds
    counts.

    - `rises`: the loss has risen by more than rounding explains.
    - `settled`: the state does not move any more.
    - `margin`: that of the `Ending` is passed.
    """

    rises: Any
    settled: Any
    margin: Any


class EventBisection(optimistix.AbstractRootFinder):
    """Bisection for the time of an event: of several conditions diffrax asks for a root of each,
    which is zero for all but the one that ended the solve, where `optimistix.Bisection` takes one.
    """

    rtol: float
    atol: float
    norm: ClassVar[Any] = jnp.abs

    @property
    def _bisection(self) -> optimistix.Bisection:
        # Conditions fall through zero: a solve that is past one does not begin.
        return optimistix.Bisection(rtol=self.rtol, atol=self.atol, flip=True)

    def init(
        self, fn: Any, y: Any, args: Any, options: Any, f_struct: Any, aux_struct: Any, tags: Any
    ) -> Any:
        one = jax.tree.leaves(f_struct)[0]
        return self._bisection.init(_sum_of(fn), y, args, options, one, aux_struct, tags)

    def step(self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any) -> Any:
        return self._bisection.step(_sum_of(fn), y, args, options, state, tags)

    def terminate(self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any) -> Any:
        return self._bisection.terminate(_sum_of(fn), y, args, options, state, tags)

    def postprocess(
        self,
        fn: Any,
        y: Any,
        aux: Any,
        args: Any,
        options: Any,
        state: Any,
        tags: Any,
        result: Any,
    ) -> Any:
        return self._bisection.postprocess(_sum_of(fn), y, aux, args, options, state, tags, result)


def _sum_of(fn: Callable[..., Any]) -> Callable[..., Any]:
    def summed(y: Any, args: Any) -> tuple[Array, Any]:
        values, aux = fn(y, args)
        return jnp.sum(jnp.stack(jax.tree.leaves(values))), aux

    return summed


class Segment(NamedTuple):
    """A part of a solve. Rows are those of the finite times.

    - `observed`: what the flow shows at each row.
    - `rises`: the relative rise of the loss up to there.
    - `reached`: whether the solve came that far.
    - `state`, `lagged`, `rise`, `t`, `end`: where it is now, where it was about t / 10 ago, and the
      time that it was to reach.
    - `ended`: by which event it was.
    - `unfinished`: whether it ran out of steps.
    """

    observed: Observation
    rises: Float[Array, " rows"]
    reached: Array
    state: State
    lagged: State
    rise: Float[Array, ""]
    t: Float[Array, ""]
    end: Float[Array, ""]
    ended: Events
    unfinished: Array
    result: Any
    stats: dict[str, Array]


def solve_segment(
    flow: Flow,
    state: State,
    lagged: State,
    start: Float[Array, "2"],
    end: Array,
    ts: Array,
    tolerances: Tolerances,
    ending: Ending,
    slowest: Array,
) -> Segment:
    """Solves from `start` = (t, rise) to `end`."""
    dtype = start.dtype
    t0, rise0 = start
    # Errors below rounding cannot be seen: a solve that tries takes ever smaller steps.
    rtol = max(tolerances.rtol, 10 * float(jnp.finfo(dtype).eps))
    atol = tolerances.atol

    def velocity(t: Any, augmented: AugmentedState, args: Any) -> AugmentedState:
        state, _, *lagged = augmented
        moved, loss, rate = _motion(flow, state)
        rise = (jnp.maximum(rate, 0) / (loss + atol)).astype(dtype)
        if not lagged:
            return moved, rise
        pace = 10 * slowest / (1 + jnp.asarray(t, dtype) * slowest)
        behind = jax.tree.map(
            lambda now, then: pace.astype(now.dtype) * (now - then), state, lagged[0]
        )
        return moved, rise, behind

    def save(t: Any, augmented: AugmentedState, args: Any) -> tuple[Observation, Array]:
        return _observe(flow, augmented[0]), augmented[1]

    def rises(t: Any, y: AugmentedState, args: Any, **kwargs: Any) -> Array:
        return y[1] > most_rise(dtype)

    def settled(t: Any, y: AugmentedState, args: Any, **kwargs: Any) -> Array:
        state, _, *lagged = y
        if not lagged:
            return jnp.asarray(False)
        scaled = jax.tree.map(
            lambda now, then: (now - then) / (atol + min(rtol, 1e-3) * jnp.abs(now)),
            state,
            lagged[0],
        )
        rests = largest_rms(_motion(flow, state).velocity) == 0
        return rests | ((largest_rms(scaled) < 2) & (jnp.asarray(t, dtype) * slowest >= 100))

    def margin(t: Any, y: AugmentedState, args: Any, **kwargs: Any) -> Array:
        return jnp.asarray(False) if ending.margin is None else ending.margin(y[0])

    begin = (state, rise0, lagged) if ending.slowest is not None else (state, rise0)
    # A velocity that is not finite would be tried again with smaller steps for ever.
    at_start = velocity(t0, begin, None)
    healthy = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(at_start)]).all()
    done, finder = jnp.asarray(False), None
    if ending.margin is not None:
        of_start = ending.margin(state)
        done = _is_past(of_start)
        if of_start.dtype != bool:
            finder = EventBisection(rtol=rtol, atol=atol)
    # In the state's dtype: diffrax would promote the state to that of the times.
    end_reached = jnp.where(healthy & ~done, end, t0)
    times = jnp.clip(ts, t0, end_reached)
    progress = tolerances.progress
    solver = tolerances.solver
    assert solver is not None
    subs = [diffrax.SubSaveAt(t1=True)]
    if len(ts):
        subs.append(diffrax.SubSaveAt(ts=times, fn=save))
    controller = OutputErrors(
        rtol=rtol,
        atol=atol,
        norm=_largest_part,
        outputs=lambda augmented: _outputs_to_first_order(flow, augmented[0]),
        moved=lambda augmented, change: _outputs_moved(flow, augmented[0], change[0]),
    )
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        solver,
        t0=t0,
        t1=end_reached,
        dt0=None,
        y0=begin,
        saveat=diffrax.SaveAt(subs=subs, solver_state=True),
        stepsize_controller=controller,
        event=diffrax.Event(Events(rises, settled, margin), finder),
        max_steps=tolerances.max_steps,
        progress_meter=diffrax.NoProgressMeter() if progress is None else progress,
        throw=False,
        # Loops of unknown length (`solvers.flows.chebyshev`) have forward derivatives only.
        adjoint=diffrax.ForwardMode(),
    )
    assert solution.ts is not None
    assert solution.ys is not None
    final = jax.tree.map(lambda leaf: leaf[-1], solution.ys[0])
    if len(ts):
        row_ts, (observed, rise_rows) = solution.ts[1], solution.ys[1]
    else:
        seen = jax.tree.map(lambda leaf: leaf[None][:0], _observe(flow, state))
        row_ts, observed, rise_rows = ts, seen, ts
    result = RESULTS.promote(solution.result)
    t = jnp.where(healthy & ~done, solution.ts[0][-1], t0)
    ended = solution.event_mask
    assert isinstance(ended, Events)
    ended = ended._replace(margin=done | ended.margin)
    reached = jnp.isfinite(row_ts) & healthy & (ts <= t)
    # diffrax leaves infinity where it did not come to.
    observed, rise_rows = jax.tree.map(
        lambda rows: jnp.where(in_rows(reached, rows), rows, 0), (observed, rise_rows)
    )
    return Segment(
        observed=observed,
        rises=rise_rows,
        reached=reached,
        state=final[0],
        lagged=final[-1] if ending.slowest is not None else final[0],
        rise=final[1],
        t=t,
        end=end,
        ended=ended,
        unfinished=(result == RESULTS.max_steps_reached) & ~ended.settled,
        result=RESULTS.where(healthy, result, RESULTS.diverged),  # pyright: ignore
        stats=_stats(solution, solver, ending),
    )


# A solve runs its flow in several places. Functions of their own under `jit` are traced once for
# all of them, and tracing is half of what a first solve of a deep network takes.


@eqx.filter_jit
@jax.named_scope("velocity")
def _motion(flow: Flow, state: State) -> Motion:
    return flow.motion(state)


@eqx.filter_jit
@jax.named_scope("observation")
def _observe(flow: Flow, state: State) -> Observation:
    return flow.observe(state)


@eqx.filter_jit
def _outputs_to_first_order(flow: Flow, state: State) -> Array | None:
    return flow.outputs_to_first_order(state)


@eqx.filter_jit
def _outputs_moved(flow: Flow, state: State, change: State) -> tuple[Array | None, Array | None]:
    return flow.outputs_moved(state, change)


def _is_past(margin: Array) -> Array:
    """Whether a solve that ends at this margin need not begin."""
    return margin if margin.dtype == bool else margin <= 0


def _stats(
    solution: diffrax.Solution, solver: diffrax.AbstractSolver, ending: Ending
) -> dict[str, Array]:
    names = ("num_steps", "num_accepted_steps", "num_rejected_steps")
    stats = {name: jnp.asarray(solution.stats[name]) for name in names}
    steps = stats["num_steps"]
    if isinstance(solver, RungeKuttaChebyshev):
        assert isinstance(solution.solver_state, ChebyshevState)
        count = solution.solver_state.velocities
        accepted = jnp.maximum(stats["num_accepted_steps"], 1)
        # Not count * steps // accepted: the product does not fit 32 bits.
        count = count + count // accepted * stats["num_rejected_steps"]
    elif isinstance(solver, diffrax.Tsit5):
        count = 6 * steps + 3
    else:
        return stats
    return stats | {"num_velocities": count + (steps if ending.slowest is not None else 0)}


def _largest_part(augmented: AugmentedState) -> Float[Array, ""]:
    state, rise, *lagged = augmented
    return largest_rms((*state, rise, *(lagged[0] if lagged else ())))


def largest_rms(state: State) -> Float[Array, ""]:
    return jnp.max(jnp.stack([rms(part) for part in state]))


def rms(tree: PyTree) -> Float[Array, ""]:
    """The root of the mean square of all numbers; 0 where there are none."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.size]
    if not leaves:
        return jnp.zeros(())
    size = sum(leaf.size for leaf in leaves)
    return norm(jnp.stack([norm(leaf) for leaf in leaves])) / size**0.5
