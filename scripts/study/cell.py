"""One cell of a study: one network, trained for real and predicted."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from corrections import extreme_eigenvalues, NTKOperator
from scripts.study.config import LOSSES, PREDICTIONS, StudyConfig
from solvers import compare_predictions, Trajectory
from solvers.comparison import NETWORK, Prediction
from zoo import Dataset, learning_rates, MLP, PARAMETERIZATIONS


@dataclass(frozen=True)
class Cell:
    """Where a cell stands in the study."""

    parameterization: str
    width: int
    seed: int

    def __str__(self) -> str:
        return f"{self.parameterization} width {self.width} seed {self.seed}"


@dataclass(frozen=True)
class CellResult:
    """What a cell found: the trajectory of each of `config.solves`, and lambda_max."""

    lambda_max: float
    trajectories: dict[str, Trajectory]


def cells(config: StudyConfig) -> list[Cell]:
    """All cells, small networks first."""
    return [
        Cell(parameterization, width, seed)
        for width in sorted(config.widths)
        for parameterization in config.parameterizations
        for seed in config.seeds
    ]


def compute(
    config: StudyConfig, data: Dataset, cell: Cell, started: Callable[[str], None]
) -> CellResult:
    """Trains the network of this cell and predicts it; `started` hears the name of each solve."""
    x, y, x_test = data.x_train, data.y_train, data.x_test
    loss = LOSSES[config.loss]
    model = MLP(
        int(np.prod(x.shape[1:])),
        y.shape[1],
        width=cell.width,
        depth=config.depth,
        activation=config.activation,
        parameterization=PARAMETERIZATIONS[cell.parameterization],
        weight_std=config.weight_std,
        key=jr.fold_in(jr.key(cell.seed), cell.width),
    )
    metric = learning_rates(model)
    largest = extreme_eigenvalues(NTKOperator(model, x, metric=metric), rtol=1e-6)
    if not largest.converged[0]:
        raise RuntimeError(f"The largest eigenvalue of the kernel was not found for {cell}.")
    lambda_max = float(largest.values[0]) / len(x)
    names: tuple[Prediction, ...] = tuple(PREDICTIONS[label] for label in config.predictions)
    labels: dict[str, str] = dict(zip(names, config.predictions, strict=True))
    found = compare_predictions(
        model,
        x,
        y,
        jnp.asarray(config.solved_times) / lambda_max,
        loss=loss,
        predictions=names,
        x_test=x_test,
        metric=metric,
        method=config.method,
        rtol=config.rtol,
        atol=config.atol,
        started=lambda name: started(labels.get(name, NETWORK)),
    )
    trajectories = {NETWORK: found.network.record}
    for name, outputs in found.predictions.items():
        trajectories[labels[name]] = outputs.record
    return CellResult(lambda_max, trajectories)
