"""Every way to predict the training of a network: how it is solved, and of what training it is."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import diffrax
import equinox as eqx
import jax
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from corrections import taylorize
from corrections.kernels.ntk import tangent_kernel
from corrections.parameters import Metric, Model, vector_model
from solvers.expansion.continuous import width_expansion
from solvers.expansion.discrete import width_expansion_descent
from solvers.expansion.record import WidthExpansion
from solvers.flows.hierarchy_flow import hierarchy_flow
from solvers.flows.parameter_flow import parameter_flow
from solvers.losses import LossFunction
from solvers.problem import Problem
from solvers.result import RESULTS, Trajectory
from solvers.steps.descent import gradient_descent
from solvers.training.metric_transform import scale_by_metric
from solvers.training.optimizer import Optimizer
from solvers.training.train import train, TrainingError

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
    "Taylor 1 descent",
    "Taylor 2 descent",
    "Taylor 3 descent",
    "width expansion descent",
]


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


class TrainingSteps(NamedTuple):
    """Steps: those of gradient descent, or those of an optimiser."""

    learning_rate: float | None
    momentum: float | None
    optimizer: Optimizer | None
    steps: np.ndarray

    def optimizer_with(self, metric: Metric | None) -> Optimizer:
        """What `train` takes."""
        if self.optimizer is not None:
            return self.optimizer
        assert self.learning_rate is not None
        sgd = optax.sgd(self.learning_rate, self.momentum)
        return sgd if metric is None else optax.chain(scale_by_metric(metric), sgd)


class Case(NamedTuple):
    """A network and its training, to be predicted: what `compare_predictions` was given."""

    model: Model
    problem: Problem
    loss: LossFunction
    metric: Metric | None
    method: Literal["matrix_free", "dense"]
    batch_size: int | None
    descent: TrainingSteps | None
    tolerances: dict[str, Any]
    progress: diffrax.AbstractProgressMeter | None

    def options(self, *, dense: bool = True) -> dict[str, Any]:
        """Those of solves that have a method; `dense`: whether there is a dense one."""
        method = self.method if dense else "matrix_free"
        return {
            "x_test": self.problem.x_test,
            "metric": self.metric,
            "method": method,
            "batch_size": self.batch_size if self.method == "matrix_free" else None,
            "throw": False,
        }


def trained(model: Model, metric: Metric | None, case: Case, *, in_steps: bool) -> Outputs:
    """The network, or a model that is to predict it, trained in time or in steps."""
    x, y, x_test, ts = case.problem
    rest = {"loss": case.loss, "x_test": x_test, "progress": case.progress}
    if not in_steps:
        return _outputs(
            parameter_flow(model, x, y, ts, metric=metric, throw=False, **case.tolerances, **rest)
        )
    descent = case.descent
    assert descent is not None
    try:
        training = train(
            model,
            x,
            y,
            optimizer=descent.optimizer_with(metric),
            steps=int(descent.steps[-1]),
            record_at=descent.steps,
            record_outputs=True,
            **rest,
        )
    except TrainingError as error:
        training = error.partial
        if training.result != RESULTS.diverged:
            raise
    history = training.history
    assert history.outputs is not None
    return Outputs(history.outputs, history.outputs_test, history.valid, training)


def _taylor(case: Case, *, order: int, in_steps: bool) -> Outputs:
    taylor = taylorize(case.model, order)
    return trained(taylor, taylor.lift_metric(case.metric), case, in_steps=in_steps)


def _hierarchy(case: Case, *, order: int, dense: bool = True) -> Outputs:
    x, y, _, ts = case.problem
    return _outputs(
        hierarchy_flow(
            case.model,
            x,
            y,
            ts,
            loss=case.loss,
            order=order,
            progress=case.progress,
            **case.options(dense=dense),
            **case.tolerances,
        )
    )


def _width_expansion(case: Case) -> Outputs:
    x, y, _, ts = case.problem
    rate = None if case.descent is None else case.descent.learning_rate
    return _outputs(width_expansion(case.model, x, y, ts, learning_rate=rate, **case.options()))


def _width_expansion_descent(case: Case) -> Outputs:
    x, y, _, _ = case.problem
    assert case.descent is not None
    assert case.descent.learning_rate is not None
    return _outputs(
        width_expansion_descent(
            case.model,
            x,
            y,
            case.descent.steps,
            learning_rate=case.descent.learning_rate,
            **case.options(),
        )
    )


def _frozen_descent(case: Case) -> Outputs:
    x, y, x_test, _ = case.problem
    points, n, descent = case.problem.points, len(y), case.descent
    assert descent is not None
    assert descent.learning_rate is not None
    kernel = tangent_kernel(case.model, points, x, metric=case.metric, batch_size=case.batch_size)
    f0 = jax.vmap(vector_model(case.model))(points)
    return _outputs(
        gradient_descent(
            kernel[:n],
            y,
            descent.steps,
            loss=case.loss,
            learning_rate=descent.learning_rate,
            momentum=descent.momentum,
            f0=f0[:n],
            kernel_test=None if x_test is None else kernel[n:],
            f0_test=None if x_test is None else f0[n:],
            throw=False,
        )
    )


def _outputs(record: Trajectory | WidthExpansion) -> Outputs:
    return Outputs(record.train, record.test, record.valid, record)


class Solve(NamedTuple):
    """How a prediction is solved, and what it is of.

    - `takes`: what the network may step with: gradient descent ("descent"), with momentum
      ("momentum"), any optimiser ("optimizer"); "flow" where no steps are needed.
    - `squared`: whether it is for squared loss alone.
    - `in_reverse_mode`: the methods that need no derivatives of the model in forward mode.
    - `taylor`: the order of the Taylor model that it trains, if it does.
    """

    solve: Callable[[Case], Outputs]
    takes: tuple[Literal["flow", "descent", "momentum", "optimizer"], ...]
    squared: bool = False
    in_reverse_mode: tuple[str, ...] = ()
    taylor: int | None = None


def _of_taylor(order: int, *, in_steps: bool) -> Solve:
    takes = ("descent", "momentum", "optimizer") if in_steps else ("flow", "descent")
    return Solve(partial(_taylor, order=order, in_steps=in_steps), takes, taylor=order)


_IN_TIME = ("flow", "descent")
SOLVES: dict[Prediction, Solve] = {
    "order 2": Solve(partial(_hierarchy, order=2), _IN_TIME, in_reverse_mode=("dense",)),
    "order 3": Solve(partial(_hierarchy, order=3), _IN_TIME),
    "order 4": Solve(partial(_hierarchy, order=4), _IN_TIME),
    "order 5": Solve(partial(_hierarchy, order=5, dense=False), _IN_TIME),
    "Taylor 1": _of_taylor(1, in_steps=False),
    "Taylor 2": _of_taylor(2, in_steps=False),
    "Taylor 3": _of_taylor(3, in_steps=False),
    "width expansion": Solve(_width_expansion, _IN_TIME, squared=True),
    "order 2 descent": Solve(
        _frozen_descent, ("descent", "momentum"), in_reverse_mode=("matrix_free", "dense")
    ),
    "Taylor 1 descent": _of_taylor(1, in_steps=True),
    "Taylor 2 descent": _of_taylor(2, in_steps=True),
    "Taylor 3 descent": _of_taylor(3, in_steps=True),
    "width expansion descent": Solve(_width_expansion_descent, ("descent",), squared=True),
}
"""Every prediction, by its name."""
