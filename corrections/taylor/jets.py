r"""Functions of one small number eps, and their Taylor coefficients at eps = 0.

A path of parameters theta + eps path_1 + eps^2 path_2 + ... is a function of eps. Whatever is
computed on it has coefficients by nested JVPs along the scalar eps. What a derivative is zero of is
known when the program is traced, so that it costs nothing: eps itself is never multiplied with.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from corrections.taylor.symbolic_zeros import is_zero, noticing_tangents

Scalar = Float[Array, ""]


def polynomial(eps: Scalar, coefficients: Sequence[Array]) -> Array:
    """c_0 + eps c_1 + eps^2 c_2 + ... at eps = 0, with all its derivatives, in eps and in the c_j.

    Its value is c_0 as it is, and derivatives beyond its degree are zero symbolically.
    """
    if len(coefficients) == 1:
        return coefficients[0]

    @jax.custom_jvp
    def at_zero(_: Scalar, coefficients: list[Array]) -> Array:
        return coefficients[0]

    def jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
        (eps, coefficients), (eps_dot, dots) = primals, tangents
        value, moved = polynomial(eps, coefficients), []
        if not is_zero(eps_dot):
            slopes = [c if j == 1 else j * c for j, c in enumerate(coefficients[1:], start=1)]
            moved.append(eps_dot.astype(value.dtype) * polynomial(eps, slopes))
        if not all(map(is_zero, dots)):
            given = zip(dots, coefficients, strict=True)
            full = [jnp.zeros_like(c) if is_zero(d) else d for d, c in given]
            moved.append(polynomial(eps, full))
        return value, sum(moved[1:], start=moved[0]) if moved else jnp.zeros_like(value)

    at_zero.defjvp(jvp, symbolic_zeros=True)
    return at_zero(eps, list(coefficients))


def jet(theta: PyTree, steps: Sequence[PyTree]) -> Callable[[Scalar], PyTree]:
    """Eps -> theta + eps steps[0] + eps^2 steps[1] + ..., to be differentiated at eps = 0."""

    def at(eps: Scalar) -> PyTree:
        return jax.tree.map(lambda *coefficients: polynomial(eps, coefficients), theta, *steps)

    return at


def hoist_barrier(constant: PyTree, moving: PyTree) -> tuple[PyTree, PyTree]:
    """Both as they are; in a loop XLA takes the first for something that moves as the second does.

    It hoists what does not move out of a loop before it merges what is computed twice, and what was
    hoisted twice is not merged any more. Nested JVPs along a path compute much twice: the loop
    would take up to twice the operations.
    """
    arrays, rest = eqx.partition((constant, moving), eqx.is_array)
    return eqx.combine(jax.lax.optimization_barrier(arrays), rest)


def coefficients_along(fn: Callable[[Scalar], PyTree], order: int) -> list[PyTree]:
    """The Taylor coefficients c_0 .. c_order of a function of eps at eps = 0."""

    def value(eps: Scalar) -> tuple[PyTree, ...]:
        return (fn(eps),)

    derivatives_along: Callable[[Scalar], tuple[PyTree, ...]] = value
    for _ in range(order):
        derivatives_along = _with_next_derivative(derivatives_along)
    derivatives = derivatives_along(jnp.zeros(()))
    return [
        derivative if j < 2 else jax.tree.map(lambda d, j=j: d / math.factorial(j), derivative)
        for j, derivative in enumerate(derivatives)
    ]


def degrees_along(fn: Callable[[Scalar], list[Array]], order: int) -> list[int]:
    """For each array that `fn` gives the highest power of eps, up to `order`, that it may hold.

    Only traced: what has no tangent is told apart by its symbolic zero.
    """
    degrees: dict[int, int] = {}

    def noticed(eps: Scalar) -> list[Array]:
        arrays = fn(eps)
        degrees.update(dict.fromkeys(range(len(arrays)), 0))

        def notice(i: int, order: int) -> None:
            degrees[i] = max(degrees[i], order)

        return [noticing_tangents(a, functools.partial(notice, i)) for i, a in enumerate(arrays)]

    jax.eval_shape(lambda: coefficients_along(noticed, order))
    return [degrees[i] for i in sorted(degrees)]


def _with_next_derivative(
    derivatives: Callable[[Scalar], tuple[PyTree, ...]],
) -> Callable[[Scalar], tuple[PyTree, ...]]:
    """From eps -> (h, h', .., h^(j)) to eps -> (h, h', .., h^(j+1))."""

    def extended(eps: Scalar) -> tuple[PyTree, ...]:
        values, tangents = jax.jvp(derivatives, (eps,), (jnp.ones_like(eps),))
        return (*values, tangents[-1])

    return extended
