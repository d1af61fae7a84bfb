"""The Hessian of the loss against the dense one, its parts, and its ends of the spectrum."""

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from corrections import (
    extreme_eigenvalues,
    KinkWarning,
    LossHessian,
    ntk,
    NTKOperator,
    spectral_density,
)
from corrections.parameters import split
from solvers import CrossEntropy, MeanSquaredError
from tests import oracles
from tests.corrections.contraction.test_gradient_factors import random_metric
from tests.corrections.taylor.test_taylor_model import displaced
from tests.models import inputs, one_hot, tanh_mlp

LOSSES = {"squared": MeanSquaredError(), "cross entropy": CrossEntropy(label_smoothing=0.1)}
X, Y = inputs(5), one_hot(5, 2)


def dense(model, loss, metric=None):
    """M^{1/2} H M^{1/2} of the mean loss by `jax.hessian`."""
    vector, outputs, m = oracles.flat(model, metric)
    root = jnp.sqrt(m)
    mean = lambda v: jnp.mean(jax.vmap(loss)(outputs(v, X), Y))  # noqa: E731
    return jax.hessian(mean)(vector) * jnp.outer(root, root)


def gauss_newton(model, loss):
    vector, outputs, _ = oracles.flat(model)
    jacobian = jax.jacobian(outputs)(vector, X)
    curvature = jax.vmap(jax.hessian(loss))(outputs(vector, X), Y)
    return jnp.einsum("nkp,nkl,nlq->pq", jacobian, curvature, jacobian) / len(X)


@pytest.mark.long
@pytest.mark.parametrize("name", LOSSES)
def test_is_the_hessian_of_the_mean_loss_and_the_sum_of_its_parts(name):
    model, loss = tanh_mlp(width=4), LOSSES[name]
    full, newton, rest = (
        LossHessian(model, X, Y, loss=loss, part=part).as_matrix()
        for part in ("full", "gauss_newton", "residual")
    )
    np.testing.assert_allclose(full, dense(model, loss), atol=1e-13)
    np.testing.assert_allclose(newton, gauss_newton(model, loss), atol=1e-13)
    np.testing.assert_allclose(newton + rest, full, atol=1e-13)


def test_metric_and_batches():
    model, loss = tanh_mlp(width=4), LOSSES["cross entropy"]
    metric = random_metric(model)
    expected = dense(model, loss, metric)
    for batch_size in (None, 2):
        operator = LossHessian(model, X, Y, loss=loss, metric=metric, batch_size=batch_size)
        np.testing.assert_allclose(operator.as_matrix(), expected, atol=1e-13)
    v = displaced(model, 1.0)
    flat = ravel_pytree(v)[0]
    np.testing.assert_allclose(ravel_pytree(operator.mv(v))[0], expected @ flat, atol=1e-13)
    assert lx.is_symmetric(operator)
    doubled = (operator + 0.5 * operator).mv(v)
    np.testing.assert_allclose(ravel_pytree(doubled)[0], 1.5 * expected @ flat, atol=1e-13)


@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_extreme_eigenvalues_are_those_of_the_dense_matrix(which):
    model, loss = tanh_mlp(width=4), LOSSES["cross entropy"]
    operator = LossHessian(model, X, Y, loss=loss)
    found = extreme_eigenvalues(operator, 3, which=which)
    ascending = jnp.linalg.eigvalsh(dense(model, loss))
    expected = ascending[:3] if which == "smallest" else ascending[::-1][:3]
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    assert bool(jnp.all(found.converged))
    first = jax.tree.map(lambda v: v[0], found.vectors)
    image, vector = ravel_pytree(operator.mv(first))[0], ravel_pytree(first)[0]
    np.testing.assert_allclose(image, found.values[0] * vector, atol=1e-4 * abs(ascending[-1]))
    assert jax.tree.structure(first) == jax.tree.structure(split(model)[0])


@pytest.mark.long
def test_gauss_newton_of_squared_loss_has_the_eigenvalues_of_the_kernel_over_n():
    """Gradient descent of the linearised network is stable below 2 n / lambda_max(Theta)."""
    model = tanh_mlp()
    newton = LossHessian(model, X, Y, loss=MeanSquaredError(), part="gauss_newton")
    sharpness = extreme_eigenvalues(newton).values[0]
    kernel = jnp.linalg.eigvalsh(ntk(model, X).reshape(10, 10))[-1]
    np.testing.assert_allclose(sharpness, kernel / len(X), rtol=1e-6)
    operator = extreme_eigenvalues(NTKOperator(model, X), 2)
    np.testing.assert_allclose(operator.values[0], kernel, rtol=1e-6)
    assert operator.vectors.shape == (2, 5, 2)


def test_descent_is_stable_up_to_2_over_the_largest_eigenvalue():
    """A quadratic bowl: |v . step| shrinks below 2 / sharpness and grows above."""
    matrix = jnp.diag(jnp.array([4.0, 1.0]))
    operator = lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)
    sharpness = float(extreme_eigenvalues(operator).values[0])
    assert sharpness == pytest.approx(4.0, rel=1e-12)
    for rate, stable in ((1.99 / sharpness, True), (2.01 / sharpness, False)):
        steps = jnp.linalg.matrix_power(jnp.eye(2) - rate * matrix, 400)
        assert bool(jnp.abs(steps).max() < 1) == stable


def test_density_of_the_hessian_has_its_trace():
    model, loss = tanh_mlp(width=4), LOSSES["squared"]
    matrix = dense(model, loss)
    found = spectral_density(LossHessian(model, X, Y, loss=loss), matvecs=30, samples=200)
    mean = jnp.mean(jnp.sum(found.weights * found.nodes, axis=1))
    signs = 2 * jnp.sum((matrix - jnp.diag(jnp.diagonal(matrix))) ** 2) / len(matrix) ** 2
    error = 4 * jnp.sqrt(signs / 200)
    np.testing.assert_allclose(mean, jnp.trace(matrix) / len(matrix), atol=float(error))


def test_cut_short_says_so_and_kinks_warn():
    model = tanh_mlp()
    operator = LossHessian(model, X, Y, loss=MeanSquaredError())
    assert not bool(extreme_eigenvalues(operator, matvecs=3).converged[0])
    with pytest.warns(KinkWarning):
        LossHessian(tanh_mlp(activation="relu"), X, Y, loss=MeanSquaredError())


def test_bad_arguments_are_named(unchecked):
    model, loss = tanh_mlp(), MeanSquaredError()
    with pytest.raises(ValueError, match="`part` is 'fisher', expected one of 'full'"):
        LossHessian(model, X, Y, loss=loss, part="fisher")
    with pytest.raises(ValueError, match=r"`y` has shape \(5, 3\), expected \(5, 2\)"):
        LossHessian(model, X, one_hot(5, 3), loss=loss)
    with pytest.raises(TypeError, match=r"gives .* expected a real scalar"):
        LossHessian(model, X, Y, loss=lambda f, y: f - y)
    operator = LossHessian(model, X, Y, loss=loss)
    with pytest.raises(ValueError, match="`vector` does not match the parameters"):
        operator.mv(displaced(tanh_mlp(width=4), 1.0))
    with pytest.raises(ValueError, match="`which` is 'top', expected one of 'largest'"):
        extreme_eigenvalues(operator, which="top")
    with pytest.raises(ValueError, match="`count` is 3, expected at most the size 2"):
        extreme_eigenvalues(lx.MatrixLinearOperator(jnp.eye(2), lx.symmetric_tag), 3)
    with pytest.raises(ValueError, match="`operator` is an operator that is not known to be"):
        extreme_eigenvalues(lx.MatrixLinearOperator(jr.normal(jr.key(0), (2, 2))))
    with pytest.raises(TypeError, match=r"`operator` is of type .*, expected an operator"):
        spectral_density(jnp.eye(2))
    with pytest.raises(ValueError, match="leave `x2` out"):
        extreme_eigenvalues(NTKOperator(model, X, X[:2]))
