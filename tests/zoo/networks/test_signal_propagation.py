import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq, fixed_point
from scipy.special import erf, expit

from zoo.layers.activations import monomial, step
from zoo.networks.signal_propagation import critical_weight_std, signal_propagation

# The trapezoidal rule, exponentially good for what is analytic: where tanh(2 z) has its poles at
# distance pi/4, e^{-2 pi (pi / 4) / 0.1} = 4e-22 is left. Gauss-Hermite with 120 nodes leaves 1e-5.
_NODES = np.linspace(-12, 12, 241)
_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()

_PHI = {
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "erf": (erf, lambda x: 2 / math.sqrt(math.pi) * np.exp(-(x**2))),
    "cos": (np.cos, lambda x: -np.sin(x)),
    "sigmoid": (expit, lambda x: expit(x) * expit(-x)),
}


def expectation(phi, q):
    """E phi(sqrt(q) z)^2."""
    return _WEIGHTS @ phi(math.sqrt(q) * _NODES) ** 2


def product(phi, q1, q2, c):
    """E phi(u) phi(v)."""
    u = math.sqrt(q1) * _NODES[:, None]
    v = math.sqrt(q2) * (c * _NODES[:, None] + math.sqrt(1 - c**2) * _NODES[None, :])
    return _WEIGHTS @ (phi(u) * phi(v)) @ _WEIGHTS


def settled(fn, start):
    return float(fixed_point(fn, start, method="iteration", xtol=1e-12, maxiter=5000))


def decay_depth(distances):
    """The layers in which distances fall by e, from the last quarter of them."""
    layers = np.arange(len(distances))[-len(distances) // 4 :]
    return -1 / np.polyfit(layers, np.log(np.abs(distances[layers])), 1)[0]


@pytest.mark.parametrize("activation", ["tanh", "erf"])
@pytest.mark.parametrize(
    ("weight_std", "bias_std"), [(0.7, 0.5), (1.0, 0.3), (1.6, 0.2), (2.0, 0.0), (2.5, 0.3)]
)
def test_fixed_points_are_those_of_iteration_with_quadrature(activation, weight_std, bias_std):
    phi, derivative = _PHI[activation]
    w, b = weight_std**2, bias_std**2

    def variance(q):
        return w * expectation(phi, q) + b

    q = settled(variance, 1.0)

    def correlation(c):
        return (w * product(phi, q, q, c) + b) / q

    chi = w * expectation(derivative, q)
    c = settled(correlation, 0.5) if chi > 1 else 1.0
    got = signal_propagation(activation, weight_std=weight_std, bias_std=bias_std)
    np.testing.assert_allclose(got.variance, q, rtol=1e-10)
    np.testing.assert_allclose(got.susceptibility, chi, rtol=1e-10)
    np.testing.assert_allclose(got.correlation, c, atol=1e-9)
    assert got.phase == ("chaotic" if chi > 1 else "ordered")
    variance_slope = (variance(q + 1e-4) - variance(q - 1e-4)) / 2e-4
    correlation_slope = w * product(derivative, q, q, c)
    np.testing.assert_allclose(got.variance_depth, -1 / math.log(variance_slope), rtol=1e-6)
    np.testing.assert_allclose(got.correlation_depth, -1 / math.log(correlation_slope), rtol=1e-6)


@pytest.mark.parametrize("weight_std", [1.3, 1.5])
def test_a_deep_network_settles_over_the_depths(weight_std):
    """200 layers of both maps at once, below and above the critical 1.396."""
    phi, bias_std, layers = np.tanh, 0.3, 200
    found = signal_propagation("tanh", weight_std=weight_std, bias_std=bias_std)
    w, b, q, c = weight_std**2, bias_std**2, 1.7, 0.2
    variances, correlations = [], []
    for _ in range(layers):
        covariance = w * product(phi, q, q, c) + b
        q = w * expectation(phi, q) + b
        c = covariance / q
        variances.append(q)
        correlations.append(c)
    off = np.array(correlations) - found.correlation
    np.testing.assert_allclose(decay_depth(off), found.correlation_depth, rtol=0.02)
    off = np.array(variances[:20]) - found.variance
    np.testing.assert_allclose(decay_depth(off), found.variance_depth, rtol=0.02)


def test_tanh_is_ordered_and_chaotic_where_it_was_published_to_be():
    """Poole et al. (2016), fig. 1, at bias_std = 0.3."""
    ordered, chaotic, more = (
        signal_propagation("tanh", weight_std=w, bias_std=0.3) for w in (1.0, 2.5, 4.0)
    )
    assert (ordered.phase, ordered.correlation) == ("ordered", 1.0)
    assert chaotic.phase == more.phase == "chaotic"
    assert 0 < more.correlation < chaotic.correlation < 1


@pytest.mark.parametrize("weight_std", [0.6, 1.0, 2.0])
def test_susceptibility_of_erf_in_closed_form(weight_std):
    got = signal_propagation("erf", weight_std=weight_std, bias_std=0.4)
    q, w = got.variance, weight_std**2
    np.testing.assert_allclose(q, w * 2 / math.pi * math.asin(2 * q / (1 + 2 * q)) + 0.16)
    np.testing.assert_allclose(got.susceptibility, w * 4 / math.pi / math.sqrt(1 + 4 * q))


def test_relu_is_critical_at_the_initialization_of_he():
    """Every variance is a fixed point, and correlations go to 1 slower than exponentially."""
    got = signal_propagation("relu", weight_std=math.sqrt(2.0))
    assert got == (1.0, 1.0, pytest.approx(1.0), "critical", math.inf, math.inf)


def test_relu_with_a_bias_in_closed_form():
    got = signal_propagation("relu", weight_std=1.2, bias_std=0.5)
    depth = pytest.approx(-1 / math.log(0.72))
    assert got == (pytest.approx(0.25 / 0.28), 1.0, pytest.approx(0.72), "ordered", depth, depth)


@pytest.mark.parametrize(
    ("activation", "weight_std", "variance"),
    [
        ("relu", 1.3, 0.0),
        ("relu", 1.5, math.inf),
        ("tanh", 0.9, 0.0),
        ("tanh", 1.0, 0.0),
        ("gelu", 1.5, 0.0),
        ("gelu", 2.1, math.inf),
        (monomial(2), 0.57, 0.0),  # V(1) = 3 weight_std^2
        (monomial(2), 0.58, math.inf),
        (monomial(12), 1.0, math.inf),  # which overflows
    ],
)
def test_variances_that_decay_or_diverge(activation, weight_std, variance):
    got = signal_propagation(activation, weight_std=weight_std)
    assert got.variance == variance
    assert not any(math.isnan(x) for x in got if isinstance(x, float))
    if activation in ("relu", "tanh"):  # which are linear in the size of their input there
        slope = weight_std**2 / (2 if activation == "relu" else 1)
        np.testing.assert_allclose(got.susceptibility, slope, rtol=1e-12)
        assert got.variance_depth == (
            pytest.approx(-1 / math.log(slope)) if slope < 1 else math.inf
        )
        assert (got.correlation, got.correlation_depth) == (1.0, math.inf)


@pytest.mark.parametrize("activation", ["cos", "sigmoid"])
def test_an_activation_that_is_not_zero_at_zero_keeps_a_variance(activation):
    phi, _ = _PHI[activation]
    for weight_std in (0.3, 1.2):
        expected = settled(lambda q, w=weight_std: w**2 * expectation(phi, q), 1.0)
        got = signal_propagation(activation, weight_std=weight_std)
        np.testing.assert_allclose(got.variance, expected, rtol=1e-8)
        assert got.correlation == 1.0


def test_activations_that_jump_are_chaotic_at_any_scale():
    """Sign: C(c) = (2/pi) asin c, whose slope at its fixed point 0 is 2/pi."""
    got = signal_propagation(jnp.sign, weight_std=0.1)
    depth = pytest.approx(-1 / math.log(2 / math.pi))
    assert got == (pytest.approx(0.01), 0.0, math.inf, "chaotic", 0.0, depth)
    got = signal_propagation(step, weight_std=1.0, bias_std=0.3)
    c = brentq(lambda c: (0.25 + math.asin(c) / (2 * math.pi) + 0.09) / 0.59 - c, 0, 0.99)
    np.testing.assert_allclose(got.correlation, c)


def test_a_users_function_is_as_the_named_one():
    got = signal_propagation(lambda x: jnp.tanh(x), weight_std=1.5, bias_std=0.3)
    assert got == pytest.approx(signal_propagation("tanh", weight_std=1.5, bias_std=0.3))


@pytest.mark.parametrize("bias_std", [0.0, 0.3])
@pytest.mark.parametrize(
    ("activation", "positive", "negative"),
    [("relu", 1, 0), ("leaky_relu", 1, 0.01), ("abs", 1, -1), ("identity", 1, 1)],
)
def test_critical_scale_of_scale_invariant_activations(activation, positive, negative, bias_std):
    expected = math.sqrt(2 / (positive**2 + negative**2))
    np.testing.assert_allclose(critical_weight_std(activation, bias_std), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("activation", "expected"), [("tanh", 1.0), ("erf", math.sqrt(math.pi) / 2), ("sin", 1.0)]
)
def test_critical_scale_without_a_bias_is_that_of_the_slope_at_zero(activation, expected):
    np.testing.assert_allclose(critical_weight_std(activation), expected, rtol=1e-12)
    got = signal_propagation(activation, weight_std=critical_weight_std(activation))
    assert (got.variance, got.phase, got.correlation_depth) == (0.0, "critical", math.inf)


@pytest.mark.parametrize("bias_std", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("activation", ["tanh", "erf"])
def test_susceptibility_is_one_at_the_critical_scale(activation, bias_std):
    phi, derivative = _PHI[activation]
    w = critical_weight_std(activation, bias_std) ** 2
    q = settled(lambda q: w * expectation(phi, q) + bias_std**2, 1.0)
    np.testing.assert_allclose(w * expectation(derivative, q), 1, rtol=1e-8)


def test_critical_scale_of_cosine_in_closed_form():
    """From w (1 - e^{-2q}) / 2 = 1 and w (1 + e^{-2q}) / 2 + b = q: q = coth(q) + b."""
    q = brentq(lambda q: 1 / math.tanh(q) + 0.09 - q, 0.5, 3)
    expected = math.sqrt(2 / (1 - math.exp(-2 * q)))
    np.testing.assert_allclose(critical_weight_std("cos", 0.3), expected, rtol=1e-10)


@pytest.mark.parametrize("bias_std", [0.0, 1e-10, 0.5])
@pytest.mark.parametrize("activation", ["tanh", "erf", "sin", "sigmoid", "softplus"])
def test_the_critical_scale_separates_the_phases(activation, bias_std):
    critical = critical_weight_std(activation, bias_std)
    phases = [
        signal_propagation(activation, weight_std=critical * x, bias_std=bias_std).phase
        for x in (0.999, 1.0, 1.001)
    ]
    assert phases == ["ordered", "critical", "chaotic"]


def test_close_to_criticality_the_correlation_is_that_of_the_expansion_around_one():
    """C(1 - d) - (1 - d) = -(chi - 1) d + C''(1) d^2 / 2, with C'' = q w E phi''^2."""
    w = critical_weight_std("tanh", 0.3) * (1 + 1e-5)
    got = signal_propagation("tanh", weight_std=w, bias_std=0.3)
    curvature = (
        w**2
        * got.variance
        * expectation(lambda x: -2 * np.tanh(x) * (1 - np.tanh(x) ** 2), got.variance)
    )
    expected = 2 * (got.susceptibility - 1) / curvature
    np.testing.assert_allclose(1 - got.correlation, expected, rtol=1e-3)


def test_in_float32(float32):
    for weight_std, bias_std in ((1.0, 0.3), (2.0, 0.3)):
        w, b = weight_std**2, bias_std**2
        q = settled(lambda q, w=w, b=b: w * expectation(np.tanh, q) + b, 1.0)
        got = signal_propagation("tanh", weight_std=weight_std, bias_std=bias_std)
        np.testing.assert_allclose(got.variance, q, rtol=1e-5)
        chi = w * expectation(_PHI["tanh"][1], q)
        np.testing.assert_allclose(got.susceptibility, chi, rtol=1e-5)
    for activation, bias_std in (("tanh", 0.0), ("tanh", 0.3), ("relu", 0.0), ("relu", 0.3)):
        critical = critical_weight_std(activation, bias_std)
        got = signal_propagation(activation, weight_std=critical, bias_std=bias_std)
        assert (got.phase, got.correlation) == ("critical", 1.0)


def test_what_has_no_critical_scale_is_named():
    for activation, name in (("gelu", "gelu"), (step, "step"), (monomial(3), "monomial_3")):
        text = rf"`activation` is '{name}' with `bias_std` 0.0, for which no `weight_std` is crit"
        with pytest.raises(ValueError, match=text):
            critical_weight_std(activation)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"`weight_std` is -1.0, expected a finite number > 0"):
        signal_propagation("tanh", weight_std=-1.0)
    with pytest.raises(ValueError, match=r"`bias_std` is -0.1, expected a finite number >= 0"):
        signal_propagation("tanh", weight_std=1.0, bias_std=-0.1)
    with pytest.raises(ValueError, match=r"`bias_std` is nan, expected a finite number >= 0"):
        critical_weight_std("tanh", math.nan)
    with pytest.raises(ValueError, match=r"`activation` is 'tan', expected one of 'relu'"):
        critical_weight_std("tan")
    with pytest.raises(ValueError, match=r"whose E phi\(z\)\^2 is 0.0, expected a finite number"):
        signal_propagation(jnp.zeros_like, weight_std=1.0)
