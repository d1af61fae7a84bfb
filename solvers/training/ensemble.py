r"""Training of an ensemble: networks that differ in their seeds, in one program.

    theta^i_{s+1} = theta^i_s + u(dL/dtheta^i),       i = 1 .. seeds,

each over batches of its own. The program is that of one training (`solvers.training.loop`), run
over an axis of seeds, so that small networks keep a device busy.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int, PRNGKeyArray, PyTree, Shaped

from corrections.parameters import check_parameters, Model
from solvers.frozen_kernel.kernel_problem import Targets, TestTargets
from solvers.losses import LossFunction
from solvers.result import RESULTS
from solvers.training.history import History, next_row, planned_rows
from solvers.training.loop import (
    advance_seeds,
    CHUNK,
    evaluated,
    Examples,
    initial_state,
    last_finite,
    Seen,
    TrainingState,
)
from solvers.training.optimizer import Optimizer
from solvers.training.setup import check_setup, check_state, Setup
from solvers.training.train import AGAINST_DIVERGENCE, TrainingError
from zoo.common import checks
from zoo.common.precision import full_precision


class EnsembleTraining(eqx.Module):
    """The trainings of an ensemble: as `Training`, every array with a leading axis of seeds.

    `jax.tree.map(lambda a: a[i], training.history)` is the history of seed i.

    - `history`: a `History`, the rows of a seed that diverged NaN and not valid from there on.
    - `state`: a `TrainingState`, from which `train_ensemble` goes on. Of a seed that diverged it is
      the last one whose loss and parameters are finite.
    - `result`: for each seed a member of `RESULTS`, `RESULTS.diverged` or `RESULTS.successful`.
    - `failed_at`: after how many steps the loss or the parameters of a seed were not finite, (s,);
      -1 where that did not happen.
    - `failure`: what happened, in words; None where all seeds went to their end.
    """

    history: History
    state: TrainingState
    result: Any
    failed_at: Int[Array, " s"]
    failure: str | None = eqx.field(static=True, default=None)

    @property
    def models(self) -> PyTree:
        """The trained models, stacked: `eqx.filter_vmap(lambda model: jax.vmap(model)(x))`."""
        return self.state.model

    @property
    def successful(self) -> Bool[Array, " s"]:
        """Which seeds went to their end."""
        return jnp.asarray(self.result == RESULTS.successful)


@full_precision
def train_ensemble(
    models: Model,
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
    record_at: Sequence[int] | Int[ArrayLike, " r"] | None = None,
    record_outputs: bool = False,
    state: TrainingState | None = None,
    throw: bool = True,
) -> EnsembleTraining:
    """Trains networks that differ in their seeds as `train` does each of them, all in one program.

    A seed that diverges is marked, and the others go on without it: their numbers are what they
    would be alone. Memory is that of all of them.

    **Arguments:**

    - `models`: a stacked model, every array of it with a leading axis of seeds (s, ...), as
      `eqx.filter_vmap(make)(jax.random.split(key, s))` gives where `make` draws a model.
    - `x`, `y`, `loss`, `optimizer`, `steps`, `batch_size`, `x_test`, `y_test`, `record_at`,
      `record_outputs`: as in `train`, the same for all seeds.
    - `key`: for the permutations: seed i has those of `jax.random.split(key, s)[i]` in `train`.
    - `state`: where to go on, `.state` of an earlier training with the same arguments, all of whose
      seeds have come to the same step. `models` is then asked for its structure only.
    - `throw`: raise where a seed diverges, after the others are trained (default), or mark it.

    **Returns:** an `EnsembleTraining`.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, before any work;
    `TrainingError`, where `throw=True`, that names the seeds whose loss or parameters stop being
    finite: its `.partial` is the `EnsembleTraining`.
    """
    check_parameters(models, "models")
    seeds = _check_stacked("models", models)
    setup = check_setup(
        _member(models, 0),
        x,
        y,
        loss=loss,
        optimizer=optimizer,
        steps=steps,
        batch_size=batch_size,
        key=key,
        x_test=x_test,
        y_test=y_test,
        callbacks=None,
        record_at=record_at,
        record_outputs=record_outputs,
        progress=None,
        called="models",
    )
    if setup.problem.key is not None:
        keys = jr.split(setup.problem.key, seeds)
        setup = setup._replace(problem=eqx.tree_at(lambda d: d.key, setup.problem, keys))
    start: Any = state
    if start is None:
        start = eqx.filter_vmap(initial_state, in_axes=(0, None))(models, optimizer)
    else:
        _check_ensemble_state(start, models, seeds, setup)
    return _run(setup, eqx.tree_at(lambda s: s.step, start, start.step[0]), seeds, throw=throw)


def _check_stacked(name: str, tree: PyTree) -> int:
    """The length of the leading axis that all arrays of `tree` have.

    **Raises:** `ValueError` where they have none, or several.
    """
    arrays = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_array))
    first, like = arrays[0]
    for path, leaf in arrays:
        if leaf.ndim == 0 or leaf.shape[0] == 0 or leaf.shape[:1] != like.shape[:1]:
            raise ValueError(
                f"`{name}` is not stacked: `{name}{jax.tree_util.keystr(path)}` has shape "
                f"{leaf.shape} and `{name}{jax.tree_util.keystr(first)}` {like.shape}, expected "
                "the same leading axis of seeds in every array, as `equinox.filter_vmap` over keys "
                "makes it."
            )
    return len(like)


def _check_ensemble_state(state: TrainingState, models: Model, seeds: int, setup: Setup) -> None:
    checks.instance("state", state, TrainingState, "a `TrainingState`, `.state` of an ensemble")
    if _check_stacked("state", state) != seeds:
        raise ValueError(
            f"`state` has {len(state.step)} seeds, expected {seeds}, those of `models`."
        )
    check_state("state", _member(state, 0), _member(models, 0), setup)
    steps = np.asarray(state.step)
    if np.any(steps != steps[0]):
        raise ValueError(
            f"`state` has seeds at the steps {steps.tolist()}, expected all at the same one: those "
            "that diverged do not go on, leave them out of it (`a[training.successful]`)."
        )


def _member(tree: PyTree, seed: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[seed] if eqx.is_array(leaf) else leaf, tree)


def _run(setup: Setup, start: TrainingState, seeds: int, *, throw: bool) -> EnsembleTraining:
    """The steps of all seeds from a state (of one step) to the last."""
    log = _Log(setup, int(start.step), seeds)
    source = state = start
    failed_at, ended = np.full(seeds, -1), {}

    def end(failures: Int[np.ndarray, " s"]) -> None:
        """Goes back to the last finite state of each seed that fails now."""
        for seed in np.flatnonzero((failures >= 0) & (failed_at < 0)).tolist():
            failed_at[seed] = failures[seed]
            ended[seed] = last_finite(
                _problem_of(setup, seed),
                _member_at(source, seed),
                _member_at(state, seed),
                int(failures[seed]),
            )

    while True:
        step = int(state.step)
        finite = log.finite(state, failed_at, evaluates=step == setup.steps)
        end(np.where(finite, -1, step))
        if step == setup.steps or np.all(failed_at >= 0):
            break
        stop = min(next_row(log.planned, step, setup), step + CHUNK)
        found = advance_seeds(
            setup.problem, state, jnp.asarray(stop, jnp.int32), jnp.asarray(failed_at, jnp.int32)
        )
        log.add(step, int(found.state.step), found.losses)
        end(np.asarray(found.failed_at))
        source, state = state, found.state
    training = _finished(log.history(state, failed_at), state, ended, failed_at, setup)
    if training.failure is None or not throw:
        return training
    raise TrainingError(
        f"{training.failure} `throw=False` returns all seeds, so does `.partial` of this error.",
        training,
    )


def _problem_of(setup: Setup, seed: int) -> Any:
    problem = setup.problem
    if problem.key is None:
        return problem
    return eqx.tree_at(lambda d: d.key, problem, problem.key[seed])


def _member_at(state: TrainingState, seed: int) -> TrainingState:
    """That of one seed, of a state whose seeds have one step."""
    return TrainingState(
        _member(state.model, seed), _member(state.optimizer_state, seed), state.step
    )


def _finished(
    history: History,
    state: TrainingState,
    ended: dict[int, TrainingState],
    failed_at: Int[np.ndarray, " s"],
    setup: Setup,
) -> EnsembleTraining:
    seeds = len(failed_at)
    steps = jnp.full(seeds, state.step)
    state = eqx.tree_at(lambda s: s.step, state, steps)
    for seed, last in ended.items():
        arrays, rest = eqx.partition(state, eqx.is_array)
        arrays = jax.tree.map(
            lambda all_, one, seed=seed: all_.at[seed].set(one),
            arrays,
            eqx.filter(last, eqx.is_array),
        )
        state = eqx.combine(arrays, rest)
    failed = jnp.asarray(failed_at >= 0)
    result = jax.vmap(
        lambda one: RESULTS.where(one, RESULTS.diverged, RESULTS.successful)  # pyright: ignore
    )(failed)
    failure = None
    if ended:
        each = ", ".join(f"{seed} (after step {failed_at[seed]})" for seed in sorted(ended))
        failure = (
            f"The loss or the parameters are not finite for the seeds {each} of {seeds}, in "
            f"{setup.steps} steps: {AGAINST_DIVERGENCE}. Their states are the last finite ones."
        )
    return EnsembleTraining(history, state, result, jnp.asarray(failed_at), failure)


@eqx.filter_jit
def _seen(models: Model, examples: Examples, setup: Any) -> Seen:
    def of_seed(model: Model) -> Seen:
        return evaluated(model, examples, *setup)

    return eqx.filter_vmap(of_seed)(models)


class _Log:
    """The rows of the histories of all seeds, as they come."""

    def __init__(self, setup: Setup, first: int, seeds: int):
        self._setup, self._first = setup, first
        self.planned = planned_rows(setup, first)
        self._losses = np.full((seeds, setup.steps - first), np.nan)
        self._reached = np.zeros(seeds, int)
        self._rows: list[tuple[Seen, Seen | None]] = []

    def finite(
        self, state: TrainingState, failed_at: Int[np.ndarray, " s"], *, evaluates: bool
    ) -> Bool[np.ndarray, " s"]:
        """Takes a row where one is planned; for which seeds the loss is finite, where it is looked
        at.
        """
        planned = bool(np.any(self.planned == int(state.step)))
        if not planned and not evaluates:
            return np.ones(len(failed_at), bool)
        train = self._seen(state, self._setup.train)
        assert train.loss is not None  # there are targets
        finite = np.isfinite(train.loss)
        if planned:
            self._rows.append(self._row(state, train))
            self._reached += finite & (failed_at < 0)
        return finite

    def _row(self, state: TrainingState, train: Seen) -> tuple[Seen, Seen | None]:
        test = self._setup.test
        return train, None if test is None else self._seen(state, test)

    def _seen(self, state: TrainingState, examples: Examples) -> Seen:
        problem = self._setup.problem
        options = (problem.loss, problem.batch_size, self._setup.record_outputs)
        return jax.tree.map(np.asarray, _seen(state.model, examples, options))

    def add(self, begin: int, end: int, losses: Array) -> None:
        """The losses of the steps from `begin` to `end`."""
        self._losses[:, begin - self._first : end - self._first] = losses[:, : end - begin]

    def history(self, state: TrainingState, failed_at: Int[np.ndarray, " s"]) -> History:
        """All rows, in the order that was planned."""
        seeds, count = len(failed_at), len(self.planned)
        steps = self._first + np.arange(self._losses.shape[1])
        after = (failed_at[:, None] >= 0) & (steps >= failed_at[:, None])
        valid = np.arange(count) < self._reached[:, None]
        # Without a row there is still the shape of one.
        rows = self._rows or [self._row(state, self._seen(state, self._setup.train))]
        train, test = jax.tree.map(lambda *leaves: _stacked(leaves, valid), *rows)
        test = Seen(None, None) if test is None else test
        return History(
            steps=jnp.asarray(np.broadcast_to(self.planned, (seeds, count))),
            train_loss=train.loss,
            test_loss=test.loss,
            outputs=train.outputs,
            outputs_test=test.outputs,
            callbacks={},
            valid=jnp.asarray(valid),
            step_losses=checks.as_given(
                np.where(after, np.nan, self._losses).astype(self._setup.problem.y.dtype)
            ),
        )


def _stacked(leaves: Sequence[np.ndarray], valid: Bool[np.ndarray, "s r"]) -> Array:
    """Rows (s, ...) as (s, r, ...), NaN where they are not valid."""
    first = leaves[0]
    rows = np.full((*valid.shape, *first.shape[1:]), np.nan, first.dtype)
    for place, leaf in zip(range(valid.shape[1]), leaves, strict=False):
        rows[valid[:, place], place] = leaf[valid[:, place]]
    return checks.as_given(rows)
