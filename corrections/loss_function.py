"""Losses, as far as derivatives of a network need them: functions of one example.

A loss takes the outputs f (k,) and the target y (k,) of an example and gives a scalar; what is
descended is its mean over examples. `solvers` has some; any function of that kind is one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo import checks

LossFunction = Callable[[Array, Array], Array]
"""Per example: outputs (k,), target (k,) -> scalar."""


def target_array(y: Any, shape: tuple[int, int], *, because: str) -> Float[Array, "n k"]:
    """`y` as targets of the shape (n, k) that they have `because` of something.

    **Raises:** `TypeError` for integer labels; `ValueError` for targets of another shape, or that
    are not finite.
    """
    targets = checks.real_array(
        "y", y, expected=f"targets {shape}, one-hot rows for a classification"
    )
    checks.shape("y", targets, shape, because=because)
    checks.finite("y", targets)
    return targets


def check_targets(
    loss: LossFunction, y: Any, shape: tuple[int, int], *, because: str
) -> Float[Array, "n k"]:
    """`target_array`, for a loss.

    **Raises:** as `target_array`; `TypeError` for a loss that is no function of the outputs and the
    target of one example.
    """
    if not callable(loss):
        raise TypeError(
            f"`loss` is {loss!r}, expected a function (f (k,), y (k,)) -> scalar, such as "
            "`CrossEntropy()`."
        )
    targets = target_array(y, shape, because=because)
    row = jax.ShapeDtypeStruct(shape[1:], targets.dtype)
    try:
        value = jax.eval_shape(loss, row, row)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`loss` does not take the outputs and the target of one example, {shape[1:]} each: "
            f"{error}"
        ) from error
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"`loss(f, y)` gives {value} for the outputs and the target of one example, expected a "
            "real scalar (the sum over outputs, say)."
        )
    return targets
