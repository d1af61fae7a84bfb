import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from solvers import Brier, CrossEntropy, gradient_flow, Hinge, MeanSquaredError
from solvers.losses import mean_loss, one_hot_labels, residual
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


@pytest.mark.parametrize("margin", [0.0, 1.0, 40.0, 600.0])
def test_cross_entropy_of_a_fitted_example_keeps_its_digits(margin):
    """One logit above two equal ones: with q = e^-margin and p = (1, q, q) / (1 + 2 q),
    l = log(1 + 2 q), its gradient (-2 q, q, q) / (1 + 2 q), its Hessian diag(p) - p p^T.
    """
    f, y, q = jnp.array([margin, 0.0, 0.0]), jnp.eye(3)[0], np.exp(-margin)
    p = np.array([1, q, q]) / (1 + 2 * q)
    hessian = np.diag(p) - np.outer(p, p)
    hessian[0, 0] = p[0] * 2 * q / (1 + 2 * q)
    loss = CrossEntropy()
    np.testing.assert_allclose(loss(f, y), np.log1p(2 * q), rtol=1e-13)
    np.testing.assert_allclose(
        jax.grad(loss)(f, y), np.array([-2 * q, q, q]) / (1 + 2 * q), rtol=1e-13
    )
    for derivative in (jax.hessian(loss), jax.jacrev(jax.jacrev(loss))):
        np.testing.assert_allclose(derivative(f, y), hessian, rtol=1e-12)


def test_cross_entropy_has_a_derivative_in_the_targets():
    f, y = inputs(1, 3)[0], jnp.array([0.2, 0.3, 0.5])
    np.testing.assert_allclose(
        jax.grad(CrossEntropy(0.1), argnums=1)(f, y), -0.9 * log_softmax(f), rtol=1e-13
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
        (jnp.array([0, -1]), ValueError, "`y` holds the label -1 (at index 1), expected labels"),
        (jnp.ones((2, 3, 2)), ValueError, "`y` has shape (2, 3, 2), expected (2, "),
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


def test_brier_is_the_formula():
    f, y = 2 * inputs(5, 3), one_hot(5, 3)
    p = np.exp(log_softmax(f, axis=1))
    np.testing.assert_allclose(jax.vmap(Brier())(f, y), np.sum((p - y) ** 2, axis=1), rtol=1e-12)
    slopes = np.stack([np.diag(q) - np.outer(q, q) for q in p])
    expected = np.einsum("na,nab->nb", 2 * (p - y), slopes) / 5
    np.testing.assert_allclose(residual(Brier(), f, y), expected, rtol=1e-11, atol=1e-15)


def test_hinge_is_that_of_crammer_and_singer():
    f = jnp.array([[2.0, 0.5, -1.0], [0.2, 0.9, 0.8], [0.0, 0.0, 3.0]])
    y = one_hot(3, 3)
    np.testing.assert_allclose(jax.vmap(Hinge())(f, y), [0.0, 0.9, 0.0], rtol=1e-12)
    expected = np.array([[0, 0, 0], [0, -1, 1], [0, 0, 0]]) / 3
    np.testing.assert_allclose(residual(Hinge(), f, y), expected, atol=1e-15)


def test_hinge_of_one_output():
    f, y = jnp.array([[0.3], [-2.0], [1.5]]), jnp.array([[1.0], [1.0], [-1.0]])
    np.testing.assert_allclose(jax.vmap(Hinge())(f, y), [0.7, 3.0, 2.5], rtol=1e-12)
    np.testing.assert_allclose(residual(Hinge(), f, y)[:, 0], jnp.array([-1.0, -1.0, 1.0]) / 3)


def test_gradients_at_the_kinks_of_hinge_are_those_of_one_side():
    """Flat where the margin is exactly 1; of equal rivals the first is pulled, all of it."""
    flat = jax.grad(Hinge())(jnp.array([1.0, 0.0]), jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(flat, 0.0)
    tied = jax.grad(Hinge())(jnp.array([0.0, 0.5, 0.5]), jnp.array([1.0, 0.0, 0.0]))
    np.testing.assert_array_equal(tied, [-1.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("loss", "y", "message"),
    [
        (Brier(), [[0.7, 0.7], [1, 0]], "`y` does not hold labels for Brier: row 0 is [0.7 0.7]"),
        (Brier(), [[1.0], [1.0]], "expected a column for each of at least two classes: Brier of"),
        (Hinge(), [[0.5, 0.5], [1, 0]], "labels for Hinge: row 0 is [0.5 0.5] (1 of 2 rows like"),
        (Hinge(), [[1.0], [0.0]], "row 1 is [0.] (1 of 2 rows like it), expected 1 or -1 for one"),
    ],
)
def test_labels_that_brier_and_hinge_refuse(unchecked, loss, y, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        gradient_flow(jnp.eye(2), jnp.array(y, float), [0.0, 1.0], loss=loss)


def test_a_large_label_takes_its_row_and_no_matrix_of_all_classes():
    rows = one_hot_labels(CrossEntropy(), np.array([0, 10**6]), None)  # 10^12 numbers as a matrix
    assert rows.shape == (2, 10**6 + 1)
    np.testing.assert_array_equal(np.argwhere(rows), [[0, 0], [1, 10**6]])
