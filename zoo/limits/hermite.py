r"""The dual of any activation, by its expansion in Hermite polynomials.

    phi(sqrt(k) z) = sum_n a_n(k) h_n(z),      E phi(u) phi(v) = sum_n a_n(k11) a_n(k22) rho^n

with h_n orthonormal under the Gaussian: a_n are integrals in one dimension (Gauss-Legendre panels,
cut at 0, where most activations have their kink), and the sum costs a few operations a term and
pair. It is positive semidefinite and smooth in rho by construction. What the series leaves out,

    E phi^2 - sum_{n < terms} a_n^2,

is given to its last even and its last odd term, which makes it exact at rho = 1, 0 and -1; an
estimate of the error in between follows from it.

Source: Daniely, Frostig & Singer (2016), "Toward deeper understanding of neural networks", sec. 4.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zoo.common import checks
from zoo.common.pickling import PicklableFunctions
from zoo.limits.arcsine import safe_sqrt
from zoo.limits.duals import Dual, GaussianPair

_REACH = 13.0
"""Standard deviations that integrals take in; e^{-z^2/4} is 4e-19 there."""
_PANEL = 16  # nodes
_LEVELS = 20
"""Panels near 0 shrink by 4 so many times: functions of scale 1 are resolved up to standard
deviations of 1e12."""
_UNROLL = 8


@dataclass(frozen=True)
class HermiteDual(PicklableFunctions, Dual):
    """The dual of a function with a derivative almost everywhere.

    - `function`: phi, pointwise.
    - `terms`: of the series, even. A smooth activation at standard deviations of order 1 needs
      few; a kink leaves about terms^(-3/2) of the values and terms^(-1/2) of the slopes.
    """

    function: Callable[[Array], Array]
    terms: int = 128

    def __post_init__(self) -> None:
        """**Raises:** `TypeError` / `ValueError` for a function or terms that are none."""
        if not callable(self.function):
            raise TypeError(f"`function` is {self.function!r}, expected a pointwise function.")
        points = jax.ShapeDtypeStruct((3,), jnp.result_type(float))
        try:
            found = jax.eval_shape(self.function, points)
        except (TypeError, ValueError) as error:
            raise TypeError(f"`function` does not take {points}: {error}") from error
        if found != points:
            raise TypeError(
                f"`function` gives {found} for {points}, expected as many real numbers."
            )
        checks.integer("terms", self.terms, least=4)
        if self.terms % 2:
            raise ValueError(f"`terms` is {self.terms}, expected an even number.")

    def values(self, pair: GaussianPair) -> Float[Array, "..."]:
        """E phi(u) phi(v)."""
        return self._series(self.function, pair)

    def slopes(self, pair: GaussianPair) -> Float[Array, "..."]:
        """E phi'(u) phi'(v)."""
        return self._series(self._slope, pair)

    def error(self, variances: Float[Array, "..."]) -> Float[Array, "..."]:
        """Half of the larger share that the two series leave to their last terms.

        So much kinks err by, near correlation 1 - 1/terms; smooth functions err less.
        """
        shares = [self._left_out(fn, variances) for fn in (self.function, self._slope)]
        return jnp.maximum(*shares) / 2

    def _slope(self, x: Array) -> Array:
        return jax.jvp(self.function, (x,), (jnp.ones_like(x),))[1]

    def _series(self, fn: Callable[[Array], Array], pair: GaussianPair) -> Array:
        of_u, of_v = (self._coefficients(fn, k)[0] for k in (pair.k11, pair.k22))
        defined = pair.root > 0
        rho = jnp.where(defined, pair.k12 / jnp.where(defined, pair.root, 1), 0)

        def add(total: Array, ab: tuple[Array, Array]) -> tuple[Array, None]:
            a, b = ab
            return total * rho + a * b, None

        # Horner's scheme, from the highest degree; the leading axis is that of degrees.
        return jax.lax.scan(add, jnp.zeros_like(rho), (of_u, of_v), reverse=True, unroll=_UNROLL)[0]

    def _coefficients(
        self, fn: Callable[[Array], Array], variances: Array
    ) -> tuple[Float[Array, "terms ..."], Array]:
        """The coefficients, what is left over in the last two; and E fn^2."""
        nodes, weights, weighted = (
            jnp.asarray(table, variances.dtype) for table in _tables(self.terms)
        )
        at_nodes = fn(safe_sqrt(variances).reshape(-1, 1) * nodes[None])
        coefficients = weighted @ at_nodes.T
        total = (at_nodes**2) @ weights
        even, odd = (
            (((at_nodes + sign * at_nodes[:, ::-1]) / 2) ** 2) @ weights for sign in (1, -1)
        )
        rounding = 10 * jnp.finfo(variances.dtype).eps * total
        for parity, whole in ((0, even), (1, odd)):
            kept = jnp.sum(coefficients[parity : self.terms - 2 : 2] ** 2, axis=0)
            left = jnp.where(whole - kept > rounding, whole - kept, 0)
            coefficients = coefficients.at[self.terms - 2 + parity].set(safe_sqrt(left))
        return coefficients.reshape(-1, *variances.shape), total.reshape(variances.shape)

    def _left_out(self, fn: Callable[[Array], Array], variances: Array) -> Array:
        coefficients, total = self._coefficients(fn, variances)
        left = jnp.sum(coefficients[-2:] ** 2, axis=0)
        return jnp.where(total > 0, left / jnp.where(total > 0, total, 1), 0)


@functools.cache
def _tables(terms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes (q,), Gaussian weights (q,), and h_n(node) x weight, (terms, q)."""
    panels = math.ceil(_REACH * max(1.0, math.sqrt(terms / 128)))
    edges = np.linspace(0, _REACH, panels + 1)
    # At a standard deviation s what phi does near 0 happens within 1/s.
    small = edges[1] * 4.0 ** np.arange(-_LEVELS, 0)
    edges = np.concatenate([[0.0], small, edges[1:]])
    edges = np.concatenate([-edges[:0:-1], edges])
    x, w = np.polynomial.legendre.leggauss(_PANEL)
    half = np.diff(edges)[:, None] / 2
    nodes = (edges[:-1, None] + half + half * x).ravel()
    weights = (half * w).ravel() * np.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi)
    rows = [np.ones_like(nodes), nodes]
    for n in range(1, terms - 1):
        rows.append((nodes * rows[n] - math.sqrt(n) * rows[n - 1]) / math.sqrt(n + 1))
    return nodes, weights, np.stack(rows[:terms]) * weights
