"""Regression with a network's own kernel, beside linearised training from the same parameters."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corrections import ntk, taylorize
from corrections.symmetric.layouts import RoundingWarning
from solvers import hierarchy_flow, kernel_regression, MeanSquaredError, parameter_flow
from tests.models import inputs, one_hot, tanh_mlp

X, Y, X_TEST = inputs(4), one_hot(4, 2), inputs(3, seed=11)


def partly_trained():
    model = tanh_mlp(width=32)
    return parameter_flow(model, X, Y, [0.5], loss=MeanSquaredError()).final


@pytest.mark.slow
def test_is_the_limit_of_linearised_training_from_a_partly_trained_network():
    model = partly_trained()
    found = kernel_regression(model, X, Y, X_TEST)
    np.testing.assert_allclose(found.train, Y, atol=1e-10)
    slowest = jnp.linalg.eigvalsh(ntk(model, X).reshape(8, 8))[0]
    end = [float(40 * len(X) / slowest)]
    loss = MeanSquaredError()
    flow = hierarchy_flow(model, X, Y, end, loss=loss, order=2, x_test=X_TEST, rtol=1e-9)
    np.testing.assert_allclose(found.test, flow.test[0], atol=1e-6)


@pytest.mark.slow
def test_is_the_limit_of_training_the_first_taylor_model():
    model = partly_trained()
    slowest = jnp.linalg.eigvalsh(ntk(model, X).reshape(8, 8))[0]
    end, loss = [float(40 * len(X) / slowest)], MeanSquaredError()
    linear = parameter_flow(taylorize(model, 1), X, Y, end, loss=loss, x_test=X_TEST, rtol=1e-9)
    np.testing.assert_allclose(
        kernel_regression(model, X, Y, X_TEST).test, linear.test[0], atol=1e-6
    )


@pytest.mark.long
@pytest.mark.parametrize("outputs", ["full", "mean"])
@pytest.mark.parametrize("offset", ["model", "zero"])
def test_is_its_formula(offset, outputs):
    model, ridge = partly_trained(), 0.3
    kernel, rows = (ntk(model, x, X, outputs=outputs) for x in (X, X_TEST))
    if outputs == "mean":
        kernel, rows = (jnp.kron(k, jnp.eye(2)) for k in (kernel, rows))
    kernel, rows = kernel.reshape(8, 8), rows.reshape(6, 8)
    f, f_test = (jax.vmap(model)(x) * float(offset == "model") for x in (X, X_TEST))
    weights = jnp.linalg.solve(kernel + ridge * jnp.eye(8), (Y - f).ravel())
    found = kernel_regression(
        model, X, Y, X_TEST, offset=offset, outputs=outputs, ridge=ridge, batch_size=3
    )
    np.testing.assert_allclose(found.test, f_test + (rows @ weights).reshape(3, 2), rtol=1e-9)
    np.testing.assert_allclose(found.train, f + (kernel @ weights).reshape(4, 2), rtol=1e-9)
    np.testing.assert_allclose(found.residual, jnp.linalg.norm(found.train - Y), rtol=1e-12)
    np.testing.assert_allclose(found.norm, jnp.sqrt(weights @ kernel @ weights), rtol=1e-9)
    assert int(found.rank) == (8 if outputs == "full" else 4)


def test_a_singular_kernel_gives_the_minimum_norm_solution():
    """An example given twice, with targets that disagree: their mean is fitted."""
    model = partly_trained()
    x = jnp.concatenate([X, X[:1]])
    y = jnp.concatenate([Y, Y[:1] + 0.5])
    with pytest.warns(RoundingWarning, match="2 directions of the kernel of `model`"):
        found = kernel_regression(model, x, y, X_TEST)
    assert int(found.dropped) == 2
    mean = Y.at[0].add(0.25)
    expected = kernel_regression(model, X, mean, X_TEST)
    np.testing.assert_allclose(found.test, expected.test, rtol=1e-7)
    assert int(found.rank) == 8
    np.testing.assert_allclose(found.residual, jnp.sqrt(4 * 0.25**2), rtol=1e-7)
    np.testing.assert_allclose(found.norm, expected.norm, rtol=1e-7)


def test_metric_and_no_test_points():
    model = partly_trained()
    metric = jax.tree.map(lambda _: 2.0, eqx.filter(model, eqx.is_inexact_array))
    found = kernel_regression(model, X, Y, metric=metric, ridge=2.0)
    expected = kernel_regression(model, X, Y, ridge=1.0)
    np.testing.assert_allclose(found.train, expected.train, rtol=1e-9)
    assert found.test is None


def test_bad_arguments_are_named(unchecked):
    model = tanh_mlp()
    with pytest.raises(ValueError, match="`offset` is 'f', expected one of 'model', 'zero'"):
        kernel_regression(model, X, Y, offset="f")
    with pytest.raises(ValueError, match="`ridge` is -1, expected a finite number >= 0"):
        kernel_regression(model, X, Y, ridge=-1)
    with pytest.raises(ValueError, match=r"`y` has shape \(4, 3\), expected \(4, 2\)"):
        kernel_regression(model, X, one_hot(4, 3))
    with pytest.raises(ValueError, match="`outputs` is 'diagonal', expected one of 'full'"):
        kernel_regression(model, X, Y, outputs="diagonal")
