"""The losses of a study by their names."""

from solvers import CrossEntropy, Loss, MeanSquaredError

_LOSSES: dict[str, Loss] = {
    "cross_entropy": CrossEntropy(),
    "mean_squared_error": MeanSquaredError(),
}


def loss_named(name: str) -> Loss:
    """The loss that a config calls so."""
    return _LOSSES[name]
