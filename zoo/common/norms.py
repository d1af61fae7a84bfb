"""Euclidean norms that neither overflow nor underflow where their squares would."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def largest_magnitude(
    array: Float[Array, "..."], axis: int | None = None, *, keepdims: bool = False
) -> Float[Array, "..."]:
    """The largest absolute value, 1 where that is 0 or not finite: to divide by. It has no
    derivative.
    """
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(array)), axis=axis, keepdims=keepdims)
    return jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)


def power_of_two(array: Float[Array, "..."]) -> Float[Array, "..."]:
    """For each number the power of two next above its magnitude, 1 for 0: to divide by without
    rounding. It has no derivative.
    """
    fraction, exponent = jnp.frexp(jax.lax.stop_gradient(array))
    del fraction
    return jnp.ldexp(jnp.ones_like(array), exponent)


def norm(
    array: Float[Array, "..."], axis: int | None = None, *, keepdims: bool = False
) -> Float[Array, "..."]:
    """|a| of all numbers, or along an axis; its derivative at 0 is 0."""
    scale = largest_magnitude(array, axis, keepdims=True)
    square = jnp.sum((array / scale) ** 2, axis=axis, keepdims=True)
    zero = square == 0
    found = scale * jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))
    return found if keepdims else jnp.squeeze(found, axis)
