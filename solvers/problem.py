"""A model, its data and its loss, checked before any work."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, PyTree, Shaped

from corrections.parameters import check_metric, check_model, Metric, Model
from solvers.losses import check_targets, LossFunction
from solvers.result import check_times
from zoo.common.examples import checked_batch, count, joined, like_examples


class Problem(NamedTuple):
    """What a flow of a model starts from: arrays that fit the model and each other."""

    x: PyTree[Shaped[Array, "n ..."]]
    y: Float[Array, "n k"]
    x_test: PyTree[Shaped[Array, "m ..."]] | None
    ts: Float[Array, " t"]

    @property
    def points(self) -> PyTree[Shaped[Array, "points ..."]]:
        """Training points, then test points."""
        return self.x if self.x_test is None else joined(self.x, self.x_test)

    @property
    def sets(self) -> tuple[PyTree, ...]:
        """Training points and, if there are any, test points."""
        return (self.x,) if self.x_test is None else (self.x, self.x_test)


def check_problem(
    model: Model,
    x: Any,
    y: Any,
    ts: Any,
    *,
    loss: LossFunction,
    x_test: Any,
    metric: Metric | None,
    forward_mode: bool = False,
) -> Problem:
    """The arguments as a `Problem`, the targets in the dtype of the model's outputs.

    `forward_mode`: as in `corrections.parameters.check_outputs`.

    **Raises:** `ValueError` / `TypeError` that names the argument which does not fit.
    """
    ts = check_times(ts)
    x = checked_batch("x", x)
    outputs = check_model(model, "x", x, forward_mode=forward_mode)
    (k,) = outputs.shape
    y = check_targets(
        loss,
        y,
        (count(x), k),
        because="a row for each example of `x`, a column for each output of `model`",
    )
    if x_test is not None:
        x_test = checked_batch("x_test", x_test)
        check_model(model, "x_test", x_test, outputs=outputs)
        like_examples("x_test", x_test, "x", x)
    check_metric(model, metric)
    return Problem(x=x, y=y.astype(outputs.dtype), x_test=x_test, ts=ts)


def check_matrix_free_only(dense: bool, **options: Any) -> None:
    """**Raises:** `ValueError` where one of the options was given with `method="dense"`."""
    for name, value in options.items():
        if dense and value is not None:
            raise ValueError(
                f'`{name}` was given with `method="dense"`, expected `method="matrix_free"`.'
            )
