import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import ntk, NTKOperator, spectral_density, spectrum
from tests.models import inputs, tanh_mlp

X, Y = inputs(20), inputs(20, 2, seed=5)


def with_eigenvalues(values, seed=0):
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))
    return jnp.asarray(basis * np.asarray(values)) @ basis.T, jnp.asarray(basis)


def test_dense_spectrum_is_that_of_the_matrix():
    values = [8.0, 4.0, 2.0, 1.0]
    kernel, basis = with_eigenvalues(values)
    y = (3 * basis[:, 0] + 4 * basis[:, 3])[:, None]
    found = spectrum(kernel, y)
    np.testing.assert_allclose(found.eigenvalues, values, rtol=1e-12)
    np.testing.assert_allclose(found.condition_number, 8, rtol=1e-12)
    np.testing.assert_allclose(found.effective_rank, 15**2 / 85, rtol=1e-12)
    np.testing.assert_allclose(found.label_energy, [0.36, 0, 0, 0.64], atol=1e-12)
    expected = (9 * 8 + 16 * 1) / (np.sqrt(85) * 25)
    np.testing.assert_allclose(found.alignment, expected, rtol=1e-12)
    assert found.converged.all()
    full = kernel.reshape(2, 2, 2, 2)
    np.testing.assert_allclose(spectrum(full, y.reshape(2, 2)).alignment, expected, rtol=1e-12)
    assert spectrum(kernel).alignment is None


def test_a_kernel_of_its_labels_is_aligned_with_them():
    y = jr.normal(jr.key(0), (6, 2))
    y = jnp.linalg.qr(y)[0]
    np.testing.assert_allclose(spectrum(y @ y.T, y).alignment, 1, rtol=1e-12)
    assert spectrum(y @ y.T).condition_number == jnp.inf
    np.testing.assert_allclose(spectrum(y @ y.T).effective_rank, 2, rtol=1e-12)


@pytest.mark.smoke
def test_operator_spectrum_is_that_of_its_kernel():
    model = tanh_mlp(width=64)
    dense = spectrum(ntk(model, X), Y)
    found = spectrum(NTKOperator(model, X), Y, count=5, matvecs=400)
    np.testing.assert_allclose(found.eigenvalues[:-1], dense.eigenvalues[:5], rtol=1e-9)
    np.testing.assert_allclose(found.eigenvalues[-1], dense.eigenvalues[-1], rtol=1e-6)
    np.testing.assert_allclose(found.condition_number, dense.condition_number, rtol=1e-6)
    assert found.converged.all()
    np.testing.assert_allclose(found.label_energy[:5], dense.label_energy[:5], atol=1e-9)
    # Random vectors: 400 of them, relative errors of a few percent.
    np.testing.assert_allclose(found.effective_rank, dense.effective_rank, rtol=0.25)
    np.testing.assert_allclose(found.alignment, dense.alignment, rtol=0.15)


def test_few_products_do_not_pass_as_converged():
    found = spectrum(NTKOperator(tanh_mlp(width=64), X), count=3, matvecs=4, rtol=1e-6)
    exact = jnp.linalg.eigvalsh(ntk(tanh_mlp(width=64), X).reshape(40, 40))
    assert not found.converged.all()
    for value, residual in zip(found.eigenvalues, found.residuals, strict=True):
        assert jnp.min(jnp.abs(exact - value)) <= residual


def test_density_has_the_moments_of_the_spectrum():
    """The mean over sign vectors of moments that Lanczos' method gets exactly."""
    model = tanh_mlp(width=64)
    exact = jnp.linalg.eigvalsh(ntk(model, X).reshape(40, 40))
    found = spectral_density(NTKOperator(model, X), matvecs=12, samples=300)
    assert found.nodes.shape == found.weights.shape == (300, 12)
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, rtol=1e-12)
    for power in (1, 2):
        moments = (found.weights * found.nodes**power).sum(axis=1)
        error = 5 * float(moments.std()) / np.sqrt(300)
        assert abs(float(moments.mean() - (exact**power).mean())) < error


def test_bad_arguments_are_named(unchecked):
    model = tanh_mlp()
    with pytest.raises(ValueError, match=r"`kernel` has shape \(2, 3\), expected \(n, n\) or"):
        spectrum(jnp.ones((2, 3)))
    with pytest.raises(
        ValueError,
        match="`kernel` is not symmetric: entries differ from",
    ):
        spectrum(jnp.array([[1.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="`kernel` is an operator that is not known"):
        spectrum(NTKOperator(model, X, inputs(3)))
    with pytest.raises(ValueError, match="`count` is 10 and `matvecs` 5, expected at least as"):
        spectrum(NTKOperator(model, X), matvecs=5)
    with pytest.raises(ValueError, match=r"`y` has shape \(3, 2\), expected \(20, 2\)"):
        spectrum(NTKOperator(model, X), inputs(3, 2))
    with pytest.raises(ValueError, match="`samples` is 0, expected an integer >= 1"):
        spectral_density(NTKOperator(model, X), samples=0)
