"""Duals of activations against references of 30 digits, quadrature, and each other."""

import math

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from scipy.special import roots_hermitenorm

from zoo import ACTIVATIONS, HermiteDual, monomial
from zoo.limits.duals import gaussian_pair, StepDual

CORRELATIONS = (-1.0, -0.999999, -0.7, 0.0, 0.3, 0.9, 0.99999999, 1.0)
VARIANCES = ((1.0, 1.0), (2.25, 0.49))


def density(z):
    return mp.exp(-(z**2) / 2) / mp.sqrt(2 * mp.pi)


def piecewise_linear(positive, negative):
    """phi, phi', and the means of both over v ~ N(m, s^2)."""

    def value(x):
        return positive * x if x > 0 else negative * x

    def slope(x):
        return mp.mpf(positive if x > 0 else negative)

    def mean_value(m, s):
        relu = m * mp.ncdf(m / s) + s * density(m / s)
        return positive * relu - negative * (relu - m)

    def mean_slope(m, s):
        return positive * mp.ncdf(m / s) + negative * mp.ncdf(-m / s)

    return value, slope, mean_value, mean_slope


def _gelu_root(s):
    return mp.sqrt(1 + s**2)


# phi, phi', E phi(v) and E phi'(v) for v ~ N(m, s^2): one of two integrals in closed form.
KNOWN = {
    "relu": piecewise_linear(1, 0),
    "leaky_relu": piecewise_linear(1, mp.mpf(0.01)),
    "abs": piecewise_linear(1, -1),
    "erf": (
        mp.erf,
        lambda x: 2 / mp.sqrt(mp.pi) * mp.exp(-(x**2)),
        lambda m, s: mp.erf(m / mp.sqrt(1 + 2 * s**2)),
        lambda m, s: 2 / mp.sqrt(mp.pi * (1 + 2 * s**2)) * mp.exp(-(m**2) / (1 + 2 * s**2)),
    ),
    "gelu": (
        lambda x: x * mp.ncdf(x),
        lambda x: mp.ncdf(x) + x * density(x),
        lambda m, s: (
            m * mp.ncdf(m / _gelu_root(s)) + s**2 / _gelu_root(s) * density(m / _gelu_root(s))
        ),
        lambda m, s: (
            mp.ncdf(m / _gelu_root(s)) + m / _gelu_root(s) ** 3 * density(m / _gelu_root(s))
        ),
    ),
    "sin": (
        mp.sin,
        mp.cos,
        lambda m, s: mp.exp(-(s**2) / 2) * mp.sin(m),
        lambda m, s: mp.exp(-(s**2) / 2) * mp.cos(m),
    ),
    "cos": (
        mp.cos,
        lambda x: -mp.sin(x),
        lambda m, s: mp.exp(-(s**2) / 2) * mp.cos(m),
        lambda m, s: -mp.exp(-(s**2) / 2) * mp.sin(m),
    ),
    "identity": (lambda x: x, lambda x: mp.mpf(1), lambda m, s: m, lambda m, s: mp.mpf(1)),
    "monomial_3": (
        lambda x: x**3,
        lambda x: 3 * x**2,
        lambda m, s: m**3 + 3 * m * s**2,
        lambda m, s: 3 * (m**2 + s**2),
    ),
}


def reference(at, mean, k11, rho, k22):
    """E fn(u) fn(v) to 25 digits: the mean over v given u in closed form, that over u by mpmath."""
    with mp.workdps(30):
        k11, rho, k22 = mp.mpf(k11), mp.mpf(rho), mp.mpf(k22)
        spread = mp.sqrt(k22 * (1 - rho**2))

        def integrand(z):
            u, m = mp.sqrt(k11) * z, rho * mp.sqrt(k22) * z
            return at(u) * (mean(m, spread) if spread > 0 else at(m)) * density(z)

        near = 10 * mp.sqrt(1 - rho**2)  # where the inner mean turns
        cuts = sorted({mp.mpf(c) for c in (-14, -6, -2, 0, 2, 6, 14)} | {-near, near})
        return float(mp.quad(integrand, cuts))


def activation(name):
    return monomial(3) if name == "monomial_3" else ACTIVATIONS[name]


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.long if n in ("gelu", "abs", "leaky_relu") else ())
        for n in KNOWN
    ],
)
def test_closed_forms_equal_references_at_all_correlations(name):
    """To 1e-10, relative to the value at correlation 1 (30 digits inside)."""
    value, slope, mean_value, mean_slope = KNOWN[name]
    dual = activation(name).gaussian_dual
    for k11, k22 in VARIANCES:
        root = math.sqrt(k11 * k22)
        rhos = np.array(CORRELATIONS)
        pair = gaussian_pair(jnp.full(8, k11), jnp.asarray(rhos * root), jnp.full(8, k22))
        rhos = np.where(np.abs(rhos) == 1, rhos, np.asarray(pair.k12) / np.sqrt(k11 * k22))
        for found, at, mean in (
            (dual.values(pair), value, mean_value),
            (dual.slopes(pair), slope, mean_slope),
        ):
            expected = [reference(at, mean, k11, rho, k22) for rho in rhos]
            scale = max(np.max(np.abs(expected)), 1e-3)
            # Angles near correlation 1 go like a root: they know rho to half of its digits.
            near = np.array([1, 1, 1, 1, 1, 1, 1e2, 1])
            assert np.all(np.abs(found - np.array(expected)) < 1e-10 * scale * near), found


def test_closed_forms_equal_quadrature():
    """Of 400 nodes in each direction, where the activation is smooth."""
    z, w = roots_hermitenorm(400)
    w = w / w.sum()
    for name in ("erf", "gelu", "sin", "cos", "monomial_3"):
        phi = activation(name)
        for rho in (-1.0, -0.4, 0.6, 1.0):
            a, b = math.sqrt((1 + rho) / 2), math.sqrt((1 - rho) / 2)
            u, v = a * z[:, None] + b * z, 0.8 * (a * z[:, None] - b * z)
            expected = (
                w
                @ (
                    np.asarray(phi.function(jnp.asarray(u)))
                    * np.asarray(phi.function(jnp.asarray(v)))
                )
                @ w
            )
            pair = gaussian_pair(jnp.array(1.0), jnp.array(rho * 0.8), jnp.array(0.64))
            np.testing.assert_allclose(phi.gaussian_dual.values(pair), expected, atol=1e-11)


def grid():
    """Pairs of all correlations and several variances."""
    rho = jnp.asarray([-1.0, -0.99, -0.5, 0.0, 0.2, 0.8, 0.999, 1.0])
    k11, k22 = jnp.array([0.3, 1.0, 2.0])[:, None], jnp.array([0.5, 1.0, 1.5])[:, None]
    k12 = rho[None] * jnp.sqrt(k11 * k22)
    return gaussian_pair(jnp.broadcast_to(k11, k12.shape), k12, jnp.broadcast_to(k22, k12.shape))


@pytest.mark.parametrize("name", ["erf", "gelu", "sin", "cos", "identity"])
def test_series_equal_closed_forms(name):
    pair, phi = grid(), ACTIVATIONS[name]
    series = HermiteDual(phi.function)
    np.testing.assert_allclose(series.values(pair), phi.dual.values(pair), atol=1e-13)
    np.testing.assert_allclose(series.slopes(pair), phi.dual.slopes(pair), atol=1e-12)
    assert float(jnp.max(series.error(pair.k11))) < 1e-13


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "abs"])
def test_series_of_a_kink_errs_by_its_estimate(name):
    """And is exact at correlation 1, -1 and 0."""
    pair, phi = grid(), ACTIVATIONS[name]
    series = HermiteDual(phi.function)
    scale = float(jnp.max(phi.dual.slopes(pair)))
    found, expected = series.slopes(pair), phi.dual.slopes(pair)
    assert float(jnp.max(jnp.abs(found - expected))) < scale * float(
        jnp.max(series.error(pair.k11))
    )
    np.testing.assert_allclose(found[:, [0, 3, 7]], expected[:, [0, 3, 7]], atol=1e-12)
    np.testing.assert_allclose(series.values(pair), phi.dual.values(pair), atol=5e-5)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus", "silu"])
def test_series_equal_quadrature(name):
    z, w = np.polynomial.hermite_e.hermegauss(300)
    w = w / w.sum()
    phi = ACTIVATIONS[name]
    slope = jax.vmap(jax.vmap(jax.grad(phi.function)))
    for rho in (-1.0, -0.4, 0.6, 0.99, 1.0):
        a, b = math.sqrt((1 + rho) / 2), math.sqrt((1 - rho) / 2)
        u, v = (jnp.asarray(s * (a * z[:, None] + t * b * z)) for s, t in ((1.2, 1), (0.8, -1)))
        pair = gaussian_pair(jnp.array(1.44), jnp.array(rho * 0.96), jnp.array(0.64))
        dual = phi.gaussian_dual
        for fn, found in ((phi.function, dual.values(pair)), (slope, dual.slopes(pair))):
            expected = w @ (np.asarray(fn(u)) * np.asarray(fn(v))) @ w
            np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("name", ["relu", "abs", "erf", "gelu", "sin", "cos", "tanh", "identity"])
def test_slopes_are_the_derivative_of_values(name):
    """Price's theorem, d E phi phi / d k12 = E phi' phi', at correlations up to 1 and -1."""
    pair, dual = grid(), ACTIVATIONS[name].gaussian_dual

    def values(k12):
        return dual.values(gaussian_pair(pair.k11, k12, pair.k22))

    _, derivative = jax.jvp(values, (pair.k12,), (jnp.ones_like(pair.k12),))
    np.testing.assert_allclose(derivative, dual.slopes(pair), atol=1e-9)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "abs", "erf", "gelu", "sin", "tanh"])
def test_weighted_slopes_are_the_dual_of_x_times_the_slope(name):
    pair, phi = grid(), ACTIVATIONS[name]

    def weighted(x):
        return x * jax.jvp(phi.function, (x,), (jnp.ones_like(x),))[1]

    expected = HermiteDual(weighted, terms=256).values(pair)
    tolerance = 3e-5 if phi.smoothness == 0 else 1e-8
    np.testing.assert_allclose(phi.gaussian_dual.weighted_slopes(pair), expected, atol=tolerance)


@pytest.mark.parametrize("name", [*sorted(ACTIVATIONS), "monomial_3"])
def test_gradients_are_finite_at_all_correlations(name):
    """Also where a variance is zero."""
    dual = activation(name).gaussian_dual

    def total(k):
        pair = gaussian_pair(k[0], k[1], k[2])
        return jnp.sum(dual.values(pair)) + jnp.sum(dual.slopes(pair))

    pair = grid()
    zero = jnp.zeros((1, 8))
    k = jnp.stack([jnp.concatenate([part, zero]) for part in (pair.k11, pair.k12, pair.k22)])
    assert bool(jnp.all(jnp.isfinite(jax.grad(total)(k))))


def test_steps_are_arc_cosine_kernels_of_degree_zero():
    pair = grid()
    angle = np.arccos(np.clip(pair.k12 / np.sqrt(pair.k11 * pair.k22), -1, 1))
    np.testing.assert_allclose(
        StepDual(0.0, 1.0).values(pair), (np.pi - angle) / (2 * np.pi), atol=1e-8
    )


def test_sine_of_large_variances_does_not_overflow():
    k12 = jnp.array([900.0, -900.0, 1e-9])
    pair = gaussian_pair(jnp.full(3, 1000.0), k12, jnp.full(3, 1000.0))
    dual = ACTIVATIONS["sin"].dual
    assert dual is not None
    expected = [math.exp(-100) / 2, -math.exp(-100) / 2, 0.0]
    np.testing.assert_allclose(dual.values(pair), expected, rtol=1e-12)
    small = gaussian_pair(jnp.ones(1), jnp.array([1e-9]), jnp.ones(1))
    np.testing.assert_allclose(dual.values(small), [1e-9 * math.exp(-1)], rtol=1e-14)


def test_float32_keeps_its_digits(float32):
    for name in ("relu", "erf", "gelu", "sin", "tanh"):
        dual = ACTIVATIONS[name].gaussian_dual
        rho = jnp.asarray([-1.0, -0.5, 0.0, 0.9, 1.0], "float32")
        ones = jnp.ones_like(rho)
        found = (
            dual.values(gaussian_pair(ones, rho, ones)),
            dual.slopes(gaussian_pair(ones, rho, ones)),
        )
        jax.config.update("jax_enable_x64", True)
        wide, one = jnp.asarray(rho, float), jnp.ones(5)
        pair = gaussian_pair(one, wide, one)
        for part, expected in zip(found, (dual.values(pair), dual.slopes(pair)), strict=True):
            assert part.dtype == jnp.float32
            np.testing.assert_allclose(part, expected, atol=2e-6)
        jax.config.update("jax_enable_x64", False)
