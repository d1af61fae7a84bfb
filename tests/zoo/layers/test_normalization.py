import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from zoo import BatchNorm, forward_train, GroupNorm, MEAN_FIELD, Sequential


def images(n=5, channels=6, seed=0):
    return 2.0 + 3.0 * jr.normal(jr.key(seed), (n, channels, 4, 3))


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_is_its_formula(groups):
    layer = GroupNorm(6, groups=groups)
    layer = eqx.tree_at(
        lambda m: (m.scale, m.shift), layer, (jnp.arange(1.0, 7.0), jnp.arange(6.0))
    )
    a = np.asarray(images()[0])
    expected = np.empty_like(a)
    for members in np.split(np.arange(6), groups):
        part = a[members]
        expected[members] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    expected = np.arange(1, 7)[:, None, None] * expected + np.arange(6)[:, None, None]
    np.testing.assert_allclose(layer(jnp.asarray(a)), expected, rtol=1e-12)


def test_batch_norm_uses_frozen_statistics_until_it_is_trained():
    layer, xs = BatchNorm(6, momentum=0.7), images()
    np.testing.assert_allclose(layer(xs[0]), xs[0] / jnp.sqrt(1 + 1e-5), rtol=1e-12)
    outputs, moved = forward_train(layer, xs)
    mean, var = (np.asarray(fn(xs, axis=(0, 2, 3))) for fn in (np.mean, np.var))
    expected = (np.asarray(xs) - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5)
    np.testing.assert_allclose(outputs, expected, rtol=1e-10)
    np.testing.assert_allclose(moved.mean, 0.3 * mean, rtol=1e-12)
    np.testing.assert_allclose(moved.variance, 0.7 + 0.3 * var, rtol=1e-12)
    inference = (xs[0] - moved.mean[:, None, None]) / jnp.sqrt(moved.variance[:, None, None] + 1e-5)
    np.testing.assert_allclose(moved(xs[0]), inference, rtol=1e-10)


def test_statistics_converge_to_those_of_a_repeated_batch():
    layer, xs = BatchNorm(6), images()
    for _ in range(400):
        outputs, layer = forward_train(layer, xs)
    np.testing.assert_allclose(jax.vmap(layer)(xs), outputs, rtol=1e-12)


def test_training_differentiates_through_the_statistics_of_the_batch():
    """Against finite differences, and the statistics are no parameters."""
    layer, xs = Sequential([BatchNorm(6)]), images()
    weights = jr.normal(jr.key(3), xs.shape)

    def loss(xs):
        return jnp.sum(weights * forward_train(layer, xs)[0])

    direction, step = jr.normal(jr.key(4), xs.shape), 1e-5
    expected = (loss(xs + step * direction) - loss(xs - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(jax.grad(loss)(xs), direction), expected, rtol=1e-6)

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def training(layer):
        outputs, moved = forward_train(layer, xs)
        return jnp.sum(outputs**2 * weights), moved

    (_, moved), gradient = training(layer)
    assert len(jax.tree.leaves(gradient)) == 2
    np.testing.assert_allclose(moved.layers[0].mean, 0.1 * xs.mean(axis=(0, 2, 3)), rtol=1e-10)


def test_scale_and_shift_have_the_rates_of_a_bias():
    layer = GroupNorm(6, parameterization=MEAN_FIELD)
    assert layer.learning_rate("scale") == layer.learning_rate("shift") == 6
    assert layer.init_std("scale") == 0
    np.testing.assert_array_equal(layer.scale, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GroupNorm(6, groups=4), r"`groups` is 4, expected a divisor of `channels` 6"),
        (lambda: GroupNorm(0), r"`channels` is 0, expected an integer >= 1"),
        (lambda: BatchNorm(6, momentum=1.5), r"`momentum` is 1.5, expected a number from 0 to 1"),
        (lambda: BatchNorm(6, epsilon=-1.0), r"`epsilon` is -1.0, expected a finite number >= 0"),
        (lambda: GroupNorm(4)(jnp.ones((1, 2))), r"`a` has shape \(1, 2\), expected \(4, ...\)"),
        (lambda: BatchNorm(4)(jnp.ones((1, 2))), r"`a` has shape \(1, 2\), expected \(4, ...\)"),
        (
            lambda: BatchNorm(4).forward_train(jnp.ones((5, 1, 2))),
            r"`a` has shape \(1, 2\), expected \(4, ...\)",
        ),
    ],
)
def test_bad_arguments_are_named(unchecked, call, message):
    with pytest.raises(ValueError, match=message):
        call()
