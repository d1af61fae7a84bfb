"""What a study has to know of its examples before it reads them."""

from dataclasses import dataclass
from typing import Any

from scripts.study.config import StudyConfig

_SHAPES = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
}


@dataclass(frozen=True)
class Examples:
    """The shape of an example, and how many outputs a network has for it."""

    shape: tuple[int, ...]
    outputs: int

    @classmethod
    def of(cls, data: Any) -> "Examples":
        """Those of a `zoo.Dataset`."""
        return cls(tuple(data.x_train.shape[1:]), data.y_train.shape[1])

    def check(self, config: StudyConfig) -> None:
        """**Raises:** `ValueError` where an architecture takes other examples."""
        refused = [one.name for one in config.networks if one.takes_images]
        if len(self.shape) != 3 and refused:
            raise ValueError(
                f"`architectures` has {refused[0]!r}, which takes images, but the examples of "
                f"{config.dataset} have the shape {self.shape}, expected 'MLP', or a function of "
                "your own."
            )


def by_name(config: StudyConfig) -> Examples | None:
    """Those of a data set that has a name; None of a file, which has to be read."""
    shape = _SHAPES.get(config.dataset)
    return None if shape is None else Examples(shape, len(config.classes))
