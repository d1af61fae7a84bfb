"""What ends a flow before its last time: a loss, an accuracy, outputs that have settled."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.common import checks


class AtLoss(eqx.Module):
    """Stops where the training loss falls to `value`, at that very time (to the tolerance).

    **Raises:** `ValueError` for a value that is not a finite number >= 0.
    """

    value: float

    def __check_init__(self) -> None:
        checks.nonnegative_number("value", self.value)

    def margin(self, f: Float[Array, "n k"], y: Float[Array, "n k"], loss: Array) -> Array:
        """Passes through zero there."""
        return loss - self.value


class AtAccuracy(eqx.Module):
    """Stops after the step in which the share of training points whose largest output is that of
    their class (for one output: whose sign is that of their target) reaches `value`.

    **Raises:** `ValueError` for a value that is not in (0, 1].
    """

    value: float = 1.0

    def __check_init__(self) -> None:
        checks.nonnegative_number("value", self.value, strictly=True)
        if self.value > 1:
            raise ValueError(f"`value` is {self.value!r}, expected a share in (0, 1].")

    def margin(self, f: Float[Array, "n k"], y: Float[Array, "n k"], loss: Array) -> Array:
        """Whether it is reached."""
        return accuracy(f, y) >= self.value


class AtSteadyState(eqx.Module):
    """Stops where the outputs have settled: where some time t / 10 changes them by no more than
    their tolerance, once the slowest have had the time to move.
    """


Stop = AtLoss | AtAccuracy | AtSteadyState


def accuracy(f: Float[Array, "n k"], y: Float[Array, "n k"]) -> Float[Array, ""]:
    """The share of points whose largest output (one output: sign) is that of their target."""
    if f.shape[1] == 1:
        right = jnp.sign(f[:, 0]) == jnp.sign(y[:, 0])
    else:
        right = jnp.argmax(f, axis=1) == jnp.argmax(y, axis=1)
    return jnp.mean(right.astype(f.dtype))
