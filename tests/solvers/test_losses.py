import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from solvers import CrossEntropy, gradient_flow, MeanSquaredError
from solvers.losses import mean_loss, residual
from tests.models import inputs, one_hot


def test_mean_squared_error_is_half_the_sum_over_outputs():
    f, y = inputs(4, 2), inputs(4, 2, seed=11)
    loss = MeanSquaredError()
    np.testing.assert_allclose(mean_loss(loss, f, y), 0.5 * np.sum((f - y) ** 2) / 4, rtol=1e-14)
    np.testing.assert_allclose(residual(loss, f, y), (f - y) / 4, rtol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_formula(smoothing):
    f, y = 3 * inputs(5, 3), one_hot(5, 3)
    loss = CrossEntropy(label_smoothing=smoothing)
    target = (1 - smoothing) * np.asarray(y) + smoothing / 3
    np.testing.assert_allclose(
        jax.vmap(loss)(f, y), -np.sum(target * log_softmax(f, axis=1), axis=1), rtol=1e-13
    )
    np.testing.assert_allclose(
        residual(loss, f, y), (jax.nn.softmax(f) - target) / 5, rtol=1e-12, atol=1e-15
    )


def test_cross_entropy_does_not_overflow():
    value = CrossEntropy()(jnp.array([1e4, -1e4]), jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(value, 2e4, rtol=1e-14)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_bad_smoothing_is_named(unchecked, smoothing):
    with pytest.raises(ValueError, match="`label_smoothing` is"):
        CrossEntropy(label_smoothing=smoothing)


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (jnp.array([[0.3, 0.3], [1, 0]]), ValueError, "`y` does not hold labels for CrossEntropy"),
        (jnp.array([[2.0, -1.0], [1, 0]]), ValueError, "`y` does not hold labels for CrossEntropy"),
        (jnp.ones((3, 2)) / 2, ValueError, "`y` has shape (3, 2), expected (2, 2)"),
        (jnp.array([0, 1]), TypeError, "`y` has dtype int64, expected real floating-point"),
        (jnp.array([0.0, 1.0]), ValueError, "`y` has shape (2,), expected (2, 1)"),
        (jnp.ones((2, 1)), ValueError, "`y` has shape (2, 1), expected a column for each of at"),
        (jnp.array([[jnp.nan, 1], [1, 0]]), ValueError, "`y` has 1 entries out of 4 that are not"),
    ],
)
def test_labels_that_do_not_match_are_named(unchecked, y, error, message):
    with pytest.raises(error, match=re.escape(message)):
        gradient_flow(jnp.eye(2), y, [0.0, 1.0], loss=CrossEntropy())


def test_a_loss_that_is_no_function_is_named(unchecked):
    with pytest.raises(TypeError, match="`loss` is 'mse', expected a function"):
        gradient_flow(jnp.eye(2), one_hot(2, 2), [0.0, 1.0], loss="mse")
