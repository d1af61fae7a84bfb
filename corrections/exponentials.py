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

import itertools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

_TERMS = 18
"""Of the series of exp where all nodes are within 1 of each other: 1 / 18! is 2e-16."""


@jax.custom_jvp
def divided_exponential(nodes: tuple[Array, ...], t: Array) -> Array:
    """w_r(z_0, .., z_r; t) for r + 1 nodes >= 0 that broadcast, at a finite time t >= 0."""
    common = jnp.broadcast_arrays(*nodes)
    if len(nodes) == 1:
        return jnp.exp(-common[0] * t)
    if len(nodes) == 2:
        low, gap = jnp.minimum(*common), jnp.abs(common[0] - common[1])
        return _of_two(low, gap, t)
    ordered = jnp.sort(jnp.stack(common), axis=0)
    table = [_of_two(a, b - a, t) for a, b in itertools.pairwise(ordered)]
    for order in range(2, len(nodes)):
        table = [
            _next(ordered[i : i + order + 1], table[i], table[i + 1], t)
            for i in range(len(nodes) - order)
        ]
    return table[0]


@divided_exponential.defjvp
def _derivative(
    primals: tuple[tuple[Array, ...], Array], tangents: tuple[tuple[Array, ...], Array]
) -> tuple[Array, Array]:
    nodes, t = primals
    moved, dt = tangents
    value = divided_exponential(nodes, t)
    in_time = -nodes[0] * value
    if len(nodes) > 1:
        in_time = in_time + divided_exponential(nodes[1:], t)
    tangent = in_time * dt
    for node, direction in zip(nodes, moved, strict=True):
        tangent = tangent - divided_exponential((*nodes, node), t) * direction
    return value, tangent


def _of_two(low: Array, gap: Array, t: Array) -> Array:
    """w_1(low, low + gap; t) for gap >= 0."""
    apart = gap > 0
    safe = jnp.where(apart, gap, 1)
    return jnp.exp(-low * t) * jnp.where(apart, -jnp.expm1(-safe * t) / safe, t)


def _next(ordered: Array, without_last: Array, without_first: Array, t: Array) -> Array:
    """The difference of one order more, from the two of all nodes but one: their difference where
    the nodes lie apart, else the series, whose coefficients are the complete homogeneous
    polynomials of the nodes.
    """
    order = len(ordered) - 1
    low, width = ordered[0], ordered[-1] - ordered[0]
    near = width * t < 1
    far = (without_last - without_first) / jnp.where(near, 1, width)
    steps = jnp.where(near[None], -(ordered - low[None]) * t, 0)
    homogeneous = [jnp.ones_like(low)] * len(ordered)
    series, coefficient = jnp.ones_like(low), 1.0
    for term in range(1, _TERMS):
        # Of degree `term` in the first nodes: that in one node less, and one degree less times it.
        moved = jnp.zeros_like(low)
        following = []
        for step, before in zip(steps, homogeneous, strict=True):
            moved = moved + step * before
            following.append(moved)
        homogeneous = following
        coefficient /= term + order
        series = series + coefficient * homogeneous[-1]
    # t^r e^{-low t} in one, of which the first alone may overflow.
    positive = jnp.where(t > 0, t, 1)
    scale = jnp.where(t > 0, jnp.exp(order * jnp.log(positive) - low * t), 0)
    return jnp.where(near, scale * series / math.factorial(order), far)
