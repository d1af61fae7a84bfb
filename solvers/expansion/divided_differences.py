r"""Integrals of products of decaying exponentials, without cancellation.

With the divided difference of order r of exp at -z_0 t, .., -z_r t:

    w_r(z_0, .., z_r; t) = t^r exp[-z_0 t, .., -z_r t]

which is the integral of e^{-z_0 (t - t_1)} e^{-z_1 (t_1 - t_2)} .. over t >= t_1 >= .. >= t_r >= 0.
"""

import jax.numpy as jnp
from jaxtyping import Array

_TERMS = 16  # (1/2)^16 / 16! is 1e-18


def w1(z: Array, t: Array) -> Array:
    """w_1(0, z; t) = (1 - e^{-z t}) / z for z >= 0; t where z = 0, 1 / z at t = inf."""
    positive = z > 0
    safe = jnp.where(positive, z, 1)
    return jnp.where(positive, -jnp.expm1(-safe * t) / safe, t)


def w2(a: Array, b: Array, t: Array) -> Array:
    """w_2(0, a, a + b; t) for a, b >= 0 and finite t.

    Where (a + b) t is above 1/2 it is a difference of two of first order, below that the series of
    exp, whose coefficients are the complete homogeneous polynomials of the nodes.
    """
    y, z = -a * t, -(a + b) * t
    near = z > -0.5
    y_far, z_far = jnp.where(near, -1, y), jnp.where(near, -2, z)
    far = (_first(0 * y_far, y_far) - _first(y_far, z_far)) / -z_far
    y_near, z_near = jnp.where(near, y, 0), jnp.where(near, z, 0)
    power = homogeneous = jnp.ones_like(y)
    coefficient, series = 0.5, 0.5 * jnp.ones_like(y)
    for j in range(1, _TERMS):
        power = power * y_near
        homogeneous = z_near * homogeneous + power
        coefficient /= j + 2
        series = series + coefficient * homogeneous
    return t**2 * jnp.where(near, series, far)


def _first(x: Array, y: Array) -> Array:
    """exp[x, y] for y <= x."""
    gap = y - x
    safe = jnp.where(gap < 0, gap, -1)
    return jnp.exp(x) * jnp.where(gap < 0, jnp.expm1(safe) / safe, 1)


def discount(z: Array, t: Array) -> Array:
    """e^{-z t} for z >= 0, where t may be inf: 1 at z = 0."""
    return jnp.where(z > 0, jnp.exp(-jnp.where(z > 0, z, 1) * t), 1)
