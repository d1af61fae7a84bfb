r"""Losses: functions of one example's outputs f (k,) and target y (k,).

L = 1/D sum_examples l(f(x), y),       g = dL/df      (the residual carries the 1/D)
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from corrections import loss_function
from corrections.loss_function import LossFunction
from zoo import checks


class Loss(eqx.Module):
    """A loss that also knows which targets it accepts."""

    @abc.abstractmethod
    def __call__(self, f: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, ""]:
        """The loss of one example."""

    @abc.abstractmethod
    def check_targets(self, y: Float[Array, "n k"]) -> None:
        """**Raises:** `ValueError` where `y` is not a set of targets for this loss."""


class MeanSquaredError(Loss):
    """l(f, y) = 1/2 |f - y|^2, summed over outputs."""

    def __call__(self, f: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, ""]:
        return 0.5 * jnp.sum((f - y) ** 2)

    def check_targets(self, y: Float[Array, "n k"]) -> None:
        """Any finite targets will do."""


class CrossEntropy(Loss):
    """l(f, y) = - sum_k y_k log softmax(f)_k with y smoothed to (1 - s) y + s / k.

    **Arguments:**

    - `label_smoothing`: s in [0, 1).

    **Raises:** `ValueError` for a smoothing outside [0, 1).
    """

    label_smoothing: float = eqx.field(static=True, default=0.0)

    def __check_init__(self) -> None:
        checks.nonnegative_number("label_smoothing", self.label_smoothing)
        if self.label_smoothing >= 1:
            raise ValueError(
                f"`label_smoothing` is {self.label_smoothing!r}, expected a number in [0, 1)."
            )

    def __call__(self, f: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, ""]:
        s = self.label_smoothing
        return -jnp.sum(((1 - s) * y + s / y.shape[-1]) * jax.nn.log_softmax(f))

    def check_targets(self, y: Float[Array, "n k"]) -> None:
        """**Raises:** `ValueError` unless each row of `y` holds probabilities of two classes or
        more, which sum to 1.
        """
        if y.shape[-1] < 2:
            raise ValueError(
                f"`y` has shape {y.shape}, expected a column for each of at least two classes: "
                "CrossEntropy of one class is constant."
            )
        values = checks.concrete(y)
        if values is None:
            return
        off = np.flatnonzero(
            np.any(values < 0, axis=-1) | (np.abs(np.sum(values, axis=-1) - 1) > 1e-4)
        )
        if off.size:
            raise ValueError(
                f"`y` does not hold labels for CrossEntropy: row {off[0]} is "
                f"{np.array2string(values[off[0]], threshold=10)} ({off.size} of {len(values)} "
                "rows like it), expected probabilities, a one-hot row say: entries >= 0 that sum "
                "to 1."
            )


def mean_loss(
    loss: LossFunction, f: Float[Array, "n k"], y: Float[Array, "n k"]
) -> Float[Array, ""]:
    """L = 1/D sum_examples l(f, y)."""
    return jnp.mean(jax.vmap(loss)(f, y))


def residual(
    loss: LossFunction, f: Float[Array, "n k"], y: Float[Array, "n k"]
) -> Float[Array, "n k"]:
    """G = dL/df, the 1/D included."""
    return jax.vmap(jax.grad(loss))(f, y) / f.shape[0]


def check_targets(
    loss: LossFunction, y: Any, shape: tuple[int, int], *, because: str
) -> Float[Array, "n k"]:
    """`y` as targets for `loss`, of the shape (n, k) that they have `because` of something.

    **Raises:** as `corrections.loss_function.check_targets`; `ValueError` for targets that `loss`
    does not accept.
    """
    targets = loss_function.check_targets(loss, y, shape, because=because)
    if isinstance(loss, Loss):
        loss.check_targets(targets)
    return targets
