"""Counts of steps, exact whatever the precision of what they are shown in."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from solvers.result import check_increasing
from zoo.common import checks

_MOST = 2**62


class StepCounts(eqx.Module):
    """Increasing counts of steps.

    - `shown`: as a trajectory shows them, in its floating type.
    - `bits`: of each count, the lowest first: no count is too large for them.
    """

    shown: Float[Array, " t"]
    bits: Bool[Array, "t bits"]

    def as_integers(self) -> Int[Array, " t"]:
        """The counts as integers, for loops over steps.

        **Raises:** `ValueError` for more steps than JAX's default integers hold.
        """
        integer = jnp.asarray(0).dtype  # 32 bits or 64
        most = jnp.iinfo(integer).bits - 1
        if self.bits.shape[1] > most and np.any(np.asarray(self.bits[:, most:])):
            raise ValueError(
                f"`steps` holds a count of 2^{most} or more, expected fewer: they are taken one by "
                "one (`mse_descent` takes any number at once)."
            )
        bits = self.bits[:, :most]
        powers = jnp.left_shift(jnp.ones((), integer), jnp.arange(bits.shape[1], dtype=integer))
        return jnp.sum(jnp.where(bits, powers[None], 0), axis=1)


def check_steps(steps: Any) -> StepCounts:
    """`steps` as increasing counts of steps.

    **Raises:** `TypeError` / `ValueError` unless they are whole numbers >= 0 that increase.
    """
    if checks.concrete(steps) is None:
        return _traced(steps)
    values = np.asarray(steps)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"`steps` has shape {values.shape}, expected counts of steps (t,).")
    if values.dtype.kind not in "iuf":
        raise TypeError(f"`steps` has dtype {values.dtype}, expected whole numbers >= 0.")
    if not np.all(np.isfinite(values)) or np.any(values != np.round(values)):
        raise ValueError(f"`steps` is {values}, expected whole numbers >= 0.")
    if values.min() < 0 or values.max() >= _MOST:
        raise ValueError(f"`steps` is {values}, expected whole numbers from 0 to 2^62.")
    exact = values.astype(np.int64)
    if np.any(np.diff(exact) <= 0):
        raise ValueError(f"`steps` is {values}, expected strictly increasing numbers >= 0.")
    count = max(1, int(exact.max()).bit_length())
    bits = (exact[:, None] >> np.arange(count)) & 1 == 1
    return StepCounts(jnp.asarray(exact.astype(float)), jnp.asarray(bits))


def _traced(steps: Any) -> StepCounts:
    """Counts that are not known yet: as exact as their type is."""
    shown = check_increasing("steps", steps, expected="counts of steps (t,)")
    given = jnp.asarray(steps)
    if jnp.issubdtype(given.dtype, jnp.integer):
        shifts = jnp.arange(jnp.iinfo(given.dtype).bits - 1, dtype=given.dtype)
        bits = jnp.bitwise_and(jnp.right_shift(given[:, None], shifts[None]), 1) == 1
    else:
        powers = 2.0 ** jnp.arange(62, dtype=shown.dtype)
        bits = jnp.mod(jnp.floor(shown[:, None] / powers[None]), 2) == 1
    return StepCounts(shown, bits)
