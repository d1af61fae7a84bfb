"""What the expansions take, checked before any work."""

from typing import Any

from jaxtyping import ArrayLike, PyTree, Shaped

from corrections.parameters import check_pairs, Metric, Model, Pairs
from solvers.losses import MeanSquaredError
from solvers.problem import check_matrix_free_only, check_problem, Problem
from zoo.common import checks

PairsOfExamples = tuple[PyTree[Shaped[ArrayLike, "n1 ..."]], PyTree[Shaped[ArrayLike, "n2 ..."]]]


def check_expansion(
    model: Model,
    x: Any,
    y: Any,
    *,
    x_test: Any,
    metric: Metric | None,
    kernel_pairs: Any,
    batch_size: int | None,
    dense: bool,
) -> tuple[Problem, Pairs | None]:
    """The problem and the pairs of examples.

    **Raises:** `ValueError` / `TypeError` that names the argument which does not fit.
    """
    check_matrix_free_only(dense, kernel_pairs=kernel_pairs, batch_size=batch_size)
    batch_size = checks.integer_or_none("batch_size", batch_size)
    loss = MeanSquaredError()
    problem = check_problem(
        model, x, y, [0.0], loss=loss, x_test=x_test, metric=metric, forward_mode=True
    )
    return problem, check_pairs(model, kernel_pairs)
