"""What a training is asked to do, checked before any work."""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Int, PyTree

from corrections.parameters import check_model, check_tree_like, Model
from solvers.losses import check_targets, LossFunction
from solvers.training.callbacks import Callbacks, check_callbacks
from solvers.training.loop import Examples, TrainingProblem, TrainingState
from solvers.training.optimizer import as_transformation, Optimizer
from zoo.common import checks
from zoo.common.examples import checked_batch, count


def log_spaced(steps: int, *, per_decade: int = 10) -> Int[np.ndarray, " r"]:
    """Steps at which to look at a training: 0, about so many a decade from 1 on, and the last.

    **Raises:** `ValueError` for counts below 1.
    """
    steps = checks.integer("steps", steps)
    per_decade = checks.integer("per_decade", per_decade)
    count = 1 + int(np.ceil(per_decade * np.log10(steps)))
    spaced = np.round(np.geomspace(1, steps, count)).astype(int)
    return np.unique(np.concatenate([[0], spaced, [steps]]))


class Setup(NamedTuple):
    """What a training does, apart from the state that it starts from."""

    problem: TrainingProblem
    test: Examples | None
    steps: int
    record_at: Int[np.ndarray, " r"]
    record_outputs: bool
    callbacks: Callbacks
    progress: diffrax.AbstractProgressMeter | None

    @property
    def train(self) -> Examples:
        """The training examples."""
        return Examples(self.problem.x, self.problem.y)


def check_setup(
    model: Model,
    x: Any,
    y: Any,
    *,
    loss: LossFunction,
    optimizer: Optimizer,
    steps: int,
    batch_size: int | None,
    key: Any,
    x_test: Any,
    y_test: Any,
    callbacks: Callbacks | None,
    record_at: Any,
    record_outputs: bool,
    progress: diffrax.AbstractProgressMeter | None,
    called: str = "model",
) -> Setup:
    """The arguments of `train` as a `Setup`, the targets in the dtype of the model's outputs.

    `called`: the name of the argument that `model` is, or is of.

    **Raises:** `ValueError` / `TypeError` that names the argument which does not fit.
    """
    if checks.is_traced((model, x, y, x_test, y_test)):
        raise ValueError(
            f"`{called}`, `x` or `y` is being traced, expected arrays that have values: training "
            "compiles its own loop, call it outside `jax.jit`, `jax.vmap` and `jax.grad`."
        )
    steps = checks.integer("steps", steps)
    x, y, outputs = _check_examples(model, x, y, loss, "x", None, called)
    batch_size = checks.integer_or_none("batch_size", batch_size)
    if batch_size is not None and batch_size > count(x):
        raise ValueError(
            f"`batch_size` is {batch_size}, expected at most the {count(x)} examples of `x`."
        )
    if batch_size is not None or key is not None:
        checks.key("key", key)
    test = _check_test(model, x_test, y_test, loss, outputs, called, alone=bool(record_outputs))
    transformation = as_transformation(optimizer)
    if progress is not None and not isinstance(progress, diffrax.AbstractProgressMeter):
        raise TypeError(
            f"`progress` is {progress!r}, expected a diffrax AbstractProgressMeter or None."
        )
    return Setup(
        TrainingProblem(
            x, y, loss, transformation, batch_size, None if batch_size is None else key
        ),
        test,
        steps,
        _check_record_at(record_at, steps),
        bool(record_outputs),
        check_callbacks(callbacks),
        progress,
    )


def check_state(name: str, state: TrainingState, model: Model, setup: Setup) -> None:
    """**Raises:** `ValueError` where `state` is not one of this model and this optimiser, or is
    beyond the end of the training.
    """
    checks.instance(name, state, TrainingState, "a `TrainingState`, `.state` of a `Training` say")
    optimizer_state = setup.problem.optimizer.init(state.parameters)
    for part, got, like, what in (
        ("model", state.model, model, "`model`"),
        ("optimizer_state", state.optimizer_state, optimizer_state, "a state of `optimizer`"),
    ):
        arrays, arrays_like = (eqx.filter(tree, eqx.is_array) for tree in (got, like))
        check_tree_like(f"{name}.{part}", arrays, arrays_like, what)
    if setup.steps < int(state.step):
        raise ValueError(
            f"`steps` is {setup.steps}, expected at least the {int(state.step)} steps of `{name}`: "
            "it counts all of them."
        )


def _check_test(
    model: Model,
    x: Any,
    y: Any,
    loss: LossFunction,
    outputs: jax.ShapeDtypeStruct,
    called: str,
    *,
    alone: bool,
) -> Examples | None:
    """The test examples; those without targets serve where outputs are recorded."""
    if y is None and x is not None and alone:
        x = checked_batch("x_test", x)
        check_model(model, "x_test", x, outputs=outputs, called=called)
        return Examples(x, None)
    if (x is None) != (y is None):
        raise ValueError(
            "`x_test` or `y_test` was given alone, expected both or none (`x_test` alone is for "
            "`record_outputs=True`)."
        )
    if x is None:
        return None
    x, y, _ = _check_examples(model, x, y, loss, "x_test", outputs, called)
    return Examples(x, y)


def _check_examples(
    model: Model,
    x: Any,
    y: Any,
    loss: LossFunction,
    name: str,
    outputs: jax.ShapeDtypeStruct | None,
    called: str,
) -> tuple[PyTree, Array, jax.ShapeDtypeStruct]:
    """Examples and their targets, and the outputs of `model` on one of them."""
    x = checked_batch(name, x)
    outputs = check_model(model, name, x, outputs=outputs, called=called)
    because = f"a row for each example of `{name}`, a column for each output of `{called}`"
    try:
        y = check_targets(loss, y, (count(x), outputs.shape[0]), because=because)
    except (TypeError, ValueError) as error:
        if name == "x":
            raise
        raise type(error)(f"`y_test` does not fit `x_test`: {error}") from error
    return x, y.astype(outputs.dtype), outputs


def _check_record_at(record_at: Any, steps: int) -> Int[np.ndarray, " r"]:
    if record_at is None:
        return log_spaced(steps)
    values = np.asarray(record_at)
    fits = values.ndim == 1 and (np.issubdtype(values.dtype, np.integer) or values.size == 0)
    if not fits or np.any(np.diff(values) <= 0) or np.any((values < 0) | (values > steps)):
        raise ValueError(
            f"`record_at` is {record_at!r}, expected increasing whole numbers from 0 to `steps`, "
            f"{steps}."
        )
    return values.astype(int)
