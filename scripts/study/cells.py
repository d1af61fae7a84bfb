"""The cells of a study: which networks there are, without any of them."""

from dataclasses import dataclass
from typing import Any

from scripts.study.config import StudyConfig


@dataclass(frozen=True)
class Family:
    """Networks that differ in parameterization, width and seed."""

    architecture: str
    """Its name."""
    depth: int
    activation: str

    @property
    def label(self) -> str:
        """The name in the results: the number is the depth, of MLP and CNN the hidden layers."""
        return f"{self.architecture}-{self.depth}"


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
        Family(architecture.name, depth, activation)
        for architecture in config.networks
        for depth in config.depths_of(architecture.name)
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
        for i, width in enumerate(config.widths_of(family.architecture))
    ]


def _rotated(names: tuple[str, ...], by: int) -> tuple[str, ...]:
    by %= len(names)
    return names[by:] + names[:by]
