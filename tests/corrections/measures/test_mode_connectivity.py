"""Straight lines between networks, barriers on them, and the plane of a path."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.flatten_util import ravel_pytree

from corrections import error_barrier, interpolate, weight_path
from corrections.parameters import split
from solvers import CrossEntropy
from tests import oracles
from tests.corrections.contraction.test_gradient_factors import random_metric
from tests.corrections.taylor.test_taylor_model import displaced
from tests.models import batch_norm_network, inputs, one_hot, tanh_mlp
from zoo import forward_train


class Threshold(eqx.Module):
    """sign(x - place), with its place squared: two networks at +-1 are equal functions."""

    place: jax.Array

    def __call__(self, x):
        return x - self.place**2


@settings(max_examples=20, deadline=None)
@given(fraction=st.floats(0, 1))
def test_every_point_between_equal_networks_is_the_network(fraction):
    model = tanh_mlp()
    assert eqx.tree_equal(interpolate(model, model, fraction), model)


def test_ends_are_the_networks_bit_for_bit_and_the_middle_is_the_mean():
    first, second = tanh_mlp(0), tanh_mlp(1)
    assert eqx.tree_equal(interpolate(first, second, 0.0), first)
    assert eqx.tree_equal(interpolate(first, second, 1.0), second)
    middle = interpolate(first, second, 0.5).layers[1].weight
    expected = (first.layers[1].weight + second.layers[1].weight) / 2
    np.testing.assert_allclose(middle, expected, rtol=1e-13)


def test_statistics_of_batch_norm_are_interpolated_too():
    first = batch_norm_network()
    x = jr.normal(jr.key(0), (5, 1, 4, 4))
    _, second = forward_train(first, 3 * x + 1)
    between = interpolate(first, second, 0.5)
    assert not np.allclose(jax.vmap(between)(x), jax.vmap(first)(x))
    assert eqx.tree_equal(interpolate(first, second, 1.0), second)


def test_barrier_between_two_solutions():
    """Both thresholds lie at 1, the one between at 0: the examples in (0, 1) are wrong there."""
    first, second = Threshold(jnp.array([1.0])), Threshold(jnp.array([-1.0]))
    x = jnp.array([[-0.5], [0.2], [0.4], [2.0]])
    y = jnp.sign(x - 1)
    found = error_barrier(first, second, x, y, points=3)
    np.testing.assert_allclose(found.risks, [0, 0.5, 0])
    assert float(found.value) == 0.5
    np.testing.assert_allclose(found.fractions, [0, 0.5, 1])
    by_batches = error_barrier(first, second, x, y, points=3, batch_size=3)
    np.testing.assert_allclose(by_batches.risks, found.risks)


def test_barrier_is_zero_for_equal_networks_and_counts_errors():
    model, x, y = tanh_mlp(), inputs(20), one_hot(20, 2)
    assert float(error_barrier(model, model, x, y).value) == 0
    other = tanh_mlp(1)
    found = error_barrier(model, other, x, y, points=5)
    for risk, fraction in zip(found.risks, found.fractions, strict=True):
        f = jax.vmap(interpolate(model, other, fraction))(x)
        np.testing.assert_allclose(risk, jnp.mean(f.argmax(axis=1) != y.argmax(axis=1)))
    ends = (found.risks[0] + found.risks[-1]) / 2
    np.testing.assert_allclose(found.value, found.risks.max() - ends)
    loss = CrossEntropy()
    of_loss = error_barrier(model, other, x, y, points=2, risk=loss)
    expected = [jnp.mean(jax.vmap(loss)(jax.vmap(m)(x), y)) for m in (model, other)]
    np.testing.assert_allclose(of_loss.risks, jnp.stack(expected), rtol=1e-12)


def test_plane_of_a_path_that_lies_in_one():
    model = tanh_mlp()
    one, two = displaced(model, 1.0, seed=1), displaced(model, 1.0, seed=2)
    angles = np.linspace(0, 2, 6)
    path = [
        eqx.apply_updates(model, jax.tree.map(lambda a, b, t=t: 3 * t * a + t**2 * b, one, two))
        for t in angles
    ]
    found = weight_path(path)
    np.testing.assert_allclose(jnp.sum(found.explained), 1, rtol=1e-10)
    assert float(found.explained[0]) > float(found.explained[1])
    assert bool(jnp.all(found.coordinates[-1] > 0))
    for model_at, (a, b) in zip(path, found.coordinates, strict=True):
        rebuilt = jax.tree.map(
            lambda c, axes, a=a, b=b: c + a * axes[0] + b * axes[1], found.center, found.axes
        )
        for got, expected in zip(
            jax.tree.leaves(rebuilt), jax.tree.leaves(split(model_at)[0]), strict=True
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-10)
    products = [
        sum(jnp.sum(a[i] * a[j]) for a in jax.tree.leaves(found.axes)) for i, j in ((0, 0), (0, 1))
    ]
    np.testing.assert_allclose(jnp.stack(products), [1, 0], atol=1e-12)


def test_plane_under_a_metric_is_that_of_the_rescaled_parameters():
    model = tanh_mlp()
    metric = random_metric(model)
    root = oracles.flat(model, metric)[2] ** 0.5
    steps = [displaced(model, size, seed=i) for i, size in enumerate((0.0, 1.0, 3.0, 2.0))]
    path = [eqx.apply_updates(model, step) for step in steps]
    found = weight_path(path, metric=metric)
    rescaled = jnp.stack([ravel_pytree(split(m)[0])[0] / root for m in path])
    covariance = jnp.linalg.eigvalsh(jnp.cov(rescaled.T, bias=True))[::-1]
    np.testing.assert_allclose(found.explained, covariance[:2] / covariance.sum(), rtol=1e-9)
    axes = jax.vmap(lambda axis: ravel_pytree(axis)[0])(found.axes) / root[None]
    np.testing.assert_allclose(axes @ axes.T, jnp.eye(2), atol=1e-12)
    expected = (rescaled - rescaled.mean(axis=0, keepdims=True)) @ axes.T
    np.testing.assert_allclose(found.coordinates, expected, atol=1e-12)


def test_one_parameter_has_one_axis():
    path = [Threshold(jnp.array([place])) for place in (0.0, 1.0, 3.0)]
    found = weight_path(path)
    np.testing.assert_allclose(found.coordinates[:, 0], jnp.array([-4, -1, 5]) / 3, rtol=1e-12)
    np.testing.assert_allclose(found.coordinates[:, 1], 0)
    np.testing.assert_allclose(found.explained, [1, 0])


def test_bad_arguments_are_named(unchecked):
    model, x, y = tanh_mlp(), inputs(2), one_hot(2, 2)
    with pytest.raises(ValueError, match="`second` has another structure than `first`"):
        interpolate(model, tanh_mlp(depth=1), 0.5)
    with pytest.raises(ValueError, match="`second` does not match `first`"):
        error_barrier(model, tanh_mlp(width=4), x, y)
    with pytest.raises(ValueError, match="`points` is 1, expected an integer >= 2"):
        error_barrier(model, model, x, y, points=1)
    with pytest.raises(ValueError, match=r"`y` has shape \(2, 3\), expected \(2, 2\)"):
        error_barrier(model, model, x, one_hot(2, 3))
    with pytest.raises(ValueError, match="`models` has 2 points, expected at least three"):
        weight_path([model, model])
    with pytest.raises(ValueError, match="`models` are all the same"):
        weight_path([model] * 3)
    with pytest.raises(ValueError, match=r"`models\[2\]` does not match the parameters of"):
        weight_path([model, model, tanh_mlp(width=4)])
