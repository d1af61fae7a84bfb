r"""Depth in infinitely wide networks: what variances and correlations become, layer after layer.

A fully connected layer of infinite width takes the variance q of its preactivations, and the
correlation c of those of two inputs, to

    V(q) = weight_std^2 E phi(sqrt(q) z)^2 + bias_std^2,      z ~ N(0, 1),
    C(c) = (weight_std^2 E phi(u) phi(v) + bias_std^2) / q*,   u, v ~ N(0, q*) of correlation c,
    chi  = weight_std^2 E phi'(sqrt(q*) z)^2 = C'(1),          q* = V(q*).

Gradients grow by chi per layer in mean square. chi < 1 is the ordered phase, in which inputs become
alike; chi > 1 the chaotic one, in which close inputs part. C is convex on [0, 1] with C(1) = 1: it
has a fixed point below 1 exactly where C'(1) > 1, and that one is stable. Near fixed points

    q_l - q* ~ exp(-l / xi_q),  xi_q = -1 / ln |V'(q*)|,      c_l - c* ~ exp(-l / xi_c),
    xi_c = -1 / ln C'(c*).

Sources: Poole, Lahiri, Raghu, Sohl-Dickstein & Ganguli (2016), "Exponential expressivity in deep
neural networks through transient chaos", sec. 2; Schoenholz, Gilmer, Ganguli & Sohl-Dickstein
(2017), "Deep information propagation", secs. 2-3.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import brentq

from zoo.common import checks
from zoo.common.records import short_repr
from zoo.layers.activations import activation_function, ActivationFunction
from zoo.limits.duals import Dual, gaussian_pair, identical_pair, StepDual


@short_repr
class SignalPropagation(NamedTuple):
    """What depth does to the signals in an infinitely wide network.

    - `variance`: q*, where iterating V from 1 leads: 0 where variances decay, inf where they grow
      without bound. The other entries are then those at a variance q of eps^2 or eps^-2, with V(q)
      in the place of q* in C.
    - `correlation`: c*, where iterating C from just below 1 leads.
    - `susceptibility`: chi; inf for an activation that jumps.
    - `phase`: by chi < 1, = 1 (to the root of rounding, 1.5e-8 in float64) or > 1.
    - `variance_depth`: xi_q in layers, over which variances forget where they started; inf where
      |V'(q*)| >= 1.
    - `correlation_depth`: xi_c in layers; inf where C'(c*) = 1, as at criticality.
    """

    variance: float
    correlation: float
    susceptibility: float
    phase: Literal["ordered", "critical", "chaotic"]
    variance_depth: float
    correlation_depth: float


def signal_propagation(
    activation: str | ActivationFunction, *, weight_std: float, bias_std: float = 0.0
) -> SignalPropagation:
    """The fixed points of variance and correlation, their stability, and the depths to reach them.

    Expectations are those of the activation's dual. By quadrature (`HermiteDual`) those of a
    function that saturates hold up to variances of about 100 times the square of its scale.

    **Arguments:**

    - `activation`: a name of `zoo.ACTIVATIONS` or a continuous pointwise function. Where V is not
      monotone, q* is its first fixed point in the direction in which it moves 1.
    - `weight_std`, `bias_std`: as in `zoo.MLP`: weights have the variance weight_std^2 / fan-in.

    **Raises:** `ValueError` for an unknown activation, one without a finite E phi(z)^2 > 0, or a
    std that is negative, above 1/eps, not finite or, of weights, 0.
    """
    _check_std("weight_std", weight_std, strictly=True)
    _check_std("bias_std", bias_std)
    table = _tabulated(activation)
    maps = _Maps(table.dual, float(weight_std) ** 2, float(bias_std) ** 2)
    variance, q = maps.fixed_variance(table)
    _, variance_slope, chi = maps.variance(q)
    correlation, correlation_slope = maps.fixed_correlation(q)
    phase = "critical" if abs(chi - 1) <= _near() else "ordered" if chi < 1 else "chaotic"
    return SignalPropagation(
        variance, correlation, chi, phase, _depth(variance_slope), _depth(correlation_slope)
    )


def critical_weight_std(activation: str | ActivationFunction, bias_std: float = 0.0) -> float:
    """The `weight_std` at the edge of chaos: chi = 1 at the q* of `signal_propagation`.

    Solved along weight_std(q)^2 = 1 / E phi'(sqrt(q) z)^2, on which chi(q) = 1, for V(q) = q: at
    q = 0 too where phi(0) = bias_std = 0 (tanh: 1 / phi'(0) = 1), and at q = inf (ReLU with a bias:
    sqrt(2), as without). Of several, that of the smallest q.

    **Raises:** `ValueError` where there is none (such as for GELU without a bias), and as
    `signal_propagation`.

    Source: Schoenholz et al. (2017), sec. 2.
    """
    _check_std("bias_std", bias_std)
    table = _tabulated(activation)
    bias = float(bias_std) ** 2
    for weight in _critical_weights(table, bias):
        # Not every q with V(q) = q is stable, or reached from 1.
        maps = _Maps(table.dual, weight, bias)
        if abs(maps.variance(maps.fixed_variance(table)[1])[2] - 1) <= _eps() ** 0.25:
            return math.sqrt(weight)
    raise ValueError(
        f"`activation` is {table.name!r} with `bias_std` {bias_std}, for which no `weight_std` is "
        "critical: none makes weight_std^2 E phi'^2 equal to 1 at the variance that depth leads "
        "to. Expected another `bias_std`, or an activation such as 'tanh', 'erf' or 'relu'."
    )


def _check_std(name: str, value: float, *, strictly: bool = False) -> None:
    checks.nonnegative_number(name, value, strictly=strictly)
    if value > 1 / _eps():
        raise ValueError(
            f"`{name}` is {value!r}, expected at most {1 / _eps():.1g}: its square is no variance "
            "that is looked at."
        )


class _Table(NamedTuple):
    """An activation, with E phi^2 and E phi'^2 at variances of these logarithms."""

    name: str
    dual: Dual
    logs: np.ndarray
    squares: np.ndarray
    slopes: np.ndarray


def _tabulated(activation: str | ActivationFunction) -> _Table:
    """At variances from eps^2 to eps^-2, beyond which phi is its limit to rounding."""
    phi = activation_function(activation)
    dual, middle = phi.gaussian_dual, 250
    logs = np.linspace(2, -2, 2 * middle + 1) * math.log(_eps())
    squares, _, slopes = _moments(dual, np.exp(logs))
    usable = np.isfinite(squares) & (squares > 0)  # powers and exponentials overflow
    if not usable[middle]:
        raise ValueError(
            f"`activation` is {phi.name!r}, whose E phi(z)^2 is {squares[middle]}, expected a "
            "finite number > 0."
        )
    return _Table(phi.name, dual, logs[usable], squares[usable], slopes[usable])


class _Maps(NamedTuple):
    """V and C of a dual and the variances of weights and biases."""

    dual: Dual
    weight: float
    bias: float

    def variance(self, q: float) -> tuple[float, float, float]:
        """V, V' and weight_std^2 E phi'^2."""
        square, derivative, slope = (self.weight * m for m in _moments_at(self.dual, q))
        return square + self.bias, derivative, slope

    def fixed_variance(self, table: _Table) -> tuple[float, float]:
        """q*, and the variance of the table's range that is nearest to it."""
        start = int(np.argmin(np.abs(table.logs)))
        growth = (self.weight * table.squares + self.bias) * np.exp(-table.logs) - 1
        if abs(growth[start]) <= _rounding():
            return 1.0, 1.0
        step = 1 if growth[start] > 0 else -1
        logs = table.logs[start::step]
        roots = _roots(lambda q: self.variance(q)[0] / q - 1, logs, growth[start::step])
        limit = math.inf if step > 0 else 0.0, math.exp(logs[-1])
        return next(((q, q) for q in roots), limit)

    def fixed_correlation(self, q: float) -> tuple[float, float]:
        """c* at the variance q, and C'(c*)."""
        variance, _, chi = self.variance(q)

        def correlation(c: float) -> tuple[float, float]:
            products = _products(self.dual, jnp.asarray(q), jnp.asarray(c))
            value, slope = (self.weight * float(p) / variance for p in products)
            return value + self.bias / variance, slope

        one, below = (1.0, chi * q / variance), 1 - 16 * _eps()
        if one[1] <= 1 + _near() or correlation(below)[1] <= 1:
            return one
        # C - c is convex: it falls from C(0) >= 0 to where C' = 1, and rises to 0 at 1.
        lowest = _root(lambda c: correlation(c)[1] - 1, 0.0, below)
        if correlation(lowest)[0] >= lowest:
            return one
        c = _root(lambda c: correlation(c)[0] - c, 0.0, lowest)
        return c, correlation(c)[1]


def _critical_weights(table: _Table, bias: float) -> Iterator[float]:
    """The weight_std^2 that make chi = 1 at a fixed point of V, in the order of its variance."""
    usable = np.isfinite(table.slopes) & (table.slopes > 0)
    if not usable.any():
        return
    logs, squares, slopes = (t[usable] for t in (table.logs, table.squares, table.slopes))

    def growth(q: float) -> float:
        square, _, slope = _moments_at(table.dual, q)
        return (square / slope + bias) / q - 1

    tabulated = (squares / slopes + bias) * np.exp(-logs) - 1
    if abs(tabulated[0]) <= _rounding():
        yield 1 / float(slopes[0])
    for q in _roots(growth, logs, tabulated):
        yield 1 / _moments_at(table.dual, q)[2]
    yield 1 / float(slopes[-1])


_CHUNK = 32


def _moments(dual: Dual, q: np.ndarray) -> np.ndarray:
    """E phi^2, its derivative in q, and E phi'^2 at variances: (3, n), by one program for any n."""
    chunks = np.pad(q, (0, -len(q) % _CHUNK), mode="edge").reshape(-1, _CHUNK)
    found = [np.asarray(_chunk_moments(dual, jnp.asarray(chunk)), float) for chunk in chunks]
    return np.concatenate(found, axis=1)[:, : len(q)]


def _moments_at(dual: Dual, q: float) -> list[float]:
    return _moments(dual, np.array([q]))[:, 0].tolist()


@functools.partial(jax.jit, static_argnums=0)
def _chunk_moments(dual: Dual, q: Float[Array, "n"]) -> Float[Array, "3 n"]:
    squares = jax.vmap(lambda k: dual.values(identical_pair(k)))
    slopes = jax.vmap(lambda k: dual.slopes(identical_pair(k)))
    slope = jnp.full_like(q, jnp.inf) if isinstance(dual, StepDual) else slopes(q)
    return jnp.stack([*jax.jvp(squares, (q,), (jnp.ones_like(q),)), slope])


@functools.partial(jax.jit, static_argnums=0)
def _products(dual: Dual, q: Float[Array, ""], c: Float[Array, ""]) -> Any:
    """E phi(u) phi(v) at a variance and a correlation, and its derivative in the correlation."""
    return jax.value_and_grad(lambda c: dual.values(gaussian_pair(q, c * q, q)))(c)


def _roots(fn: Callable[[float], float], logs: np.ndarray, values: np.ndarray) -> Iterator[float]:
    """Where `fn`, which has `values` at `logs`, changes sign, in this order; rounding has none."""
    known = np.flatnonzero(np.abs(values) > _rounding())
    for i in np.flatnonzero(np.diff(np.sign(values[known]))):
        yield math.exp(_root(lambda log: fn(math.exp(log)), *logs[known[i : i + 2]]))


def _root(fn: Callable[[float], float], a: float, b: float) -> float:
    return float(brentq(fn, a, b, xtol=1e-15))  # pyright: ignore[reportArgumentType]


def _depth(slope: float) -> float:
    """-1 / ln |slope|."""
    size = abs(slope)
    return math.inf if size >= 1 - _near() else -1 / math.log(size) if size > 0 else 0.0


def _eps() -> float:
    return float(jnp.finfo(jnp.result_type(float)).eps)


def _rounding() -> float:
    """What sums of a dual are off by, relative to it."""
    return 64 * _eps()


def _near() -> float:
    """Slopes this close to 1 count as 1: closer, a fixed point parts from 1 by its rounding."""
    return math.sqrt(_eps())
