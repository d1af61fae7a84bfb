r"""Weights of decaying exponentials, at infinite times too (`corrections.symmetric`)."""

import jax.numpy as jnp
from jaxtyping import Array

from corrections.symmetric.exponentials import divided_exponential


def phi_1(z: Array, t: Array) -> Array:
    """The first phi function of -z t, times t: (1 - e^{-z t}) / z; t at z = 0, 1 / z at t = inf."""
    positive = z > 0
    safe = jnp.where(positive, z, 1)
    return jnp.where(positive, -jnp.expm1(-safe * t) / safe, t)


def w2(a: Array, b: Array, t: Array) -> Array:
    """w_2(0, a, a + b; t) for a, b >= 0 and finite t."""
    return divided_exponential((jnp.zeros_like(a), a, a + b), t)


def discount(z: Array, t: Array) -> Array:
    """e^{-z t} for z >= 0, where t may be inf: 1 at z = 0."""
    return jnp.where(z > 0, jnp.exp(-jnp.where(z > 0, z, 1) * t), 1)
