r"""Products of gradients from their factors, without the gradients.

A layer that is affine in its weights, z = W a + b at each position p, gives an example the gradient
sum_p delta_p (x) a_p, where a_p is what enters the position and delta_p = df/dz_p. So (theory,
section 3)

    <g_1, g_2> = sum_pq (a_1p . a_2q) (delta_1p . delta_2q)      pairs of positions, or
               = <sum_p delta_1p (x) a_1p, sum_q delta_2q (x) a_2q>          gradients,

whichever takes fewer operations. A dense layer has one position: its gradients are never formed. A
convolution has one for each position of its output.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Factors(NamedTuple):
    """The gradients of an example's k outputs. `vmap` adds axes in front.

    - `inputs`: for each ruled layer a, (positions, in), times the weight's multiplier.
    - `cotangents`: for each ruled layer delta, (k, positions, out); without k for one output.
    - `rest`: the Jacobian of the parameters that no rule covers, (k, parameters), likewise.
    """

    inputs: tuple[Array, ...]
    cotangents: tuple[Array, ...]
    rest: Array


ONE_OUTPUT = Factors(None, 0, 0)  # pyright: ignore[reportArgumentType]
"""The axes of `jax.vmap` over the outputs."""


def layer_product(
    a1: Float[Array, "p size"],
    delta1: Float[Array, "k p out"],
    a2: Float[Array, "q size"],
    delta2: Float[Array, "l q out"],
) -> Float[Array, "k l"]:
    """The product of the gradients of a layer's weight, for all pairs of outputs."""
    if _pairs_are_cheaper(delta1, a1, delta2, a2):
        return _summed(a1 @ a2.T, _pairs(delta1, delta2))
    return _gradients_product(_gradients(delta1, a1), _gradients(delta2, a2))


def layer_product_along(
    a1: Float[Array, "p size"],
    delta1: Float[Array, "k p out"],
    tangents: tuple[Float[Array, "p size"], Float[Array, "k p out"]],
    a2: Float[Array, "q size"],
    delta2: Float[Array, "l q out"],
) -> Float[Array, "k l"]:
    """The derivative of `layer_product` where a1 and delta1 move along `tangents`."""
    a1_dot, delta1_dot = tangents
    if _pairs_are_cheaper(delta1, a1, delta2, a2):
        return _summed(a1_dot @ a2.T, _pairs(delta1, delta2)) + _summed(
            a1 @ a2.T, _pairs(delta1_dot, delta2)
        )
    moved = _gradients(delta1_dot, a1) + _gradients(delta1, a1_dot)
    return _gradients_product(moved, _gradients(delta2, a2))


def bias_product(
    delta1: Float[Array, "k p out"], delta2: Float[Array, "l q out"]
) -> Float[Array, "k l"]:
    """The product of the gradients of a layer's bias, for all pairs of outputs."""
    return jnp.sum(delta1, axis=1) @ jnp.sum(delta2, axis=1).T


def along_direction(
    a: Float[Array, "p size"],
    delta: Float[Array, "k p out"],
    a_c: Float[Array, "r size"],
    delta_c: Float[Array, "r out"],
) -> tuple[Float[Array, "p out"], Float[Array, "k p size"]]:
    """V a_p and V^T delta_p for the direction V = sum_r delta_c (x) a_c of a layer's weight.

    The direction is formed only where that takes fewer operations.
    """
    (positions, size), out = a_c.shape, delta_c.shape[-1]
    if positions * (size + out) <= size * out:
        return (a @ a_c.T) @ delta_c, (delta @ delta_c.T) @ a_c
    direction = delta_c.T @ a_c
    return a @ direction.T, delta @ direction


def _pairs_are_cheaper(delta1: Array, a1: Array, delta2: Array, a2: Array) -> bool:
    """Whether products of all pairs of positions take fewer operations than those of gradients."""
    (k1, p1, out), (k2, p2, _), size = delta1.shape, delta2.shape, a1.shape[-1]
    return p1 * p2 * (size + k1 * k2 * out) <= k1 * k2 * out * size


def _pairs(delta1: Array, delta2: Array) -> Float[Array, "k p l q"]:
    return jnp.tensordot(delta1, delta2, axes=(2, 2))


def _summed(inputs: Float[Array, "p q"], cotangents: Float[Array, "k p l q"]) -> Array:
    return jnp.sum(inputs[None, :, None, :] * cotangents, axis=(1, 3))


def _gradients(delta: Float[Array, "k p out"], a: Float[Array, "p size"]) -> Array:
    return jnp.tensordot(delta, a, axes=(1, 0))


def _gradients_product(first: Array, second: Array) -> Float[Array, "k l"]:
    return first.reshape(first.shape[0], -1) @ second.reshape(second.shape[0], -1).T
