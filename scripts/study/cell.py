"""One cell of a study: one network, trained for real and predicted."""

from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from corrections import ntk, taylorize
from scripts.study.config import LOSSES, StudyConfig
from solvers import gradient_flow, hierarchy_flow, parameter_flow, Trajectory
from zoo import Dataset, learning_rates, MLP, PARAMETERIZATIONS

PREDICTIONS = ("frozen NTK", "O_3 hierarchy", "Taylor 2")
NETWORK = "network"
SOLVES = (NETWORK, *PREDICTIONS)


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
    """What a cell found: the trajectory of each of `SOLVES`, and lambda_max."""

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
    points = jnp.concatenate([x, x_test])
    metric = learning_rates(model)
    taylor = taylorize(model, 2)
    kernel = ntk(model, points, x, metric=metric)
    n, k = y.shape
    lambda_max = float(jnp.linalg.eigvalsh(kernel[:n].reshape(n * k, n * k))[-1]) / n
    ts = jnp.asarray(config.solved_times) / lambda_max
    tolerances = {"rtol": config.rtol, "atol": config.atol, "throw": False}

    def frozen_kernel() -> Trajectory:
        f0 = jax.vmap(model)(points)
        return gradient_flow(
            kernel[:n],
            y,
            ts,
            loss=loss,
            f0=f0[:n],
            kernel_test=kernel[n:],
            f0_test=f0[n:],
            **tolerances,
        )

    solves: dict[str, Callable[[], Trajectory]] = {
        NETWORK: lambda: parameter_flow(
            model, x, y, ts, loss=loss, x_test=x_test, metric=metric, **tolerances
        ),
        "frozen NTK": frozen_kernel,
        "O_3 hierarchy": lambda: hierarchy_flow(
            model,
            x,
            y,
            ts,
            loss=loss,
            order=3,
            method=config.method,
            x_test=x_test,
            metric=metric,
            **tolerances,
        ),
        "Taylor 2": lambda: parameter_flow(
            taylor,
            x,
            y,
            ts,
            loss=loss,
            x_test=x_test,
            metric=eqx.tree_at(lambda t: t.model, eqx.filter(taylor, eqx.is_inexact_array), metric),
            **tolerances,
        ),
    }
    trajectories = {}
    for name, solve in solves.items():
        started(name)
        trajectories[name] = jax.block_until_ready(solve())
    return CellResult(lambda_max, trajectories)
