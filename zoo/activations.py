"""Pointwise nonlinearities by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from zoo import checks

ActivationFunction = Callable[[Array], Array]


def exact_gelu(x: Array) -> Array:
    """X Phi(x) with the Gaussian distribution function itself, not its tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


def identity(x: Array) -> Array:
    """x: makes a network linear in its input."""
    return x


ACTIVATIONS: dict[str, ActivationFunction] = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "abs": jnp.abs,
    "erf": jax.scipy.special.erf,
    "gelu": exact_gelu,
    "tanh": jnp.tanh,
    "sin": jnp.sin,
    "softplus": jax.nn.softplus,
    "silu": jax.nn.silu,
    "identity": identity,
}
"""The activations that have a name."""


def activation_function(activation: str | ActivationFunction) -> ActivationFunction:
    """The function behind a name of `ACTIVATIONS`; a callable is returned as it is.

    **Raises:** `ValueError` for an unknown name.
    """
    if callable(activation):
        return activation
    checks.choice("activation", activation, ACTIVATIONS)
    return ACTIVATIONS[activation]
