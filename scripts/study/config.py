"""What a study is: every choice, typed, checked before any work."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from scripts.run_folder import check_name
from scripts.runtime import Precision
from solvers import CrossEntropy, Loss, MeanSquaredError
from solvers.comparison import NETWORK, Prediction
from zoo import ACTIVATIONS, checks, DATASETS, PARAMETERIZATIONS

LOSSES: dict[str, Loss] = {
    "cross_entropy": CrossEntropy(),
    "mean_squared_error": MeanSquaredError(),
}

PREDICTIONS: dict[str, Prediction] = {
    "frozen NTK": "order 2",
    "O_3 hierarchy": "order 3",
    "O_4 hierarchy": "order 4",
    "Taylor 2": "Taylor 2",
}
"""What a study calls the predictions of `solvers.compare_predictions`."""

_TIMES = tuple(round(float(t), 4) for t in np.geomspace(0.1, 20, 24))


@dataclass(frozen=True)
class StudyConfig:
    """Trains real networks and predicts their test outputs, over widths and parameterizations.

    Times are in units of 1/lambda_max: the largest eigenvalue of the initial tangent kernel of the
    training points divided by their number, the rate at which squared loss learns its fastest mode.
    """

    name: str | None = None
    """Name of the run, and of its folder under `out` (default: data set and time of day)."""
    out: Path = Path("runs")
    """Where runs are kept."""
    dataset: str = "digits"
    """Data set: a name that `zoo.load` knows, or a .npz file."""
    root: Path | None = None
    """Folder of the data set's files (digits need none)."""
    classes: tuple[int, ...] = (0, 1, 2)
    """Labels to keep."""
    n_train: int = 24
    """Number of training images, spread over the classes."""
    n_test: int = 24
    """Number of test images, spread over the classes."""
    data_seed: int = 0
    """Seed of the split of the data."""
    widths: tuple[int, ...] = (64, 160, 400, 1024)
    """Widths of the hidden layers."""
    depth: int = 2
    """Number of hidden layers."""
    activation: str = "tanh"
    """Activation; smooth, for the corrections to be defined."""
    weight_std: float = 2**0.5
    """sigma_w of every layer."""
    parameterizations: tuple[str, ...] = ("NTK", "STANDARD")
    """Parameterizations to compare, each at its own learning rates (`zoo.learning_rates`)."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of the initial parameters."""
    loss: str = "cross_entropy"
    """Loss: cross_entropy or mean_squared_error."""
    predictions: tuple[str, ...] = tuple(PREDICTIONS)
    """Predictions of the network: the hierarchy of orders 2 (the frozen NTK) to 4, Taylor model."""
    times: tuple[float, ...] = _TIMES
    """Times to compare at, in units of 1/lambda_max."""
    reference_time: float = 1.0
    """The time that the table and the width plot are drawn at, in units of 1/lambda_max."""
    method: Literal["matrix_free", "dense"] = "matrix_free"
    """How the hierarchy is solved; both give the same numbers."""
    rtol: float = 1e-7
    """Relative tolerance of every flow."""
    atol: float = 1e-10
    """Absolute tolerance of every flow."""
    precision: Precision = "float64"
    """Floating-point type of everything."""

    def check(self) -> None:
        """**Raises:** `ValueError` that names the field, what came and what was expected."""
        for field in ("classes", "widths", "parameterizations", "seeds", "predictions", "times"):
            checks.distinct(field, getattr(self, field))
        for width in self.widths:
            checks.integer("widths", width)
        for field in ("depth", "n_train", "n_test"):
            checks.integer(field, getattr(self, field))
        for seed in self.seeds:
            checks.integer("seeds", seed, least=0)
        checks.integer("data_seed", self.data_seed, least=0)
        if not self.dataset.endswith(".npz"):
            checks.choice("dataset", self.dataset, DATASETS)
        for parameterization in self.parameterizations:
            checks.choice("parameterizations", parameterization, PARAMETERIZATIONS)
        for prediction in self.predictions:
            checks.choice("predictions", prediction, PREDICTIONS)
        checks.choice("activation", self.activation, ACTIVATIONS)
        checks.choice("loss", self.loss, LOSSES)
        checks.choice("method", self.method, ("matrix_free", "dense"))
        checks.choice("precision", self.precision, ("float32", "float64"))
        for field in ("weight_std", "rtol", "atol", "reference_time"):
            checks.nonnegative_number(field, getattr(self, field), strictly=True)
        for time in self.times:
            checks.nonnegative_number("times", time)
        if list(self.times) != sorted(self.times):
            raise ValueError(f"`times` is {self.times!r}, expected increasing times.")
        if len(self.classes) < 2:
            raise ValueError(
                f"`classes` is {self.classes!r}, expected at least two labels to tell apart."
            )
        check_name(self.name)

    @property
    def solves(self) -> tuple[str, ...]:
        """The network, then its predictions."""
        return (NETWORK, *self.predictions)

    @property
    def solved_times(self) -> tuple[float, ...]:
        """`times` with 0 and the reference time among them."""
        return tuple(sorted({0.0, self.reference_time, *self.times}))
