r"""Training of a network, or of its Taylor model, by any optimiser of optax.

    theta_{s+1} = theta_s + u(dL/dtheta),       L = 1/D sum_examples l(f(x), y)

over the whole training set or over minibatches, with what a study of training wants to know of it:
losses, and any function of the model at chosen steps.
"""

from collections.abc import Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, PyTree

from corrections.parameters import Model
from solvers.kernel_problem import Targets, TestTargets
from solvers.losses import LossFunction
from solvers.result import RESULTS
from solvers.training_history import History, Log, Progress
from solvers.training_loop import advance, CHUNK, initial_state, Target, TrainingState
from solvers.training_setup import Callbacks, check_setup, check_state, Setup
from zoo.precision import full_precision


class Training(eqx.Module):
    """A training: the model that it gave, how it went, and where to go on.

    - `history`: a `History`.
    - `state`: a `TrainingState`, from which `train` and `spawn` go on. Of a training that diverged
      it is the last one whose loss and parameters are finite.
    - `result`: a member of `RESULTS`.
    - `failed_at`: after how many steps the loss or the parameters were not finite, None where they
      always were.
    """

    history: History
    state: TrainingState
    result: Any
    failed_at: int | None

    @property
    def model(self) -> PyTree:
        """The trained model."""
        return self.state.model

    @property
    def successful(self) -> Bool[Array, ""]:
        """Whether the training went to its end."""
        return jnp.asarray(self.result == RESULTS.successful)


class TrainingError(RuntimeError):
    """A training failed under `throw=True`. `.training` is what there is, marked."""

    def __init__(self, message: str, training: Training):
        super().__init__(message)
        self.training = training


@full_precision
def train(
    model: Model,
    x: Float[ArrayLike, "n ..."],
    y: Targets,
    *,
    loss: LossFunction,
    optimizer: optax.GradientTransformation,
    steps: int,
    batch_size: int | None = None,
    key: PRNGKeyArray | None = None,
    x_test: Float[ArrayLike, "m ..."] | None = None,
    y_test: TestTargets | None = None,
    callbacks: Callbacks | None = None,
    record_at: Sequence[int] | Int[ArrayLike, " r"] | None = None,
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
      (`corrections.taylorize`) is one. Its parameters are its inexact arrays.
    - `x`, `y`: training examples (n, ...) and targets (n, k).
    - `loss`: per example, (f (k,), y (k,)) -> scalar. Its mean over a batch is what is descended.
    - `optimizer`: of optax. Schedules of the learning rate and clipping are its own:
      `optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(schedule))`; learning-rate multipliers
      are `scale_by_metric`. The loss is passed to those that take a `value`.
    - `steps`: how many there are in all, those of `state` among them.
    - `batch_size`: of a minibatch (default: all examples); also the most examples that a loss is
      evaluated on at once. Each epoch is a new permutation of the examples; those that do not fill
      a batch at its end are left out of it.
    - `key`: for the permutations, which depend on it and the epoch only.
    - `x_test`, `y_test`: test examples, (m, ...) and (m, k).
    - `callbacks`: functions of the model by name, such as `lambda model: ntk(model, x)`, called
      where the training is recorded.
    - `record_at`: increasing steps, (r,) (default: `log_spaced(steps)`). A training that goes on
      from a state records those after it.
    - `state`: where to go on, such as `.state` of an earlier training with the same arguments: then
      the two of them are one long training, bit for bit. `model` is then asked for its structure
      only.
    - `throw`: raise where training diverges (default), or return what there is, marked.
    - `progress`: a diffrax progress meter, moved at each percent of the steps:
      `diffrax.TextProgressMeter()`, or `diffrax.TqdmProgressMeter(refresh_steps=1)`.

    **Returns:** a `Training`.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, before any work;
    `TrainingError` where the loss or the parameters stop being finite and `throw=True`.
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
        progress=progress,
    )
    if state is None:
        state = initial_state(model, optimizer)
    else:
        check_state("state", state, model, setup)
    return finish(run(setup, state), setup, throw=throw)


def run(setup: Setup, start: TrainingState, target: Target | None = None) -> Training:
    """The steps of a training from a state, to their last or to a target."""
    first = int(start.step)
    log = Log(setup, first)
    progress = Progress(setup.progress, first, setup.steps)
    source = state = start  # a state before `state`, where there is one
    failed_at, arrived = None, False
    try:
        while True:
            step = int(state.step)
            ends = arrived or step == setup.steps
            if not log.records(state, evaluates=ends):
                failed_at = step
            if ends or failed_at is not None:
                break
            stop = min(log.next_after(step), progress.next_after(step), step + CHUNK)
            found = advance(setup.descent, state, jnp.asarray(stop, jnp.int32), target)
            log.add(step, int(found.state.step), found.losses)
            if int(found.failed_at) >= 0:
                failed_at = int(found.failed_at)
                break
            source, state = state, found.state
            arrived = target is not None and bool(target.reached(state))
            progress.show(int(state.step))
    finally:
        progress.close()
    if failed_at is not None and failed_at > first:
        source = state if failed_at > int(state.step) else source
        last = jnp.asarray(failed_at - 1, jnp.int32)
        state = advance(setup.descent, source, last, None).state
    if failed_at is not None:
        result = RESULTS.diverged
    else:
        result = RESULTS.successful if target is None or arrived else RESULTS.max_steps_reached
    return Training(log.history(state, failed_at), state, result, failed_at)


def finish(training: Training, setup: Setup, *, throw: bool) -> Training:
    """The training itself, or a `TrainingError` where it failed and `throw` asks for that."""
    if not throw or bool(training.successful):
        return training
    steps = int(training.state.step)
    if training.failed_at is None:
        what = (
            f"The parameters did not go as far as `distance` in the {setup.steps} steps that there "
            "are: take more `steps` or a smaller `distance`."
        )
    else:
        what = (
            f"The loss or the parameters are not finite after step {training.failed_at} of "
            f"{setup.steps}: try a smaller learning rate (`max_learning_rate` says what squared "
            "loss survives), `optax.clip_by_global_norm` before the optimiser, or look for a loss "
            f"that overflows. The last finite state is that of step {steps}."
        )
    raise TrainingError(
        f"{what} `throw=False` returns the training so far, and so does `.training` of this error.",
        training,
    )
