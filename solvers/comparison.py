"""The real network and every prediction of it, on the same problem at the same times."""

from collections.abc import Callable, Sequence
from typing import Any, get_args, Literal, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Shaped

from corrections import taylorize
from corrections.forward_mode import check_forward_mode
from corrections.kernels.ntk import tangent_kernel
from corrections.parameters import Metric, Model
from solvers.expansion.continuous import width_expansion
from solvers.expansion.discrete import width_expansion_descent
from solvers.expansion.record import WidthExpansion
from solvers.flows.flow import check_tolerances, Tolerances
from solvers.flows.hierarchy_flow import hierarchy_flow
from solvers.flows.parameter_flow import parameter_flow
from solvers.frozen_kernel.kernel_problem import Targets
from solvers.losses import LossFunction, MeanSquaredError
from solvers.problem import check_problem, Problem
from solvers.result import RESULTS, Times, Trajectory
from solvers.steps.descent import gradient_descent
from solvers.training.metric_transform import scale_by_metric
from solvers.training.train import train, TrainingError
from zoo.common import checks
from zoo.common.precision import full_precision

Prediction = Literal[
    "order 2",
    "order 3",
    "order 4",
    "order 5",
    "Taylor 1",
    "Taylor 2",
    "Taylor 3",
    "width expansion",
    "order 2 descent",
    "width expansion descent",
]
DESCENTS: tuple[Prediction, ...] = ("order 2 descent", "width expansion descent")
"""Predictions in steps."""

NETWORK = "network"
Started = Callable[[str], Any]


class Outputs(eqx.Module):
    """What the network did, or what a prediction says it does.

    - `train`, `test`: outputs, (t, n, k) and (t, m, k), NaN where not `valid`.
    - `valid`: (t,).
    - `record`: the `Trajectory`, `WidthExpansion` or `Training` that they are of.
    """

    train: Float[Array, "t n k"]
    test: Float[Array, "t m k"] | None
    valid: Bool[Array, " t"]
    record: Any

    @property
    def successful(self) -> bool:
        """Whether it went to the end."""
        return bool(self.record.successful)

    @property
    def reason(self) -> str:
        """Why it stopped early; empty where it did not."""
        return "" if self.successful else str(RESULTS[self.record.result])


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
    x: Shaped[ArrayLike, "n ..."],
    y: Targets,
    ts: Times,
    *,
    loss: LossFunction,
    predictions: Sequence[Prediction] = ("order 2", "order 3", "order 4"),
    learning_rate: float | None = None,
    x_test: Shaped[ArrayLike, "m ..."] | None = None,
    metric: Metric | None = None,
    method: Literal["matrix_free", "dense"] = "matrix_free",
    batch_size: int | None = None,
    solver: diffrax.AbstractSolver | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    max_steps: int = 100_000,
    started: Started | None = None,
) -> Comparison:
    """Trains the real network, predicts it in every way asked for, and compares.

    The network follows gradient flow (`parameter_flow`), or with a `learning_rate` gradient descent
    on all examples (`train`).

    **Arguments:**

    - `model`, `x`, `y`, `loss`, `x_test`, `metric`: as in `hierarchy_flow`.
    - `ts`: increasing times >= 0, (t,). With a learning rate, whole multiples of it.
    - `predictions`: of gradient flow "order 2" .. "order 5" (`hierarchy_flow`; 2 is the frozen
      NTK), "Taylor 1" .. "Taylor 3" (the Taylor model in gradient flow) and "width expansion"
      (`width_expansion`); with a learning rate also "order 2 descent" (`gradient_descent` under the
      frozen NTK) and "width expansion descent" (`width_expansion_descent`). The width expansions
      are those of squared loss.
    - `learning_rate`: of gradient descent (default: gradient flow).
    - `method`, `batch_size`: of the hierarchy and the width expansions.
    - `solver`, `rtol`, `atol`, `max_steps`: of every flow, as in `gradient_flow`.
    - `started`: called with "network", then with the name of each prediction, as it starts; an
      exception that it raises ends the comparison.

    **Returns:** a `Comparison`. What fails is there, marked: its rows are NaN from there on.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, before any work.
    **Warns:** as the predictions do.
    """
    problem = check_problem(model, x, y, ts, loss=loss, x_test=x_test, metric=metric)
    checks.choice("method", method, ("matrix_free", "dense"))
    if batch_size is not None:
        batch_size = checks.integer("batch_size", batch_size)
    check_tolerances(Tolerances(solver, rtol, atol, max_steps, None))
    _check_predictions(predictions, learning_rate, loss)
    by_kernel = {"order 2 descent", *(["order 2"] if method == "dense" else [])}
    if not by_kernel.issuperset(predictions):
        check_forward_mode(model, problem.x[0])
    if started is not None and not callable(started):
        raise TypeError(f"`started` is {started!r}, expected a function of a name, or None.")
    descent = None if learning_rate is None else _descent(problem.ts, learning_rate)
    rest = {"rtol": rtol, "atol": atol, "max_steps": max_steps, "solver": solver, "throw": False}
    case = _Case(model, problem, loss, metric, method, batch_size, descent, rest)
    tell = started or (lambda name: None)
    tell(NETWORK)
    network = jax.block_until_ready(_network(case))
    found = {}
    for name in predictions:
        tell(name)
        found[name] = jax.block_until_ready(_predicted(name, case))
    return Comparison(problem.ts, network, found)


class _Descent(NamedTuple):
    learning_rate: float
    steps: np.ndarray


class _Case(NamedTuple):
    model: Model
    problem: Problem
    loss: LossFunction
    metric: Metric | None
    method: Literal["matrix_free", "dense"]
    batch_size: int | None
    descent: _Descent | None
    rest: dict[str, Any]


def _network(case: _Case) -> Outputs:
    problem, loss = case.problem, case.loss
    if case.descent is None:
        return _outputs(_flow_of(case.model, case, case.metric))
    optimizer = optax.sgd(case.descent.learning_rate)
    if case.metric is not None:
        optimizer = optax.chain(scale_by_metric(case.metric), optimizer)
    try:
        training = train(
            case.model,
            problem.x,
            problem.y,
            loss=loss,
            optimizer=optimizer,
            steps=int(case.descent.steps[-1]),
            record_at=case.descent.steps,
            x_test=problem.x_test,
            record_outputs=True,
        )
    except TrainingError as error:
        training = error.partial
        if training.result != RESULTS.diverged:
            raise
    history = training.history
    assert history.outputs is not None
    return Outputs(history.outputs, history.outputs_test, history.valid, training)


def _flow_of(model: Model, case: _Case, metric: Any) -> Trajectory:
    x, y, x_test, ts = case.problem
    return parameter_flow(
        model, x, y, ts, loss=case.loss, x_test=x_test, metric=metric, **case.rest
    )


def _predicted(name: Prediction, case: _Case) -> Outputs:
    x, y, x_test, ts = case.problem
    model, metric = case.model, case.metric
    if name.startswith("Taylor"):
        taylor = taylorize(model, int(name[-1]))
        return _outputs(_flow_of(taylor, case, taylor.lift_metric(metric)))
    if name == "order 2 descent":
        points = case.problem.points
        n = len(x)
        kernel = tangent_kernel(model, points, x, metric=metric, batch_size=case.batch_size)
        f0 = jax.vmap(model)(points)
        assert case.descent is not None
        return _outputs(
            gradient_descent(
                kernel[:n],
                y,
                case.descent.steps,
                loss=case.loss,
                learning_rate=case.descent.learning_rate,
                f0=f0[:n],
                kernel_test=None if x_test is None else kernel[n:],
                f0_test=None if x_test is None else f0[n:],
                throw=False,
            )
        )
    options = {
        "x_test": x_test,
        "metric": metric,
        "method": case.method,
        "batch_size": case.batch_size if case.method == "matrix_free" else None,
    }
    if name == "width expansion":
        rate = None if case.descent is None else case.descent.learning_rate
        return _outputs(
            width_expansion(model, x, y, ts, learning_rate=rate, throw=False, **options)
        )
    if name == "width expansion descent":
        assert case.descent is not None
        rate, steps = case.descent
        return _outputs(
            width_expansion_descent(model, x, y, steps, learning_rate=rate, throw=False, **options)
        )
    order = int(name[-1])
    if order == 5:  # which has no tensor
        options["method"] = "matrix_free"
    return _outputs(
        hierarchy_flow(model, x, y, ts, loss=case.loss, order=order, **options, **case.rest)
    )


def _outputs(record: Trajectory | WidthExpansion) -> Outputs:
    return Outputs(record.train, record.test, record.valid, record)


def _check_predictions(
    predictions: Sequence[Prediction], learning_rate: float | None, loss: LossFunction
) -> None:
    checks.sequence("predictions", predictions, "a sequence of predictions")
    for name in predictions:
        checks.choice("predictions", name, get_args(Prediction))
    checks.distinct("predictions", predictions)
    for name in predictions:
        if name in DESCENTS and learning_rate is None:
            raise ValueError(
                f"`predictions` holds {name!r}, expected predictions of gradient flow, or a "
                "`learning_rate`."
            )
        if name.startswith("width") and not isinstance(loss, MeanSquaredError):
            raise ValueError(
                f"`predictions` holds {name!r}, which is for squared loss, expected "
                f"`loss=MeanSquaredError()`: got {loss!r}."
            )


def _descent(ts: Float[Array, " t"], learning_rate: float) -> _Descent:
    checks.nonnegative_number("learning_rate", learning_rate, strictly=True)
    counts = np.asarray(ts, float) / learning_rate
    whole = np.round(counts)
    if np.any(np.abs(counts - whole) > 1e-5 * counts):
        raise ValueError(
            f"`ts` holds times that are no whole multiples of `learning_rate` = {learning_rate}: "
            f"{np.asarray(ts)}, expected `learning_rate` times counts of steps."
        )
    if whole[-1] > checks.MOST:
        raise ValueError(
            f"`learning_rate` is {learning_rate}, {whole[-1]:.3g} steps up to the last of `ts`, "
            f"expected at most {checks.MOST}."
        )
    if whole[-1] == 0:
        raise ValueError("`ts` is [0.], expected a time after at least one step of descent.")
    return _Descent(float(learning_rate), whole.astype(int))
