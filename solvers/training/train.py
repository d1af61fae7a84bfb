r"""Training of a network, or of its Taylor model, by any optimiser of optax.

    theta_{s+1} = theta_s + u(dL/dtheta),       L = 1/D sum_examples l(f(x), y)

over the whole training set or over minibatches, with what a study of training wants to know of it:
losses, and any function of the model at chosen steps.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Int, PRNGKeyArray, PyTree, Shaped

from corrections.parameters import Model
from solvers.frozen_kernel.kernel_problem import Targets, TestTargets
from solvers.losses import LossFunction
from solvers.result import RESULTS, SolverError
from solvers.training.callbacks import Callbacks, failed_call, FailedCall
from solvers.training.history import History, Log, Progress
from solvers.training.loop import (
    advance,
    CHUNK,
    initial_state,
    last_finite,
    Target,
    TrainingState,
)
from solvers.training.optimizer import Optimizer
from solvers.training.setup import check_setup, check_state, Setup
from zoo.common.precision import full_precision


class Training(eqx.Module):
    """A training: the model that it gave, how it went, and where to go on.

    - `history`: a `History`.
    - `state`: a `TrainingState`, from which `train` and `spawn` go on. Of a training that diverged
      it is the last one whose loss and parameters are finite; of one in which a call failed, that
      of the last step that was taken.
    - `result`: a member of `RESULTS`: `RESULTS.diverged`, `RESULTS.call_failed` where a function
      that was passed in failed, such as a callback.
    - `failed_at`: after how many steps the loss or the parameters were not finite, or a call
      failed; None where neither happened.
    - `failure`: what happened, in words: which callback failed, and how; None for a success.
    """

    history: History
    state: TrainingState
    result: Any
    failed_at: int | None
    failure: str | None = eqx.field(static=True, default=None)

    @property
    def model(self) -> PyTree:
        """The trained model."""
        return self.state.model

    @property
    def successful(self) -> Bool[Array, ""]:
        """Whether the training went to its end."""
        return jnp.asarray(self.result == RESULTS.successful)


class TrainingError(SolverError):
    """A training failed under `throw=True`. `.partial` is the training so far, marked: a
    `Training`, of `train_ensemble` an `EnsembleTraining`.

    `.before` are the trainings before it, of `spawn`. The error of a function that was passed in is
    the cause (`__cause__`).
    """

    def __init__(self, message: str, partial: Any, before: Sequence[Training] = ()):
        super().__init__(message, partial)
        self.before = list(before)


@full_precision
def train(
    model: Model,
    x: PyTree[Shaped[ArrayLike, "n ..."]],
    y: Targets,
    *,
    loss: LossFunction,
    optimizer: Optimizer,
    steps: int,
    batch_size: int | None = None,
    key: PRNGKeyArray | None = None,
    x_test: PyTree[Shaped[ArrayLike, "m ..."]] | None = None,
    y_test: TestTargets | None = None,
    callbacks: Callbacks | None = None,
    record_at: Sequence[int] | Int[ArrayLike, " r"] | None = None,
    record_outputs: bool = False,
    state: TrainingState | None = None,
    throw: bool = True,
    progress: diffrax.AbstractProgressMeter | None = None,
) -> Training:
    """Trains `model` with an optimiser of optax.

    Steps run in one compiled loop between the steps that are recorded; it compiles once for a
    model, an optimiser and shapes, so keep the optimiser and the loss for the next call. Batch
    normalization trains by the statistics of batches (`zoo.forward_train`); losses that are
    recorded, and callbacks, see `model(x)` with those it has gathered. The loop is Python's where
    it is recorded, so `train` cannot be called under `jax.jit`.

    **Arguments:**

    - `model`: any callable PyTree, one example in, k outputs out; a Taylor model
      (`corrections.taylorize`) is one. Its parameters are `zoo.parameters(model)`.
    - `x`, `y`: training examples (n, ...) and targets (n, k).
    - `loss`: per example, (f (k,), y (k,)) -> scalar. Its mean over a batch is what is descended.
    - `optimizer`: of optax, or anything with its `init` and `update`, such as `optax.MultiSteps`.
      Schedules of the learning rate and clipping are its own:
      `optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(schedule))`; learning-rate multipliers
      are `scale_by_metric`. The loss is passed to those that take a `value`.
    - `steps`: how many there are in all, those of `state` among them.
    - `batch_size`: of a minibatch (default: all examples); also the most examples that a loss is
      evaluated on at once. Each epoch is a new permutation of the examples; those that do not fill
      a batch at its end are left out of it.
    - `key`: for the permutations, which depend on it and the epoch only.
    - `x_test`, `y_test`: test examples, (m, ...) and (m, k). With `record_outputs` there may be
      no `y_test`.
    - `callbacks`: functions of the model by name, such as `lambda model: ntk(model, x)`, called
      where the training is recorded. Each gives an array or a PyTree of arrays, of one structure,
      shape and dtype at all steps. Training ends where one fails or gives something else.
    - `record_at`: increasing steps, (r,) (default: `log_spaced(steps)`). A training that goes on
      from a state records those after it.
    - `record_outputs`: whether the outputs on all examples, of training and test, are recorded
      there too: `.history.outputs` and `.outputs_test`, (n + m) k numbers a row (default: not).
    - `state`: where to go on, such as `.state` of an earlier training with the same arguments: then
      the two of them are one long training, bit for bit. `model` is then asked for its structure
      only.
    - `throw`: raise where training diverges or a callback fails (default), or return what there
      is, marked.
    - `progress`: a diffrax progress meter, moved at each percent of the steps:
      `diffrax.TextProgressMeter()`, or `diffrax.TqdmProgressMeter(refresh_steps=1)`.

    **Returns:** a `Training`.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, before any work;
    `TrainingError`, where `throw=True`, if the loss or the parameters stop being finite, or if a
    callback, `progress`, or a run-time check of the model, the loss or the optimiser fails after
    the first steps.
    """
    setup = check_setup(
        model,
        x,
        y,
        loss=loss,
        optimizer=optimizer,
        steps=steps,
        batch_size=batch_size,
        key=key,
        x_test=x_test,
        y_test=y_test,
        callbacks=callbacks,
        record_at=record_at,
        record_outputs=record_outputs,
        progress=progress,
    )
    if state is None:
        state = initial_state(model, optimizer)
    else:
        check_state("state", state, model, setup)
    return run(setup, state, throw=throw)


class _Path:
    """Where a training is: its state, one before it where there is one, and how it ended."""

    def __init__(self, start: TrainingState):
        self.source = self.state = start
        self.failed_at: int | None = None
        self.arrived = False


def run(
    setup: Setup,
    start: TrainingState,
    target: Target | None = None,
    *,
    throw: bool,
    before: Sequence[Training] = (),
) -> Training:
    """The steps of a training from a state, to their last or to a target.

    **Raises:** `TrainingError` where it failed and `throw` asks for that, with the trainings that
    came `before` it.
    """
    log = Log(setup, int(start.step))
    progress = Progress(setup.progress, int(start.step), setup.steps)
    path, failed = _Path(start), None
    try:
        with contextlib.closing(progress):
            _go(path, setup, log, progress, target)
    except FailedCall as error:
        failed = error
    except Exception as error:
        if path.state is start and not before:  # there is nothing to lose
            raise
        failed = failed_call("A step", int(path.state.step), error)
    if path.failed_at is not None:
        path.state = last_finite(setup.problem, path.source, path.state, path.failed_at)
        result, failure = RESULTS.diverged, _divergence(path, setup)
    elif failed is not None:
        path.failed_at = int(path.state.step)
        result = RESULTS.call_failed
        failure = f"{str(failed).rstrip('.')}. The state is that of this step."
    elif target is not None and not path.arrived:
        result = RESULTS.max_steps_reached
        failure = (
            f"The parameters did not go as far as `distance` in the {setup.steps} steps that there "
            "are: take more `steps` or a smaller `distance`."
        )
    else:
        result, failure = RESULTS.successful, None
    history = log.history(path.state, path.failed_at)
    training = Training(history, path.state, result, path.failed_at, failure)
    if failure is None or not throw:
        return training
    raise TrainingError(
        f"{failure} `throw=False` returns the training so far, and so does `.partial` of this "
        "error.",
        training,
        before,
    ) from (None if failed is None else failed.__cause__)


def _go(path: _Path, setup: Setup, log: Log, progress: Progress, target: Target | None) -> None:
    while True:
        step = int(path.state.step)
        ends = path.arrived or step == setup.steps
        if not log.records(path.state, evaluates=ends):
            path.failed_at = step
        if ends or path.failed_at is not None:
            return
        stop = min(log.next_after(step), progress.next_after(step), step + CHUNK)
        found = advance(setup.problem, path.state, jnp.asarray(stop, jnp.int32), target)
        log.add(step, int(found.state.step), found.losses)
        if int(found.failed_at) >= 0:
            path.failed_at = int(found.failed_at)
            return
        path.source, path.state = path.state, found.state
        path.arrived = target is not None and bool(target.reached(path.state))
        progress.show(int(path.state.step))


AGAINST_DIVERGENCE = (
    "try a smaller learning rate (`max_learning_rate` says what squared loss survives), "
    "`optax.clip_by_global_norm` before the optimiser, or look for a loss that overflows"
)


def _divergence(path: _Path, setup: Setup) -> str:
    return (
        f"The loss or the parameters are not finite after step {path.failed_at} of {setup.steps}: "
        f"{AGAINST_DIVERGENCE}. The last finite state is that of step {int(path.state.step)}."
    )
