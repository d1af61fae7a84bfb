"""What a study has to know of its examples before it reads them."""

from dataclasses import dataclass
from typing import Any

from scripts.study.config import StudyConfig
from scripts.study.losses import LOSSES

_SHAPES = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
}


@dataclass(frozen=True)
class Examples:
    """The shape of an example, how many outputs a network has for it, and whether these are
    classes: else targets are numbers.
    """

    shape: tuple[int, ...]
    outputs: int
    has_classes: bool = True

    @classmethod
    def of(cls, data: Any) -> "Examples":
        """Those of a `zoo.Dataset`."""
        return cls(tuple(data.x_train.shape[1:]), data.y_train.shape[1], bool(data.classes))

    def check(self, config: StudyConfig) -> None:
        """**Raises:** `ValueError` where an architecture takes other examples, or a loss other
        targets.
        """
        for_images = [one.name for one in config.networks if one.takes_images]
        if len(self.shape) != 3 and for_images:
            raise ValueError(
                f"`architectures` has {for_images[0]!r}, which takes images, but the examples of "
                f"{config.dataset} have the shape {self.shape}, expected 'MLP', or a function of "
                "your own."
            )
        for_classes = [name for name in config.losses if not LOSSES[name].takes_numbers]
        if not self.has_classes and for_classes:
            others = [name for name, loss in LOSSES.items() if loss.takes_numbers]
            raise ValueError(
                f"`losses` has {for_classes[0]!r}, which takes classes, but the targets of "
                f"{config.dataset} are floating-point numbers, expected "
                f"{', '.join(map(repr, others))} alone. (Labels are integers.)"
            )


def by_name(config: StudyConfig) -> Examples | None:
    """Those of a data set that has a name; None of a file."""
    shape = _SHAPES.get(config.dataset)
    return None if shape is None else Examples(shape, len(config.classes))


def outlined(config: StudyConfig) -> Examples:
    """Those of a data set by its name, or by the headers and the targets of its file.

    **Raises:** as `read`, but for what is wrong with pixels.
    """
    found = by_name(config)
    if found is None:
        from zoo.data.load import outline

        read = outline(**_arguments(config))
        found = Examples(read.shape, read.outputs, bool(read.classes))
    found.check(config)
    return found


def read(config: StudyConfig) -> Any:
    """The `zoo.Dataset` of a study.

    **Raises:** as `zoo.load`.
    """
    from zoo import load

    return load(**_arguments(config))


def _arguments(config: StudyConfig) -> dict[str, Any]:
    from zoo.data.load import has_classes

    labelled = has_classes(config.dataset, config.root)
    return {
        "name": config.dataset,
        "root": config.root,
        "classes": config.classes if labelled else None,
        "n_train": config.n_train,
        "n_test": config.n_test,
        "seed": config.data_seed,
    }
