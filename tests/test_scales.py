"""Functions that are homogeneous: the same digits whatever the units, in float32.

Squares of 1e-20 and 1e20 are not float32 numbers; what takes norms by squares finds zeros there.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

from corrections import (
    extreme_eigenvalues,
    jacobian_norm,
    kappa,
    kernel_distance,
    kernel_target_alignment,
    ntk,
    NTKOperator,
    relative_change,
    spectral_density,
    spectrum,
)
from solvers import gradient_flow, max_learning_rate, MeanSquaredError, mse_flow, posterior
from tests.models import inputs
from zoo import limit, MLP, QuadratureWarning, scaled
from zoo.common.norms import norm

pytestmark = pytest.mark.usefixtures("float32")

SCALES = [1e-20, 1e-10, 1e10, 1e20]


def kernel(size=12, seed=0):
    features = inputs(size, size + 4, seed=seed).astype("float32")
    return features @ features.T


def targets(size=12):
    return inputs(size, 2, seed=3).astype("float32")


def operator(scale):
    return lx.MatrixLinearOperator(kernel() * scale, lx.symmetric_tag)


def flow(scale, ts):
    well_posed = kernel() + 20 * jnp.eye(12)
    return gradient_flow(well_posed * scale, targets(), ts, loss=MeanSquaredError()).train


# name: (degree, function of the scale)
HOMOGENEOUS = {
    "norm": (1, lambda s: norm(targets() * s)),
    "norm of rows": (1, lambda s: norm(targets() * s, axis=1)),
    "extreme_eigenvalues": (1, lambda s: extreme_eigenvalues(operator(s), 3).values),
    "spectral_density": (1, lambda s: spectral_density(operator(s), matvecs=6, samples=2).nodes),
    "spectrum": (1, lambda s: spectrum(kernel() * s).eigenvalues),
    "condition": (0, lambda s: spectrum(kernel() * s).condition_number),
    "effective rank": (0, lambda s: spectrum(kernel() * s).effective_rank),
    "alignment in the kernel": (0, lambda s: kernel_target_alignment(kernel() * s, targets())),
    "alignment in the labels": (0, lambda s: kernel_target_alignment(kernel(), targets() * s)),
    "label energy": (0, lambda s: spectrum(kernel(), targets() * s).label_energy),
    "kernel_distance": (0, lambda s: kernel_distance(kernel() * s, kernel(seed=1) * s)),
    "relative_change": (0, lambda s: relative_change(kernel() * s, kernel(seed=1) * s)),
    "max_learning_rate": (-1, lambda s: max_learning_rate(kernel() * s)),
    "mse_flow in the targets": (1, lambda s: mse_flow(kernel(), targets() * s, [3.0]).train),
    "mse_flow in the kernel": (0, lambda s: mse_flow(kernel() * s, targets(), [jnp.inf]).train),
    "gradient_flow in the kernel": (0, lambda s: flow(s, [jnp.inf])),
    "gradient_flow in time": (0, lambda s: flow(s, np.array([0.1, 1.0]) / s)),
    "coefficients": (-1, lambda s: mse_flow(kernel() * s, targets(), [jnp.inf]).final),
    "posterior": (0, lambda s: posterior(kernel() * s, targets(), noise=float(s)).train.mean),
    "posterior's std": (
        0.5,
        lambda s: posterior(kernel() * s, targets(), noise=float(s)).train.std,
    ),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_units_do_not_matter(name, scale):
    degree, fn = HOMOGENEOUS[name]
    expected = np.asarray(fn(np.float32(1)), "float64")
    found = np.asarray(fn(np.float32(scale)), "float64") / float(np.float32(scale)) ** degree
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("scale", [1e-10, 1e-15, 1e10])
def test_norms_of_derivatives_scale_with_the_network(scale):
    model = MLP(3, 2, width=8, depth=1, activation="tanh", key=jax.random.key(0))
    x, y = inputs(3, 3).astype("float32"), jnp.zeros((3, 2), "float32")
    small = scaled(model, scale)
    np.testing.assert_allclose(
        jacobian_norm(small, x).value / scale, jacobian_norm(model, x).value, rtol=1e-3
    )
    found, expected = (kappa(m, x, y) for m in (small, model))
    assert bool(found.converged)
    np.testing.assert_allclose(found.value, expected.value, rtol=5e-3)


def test_multiple_eigenvalues_of_an_operator_are_all_found():
    """A linear layer has the same kernel for each of its k outputs: every eigenvalue k times."""
    model = eqx.nn.Linear(3, 4, use_bias=False, key=jax.random.key(0))
    x, y = inputs(8, 3).astype("float32"), inputs(8, 4, seed=1).astype("float32")
    dense = np.asarray(ntk(model, x).reshape(32, 32), "float64")
    values, vectors = np.linalg.eigh(dense)
    found = spectrum(NTKOperator(model, x), y, count=6)
    assert bool(found.converged[:6].all())
    np.testing.assert_allclose(found.eigenvalues[:6], values[::-1][:6], rtol=1e-4)
    energy = np.sum((vectors[:, -4:].T @ np.asarray(y).ravel()) ** 2) / np.sum(np.asarray(y) ** 2)
    np.testing.assert_allclose(found.label_energy[:4].sum(), energy, rtol=1e-3)


def test_a_norm_has_a_derivative_at_zero():
    assert float(jnp.abs(jax.grad(lambda v: norm(v))(jnp.zeros(3))).max()) == 0
    v = jnp.array([3.0, 4.0])
    np.testing.assert_allclose(jax.grad(lambda v: norm(v))(v), v / 5, rtol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "abs", "identity"])
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e10])
def test_limits_of_homogeneous_networks(scale, activation):
    """Kernels of degree 2 in the inputs: of 1e20 at the largest scale, whose products overflow."""
    network = MLP(4, 1, width=4, depth=2, activation=activation, bias_std=None, key=jr.key(0))
    x = inputs(5, 4).astype("float32").at[1].multiply(1e3)
    expected, found = (limit(network).kernels(x * s) for s in (np.float32(1), np.float32(scale)))
    for whole, scaled_ in zip(expected, found, strict=True):
        ratio = np.asarray(scaled_, float) / float(np.float32(scale)) ** 2
        np.testing.assert_allclose(ratio, whole, rtol=1e-4)


@pytest.mark.parametrize("activation", ["erf", "gelu"])
@pytest.mark.parametrize("scale", [1e-12, 1e-5, 1e5, 1e10])
def test_limits_at_the_ends_of_float32(scale, activation):
    """Against float64, which has room for all of them."""
    network = MLP(4, 1, width=4, depth=2, activation=activation, bias_std=None, key=jr.key(0))
    x = inputs(5, 4).astype("float32") * np.float32(scale)
    found = limit(network).kernels(x)
    jax.config.update("jax_enable_x64", True)  # the fixture switches it back
    expected = limit(network).kernels(np.asarray(x, "float64"))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=0)


@pytest.mark.parametrize("scale", [1e5, 1e10])
def test_a_series_that_saturates_is_warned_of(scale):
    """Tanh is sign there, (2/pi) asin(rho), and its slope a delta function of area 2."""
    network = MLP(2, 1, width=4, depth=1, activation="tanh", bias_std=None, key=jr.key(0))
    x = scale * jnp.array([[1.0, 0.0], [0.5, 0.75**0.5]])
    with pytest.warns(QuadratureWarning, match=r"resolved to 0\.5 of its kernel"):
        nngp, ntk = limit(network).kernels(x)
    rho, variance = 0.5, scale**2  # (2 / fan-in of 2) x . x
    np.testing.assert_allclose(nngp / 2, [[1, 1 / 3], [1 / 3, 1]], rtol=2e-4)
    slopes = 4 / (2 * np.pi * variance * (1 - rho**2) ** 0.5)
    np.testing.assert_allclose(ntk[0, 1], 2 * (1 / 3 + slopes * rho * variance), rtol=2e-4)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_norms_of_what_is_not_finite(value):
    found = norm(jnp.array([1.0, value, 1e30]))
    np.testing.assert_array_equal(found, abs(value))
