"""What is seen of a training while it runs: its history, and a progress meter."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from corrections.parameters import Model
from solvers.training.callbacks import CallbackRows, calling
from solvers.training.loop import evaluated, Examples, Seen, TrainingState
from solvers.training.setup import Setup
from zoo.common import checks


class History(eqx.Module):
    """What was seen of a training. Rows that it did not reach are NaN and not valid. In that of an
    ensemble (`train_ensemble`) every array has a leading axis of seeds.

    - `steps`: at which the training was recorded, (r,): after so many steps.
    - `train_loss`, `test_loss`: the mean losses of `model(x)` there on all examples, (r,); None
      for test targets that were not given.
    - `outputs`, `outputs_test`: `model(x)` there on the training examples (r, n, k) and on the test
      examples (r, m, k); None without `record_outputs`, or for test examples that were not given.
    - `callbacks`: what each callback gave there, (r, ...) (0 in the place of NaN for integers);
      None for one that failed when it was first called.
    - `valid`: which of these rows hold numbers, (r,).
    - `step_losses`: the loss of each step's batch before the step, (steps,): of full batches the
      path of the training loss, which `training_phase` takes.
    """

    steps: Int[Array, "*seeds r"]
    train_loss: Float[Array, "*seeds r"]
    test_loss: Float[Array, "*seeds r"] | None
    outputs: Float[Array, "*seeds r n k"] | None
    outputs_test: Float[Array, "*seeds r m k"] | None
    callbacks: dict[str, PyTree]
    valid: Bool[Array, "*seeds r"]
    step_losses: Float[Array, "*seeds steps"]


class Row(NamedTuple):
    """What is seen after a step."""

    train: Seen
    test: Seen | None
    callbacks: dict[str, PyTree]


def planned_rows(setup: Setup, first: int) -> Int[np.ndarray, " r"]:
    """The steps that a training records which goes on from the step `first`."""
    begin = first if first == 0 else first + 1  # the state's own row is in an earlier history
    return setup.record_at[setup.record_at >= begin]


def next_row(planned: Int[np.ndarray, " r"], step: int, setup: Setup) -> int:
    """The next step to record after `step`, or the last of all."""
    later = planned[planned > step]
    return int(later[0]) if later.size else setup.steps


class Log:
    """The rows of a history, as they come."""

    def __init__(self, setup: Setup, first: int):
        self._setup, self._first = setup, first
        self._planned = planned_rows(setup, first)
        self._losses = np.full(setup.steps - first, np.nan)
        self._callbacks = CallbackRows(setup.callbacks)
        self._rows: list[Row] = []

    def next_after(self, step: int) -> int:
        """The next step to record, or the last of all."""
        return next_row(self._planned, step, self._setup)

    def records(self, state: TrainingState, *, evaluates: bool) -> bool:
        """Takes a row where one is planned; False where the loss (looked at then) is not finite.

        **Raises:** `FailedCall` for a callback that fails, or whose row is not like its first.
        """
        step = int(state.step)
        planned = bool(np.any(self._planned == step))
        if not planned and not evaluates:
            return True
        train = self._seen(state.model, self._setup.train)
        assert train.loss is not None  # there are targets
        if not bool(jnp.isfinite(train.loss)):
            return False
        if planned:
            test = self._setup.test
            seen = None if test is None else self._seen(state.model, test)
            self._rows.append(Row(train, seen, self._callbacks.row(state.model, step)))
        return True

    def _seen(self, model: Model, examples: Examples) -> Seen:
        setup = self._setup
        return evaluated(
            model, examples, setup.problem.loss, setup.problem.batch_size, setup.record_outputs
        )

    def add(self, begin: int, end: int, losses: Array) -> None:
        """The losses of the steps from `begin` to `end`."""
        self._losses[begin - self._first : end - self._first] = losses[: end - begin]

    def history(self, state: TrainingState, failed_at: int | None) -> History:
        """All rows, in the order that was planned."""
        if failed_at is not None:
            self._losses[failed_at - self._first :] = np.nan
        count, reached = len(self._planned), len(self._rows)
        rows = self._rows or [self._like_a_row(state)]
        train, test, callbacks = jax.tree.map(
            lambda *leaves: _stacked(leaves, reached, count), *rows
        )
        test = Seen(None, None) if test is None else test
        return History(
            steps=jnp.asarray(self._planned),
            train_loss=train.loss,
            test_loss=test.loss,
            outputs=train.outputs,
            outputs_test=test.outputs,
            callbacks=callbacks,
            valid=jnp.arange(count) < reached,
            step_losses=checks.as_given(self._losses.astype(self._setup.problem.y.dtype)),
        )

    def _like_a_row(self, state: TrainingState) -> Row:
        """Zeros: without a row there is still the shape of one."""

        def like(examples: Examples | None) -> Any:
            if examples is None:
                return None
            shapes = eqx.filter_eval_shape(self._seen, state.model, examples)
            return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

        callbacks = self._callbacks.like(state.model, int(state.step))
        return Row(like(self._setup.train), like(self._setup.test), callbacks)


def _stacked(leaves: Sequence[Any], reached: int, count: int) -> Array:
    """The leaves that were reached, and as many rows of NaN as there are none."""
    stack = jnp.stack([jnp.asarray(leaf) for leaf in leaves])[:reached]
    if reached == count:
        return stack
    # By NumPy: `jax_debug_nans` is for the NaN of users, and would stop at these.
    fill = np.nan if jnp.issubdtype(stack.dtype, jnp.inexact) else 0
    missing = np.full((count - reached, *stack.shape[1:]), fill, stack.dtype)
    return checks.as_given(np.concatenate([np.asarray(stack), missing]))


class Progress:
    """A progress meter of diffrax, moved from outside an ODE: at each percent of the steps."""

    def __init__(self, meter: diffrax.AbstractProgressMeter | None, first: int, steps: int):
        self._first = self._at = first
        self._steps = steps
        self._meter = diffrax.NoProgressMeter() if meter is None else meter
        self._every = steps if meter is None else max(1, (steps - first) // 100)
        self._move = eqx.filter_jit(self._meter.step)
        self._state = self._meter.init()

    def next_after(self, step: int) -> int:
        """The next step at which it moves."""
        return min(step + self._every, self._steps)

    def show(self, step: int) -> None:
        """Moves it to a step. **Raises:** `FailedCall` where it fails."""
        self._at = step
        fraction = (step - self._first) / (self._steps - self._first)
        with calling("progress", step):
            self._state = self._move(self._state, jnp.asarray(fraction, float))

    def close(self) -> None:
        """Closes it. **Raises:** `FailedCall` where that fails."""
        with calling("progress", self._at):
            self._meter.close(self._state)
