"""Distances between two states of a network: laws they obey, and cases that are known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from corrections import (
    activation_distance,
    function_distance,
    kernel_distance,
    kernel_target_alignment,
    kernel_velocity,
    ntk,
    relative_change,
    smallest_ntk_eigenvalue,
    spectrum,
)
from tests import oracles
from tests.corrections.contraction.test_gradient_factors import random_metric
from tests.corrections.taylor.test_taylor_model import displaced
from tests.models import inputs, one_hot, tanh_mlp
from zoo import MLP, scaled

SEEDS = st.integers(0, 2**31)


def positive(seed, n=4, rank=None):
    factor = np.random.default_rng(seed).normal(size=(n, n if rank is None else rank))
    return jnp.asarray(factor @ factor.T)


@settings(max_examples=30, deadline=None)
@given(seeds=st.tuples(SEEDS, SEEDS), factors=st.tuples(*[st.floats(1e-6, 1e6)] * 2))
def test_kernel_distance_is_symmetric_blind_to_scale_and_between_0_and_1(seeds, factors):
    first, second = (positive(seed, rank=1 + seed % 4) for seed in seeds)
    distance = float(kernel_distance(first, second))
    assert 0 <= distance <= 1 + 1e-15
    np.testing.assert_allclose(kernel_distance(second, first), distance, rtol=1e-12)
    rescaled = kernel_distance(factors[0] * first, factors[1] * second)
    np.testing.assert_allclose(rescaled, distance, rtol=1e-9, atol=1e-29)
    assert float(kernel_distance(first, factors[0] * first)) < 1e-29


def test_kernel_distance_is_its_formula_and_keeps_small_digits():
    first, second = positive(0), positive(1)
    cosine = jnp.sum(first * second) / (jnp.linalg.norm(first) * jnp.linalg.norm(second))
    np.testing.assert_allclose(kernel_distance(first, second), 1 - cosine, rtol=1e-12)
    np.testing.assert_allclose(kernel_distance(first, -first), 2, rtol=1e-12)
    unit = jnp.eye(2) / jnp.sqrt(2)
    other = jnp.diag(jnp.array([1.0, -1.0])) / jnp.sqrt(2)
    np.testing.assert_allclose(kernel_distance(unit, unit + 1e-9 * other), 5e-19, rtol=1e-6)
    np.testing.assert_allclose(kernel_distance(unit, other), 1, rtol=1e-12)


def test_velocity_is_distance_over_time():
    kernels = jnp.stack([positive(seed) for seed in range(3)])
    velocity = kernel_velocity(kernels, [0.0, 1.0, 5.0])
    expected = [
        kernel_distance(kernels[0], kernels[1]),
        kernel_distance(kernels[1], kernels[2]) / 4,
    ]
    np.testing.assert_allclose(velocity, jnp.stack(expected), rtol=1e-12)


def test_relative_change_of_parameters_and_kernels():
    model = tanh_mlp()
    moved = eqx.apply_updates(model, displaced(model, 0.1))
    size = jnp.sqrt(sum(jnp.sum(p**2) for p in jax.tree.leaves(eqx.filter(model, eqx.is_array))))
    np.testing.assert_allclose(relative_change(model, moved), 0.1 / size, rtol=1e-10)
    np.testing.assert_allclose(relative_change(positive(0), 3 * positive(0)), 2, rtol=1e-12)
    assert float(relative_change(model, model)) == 0
    _, _, m = oracles.flat(model, metric := random_metric(model))
    before, after = (oracles.flat(each)[0] / jnp.sqrt(m) for each in (model, moved))
    expected = jnp.linalg.norm(after - before) / jnp.linalg.norm(before)
    np.testing.assert_allclose(relative_change(model, moved, metric=metric), expected, rtol=1e-12)


def test_function_distances():
    first, second, x = tanh_mlp(0), tanh_mlp(1), inputs(7)
    f, g = jax.vmap(first)(x), jax.vmap(second)(x)
    expected = jnp.mean(jnp.linalg.norm(f - g, axis=1))
    np.testing.assert_allclose(function_distance(first, second, x), expected, rtol=1e-12)
    np.testing.assert_allclose(
        function_distance(first, second, x, batch_size=3), expected, rtol=1e-12
    )
    softmax = jnp.mean(jnp.linalg.norm(jax.nn.softmax(f) - jax.nn.softmax(g), axis=1))
    np.testing.assert_allclose(
        function_distance(first, second, x, space="probabilities"), softmax, rtol=1e-12
    )
    differ = np.mean(np.asarray(f).argmax(axis=1) != np.asarray(g).argmax(axis=1))
    found = function_distance(first, second, x, space="predictions")
    np.testing.assert_allclose(found, differ, rtol=1e-12)
    assert float(function_distance(first, scaled(first, 2.0), x, space="predictions")) == 0
    single = tanh_mlp(out_size=1)
    assert float(function_distance(single, single, x, space="predictions")) == 0


def test_activation_distance_counts_units_that_switch():
    model, x = MLP(2, 1, width=3, depth=1, activation="relu", key=jr.key(0)), inputs(5, 2)
    opposite = jax.tree.map(jnp.negative, model)
    assert float(activation_distance(model, model, x)) == 0
    assert float(activation_distance(model, opposite, x)) == 1
    one = eqx.tree_at(lambda m: m.layers[0].weight, model, model.layers[0].weight.at[1].mul(-1))
    np.testing.assert_allclose(activation_distance(model, one, x), 1 / 3, rtol=1e-12)
    np.testing.assert_allclose(activation_distance(model, one, x, batch_size=2), 1 / 3, rtol=1e-12)


def test_activations_of_a_users_own():
    first, second = (eqx.nn.MLP(3, 2, 4, 1, key=jr.key(seed)) for seed in (0, 1))
    x = inputs(6)

    def preactivations(model, x):
        return model.layers[0](x)

    on = [jax.vmap(m.layers[0])(x) > 0 for m in (first, second)]
    found = activation_distance(first, second, x, preactivations=preactivations)
    np.testing.assert_allclose(found, np.mean(np.asarray(on[0] != on[1])), rtol=1e-12)
    with pytest.raises(ValueError, match="`first` calls no activations of the zoo"):
        activation_distance(first, second, x)


def test_smallest_eigenvalue_along_a_path():
    model, x = tanh_mlp(), inputs(3)
    path = [model, eqx.apply_updates(model, displaced(model, 1.0))]
    expected = [jnp.linalg.eigvalsh(ntk(m, x).reshape(6, 6))[0] for m in path]
    found = smallest_ntk_eigenvalue(path, x)
    np.testing.assert_allclose(found, jnp.stack(expected), rtol=1e-9)
    again = smallest_ntk_eigenvalue(path, x[jnp.array([0, 0])])
    np.testing.assert_allclose(again, 0, atol=1e-13)


def test_alignment_is_that_of_the_spectrum_and_1_for_the_labels_themselves():
    kernel, y = positive(0), one_hot(4, 2)
    np.testing.assert_allclose(
        kernel_target_alignment(kernel, y), spectrum(kernel, y).alignment, rtol=1e-12
    )
    np.testing.assert_allclose(kernel_target_alignment(3 * y @ y.T, y), 1, rtol=1e-12)
    full = ntk(tanh_mlp(), inputs(4))
    np.testing.assert_allclose(
        kernel_target_alignment(full, y), spectrum(full, y).alignment, rtol=1e-12
    )


def test_bad_arguments_are_named(unchecked):
    model, x = tanh_mlp(), inputs(2)
    with pytest.raises(ValueError, match=r"`second` has shape \(3, 3\), expected \(4, 4\)"):
        kernel_distance(positive(0), positive(0, 3))
    with pytest.raises(ValueError, match="`first` is all zero, expected a kernel that has"):
        kernel_distance(jnp.zeros((2, 2)), positive(0, 2))
    with pytest.raises(ValueError, match="expected strictly increasing times"):
        kernel_velocity([positive(0), positive(1)], [1.0, 1.0])
    with pytest.raises(ValueError, match="`kernels` has 1 entries, expected at least two"):
        kernel_velocity([positive(0)], [1.0])
    with pytest.raises(ValueError, match="`after` does not match `before`"):
        relative_change(model, tanh_mlp(width=4))
    with pytest.raises(ValueError, match="`before` is all zero"):
        relative_change(jnp.zeros(2), jnp.ones(2))
    with pytest.raises(ValueError, match="gives 3 outputs for an example of `x`, expected 2"):
        function_distance(model, tanh_mlp(out_size=3), x)
    with pytest.raises(ValueError, match="`space` is 'logits', expected one of 'outputs'"):
        function_distance(model, model, x, space="logits")
    with pytest.raises(ValueError, match="`second` does not match the activations of `first`"):
        activation_distance(model, tanh_mlp(width=4), x)
    with pytest.raises(ValueError, match="`models` is empty"):
        smallest_ntk_eigenvalue([], x)
