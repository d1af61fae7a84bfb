r"""Learning-rate multipliers for any optimiser of optax.

u  ->  M u,       M a constant non-negative diagonal on the parameters
"""

from typing import Any

import optax

from corrections.parameters import check_metric, Metric, precondition


def scale_by_metric(metric: Metric) -> optax.GradientTransformation:
    """Multiplies updates by the metric M, as a transform of optax.

    `optax.chain(scale_by_metric(metric), optax.sgd(rate))` steps theta <- theta - rate M dL/dtheta,
    gradient descent under the kernel `ntk(model, x, metric=metric)`; with momentum too, which is
    linear in the gradient.

    What is before it in a chain sees the updates without M, what is after it sees them with M. Adam
    divides the scale of a gradient out, so M goes behind it, where it is a learning rate for each
    parameter: `optax.chain(optax.adam(rate), scale_by_metric(metric))`; and likewise for whatever
    normalizes. A clip of the gradient itself goes before it.

    **Arguments:**

    - `metric`: the learning-rate multipliers, a PyTree prefix of the parameters, such as
      `zoo.learning_rates(model)`: one number, or one array of its shape, a leaf.

    **Raises:** `ValueError` / `TypeError` in `.init(parameters)` for a metric that does not fit the
    parameters or has entries that are negative or not finite.
    """

    def init(params: Any) -> optax.EmptyState:
        check_metric(params, metric)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return precondition(metric, updates), state

    return optax.GradientTransformation(init, update)
