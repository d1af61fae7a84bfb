import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from corrections import ntk, NTKOperator, taylor_coefficients
from tests.models import inputs, tanh_mlp

X1, X2 = inputs(5), inputs(3, seed=3)


def dense(model, x1, x2, metric=None):
    kernel = ntk(model, x1, x2, metric=metric)
    return kernel.reshape(2 * len(x1), 2 * len(x2))


@pytest.mark.smoke
@pytest.mark.parametrize("batch_size", [None, 2])
def test_is_the_kernel(batch_size):
    model, g = tanh_mlp(), inputs(3, 2, seed=7)
    metric = jax.tree.map(lambda p: float(p.ndim), eqx.filter(model, eqx.is_inexact_array))
    operator = NTKOperator(model, X1, X2, metric=metric, batch_size=batch_size)
    kernel = dense(model, X1, X2, metric)
    assert operator.in_structure().shape == (3, 2)
    assert operator.out_structure().shape == (5, 2)
    np.testing.assert_allclose(operator.mv(g), (kernel @ g.ravel()).reshape(5, 2), rtol=1e-12)
    np.testing.assert_allclose(operator.as_matrix(), kernel, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(operator.T.as_matrix(), kernel.T, rtol=1e-12, atol=1e-14)
    same = NTKOperator(model, X1, metric=metric, batch_size=batch_size)
    kernel = dense(model, X1, X1, metric)
    np.testing.assert_allclose(same.as_matrix(), kernel, rtol=1e-12, atol=1e-14)
    assert same.transpose() is same


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [None, 2])
def test_coefficients_are_those_of_the_kernel_along_the_path(batch_size):
    model = tanh_mlp()
    params, static = eqx.partition(model, eqx.is_inexact_array)
    path = [jax.tree.map(jnp.cos, params), jax.tree.map(jnp.sin, params)]
    kernels = taylor_coefficients(
        lambda p: ntk(eqx.combine(p, static), X1, X2), params, path, order=2
    )
    operator = NTKOperator(model, X1, X2, batch_size=batch_size)
    for order, kernel in enumerate(kernels):
        coefficient, expected = operator.coefficient(path, order), kernel.reshape(10, 6)
        np.testing.assert_allclose(coefficient.as_matrix(), expected, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(coefficient.T.as_matrix(), expected.T, rtol=1e-10, atol=1e-12)


def test_conjugate_gradients_run_on_it():
    model, b = tanh_mlp(width=32), inputs(5, 2, seed=8)
    operator = NTKOperator(model, X1)
    assert lx.is_positive_semidefinite(operator)
    shifted = operator + lx.IdentityLinearOperator(operator.in_structure())
    positive = lx.TaggedLinearOperator(shifted, lx.positive_semidefinite_tag)
    solution = lx.linear_solve(positive, b, lx.CG(rtol=1e-12, atol=1e-12)).value
    expected = np.linalg.solve(dense(model, X1, X1) + np.eye(10), b.ravel())
    np.testing.assert_allclose(solution.ravel(), expected, rtol=1e-9)
    moved = operator.coefficient([eqx.filter(model, eqx.is_inexact_array)], 1)
    assert lx.is_symmetric(moved)
    assert not lx.is_positive_semidefinite(moved)
    assert not lx.is_symmetric(NTKOperator(model, X1, X2))


def test_bad_arguments_are_named(unchecked):
    model = tanh_mlp()
    with pytest.raises(ValueError, match="`batch_size` is 0, expected an integer >= 1"):
        NTKOperator(model, X1, batch_size=0)
    with pytest.raises(ValueError, match="`model` does not take an example of `x2`"):
        NTKOperator(model, X1, inputs(2, d=4))
    operator = NTKOperator(model, X1)
    with pytest.raises(ValueError, match=r"`vector` has shape \(5,\), expected \(5, 2\)"):
        operator.mv(jnp.ones(5))
    with pytest.raises(TypeError, match="`path` is of type MLP, expected a list"):
        operator.coefficient(model, 1)
    with pytest.raises(ValueError, match=r"`path\[0\]` does not match the parameters of `model`"):
        operator.coefficient([jnp.ones(3)], 1)
    with pytest.raises(ValueError, match="`order` is -1, expected an integer >= 0"):
        operator.coefficient([], -1)
