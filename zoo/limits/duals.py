r"""Duals of activations: what a nonlinearity makes of two correlated Gaussians.

    values = E phi(u) phi(v),      slopes = E phi'(u) phi'(v) = d values / d k12,

    (u, v) ~ N(0, [[k11, k12], [k12, k22]])

in closed form. `zoo.limits.hermite` has those of any other function.
"""

import abc
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.common.norms import power_of_two
from zoo.common.records import short_repr
from zoo.limits.arcsine import arcsine, safe_sqrt
from zoo.limits.widths import NoLimitError


@short_repr
class GaussianPair(NamedTuple):
    """The covariances of (u, v), arrays that broadcast against `k12`; |k12| <= root.

    - `root`: sqrt(k11 k22).
    - `gap`: 1 - k12^2 / (k11 k22) >= 0, 0 exactly at correlation 1 and -1; 1 where a variance is 0.

    Products of variances stand in no dual as they are: in float32 there are none of 1e-24 or 1e20.
    """

    k11: Float[Array, "..."]
    k12: Float[Array, "..."]
    k22: Float[Array, "..."]
    root: Float[Array, "..."]
    gap: Float[Array, "..."]


_SNAP = 8
"""Units of rounding within which a correlation counts as 1 or -1."""


def gaussian_pair(k11: Array, k12: Array, k22: Array) -> GaussianPair:
    """The pair, with its correlation in [-1, 1]; to rounding 1 or -1 it is that exactly.

    Angles go like the root of 1 - correlation: what rounding leaves of it, 6e-8 in float32, would
    come out as 3e-4. Derivatives are those at the covariances as they came.
    """
    root = _root_of_product(k11, k22)
    bound = root * (1 - _SNAP * jnp.finfo(root.dtype).eps)
    snapped = jnp.where(jnp.abs(k12) >= bound, jnp.copysign(root, k12), k12)
    k12 = k12 + jax.lax.stop_gradient(snapped - k12)
    size = jnp.where(root > 0, root, 1)
    gap = jnp.where(root > 0, (root - k12) / size * ((root + k12) / size), 1)
    return GaussianPair(k11, k12, k22, root, gap)


def _root_of_product(a: Array, b: Array) -> Array:
    """sqrt(a b), rounded as if the product neither under- nor overflowed; its derivative is 0 where
    one of them is.
    """
    units = [power_of_two(jnp.sqrt(jax.lax.stop_gradient(one))) for one in (a, b)]
    first, second = (one / unit / unit for one, unit in zip((a, b), units, strict=True))
    return safe_sqrt(first * second) * units[0] * units[1]


def identical_pair(k: Array) -> GaussianPair:
    """The pair of a Gaussian of variance `k` with itself."""
    return GaussianPair(k, k, k, k, jnp.zeros_like(k))


class _Raised(NamedTuple):
    """A pair with 1/s more variance each: of (1 + s k11, s k12, 1 + s k22).

    - `roots`: of its two variances, broadcast.
    - `shares`: what 1 is of its two variances.
    - `gap`: 1 - s^2 k12^2 / ((1 + s k11) (1 + s k22)) > 0.
    """

    roots: tuple[Array, Array]
    shares: tuple[Array, Array]
    gap: Array

    @property
    def root(self) -> Array:
        """sqrt((1 + s k11) (1 + s k22))."""
        return self.roots[0] * self.roots[1]


def _raised(pair: GaussianPair, s: float) -> _Raised:
    first, second = 1 + s * pair.k11, 1 + s * pair.k22
    ones, rests = (1 / first, 1 / second), (s * pair.k11 / first, s * pair.k22 / second)
    # (1 + s k11) (1 + s k22) - s^2 k12^2 over the product, in terms that are all positive.
    gap = (
        ones[0] * ones[1] + rests[0] * ones[1] + ones[0] * rests[1] + rests[0] * rests[1] * pair.gap
    )
    return _Raised((jnp.sqrt(first), jnp.sqrt(second)), ones, gap)


class Dual(abc.ABC):
    """The dual of an activation: a small value with the two expectations of a pair."""

    @abc.abstractmethod
    def values(self, pair: GaussianPair) -> Float[Array, "..."]:
        """E phi(u) phi(v)."""

    @abc.abstractmethod
    def slopes(self, pair: GaussianPair) -> Float[Array, "..."]:
        """E phi'(u) phi'(v)."""

    def weighted_slopes(self, pair: GaussianPair) -> Float[Array, "..."]:
        """E u phi'(u) v phi'(v), the derivative of E phi(a u) phi(b v) in a and b at 1."""
        one = jnp.ones((), pair.k12.dtype)

        def values(a: Array, b: Array) -> Array:
            moved = gaussian_pair(a**2 * pair.k11, a * b * pair.k12, b**2 * pair.k22)
            return self.values(moved)

        def slope(a: Array) -> Array:
            return jax.jvp(lambda b: values(a, b), (one,), (one,))[1]

        return jax.jvp(slope, (one,), (one,))[1]

    def error(self, variances: Float[Array, "..."]) -> Float[Array, "..."]:
        """How far off both may be, relative to their values at correlation 1."""
        return jnp.zeros_like(variances)


@dataclass(frozen=True)
class PiecewiseLinearDual(Dual):
    """phi(x) = `positive` x for x > 0 and `negative` x below: ReLU, leaky ReLU, abs.

    With phi(x) = a |x| + b x, where a, b = (positive -+ negative) / 2:

    E phi phi = a^2 (2/pi) (sqrt(det) + k12 asin(rho)) + b^2 k12

    Source: Cho & Saul (2009), "Kernel methods for deep learning", eq. 6.
    """

    positive: float
    negative: float

    def values(self, pair: GaussianPair) -> Float[Array, "..."]:
        """E phi(u) phi(v)."""
        even, odd = self._parts
        sine = pair.root * safe_sqrt(pair.gap)
        of_abs = 2 / math.pi * sine + pair.k12 * correlation_arcsine(pair)
        return even * of_abs + odd * pair.k12

    def slopes(self, pair: GaussianPair) -> Float[Array, "..."]:
        """E phi'(u) phi'(v)."""
        even, odd = self._parts
        return even * correlation_arcsine(pair) + odd

    def weighted_slopes(self, pair: GaussianPair) -> Float[Array, "..."]:
        """E u phi'(u) v phi'(v) = E phi(u) phi(v)."""
        return self.values(pair)

    @property
    def _parts(self) -> tuple[float, float]:
        return ((self.positive - self.negative) / 2) ** 2, (
            (self.positive + self.negative) / 2
        ) ** 2


@dataclass(frozen=True)
class StepDual(Dual):
    """phi(x) = `high` for x > 0 and `low` below: step, sign.

    Gradients through it are zero: it has no slopes.

    Source: Cho & Saul (2009), eq. 5; Lee et al. (2018) for sign.
    """

    low: float
    high: float

    def values(self, pair: GaussianPair) -> Float[Array, "..."]:
        """E phi(u) phi(v)."""
        middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        return middle**2 + half**2 * correlation_arcsine(pair)

    def slopes(self, pair: GaussianPair) -> Float[Array, "..."]:
        """**Raises:** `NoLimitError`."""
        raise NoLimitError(
            "an activation that is piecewise constant has no tangent kernel: its derivative is "
            "zero wherever there is one. Expected `nngp` alone, or a smoother activation."
        )


@dataclass(frozen=True)
class ErfDual(Dual):
    """phi = erf. Source: Williams (1997), "Computing with infinite networks", eq. 11."""

    def values(self, pair: GaussianPair) -> Float[Array, "..."]:
        """E phi(u) phi(v) = (2/pi) asin(2 k12 / sqrt((1 + 2 k11) (1 + 2 k22)))."""
        raised = _raised(pair, 2.0)
        return arcsine(2 * pair.k12, raised.root, raised.gap)

    def slopes(self, pair: GaussianPair) -> Float[Array, "..."]:
        """E phi'(u) phi'(v) = (4/pi) / sqrt((1 + 2 k11) (1 + 2 k22) - 4 k12^2)."""
        raised = _raised(pair, 2.0)
        return 4 / math.pi / raised.root / jnp.sqrt(raised.gap)


@dataclass(frozen=True)
class GeluDual(Dual):
    """phi(x) = x Phi(x), Phi the Gaussian distribution function.

    With D = sqrt((1 + k11) (1 + k22) - k12^2), G = 1 / (2 pi D) and
    P = E Phi(u) Phi(v) = 1/4 + asin(k12 / sqrt((1 + k11) (1 + k22))) / (2 pi), by Stein's lemma:

    E phi phi = G (k11 k22 - k12^2 (1 - 1/(1 + k11) - 1/(1 + k22))) + k12 P
    E phi' phi' = P + G k12 (1/(1 + k11) + 1/(1 + k22) + 1/D^2)
    """

    def values(self, pair: GaussianPair) -> Float[Array, "..."]:
        """E phi(u) phi(v)."""
        raised = _raised(pair, 1.0)
        covariance, root = pair.k12 / raised.root, pair.root / raised.root
        moments = pair.root * root * pair.gap + pair.k12 * covariance * sum(raised.shares)
        return moments * self._density(raised) + pair.k12 * self._both(pair, raised)

    def slopes(self, pair: GaussianPair) -> Float[Array, "..."]:
        """E phi'(u) phi'(v)."""
        raised = _raised(pair, 1.0)
        one, other = raised.shares
        inverse = one + other + one * (other / raised.gap)
        covariance = pair.k12 / raised.root
        return self._both(pair, raised) + covariance * inverse * self._density(raised)

    @staticmethod
    def _density(raised: _Raised) -> Array:
        """G sqrt((1 + k11) (1 + k22))."""
        return 0.5 / math.pi / jnp.sqrt(raised.gap)

    @staticmethod
    def _both(pair: GaussianPair, raised: _Raised) -> Array:
        """P."""
        return 0.25 + arcsine(pair.k12, raised.root, raised.gap) / 4


@dataclass(frozen=True)
class SineDual(Dual):
    """phi = sin, or cos: E sin u sin v = e^{-(k11 + k22)/2} sinh k12, with cosh for cos.

    Source: Pearce, Tsuchida, Zaki, Brintrup & Neely (2020), "Expressive priors in Bayesian neural
    networks: kernel combinations and periodic functions".
    """

    cosine: bool = False

    def values(self, pair: GaussianPair) -> Float[Array, "..."]:
        """E phi(u) phi(v)."""
        return self._cosh(pair) if self.cosine else self._sinh(pair)

    def slopes(self, pair: GaussianPair) -> Float[Array, "..."]:
        """E phi'(u) phi'(v)."""
        return self._sinh(pair) if self.cosine else self._cosh(pair)

    @staticmethod
    def _cosh(pair: GaussianPair) -> Array:
        mean = (pair.k11 + pair.k22) / 2
        return (jnp.exp(pair.k12 - mean) + jnp.exp(-pair.k12 - mean)) / 2

    @staticmethod
    def _sinh(pair: GaussianPair) -> Array:
        """Without overflow, and without the cancellation of two exponentials."""
        size = jnp.where(pair.k12 < 0, -pair.k12, pair.k12)
        value = -jnp.exp(size - (pair.k11 + pair.k22) / 2) * jnp.expm1(-2 * size) / 2
        return jnp.where(pair.k12 < 0, -value, value)


@dataclass(frozen=True)
class MonomialDual(Dual):
    """phi(x) = x^degree; degree 1 is the identity.

    E u^d v^d = sum_j (d! / ((d - j)/2)!)^2 / (j! 2^(d - j)) k12^j (k11 k22)^((d - j)/2), over the j
    <= d of the parity of d (Isserlis 1918).
    """

    degree: int

    def values(self, pair: GaussianPair) -> Float[Array, "..."]:
        """E phi(u) phi(v)."""
        return self._moment(self.degree, pair)

    def slopes(self, pair: GaussianPair) -> Float[Array, "..."]:
        """E phi'(u) phi'(v)."""
        return self.degree**2 * self._moment(self.degree - 1, pair)

    @staticmethod
    def _moment(degree: int, pair: GaussianPair) -> Array:
        total = jnp.zeros_like(pair.k12)
        for j in range(degree, -1, -2):
            pairs = (degree - j) // 2
            factor = (math.factorial(degree) / math.factorial(pairs)) ** 2
            factor /= math.factorial(j) * 2 ** (degree - j)
            total = total + factor * pair.k12**j * (pair.k11 * pair.k22) ** pairs
        return total


def correlation_arcsine(pair: GaussianPair) -> Float[Array, "..."]:
    """(2/pi) asin(rho): exactly 1, 0 and -1 at those correlations; 0 where a variance is zero."""
    return arcsine(pair.k12, pair.root, pair.gap)
