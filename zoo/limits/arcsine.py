r"""The arcsine of a correlation, as fast as the arithmetic around it.

XLA's inverse trigonometric functions are not vectorized on CPU: they would take longer than all
else in the dual of an activation. This one is a polynomial and a root, with derivatives of its own.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@jax.custom_jvp
def arcsine(
    x: Float[Array, "..."], root: Float[Array, "..."], gap: Float[Array, "..."]
) -> Float[Array, "..."]:
    """(2/pi) asin(x / root), given gap = 1 - (x / root)^2 >= 0 without cancellation.

    Exactly 1 and -1 where gap is 0; 0 where root is. There the derivative is 0 (it is infinite).
    """
    defined = root > 0
    root = jnp.where(defined, root, 1)
    size = jnp.abs(x)
    rho = size / root
    inner = rho <= 0.5
    # asin(rho) = pi/2 - 2 asin(sqrt((1 - rho) / 2)); both arguments end at 1/2.
    half = gap / (2 * (1 + rho))
    square = jnp.where(inner, rho * rho, half)
    argument = jnp.where(inner, rho, safe_sqrt(half))
    value = argument * _polynomial(square)
    angle = jnp.where(inner, value, 1 - 2 * value)
    return jnp.where(defined, jnp.where(x < 0, -angle, angle), 0)


@arcsine.defjvp
def _arcsine_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, root, gap), (dx, droot, _) = primals, tangents
    regular = (gap > 0) & (root > 0)
    root = jnp.where(regular, root, 1)
    slope = jnp.where(regular, 2 / math.pi / jnp.sqrt(jnp.where(regular, gap, 1)), 0)
    return arcsine(*primals), slope * (dx / root - x / root * (droot / root))


def safe_sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The root, with the derivative 0 at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def _polynomial(square: Array) -> Array:
    """(2/pi) asin(sqrt(z)) / sqrt(z) on [0, 1/4]."""
    u = 8 * square - 1
    first, *rest = reversed(_coefficients(7 if u.dtype == jnp.float32 else 14))
    total = jnp.full_like(u, first)
    for coefficient in rest:
        total = total * u + coefficient
    return total


@functools.cache
def _coefficients(terms: int) -> tuple[float, ...]:
    """Of powers of u = 8 z - 1: the interpolant in Chebyshev's points, good to 14^-terms."""
    points = np.polynomial.chebyshev.chebpts1(terms)
    roots = np.sqrt((points + 1) / 8)
    values = 2 / np.pi * np.arcsin(roots) / roots
    fitted = np.polynomial.chebyshev.chebfit(points, values, terms - 1)
    return tuple(float(c) for c in np.polynomial.chebyshev.cheb2poly(fitted))
