r"""Quadrature of functions of time that begin fast and become slow.

The intervals that time is cut into double in length away from t = 0, where the outputs move, and
away from its end, where e^{-lambda (end - s)} does. Each holds 16 Gauss nodes; they also give the
integral from the start of the interval to each of them, of the polynomial through all.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

NODES = 16

_SHORTEST = 2.0
"""An interval, in units of 1 / lambda_max: what is integrated has rates up to twice that."""


def gauss(dtype: jnp.dtype) -> tuple[Array, Array, Float[Array, "nodes nodes"]]:
    """Nodes and weights of [0, 1], and the weights of the integrals up to each node."""
    points, weights = np.polynomial.legendre.leggauss(NODES)
    # Coefficients of a polynomial in those of Legendre, from its values at the nodes.
    degrees = np.arange(NODES)
    values = np.polynomial.legendre.legvander(points, NODES - 1)
    coefficients = (degrees + 0.5)[:, None] * (values * weights[:, None]).T
    integrals = np.stack(
        [np.polynomial.legendre.legint(row, lbnd=-1) for row in np.eye(NODES)], axis=1
    )
    upto = np.polynomial.legendre.legvander(points, NODES) @ integrals @ coefficients
    return (
        jnp.asarray((points + 1) / 2, dtype),
        jnp.asarray(weights / 2, dtype),
        jnp.asarray(upto / 2, dtype),
    )


def edges(start: float, end: float, fastest: float) -> np.ndarray:
    """Edges of the intervals that [start, end] is cut into, for rates up to `fastest`."""
    shortest = _SHORTEST / fastest if fastest > 0 else math.inf
    found = [start]
    while (left := end - found[-1]) > 0:
        length = max(shortest, min(found[-1], left / 2))
        following = found[-1] + length
        # Shorter than what rounding tells from the last edge: nothing is left to be told apart.
        ends = length >= left * (1 - 1e-9) or following == found[-1]
        found.append(end if ends else following)
    return np.array(found)
