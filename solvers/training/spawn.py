r"""Children of a training: copies that go on over the data in different orders.

From one parent, with its parameters and the state of its optimiser, each child takes the noise of
its own minibatches. Where the children are still linearly connected (`corrections.error_barrier`)
the parent has found the basin that training ends in.

Source: Fort et al. (2020), "Deep learning versus kernel learning"; Frankle, Dziugaite, Roy & Carbin
(2020), "Linear mode connectivity and the lottery ticket hypothesis".
"""

from collections.abc import Sequence
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Int, Key, PRNGKeyArray, PyTree, Shaped, UInt32

from solvers.frozen_kernel.kernel_problem import Targets, TestTargets
from solvers.losses import LossFunction
from solvers.training.callbacks import Callbacks
from solvers.training.loop import Target, TrainingState
from solvers.training.optimizer import Optimizer
from solvers.training.setup import check_setup, check_state
from solvers.training.train import run, Training
from zoo.common import checks
from zoo.common.precision import full_precision

Match = Literal["time", "distance"]
Keys = Key[Array, " c"] | UInt32[Array, "c _"] | Sequence[PRNGKeyArray]
"""Keys of `jax.random`, of the new kind or the old."""


@full_precision
def spawn(
    parent: Training | TrainingState,
    x: PyTree[Shaped[ArrayLike, "n ..."]],
    y: Targets,
    *,
    loss: LossFunction,
    optimizer: Optimizer,
    steps: int,
    batch_size: int,
    keys: Keys,
    match: Match = "time",
    distance: float | None = None,
    x_test: PyTree[Shaped[ArrayLike, "m ..."]] | None = None,
    y_test: TestTargets | None = None,
    callbacks: Callbacks | None = None,
    record_at: Sequence[int] | Int[ArrayLike, " r"] | None = None,
    record_outputs: bool = False,
    throw: bool = True,
    progress: diffrax.AbstractProgressMeter | None = None,
) -> list[Training]:
    """Trains copies of a partly trained parent, which differ in the order of their data alone.

    Children are comparable at the same time, or at the same distance from the parent: one that
    has gone farther differs more from its siblings for that reason alone.

    **Arguments:**

    - `parent`: a `Training`, or its `TrainingState`. Children start from its parameters, the state
      of its optimiser (moments, place in a schedule) and its step.
    - `x`, `y`, `loss`, `optimizer`, `batch_size`, `x_test`, `y_test`, `callbacks`, `record_at`,
      `record_outputs`, `progress`: as in `train`. `optimizer` is that of the parent.
    - `steps`: how many there are in all, those of the parent among them; with `match="distance"`
      the most there may be.
    - `keys`: one for each child, for the order of its data: keys (c,), as `jax.random.split` gives.
    - `match`: "time": every child trains to `steps`. "distance": until |theta - theta_parent|
      (Euclidean) is at least `distance`, and so beyond it by less than one step; the rows of its
      history after that are not valid.
    - `distance`: > 0, in the units of the parameters; for `match="distance"` only.
    - `throw`: raise where a child fails or never gets to `distance` (default), or mark it.

    **Returns:** a `Training` for each key. The result of a child that did not get to `distance` is
    `RESULTS.max_steps_reached`.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, before any work;
    `TrainingError` for the first child that fails, where `throw=True`: its `.before` are the
    children before it.

    Source: Fort et al. (2020), parents and children; Frankle et al. (2020), algorithm 1.
    """
    state = parent.state if isinstance(parent, Training) else parent
    if not isinstance(state, TrainingState):
        raise TypeError(
            f"`parent` is of type {type(parent).__name__}, expected a `Training` or a "
            "`TrainingState`."
        )
    each = _check_keys(keys)
    if batch_size is None:
        raise ValueError(
            "`batch_size` is None, expected that of minibatches: children differ by their order."
        )
    setup = check_setup(
        state.model,
        x,
        y,
        loss=loss,
        optimizer=optimizer,
        steps=steps,
        batch_size=batch_size,
        key=each[0],
        x_test=x_test,
        y_test=y_test,
        callbacks=callbacks,
        record_at=record_at,
        record_outputs=record_outputs,
        progress=progress,
    )
    check_state("parent", state, state.model, setup)
    target = _check_target(match, distance, state)
    children: list[Training] = []
    for key in each:
        problem = eqx.tree_at(lambda d: d.key, setup.problem, key)
        child = setup._replace(problem=problem)
        children.append(run(child, state, target, throw=throw, before=children))
    return children


def _check_keys(keys: Any) -> list[PRNGKeyArray]:
    try:
        each = [keys[i] for i in range(len(keys))]
    except TypeError as error:
        raise TypeError(
            f"`keys` is {keys!r}, expected one key for each child, `jax.random.split(key, 3)` say."
        ) from error
    if not each:
        raise ValueError("`keys` is empty, expected one key for each child.")
    for i, key in enumerate(each):
        checks.key(f"keys[{i}]", key)
    return each


def _check_target(match: Match, distance: float | None, state: TrainingState) -> Target | None:
    checks.choice("match", match, ("time", "distance"))
    if match == "time":
        if distance is not None:
            raise ValueError(
                f'`distance` is {distance} with `match="time"`, expected it with '
                '`match="distance"` only.'
            )
        return None
    checks.nonnegative_number("distance", distance, strictly=True)
    origin = state.parameters
    return Target(origin, jnp.asarray(distance, jnp.result_type(*jax.tree.leaves(origin))))
