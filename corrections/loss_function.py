"""Losses, as far as derivatives of a network need them: functions of one example.

A loss takes the outputs f (k,) and the target y (k,) of an example and gives a scalar; what is
descended is its mean over examples. `solvers` has some; any function of that kind is one.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.common import checks

LossFunction = Callable[[Array, Array], Array]
"""Per example: outputs (k,), target (k,) -> scalar."""


def target_array(y: Any, shape: tuple[int, int], *, because: str) -> Float[Array, "n k"]:
    """`y` as targets of the shape (n, k) that they have `because` of something.

    As outputs are, targets of a number are k = 1, (n,), and those of more axes are read in C order.

    **Raises:** `TypeError` for integer labels; `ValueError` for targets of another shape, or that
    are not finite.
    """
    targets = checks.real_array(
        "y", y, expected=f"targets {shape}, one-hot rows for a classification"
    )
    if targets.shape[:1] == shape[:1] and targets.size == math.prod(shape):
        targets = targets.reshape(shape)
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
    expected = "a function (f (k,), y (k,)) -> scalar, such as `CrossEntropy()`"
    checks.function("loss", loss, expected)
    targets = target_array(y, shape, because=because)
    check_scalar("loss", loss, targets, (jnp.floating,))
    return targets


def check_scalar(
    name: str, loss: LossFunction, y: Float[Array, "n k"], kinds: tuple[Any, ...]
) -> None:
    """**Raises:** `TypeError` where the argument `name` is no function of the outputs and the
    target of one example that gives a scalar of one of the `kinds`.
    """
    checks.function(name, loss, "a function (f (k,), y (k,)) -> scalar")
    row = jax.ShapeDtypeStruct(y.shape[1:], y.dtype)
    try:
        value = jax.eval_shape(loss, row, row)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` does not take the outputs and the target of one example, {row.shape} each: "
            f"{error}"
        ) from error
    is_scalar = isinstance(value, jax.ShapeDtypeStruct) and value.shape == ()
    if not is_scalar or not any(jnp.issubdtype(value.dtype, kind) for kind in kinds):
        raise TypeError(
            f"`{name}(f, y)` gives {value} for the outputs and the target of one example, expected "
            "a real scalar (the sum over outputs, say)."
        )
