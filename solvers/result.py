"""What every solve returns: the numbers, and whether they can be trusted."""

from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from zoo.common import checks
from zoo.common.pickling import PicklableException


class RESULTS(diffrax.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """How a solve ended. `RESULTS.successful`, diffrax's own failures, and these."""

    kernel_not_positive = (
        "The kernel stopped being positive on the training set: the prediction would make the "
        "training loss rise, which gradient flow cannot do. A truncated hierarchy does this at "
        "late times; stop at an earlier time or use a wider network. A kernel that was passed in "
        "should be symmetric and positive semidefinite."
    )
    no_limit = (
        "The outputs did not settle: training has no limit here that this solve could reach. "
        "Cross-entropy of classes that can be told apart has none (use `label_smoothing`); else "
        "ask for a large finite time."
    )
    rounding = (
        "The solve stagnated above its tolerance, where rounding allows no smaller error. Use "
        "float64, or a larger `rtol`."
    )
    diverged = "The solution or its velocity is not finite."
    call_failed = (
        "A function that was passed in failed while the training ran: a callback, a progress "
        "meter, or the model, the loss or the optimiser at run time."
    )


class Trajectory(eqx.Module):
    """A solution in time: outputs on training and test points.

    - `ts`: times, (t,). Gradient-flow time is learning rate x number of steps.
    - `train`: outputs on the training points, (t, n, k).
    - `test`: outputs on the test points, (t, m, k), or None.
    - `kernel`: the kernel that the solve predicts, on the training points (t, n, k, n, k) or on the
      pairs that were asked for (t, n1, k, n2, k), or None where it predicts none.
    - `valid`: which rows hold numbers, (t,). Rows after a breakdown, or after the time at which
      the solve was asked to stop, are NaN and not valid.
    - `t_reached`: the time up to which the solve went.
    - `result`: a member of `RESULTS`; `RESULTS.event_occurred` where a `stop` ended the solve.
    - `stats`: counts of steps taken, as diffrax gives them; with `num_velocities`, the right-hand
      sides that they took (those of rejected steps at the mean cost of a step).
    - `final`: the state at `t_reached` (a trained model for `parameter_flow`).
    - `displacement`: |theta_t - theta_0|, (t,), in the norm of M^{-1/2} theta with M the metric, or
      None for a solve without parameters.
    - `dropped`: of a closed form the directions of the kernel whose eigenvalues cannot be told from
      zero, where they could have moved by the last time had they been known; else None.
    """

    ts: Float[Array, " t"]
    train: Float[Array, "t n k"]
    test: Float[Array, "t m k"] | None
    kernel: Float[Array, "t n1 k n2 k"] | None
    valid: Bool[Array, " t"]
    t_reached: Float[Array, ""]
    result: Any
    stats: dict[str, Any]
    final: PyTree
    displacement: Float[Array, " t"] | None = None
    dropped: Int[Array, ""] | None = None

    @property
    def successful(self) -> Bool[Array, ""]:
        """Whether the solve went to the end, or to where it was asked to stop."""
        to_the_end = self.result == RESULTS.successful
        return jnp.asarray(to_the_end | (self.result == RESULTS.event_occurred))


class SolverError(PicklableException, RuntimeError):
    """A solve failed under `throw=True`. `.partial` is what it came to: what it would have
    returned, NaN where that is not valid; of an iterative solve its best iterate, whose error is in
    its `stats`.

    `PredictionError`, `TrainingError` and `ExpansionError` are kinds of it. Inside `jax.jit` there
    are no numbers yet: there the failure is Equinox's run-time error.
    """

    def __init__(self, message: str, partial: Any):
        super().__init__(message)
        self.partial = partial


def raise_where_failed(record: Any, error: Callable[[], Exception], *, throw: bool) -> Any:
    """A record (with `.result` and `.successful`) itself, or the `error` where it failed and
    `throw` asks for that.
    """
    if not throw:
        return record
    successful = checks.concrete(record.successful)
    if successful is None:  # traced: the error has to wait for the run time
        return record.result.error_if(record, ~record.successful)
    if successful:
        return record
    raise error()


def finish(trajectory: Trajectory, *, throw: bool, on_divergence: str = "") -> Trajectory:
    """The trajectory itself, or a `SolverError` where it failed and `throw` asks for that.

    `on_divergence`: what helps against numbers that are not finite.
    """

    def error() -> SolverError:
        reached = float(trajectory.t_reached)
        diverged = bool(trajectory.result == RESULTS.diverged)
        advice = f" {on_divergence}" if diverged and on_divergence else ""
        return SolverError(
            f"{RESULTS[trajectory.result]}{advice} Reached t = {reached:.6g} of "
            f"{float(trajectory.ts[-1]):.6g}; {int(np.sum(trajectory.valid))} of "
            f"{len(trajectory.ts)} times are valid (`throw=False` returns them, and so does "
            "`.partial` of this error).",
            trajectory,
        )

    return raise_where_failed(trajectory, error, throw=throw)


Times = Float[ArrayLike, " t"] | Sequence[float]
"""What a solve takes as times."""


def check_times(ts: Any, *, infinite: bool = False) -> Float[Array, " t"]:
    """`ts` as times of a solve.

    **Raises:** `TypeError` / `ValueError` unless it holds finite numbers >= 0 that increase; with
    `infinite` the last may be inf.
    """
    array = checks.real_array("ts", ts, expected="times (t,)", integers=True)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"`ts` has shape {array.shape}, expected a vector of times, (t,).")
    values = checks.concrete(array)
    if values is None:
        return array
    if not (infinite and values[-1] == np.inf and np.all(np.isfinite(values[:-1]))):
        checks.finite("ts", array)
    if values.min() < 0:
        raise ValueError(
            f"`ts` has the negative time {values.min()} (at index {int(values.argmin())}), "
            "expected times >= 0: training starts at t = 0."
        )
    falls = np.flatnonzero(np.diff(values) <= 0)
    if falls.size:
        i = int(falls[0])
        raise ValueError(
            f"`ts` is not sorted: ts[{i}] = {values[i]} is followed by ts[{i + 1}] = "
            f"{values[i + 1]}, expected strictly increasing times. Sort them with "
            "`jnp.unique(ts)`."
        )
    return array


def ends_at_infinity(ts: Array) -> bool:
    """Whether the last time is known to be inf."""
    known = checks.concrete(ts)
    return known is not None and bool(np.isinf(known[-1]))


def as_times(ts: Array, dtype: Any) -> Array:
    """`ts` in the floating type of what is shown at them.

    By NumPy, as in `last_valid`: `jax_debug_infs` would stop at a program that gives inf back.
    """
    known = checks.concrete(ts)
    return ts.astype(dtype) if known is None else checks.as_given(known.astype(dtype))


def last_valid(ts: Array, valid: Bool[Array, " t"]) -> Float[Array, ""]:
    """The last time that is valid; 0 where there is none."""
    known, rows = checks.concrete(ts), checks.concrete(valid)
    if known is None or rows is None:
        return jnp.max(jnp.where(valid, ts, 0))
    return checks.as_given(np.asarray(np.max(np.where(rows, known, known.dtype.type(0)))))


def in_rows(mask: Any, rows: Array) -> Any:
    """A mask of rows (t,) in a shape that broadcasts to them, (t, ...)."""
    return mask.reshape(-1, *[1] * (rows.ndim - 1))


def marked(rows: Any, valid: Bool[Array, " t"]) -> Any:
    """Arrays (t, ...) of a PyTree, with NaN in the rows that are not valid."""
    known = checks.concrete(valid)
    if known is not None and known.all():
        return rows

    def mark(leaf: Array) -> Array:
        mask = in_rows(valid if known is None else known, leaf)
        looked_at = jax.config.jax_debug_nans  # pyright: ignore[reportAttributeAccessIssue]
        values = checks.concrete(leaf) if looked_at and known is not None else None
        if values is None:
            return jnp.where(mask, leaf, jnp.nan)
        return checks.as_given(np.where(mask, values, values.dtype.type(np.nan)))

    return jax.tree.map(mark, rows)


def check_increasing(name: str, values: Any, *, expected: str) -> Float[Array, " t"]:
    """`values` as increasing numbers >= 0, the last of which may be infinite.

    **Raises:** `TypeError` / `ValueError` unless they are.
    """
    array = checks.real_array(name, values, expected=expected, integers=True)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"`{name}` has shape {array.shape}, expected {expected}.")
    known = checks.concrete(array)
    if known is None:
        return array
    if np.any(np.isnan(known)) or np.any(known < 0) or np.any(np.diff(known) <= 0):
        raise ValueError(f"`{name}` is {known}, expected strictly increasing numbers >= 0.")
    return array
