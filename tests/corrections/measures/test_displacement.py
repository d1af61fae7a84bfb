"""Displacements: the bound by the Hessian on the way, and the row space of the Jacobian."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from corrections import hessian_norm, linearity_bound, row_space_fraction
from corrections.parameters import precondition, split
from tests import oracles
from tests.corrections.contraction.test_gradient_factors import random_metric
from tests.corrections.taylor.test_taylor_model import displaced
from tests.models import inputs, tanh_mlp


@pytest.mark.long
def test_deviation_is_below_the_bound_of_a_fine_sample():
    model, x = tanh_mlp(), inputs(3)
    d = displaced(model, 1.5)
    found = linearity_bound(model, x, d, samples=9)
    params, apply = split(model)
    batched = jax.vmap(apply, in_axes=(None, 0))
    f, change = jax.jvp(lambda p: batched(p, x), (params,), (d,))
    exact = jnp.abs(batched(eqx.apply_updates(params, d), x) - f - change)
    np.testing.assert_allclose(found.deviation, exact, rtol=1e-10)
    assert bool(jnp.all(found.deviation <= found.bound))
    assert bool(found.converged)
    np.testing.assert_allclose(found.radius, 1.5, rtol=1e-12)
    np.testing.assert_allclose(found.places[jnp.array([0, -1])], [0.0, 1.0])
    np.testing.assert_allclose(found.hessian.value[0], hessian_norm(model, x, rtol=1e-3).value)
    moved = eqx.apply_updates(model, d)
    np.testing.assert_allclose(found.hessian.value[-1], hessian_norm(moved, x, rtol=1e-3).value)
    np.testing.assert_allclose(found.bound, found.hessian.value.max(axis=0) * 1.5**2 / 2)


def test_bound_is_attained_by_a_quadratic_model_along_its_eigenvector():
    """With f = p . A p / 2: the deviation of d is d . A d / 2, the bound |A| |d|^2 / 2."""

    class Quadratic(eqx.Module):
        p: jax.Array

        def __call__(self, x):
            return (0.5 * x * jnp.array([3.0, -1.0]) @ self.p**2)[None]

    model, x = Quadratic(jnp.array([0.3, 0.7])), jnp.ones((1, 1))
    along = Quadratic(jnp.array([2.0, 0.0]))
    found = linearity_bound(model, x, along, samples=2)
    np.testing.assert_allclose(found.deviation, [[6.0]], rtol=1e-12)
    np.testing.assert_allclose(found.bound, [[6.0]], rtol=1e-6)


@pytest.mark.long
def test_gradient_steps_lie_in_the_row_space_and_normal_ones_do_not():
    model, x = tanh_mlp(), inputs(3)
    metric = random_metric(model)
    vector, outputs, m = oracles.flat(model, metric)
    _, unravel = ravel_pytree(split(model)[0])
    jacobian = jax.jacrev(outputs)(vector, x).reshape(6, -1)
    inside = jacobian.T @ jnp.linspace(-1, 1, 6)
    for name, given, weights in (("metric", metric, m), ("none", None, jnp.ones_like(m))):
        step = precondition(given, unravel(inside))
        fraction = row_space_fraction(model, x, step, metric=given)
        np.testing.assert_allclose(fraction, 1, rtol=1e-9, err_msg=name)
        q, _ = jnp.linalg.qr((jacobian * jnp.sqrt(weights)[None]).T)
        noise = jnp.sin(jnp.linspace(0, 50, vector.size))
        normal = noise - q @ (q.T @ noise)
        outside = unravel(jnp.sqrt(weights) * normal)
        assert float(row_space_fraction(model, x, outside, metric=given)) < 1e-12
        mixed = unravel(jnp.sqrt(weights) * noise)
        expected = jnp.sum((q.T @ noise) ** 2) / jnp.sum(noise**2)
        np.testing.assert_allclose(
            row_space_fraction(model, x, mixed, metric=given, batch_size=2), expected, rtol=1e-9
        )


def test_singular_kernels_are_solved_in_their_range():
    """An example given twice adds nothing to the row space."""
    model, x = tanh_mlp(), inputs(3)
    d = displaced(model, 1.0)
    once = row_space_fraction(model, x, d)
    np.testing.assert_allclose(row_space_fraction(model, x[jnp.array([0, 1, 2, 0])], d), once)
    assert 0 < float(once) < 1


def test_bad_displacements_are_named(unchecked):
    model, x = tanh_mlp(), inputs(2)
    with pytest.raises(ValueError, match="`displacement` does not match the parameters"):
        linearity_bound(model, x, displaced(tanh_mlp(width=4), 1.0))
    with pytest.raises(ValueError, match="`samples` is 1, expected an integer >= 2"):
        linearity_bound(model, x, displaced(model, 1.0), samples=1)
    zero = jax.tree.map(jnp.zeros_like, split(model)[0])
    with pytest.raises(ValueError, match="`displacement` is all zero, expected one that moves"):
        row_space_fraction(model, x, zero)
    metric = eqx.tree_at(lambda m: m.layers[1].weight, split(model)[0], 0.0)
    metric = jax.tree.map(lambda p: 0.0 if isinstance(p, float) else 1.0, metric)
    with pytest.raises(ValueError, match="`displacement` moves 64 parameters whose `metric` is 0"):
        row_space_fraction(model, x, displaced(model, 1.0), metric=metric)
