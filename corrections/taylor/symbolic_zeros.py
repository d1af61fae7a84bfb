"""What a tracer knows: whether a value has a tangent at all."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array


def is_zero(tangent: Any) -> bool:
    """Whether a tangent that a custom JVP rule is given is zero whatever the numbers."""
    return isinstance(tangent, SymbolicZero)


def noticing_tangents(a: Array, notice: Callable[[int], Any], order: int = 0) -> Array:
    """`a`, itself a derivative of this order; `notice` is told of the order of each derivative in
    turn that is not zero symbolically, while the program is traced.
    """

    @jax.custom_jvp
    def noticing(a: Array) -> Array:
        return a

    def jvp(primals: tuple[Array], tangents: tuple[Any]) -> tuple[Array, Array]:
        (a,), (tangent,) = primals, tangents
        value = noticing_tangents(a, notice, order)
        if is_zero(tangent):
            return value, jnp.zeros_like(a)
        notice(order + 1)
        return value, noticing_tangents(tangent, notice, order + 1)

    noticing.defjvp(jvp, symbolic_zeros=True)
    return noticing(a)
