"""The losses of a study, each described once; what computes is built when it is asked for."""

import functools
import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StudyLoss:
    """A loss of the study.

    - `name`: in configs and results.
    - `kind`: the class of `solvers` that computes it.
    - `takes_numbers`: whether targets may be any numbers; else they are those of classes.
    - `has_closed_form`: whether the infinite ensemble's mean and covariance are known exactly.
    - `least_tolerance`: what the tolerances of flows are raised to.
    - `note`: what a reader of the report has to know of it.
    """

    name: str
    kind: str
    takes_numbers: bool = False
    has_closed_form: bool = False
    least_tolerance: float = 0.0
    note: str = ""

    @functools.cached_property
    def function(self) -> Any:
        """The `solvers.Loss`."""
        return getattr(importlib.import_module("solvers"), self.kind)()


LOSSES = {
    loss.name: loss
    for loss in (
        StudyLoss("cross_entropy", "CrossEntropy"),
        StudyLoss(
            "mean_squared_error", "MeanSquaredError", takes_numbers=True, has_closed_form=True
        ),
        StudyLoss("brier", "Brier"),
        StudyLoss(
            "hinge",
            "Hinge",
            # Flows slide along jumps of the gradient, in steps as small as the tolerance asks.
            least_tolerance=1e-4,
            note="The gradient of the hinge loss jumps where an example reaches its margin: its "
            "flows are held to a tolerance of 1e-4, and differences of logits below about 0.01 "
            "mean nothing.",
        ),
    )
}
"""All of them, by name."""
