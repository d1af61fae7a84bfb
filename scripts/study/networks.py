"""The networks of a study: which there are, and how each is made."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from scripts import runtime
from scripts.study.config import StudyConfig
from zoo import (
    astype,
    CNN,
    Dataset,
    learning_rates,
    MLP,
    NTK,
    PARAMETERIZATIONS,
    reparameterize,
    WideResNet,
)


@dataclass(frozen=True)
class Family:
    """Networks that differ in parameterization, width and seed."""

    kind: str
    """MLP, CNN or WideResNet."""
    depth: int
    activation: str

    @property
    def label(self) -> str:
        """The name in the results: of MLP and CNN the number counts hidden layers."""
        return f"{self.kind}-{self.depth}"


@dataclass(frozen=True)
class Cell:
    """One network of a study, trained with one loss."""

    family: Family
    loss: str
    parameterization: str
    width: int
    seed: int

    @property
    def at(self) -> dict[str, Any]:
        """Where it stands in the results."""
        return {
            "architecture": self.family.label,
            "activation": self.family.activation,
            "loss": self.loss,
            "parameterization": self.parameterization,
            "width": self.width,
            "seed": self.seed,
        }

    def __str__(self) -> str:
        return " ".join(
            [
                self.family.label,
                self.family.activation,
                self.loss,
                self.parameterization,
                f"width {self.width}",
                f"seed {self.seed}",
            ]
        )


def families(config: StudyConfig) -> list[Family]:
    """All families of a study."""
    return [
        Family(kind, depth, activation)
        for kind in config.architectures
        for depth in (config.resnet_depths if kind == "WideResNet" else config.depths)
        for activation in config.activations
    ]


def groups(config: StudyConfig) -> list[list[Cell]]:
    """All cells, those together that share their compiled programs.

    The groups of a family start with different parameterizations, so that devices that compute
    them at once do not wait for the same kernel of infinite width.
    """
    return [
        [
            Cell(family, loss, parameterization, width, seed)
            for loss in config.losses
            for seed in config.seeds
            for parameterization in _rotated(config.parameterizations, i)
        ]
        for family in families(config)
        for i, width in enumerate(config.widths_of(family.kind))
    ]


def _rotated(names: tuple[str, ...], by: int) -> tuple[str, ...]:
    by %= len(names)
    return names[by:] + names[:by]


class Network(NamedTuple):
    """A network at its start.

    - `model`: written in NTK parameterization, whatever its own is: all parameterizations share
      their compiled programs then.
    - `metric`: the learning rates under which it trains as in its own parameterization.
    """

    model: Any
    metric: Any


def draw(config: StudyConfig, data: Dataset, cell: Cell) -> Network:
    """Makes the network of a cell: drawn in float32, so that it is the same in both precisions."""
    own = PARAMETERIZATIONS[cell.parameterization]
    with runtime.single_precision():
        drawn = _module(config, data, cell)
    model = reparameterize(astype(drawn, data.x_train.dtype), NTK)
    rates = learning_rates(model, equivalent_to=own)
    dtype = data.x_train.dtype
    return Network(model, jax.tree.map(lambda rate: jnp.asarray(rate, dtype), rates))


def prototype(config: StudyConfig, data: Dataset, cell: Cell) -> Any:
    """The network in its own parameterization, of shapes without numbers: what `limit` asks."""
    return eqx.filter_eval_shape(lambda: _module(config, data, cell))


def _module(config: StudyConfig, data: Dataset, cell: Cell) -> Any:
    shape, outputs = data.x_train.shape[1:], data.y_train.shape[1]
    family = cell.family
    options: dict[str, Any] = {
        "depth": family.depth,
        "activation": family.activation,
        "parameterization": PARAMETERIZATIONS[cell.parameterization],
        "weight_std": config.weight_std,
        "bias_std": config.bias_std or None,
        "key": jr.fold_in(jr.key(cell.seed), cell.width),
    }
    if family.kind == "MLP":
        return MLP(int(np.prod(shape)), outputs, width=cell.width, **options)
    if family.kind == "CNN":
        readout = config.cnn_readout
        return CNN(shape, outputs, channels=cell.width, readout=readout, **options)
    norm = None if config.resnet_norm == "none" else config.resnet_norm
    return WideResNet(shape, outputs, base_channels=cell.width, norm=norm, **options)
