"""The real network and every prediction of it, on the same problem at the same times."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree, Shaped

from corrections import taylorize
from corrections.forward_mode import check_forward_mode
from corrections.parameters import Metric, Model
from solvers.flows.flow import check_tolerances, Tolerances
from solvers.frozen_kernel.kernel_problem import Targets
from solvers.losses import LossFunction, MeanSquaredError
from solvers.predictions import Case, Outputs, Prediction, SOLVES, trained, TrainingSteps
from solvers.problem import check_problem
from solvers.result import Times
from solvers.training.loop import initial_state
from solvers.training.optimizer import as_transformation, Optimizer
from zoo.common import checks
from zoo.common.examples import one_of
from zoo.common.precision import full_precision

NETWORK = "network"
Started = Callable[[str], Any]


class Comparison(eqx.Module):
    """A network's training and its predictions; see `compare_predictions`.

    - `ts`: times, (t,).
    - `network`: `Outputs` of the network itself.
    - `predictions`: `Outputs` of each prediction, by its name.
    """

    ts: Float[Array, " t"]
    network: Outputs
    predictions: dict[str, Outputs]

    def errors(
        self, points: Literal["train", "test"] = "test", norm: Literal["rms", "max"] = "rms"
    ) -> dict[str, Float[Array, " t"]]:
        """How far each prediction is from the network at each time, over all points and outputs.

        **Arguments:**

        - `points`: "train" or "test".
        - `norm`: "rms", the root of the mean square, or "max".

        **Raises:** `ValueError` for other arguments, or "test" where there were no test points.
        """
        checks.choice("points", points, ("train", "test"))
        checks.choice("norm", norm, ("rms", "max"))
        truth = getattr(self.network, points)
        if truth is None:
            raise ValueError(
                '`points` is "test", but there were no test points, expected "train" (or `x_test` '
                "in `compare_predictions`)."
            )

        def error(predicted: Array) -> Array:
            gap = jnp.abs(predicted - truth)
            if norm == "max":
                return jnp.max(gap, axis=(1, 2))
            return jnp.sqrt(jnp.mean(gap**2, axis=(1, 2)))

        return {name: error(getattr(one, points)) for name, one in self.predictions.items()}


@full_precision
def compare_predictions(
    model: Model,
    x: PyTree[Shaped[ArrayLike, "n ..."]],
    y: Targets,
    ts: Times | Sequence[int] | Int[ArrayLike, " t"],
    *,
    loss: LossFunction,
    predictions: Sequence[Prediction] = ("order 2", "order 3", "order 4"),
    learning_rate: float | None = None,
    momentum: float | None = None,
    optimizer: Optimizer | None = None,
    x_test: PyTree[Shaped[ArrayLike, "m ..."]] | None = None,
    metric: Metric | None = None,
    method: Literal["matrix_free", "dense"] = "matrix_free",
    batch_size: int | None = None,
    solver: diffrax.AbstractSolver | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    max_steps: int = 100_000,
    progress: diffrax.AbstractProgressMeter | None = None,
    started: Started | None = None,
) -> Comparison:
    """Trains the real network, predicts it in every way asked for, and compares.

    The network follows gradient flow (`parameter_flow`), or with a `learning_rate` gradient descent
    on all examples, or the steps of an `optimizer` (`train`).

    **Arguments:**

    - `model`, `x`, `y`, `loss`, `x_test`, `metric`: as in `hierarchy_flow`.
    - `ts`: increasing times >= 0, (t,). With a learning rate, whole multiples of it; with an
      optimiser, counts of its steps.
    - `predictions`: of gradient flow "order 2" .. "order 5" (`hierarchy_flow`; 2 is the frozen
      NTK), "Taylor 1" .. "Taylor 3" (the Taylor model in gradient flow) and "width expansion"
      (`width_expansion`); with a learning rate also "order 2 descent" (`gradient_descent` under the
      frozen NTK), "Taylor 1 descent" .. "Taylor 3 descent" (the Taylor model takes the network's
      steps) and "width expansion descent" (`width_expansion_descent`). The width expansions are
      those of squared loss.
    - `learning_rate`: of gradient descent (default: gradient flow).
    - `momentum`: of that descent, in [0, 1) (default: none). Of the predictions, "order 2 descent"
      and those of Taylor models in steps have it.
    - `optimizer`: in the place of a learning rate, as in `train`; what there is of its steps are
      the Taylor models in steps. Learning-rate multipliers are its own then: `metric` is refused.
    - `method`, `batch_size`: of the hierarchy and the width expansions.
    - `solver`, `rtol`, `atol`, `max_steps`: of every flow, as in `gradient_flow`.
    - `progress`: a diffrax progress meter, shown for the network and then for each prediction in
      turn; `gradient_descent` and the width expansions have none.
    - `started`: called with "network", then with the name of each prediction, as it starts; an
      exception that it raises ends the comparison.

    **Returns:** a `Comparison`. What fails is there, marked: its rows are NaN from there on.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, before any work.
    **Warns:** as the predictions do.
    """
    problem = check_problem(model, x, y, ts, loss=loss, x_test=x_test, metric=metric)
    checks.choice("method", method, ("matrix_free", "dense"))
    batch_size = checks.integer_or_none("batch_size", batch_size)
    check_tolerances(Tolerances(solver, rtol, atol, max_steps, progress))
    descent = _descent(problem.ts, learning_rate, momentum, optimizer, metric)
    _check_predictions(predictions, descent, loss)
    if not all(method in SOLVES[name].in_reverse_mode for name in predictions):
        check_forward_mode(model, one_of(problem.x))
    if started is not None and not callable(started):
        raise TypeError(f"`started` is {started!r}, expected a function of a name, or None.")
    tolerances = {"rtol": rtol, "atol": atol, "max_steps": max_steps, "solver": solver}
    case = Case(model, problem, loss, metric, method, batch_size, descent, tolerances, progress)
    if descent is not None and descent.optimizer is not None:
        _check_optimizer(descent.optimizer, predictions, model)
    tell = started or (lambda name: None)
    tell(NETWORK)
    network = jax.block_until_ready(trained(model, metric, case, in_steps=descent is not None))
    found = {}
    for name in predictions:
        tell(name)
        found[name] = jax.block_until_ready(SOLVES[name].solve(case))
    return Comparison(problem.ts, network, found)


def _check_predictions(
    predictions: Sequence[Prediction], descent: TrainingSteps | None, loss: LossFunction
) -> None:
    checks.sequence("predictions", predictions, "a sequence of predictions")
    for name in predictions:
        checks.choice("predictions", name, tuple(SOLVES))
    checks.distinct("predictions", predictions)
    if descent is None:
        of, instead = "flow", "predictions of gradient flow, or a `learning_rate`"
    elif descent.optimizer is not None:
        of, instead = "optimizer", "with an `optimizer` {}"
    elif descent.momentum is not None:
        of, instead = "momentum", "with `momentum` {}"
    else:
        of, instead = "descent", "{}"
    fitting = "one of " + ", ".join(repr(name) for name in SOLVES if of in SOLVES[name].takes)
    for name in predictions:
        if of not in SOLVES[name].takes:
            raise ValueError(f"`predictions` holds {name!r}, expected {instead.format(fitting)}.")
        if SOLVES[name].squared and not isinstance(loss, MeanSquaredError):
            raise ValueError(
                f"`predictions` holds {name!r}, which is for squared loss, expected "
                f"`loss=MeanSquaredError()`: got {loss!r}."
            )


def _check_optimizer(optimizer: Optimizer, predictions: Sequence[Prediction], model: Model) -> None:
    """**Raises:** `ValueError` where it does not take the parameters of a model that it trains."""
    initial_state(model, optimizer)
    for name in predictions:
        order = SOLVES[name].taylor
        if order is None:
            continue
        try:
            initial_state(taylorize(model, order), optimizer)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`optimizer` does not take the parameters of {name!r}, which are those of `model` "
                f"in another tree, expected one that takes any: {error}"
            ) from error


def _descent(
    ts: Float[Array, " t"],
    learning_rate: float | None,
    momentum: float | None,
    optimizer: Optimizer | None,
    metric: Metric | None,
) -> TrainingSteps | None:
    """What the network steps with, if it does."""
    if optimizer is not None:
        as_transformation(optimizer)
        others = {"learning_rate": learning_rate, "momentum": momentum, "metric": metric}
        for name, value in others.items():
            if value is not None:
                raise ValueError(
                    f"`{name}` was given with an `optimizer`, expected it to be part of that "
                    "(`scale_by_metric` for a metric)."
                )
        return TrainingSteps(None, None, optimizer, _steps(ts, 1.0, "1, a step of `optimizer`"))
    if learning_rate is None:
        if momentum is not None:
            raise ValueError(
                f"`momentum` is {momentum!r} without a `learning_rate`, expected both: gradient "
                "flow has none."
            )
        return None
    checks.nonnegative_number("learning_rate", learning_rate, strictly=True)
    if momentum is not None:
        momentum = float(checks.nonnegative_scalar("momentum", momentum, below=1.0))
    rate = float(learning_rate)
    return TrainingSteps(
        rate, momentum, None, _steps(ts, rate, f"`learning_rate` = {learning_rate}")
    )


def _steps(ts: Float[Array, " t"], unit: float, which: str) -> np.ndarray:
    """Times as counts of steps."""
    counts = np.asarray(ts, float) / unit
    whole = np.round(counts)
    if np.any(np.abs(counts - whole) > 1e-5 * counts):
        raise ValueError(
            f"`ts` holds times that are no whole multiples of {which}: {np.asarray(ts)}, expected "
            "counts of steps times that."
        )
    if whole[-1] > checks.MOST:
        raise ValueError(
            f"`ts` ends after {whole[-1]:.3g} steps of {which}, expected at most {checks.MOST}."
        )
    if whole[-1] == 0:
        raise ValueError("`ts` is [0.], expected a time after at least one step of descent.")
    return whole.astype(int)
