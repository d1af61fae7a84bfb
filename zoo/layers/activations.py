r"""Pointwise nonlinearities, each with the constants that say how smooth it is.

The corrections of finite width expand a network in its parameters, and bounds on how linear it is
(Liu, Zhu & Belkin 2020, section 3) take

    lipschitz = sup |phi'|,        derivative_lipschitz = sup |phi''|  (infinite at a kink).
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from zoo.common import checks
from zoo.common.pickling import PicklableFunctions
from zoo.limits.duals import (
    Dual,
    ErfDual,
    GeluDual,
    MonomialDual,
    PiecewiseLinearDual,
    SineDual,
    StepDual,
)
from zoo.limits.hermite import HermiteDual
from zoo.limits.layers import ActivationRule
from zoo.limits.widths import LimitWidths

ActivationFunction = Callable[[Array], Array]


class Activation(PicklableFunctions, eqx.Module):
    """A pointwise nonlinearity phi, and a layer that applies it. It prints with its name alone.

    - `name`: what reports print.
    - `function`: phi, on arrays of any shape.
    - `smoothness`: the number of continuous derivatives of phi (0 for ReLU, infinity for tanh), or
      None where it is not known. An expansion of order q in the parameters is one of a function
      that has q of them.
    - `lipschitz`: sup |phi'|, or None.
    - `derivative_lipschitz`: the Lipschitz constant of phi', sup |phi''|; infinite at a kink, or
      None.
    - `dual`: its expectations under Gaussians, for the limit of infinite width; None: a
      `HermiteDual` of the function.
    """

    name: str = eqx.field(static=True)
    function: ActivationFunction = eqx.field(static=True, repr=False)
    smoothness: int | float | None = eqx.field(static=True, repr=False, default=None)
    lipschitz: int | float | None = eqx.field(static=True, repr=False, default=None)
    derivative_lipschitz: int | float | None = eqx.field(static=True, repr=False, default=None)
    dual: Dual | None = eqx.field(static=True, repr=False, default=None)

    def __call__(
        self, a: Float[Array, "..."], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "..."]:
        """phi(a), entry by entry; `key` is not used."""
        del key
        return self.function(a) if self.smoothness is None else pointwise(self.function)(a)

    @property
    def gaussian_dual(self) -> Dual:
        """Its dual, also where none was given."""
        return HermiteDual(self.function) if self.dual is None else self.dual

    def limit_rule(self, widths: LimitWidths) -> ActivationRule:
        """What it does to the kernels of infinite width; see `zoo.limits`."""
        return ActivationRule(self.gaussian_dual, self.name, widths.path)


@functools.cache
def pointwise(fn: ActivationFunction) -> ActivationFunction:
    """The same function, whose tangent is phi'(a) da with phi'(a) as a value of its own.

    Kernels and Taylor terms push many tangents through the same activations: phi'(a), phi''(a), ...
    are then computed once, and each tangent costs one multiplication.
    """

    @jax.custom_jvp
    def phi(a: Array) -> Array:
        return fn(a)

    def slope(a: Array) -> Array:
        value = jax.jvp(fn, (a,), (jnp.ones_like(a),))[1]
        # A constant slope would leave `vmap` nothing to batch, which a custom rule inside a nested
        # `jvp` does not survive. This one depends on `a`, and compiles to nothing.
        return jnp.where(a == a, value, value)

    @phi.defjvp
    def tangent(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        (a,), (da,) = primals, tangents
        return phi(a), pointwise(slope)(a) * da

    return phi


def exact_gelu(x: Array) -> Array:
    """x Phi(x) with the Gaussian distribution function itself, not its tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


def identity(x: Array) -> Array:
    """x: makes a network linear in its input."""
    return x


def _gaussian_density(x: float) -> float:
    return math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def _gaussian_distribution(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


_INF = math.inf
_ROOT2 = math.sqrt(2.0)

ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        Activation("relu", jax.nn.relu, 0, 1.0, _INF, PiecewiseLinearDual(1.0, 0.0)),
        Activation("leaky_relu", jax.nn.leaky_relu, 0, 1.0, _INF, PiecewiseLinearDual(1.0, 0.01)),
        Activation("abs", jnp.abs, 0, 1.0, _INF, PiecewiseLinearDual(1.0, -1.0)),
        Activation("elu", jax.nn.elu, 1, 1.0, 1.0, HermiteDual(jax.nn.elu, terms=512)),
        # phi' is largest at 0 and |phi''| at 1/sqrt(2)
        Activation(
            "erf",
            jax.scipy.special.erf,
            _INF,
            2 / math.sqrt(math.pi),
            2 * math.sqrt(2 / (math.e * math.pi)),
            ErfDual(),
        ),
        # phi' = Phi(x) + x phi(x) is largest at sqrt(2), phi'' = (2 - x^2) phi(x) at 0
        Activation(
            "gelu",
            exact_gelu,
            _INF,
            _gaussian_distribution(_ROOT2) + _ROOT2 * _gaussian_density(_ROOT2),
            2 * _gaussian_density(0.0),
            GeluDual(),
        ),
        Activation(
            "tanh",
            jnp.tanh,
            _INF,
            1.0,
            4 / (3 * math.sqrt(3.0)),
            HermiteDual(jnp.tanh, terms=256),
        ),
        Activation("sigmoid", jax.nn.sigmoid, _INF, 0.25, 1 / (6 * math.sqrt(3.0))),
        Activation("sin", jnp.sin, _INF, 1.0, 1.0, SineDual()),
        Activation("cos", jnp.cos, _INF, 1.0, 1.0, SineDual(cosine=True)),
        Activation("softplus", jax.nn.softplus, _INF, 1.0, 0.25),
        # phi' is largest where x tanh(x / 2) = 2, that is at x = 2.39935728052...
        Activation("silu", jax.nn.silu, _INF, 1.0998393194, 0.5),
        Activation("identity", identity, _INF, 1.0, 0.0, MonomialDual(1)),
    )
}
"""The activations that have a name."""


def step(x: Array) -> Array:
    """1 for x > 0, else 0; NaN for NaN."""
    return jnp.where(jnp.isnan(x), x, jnp.where(x > 0, 1, 0).astype(x.dtype))


_STEP = Activation("step", step, dual=StepDual(0.0, 1.0))
_SIGN = Activation("sign", jnp.sign, dual=StepDual(-1.0, 1.0))


def monomial(degree: int) -> Activation:
    """x^degree, with its dual in closed form.

    **Raises:** `ValueError` for a degree that is no integer >= 1.
    """
    degree = checks.integer("degree", degree)
    if degree == 1:
        return ACTIVATIONS["identity"]
    bounds = {"lipschitz": _INF, "derivative_lipschitz": 2.0 if degree == 2 else _INF}
    return Activation(
        f"monomial_{degree}", _Power(degree), smoothness=_INF, dual=MonomialDual(degree), **bounds
    )


@dataclass(frozen=True)
class _Power:
    """x^degree. Equal ones are one function to JAX."""

    degree: int

    def __call__(self, x: Array) -> Array:
        return jax.lax.integer_pow(x, self.degree)


def activation_function(activation: str | ActivationFunction) -> Activation:
    """The `Activation` of a name of `ACTIVATIONS`, or made from a pointwise function.

    A function whose smoothness and Lipschitz constants are known is better passed as an
    `Activation` that states them; warnings use them.

    **Raises:** `ValueError` for an unknown name; `TypeError` for what is neither name nor function.
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        checks.choice("activation", activation, ACTIVATIONS)
        return ACTIVATIONS[activation]
    if callable(activation):
        try:
            hash(activation)
        except TypeError as error:
            raise TypeError(
                f"`activation` is {activation!r}, which holds arrays, expected a pointwise "
                "function without parameters: `Sequential` takes layers that have some."
            ) from error
        return _known_functions().get(activation) or Activation(_name(activation), activation)
    raise TypeError(
        f"`activation` is {activation!r}, expected a name of `zoo.ACTIVATIONS` or a pointwise "
        "function."
    )


def _known_functions() -> dict[ActivationFunction, Activation]:
    """`jnp.tanh` is "tanh"; step and sign have no gradients to train with, and so no name."""
    known = (*ACTIVATIONS.values(), _STEP, _SIGN)
    return {activation.function: activation for activation in known}


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)
