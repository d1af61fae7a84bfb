r"""Integrals of products of decaying exponentials: divided differences of the exponential.

With the divided difference of order r of exp at -z_0 t, .., -z_r t,

    w_r(z_0, .., z_r; t) = t^r exp[-z_0 t, .., -z_r t],      t < inf

is the integral of e^{-z_0 (t - t_1)} e^{-z_1 (t_1 - t_2)} .. e^{-z_r t_r} over t >= t_1 >= .. >= t_r >= 0:

    w_0(z) = e^{-z t},      w_1(0, z) = (1 - e^{-z t}) / z

It is symmetric in its nodes, and its derivatives are functions of the same kind:

    d w_r / d z_i = - w_{r+1}(z_0, .., z_i, z_i, .., z_r),
    d w_r / d t   = w_{r-1}(z_1, .., z_r) - z_0 w_r(z_0, .., z_r)

so that none of them is lost where nodes are equal or close.
"""  # noqa: E501

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from corrections.taylor.symbolic_zeros import is_zero

_TERMS = 18
"""Of the series of exp where all nodes are within 1 of each other: 1 / 18! is 2e-16."""


@jax.custom_jvp
def divided_exponential(nodes: tuple[Array, ...], t: Array) -> Array:
    """w_r(z_0, .., z_r; t) for r + 1 nodes >= 0 that broadcast, at a finite time t >= 0."""
    if len(nodes) == 1:
        return jnp.exp(-nodes[0] * t)
    ordered = jnp.stack(jnp.broadcast_arrays(*nodes))
    if len(nodes) > 2:
        ordered = jnp.sort(ordered, axis=0)
    else:  # which compiles faster
        ordered = jnp.stack([jnp.minimum(*ordered), jnp.maximum(*ordered)])
    table = _of_two(ordered[:-1], ordered[1:] - ordered[:-1], t)
    for order in range(2, len(nodes)):
        table = _next(ordered, table, order, t)
    return table[0]


def _derivative(primals: tuple[tuple[Array, ...], Array], tangents: Any) -> tuple[Array, Array]:
    nodes, t = primals
    moved, in_time = tangents
    value = divided_exponential(nodes, t)
    tangent = jnp.zeros_like(value)
    if not is_zero(in_time):
        slope = -nodes[0] * value
        if len(nodes) > 1:
            slope = slope + divided_exponential(nodes[1:], t)
        tangent = tangent + slope * in_time
    for node, direction in zip(nodes, moved, strict=True):
        if not is_zero(direction):
            tangent = tangent - divided_exponential((*nodes, node), t) * direction
    return value, tangent


divided_exponential.defjvp(_derivative, symbolic_zeros=True)


def _of_two(low: Array, gap: Array, t: Array) -> Array:
    """w_1(low, low + gap; t) for gap >= 0."""
    apart = gap > 0
    safe = jnp.where(apart, gap, 1)
    return jnp.exp(-low * t) * jnp.where(apart, -jnp.expm1(-safe * t) / safe, t)


def _next(ordered: Array, table: Array, order: int, t: Array) -> Array:
    """The differences of this order of neighbours, from those of one order less: their difference
    where the nodes lie apart, else the series, whose coefficients are the complete homogeneous
    polynomials of the nodes.
    """
    count = len(ordered) - order
    low, width = ordered[:count], ordered[order:] - ordered[:count]
    near = width * t < 1
    far = (table[:-1] - table[1:]) / jnp.where(near, 1, width)
    steps = [jnp.where(near, (low - ordered[i : i + count]) * t, 0) for i in range(order + 1)]

    def add(term: Array, carry: tuple[list[Array], Array, Array]) -> tuple[list, Array, Array]:
        homogeneous, coefficient, series = carry
        # Of one degree more in the first nodes: that in one node less, and this times the node.
        moved, following = jnp.zeros_like(low), []
        for step, before in zip(steps, homogeneous, strict=True):
            moved = moved + step * before
            following.append(moved)
        coefficient = coefficient / (term + order).astype(coefficient.dtype)
        return following, coefficient, series + coefficient * following[-1]

    one = jnp.ones_like(low)
    first = 1 / math.factorial(order)
    start = ([one] * (order + 1), jnp.asarray(first, low.dtype), one * first)
    _, _, series = jax.lax.fori_loop(1, _TERMS, add, start)
    # t^r e^{-low t} in one, of which the first alone may overflow.
    scale = jnp.where(t > 0, jnp.exp(order * jnp.log(jnp.where(t > 0, t, 1)) - low * t), 0)
    return jnp.where(near, scale * series, far)
