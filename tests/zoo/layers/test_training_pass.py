import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tests.models import inputs, tanh_mlp
from zoo import (
    BatchNorm,
    centered,
    Dense,
    Flatten,
    forward_train,
    Residual,
    scaled,
    Sequential,
    WideResNet,
    with_output,
)


@functools.cache
def resnet():
    return WideResNet((2, 6, 6), 3, base_channels=4, norm="batch", activation="tanh", key=jr.key(0))


def images(seed=1, n=5):
    return jr.normal(jr.key(seed), (n, 2, 6, 6))


def test_a_model_without_batch_norm_is_the_same():
    model, xs = tanh_mlp(), inputs(4)
    outputs, same = forward_train(model, xs)
    np.testing.assert_allclose(outputs, jax.vmap(model)(xs), rtol=1e-13)
    assert eqx.tree_equal(same, model)
    outputs, same = forward_train(jnp.sin, xs)
    np.testing.assert_allclose(outputs, jnp.sin(xs), rtol=1e-13)


@pytest.mark.long
def test_statistics_converge_to_the_training_pass():
    """On one repeated batch the frozen statistics become the batch's: both passes then agree."""
    model, xs = resnet(), images()
    step = eqx.filter_jit(forward_train)
    for _ in range(300):
        outputs, model = step(model, xs)
    np.testing.assert_allclose(jax.vmap(model)(xs), outputs, rtol=1e-10)


@pytest.mark.long
def test_parameters_do_not_move():
    model = resnet()
    _, moved = forward_train(model, images())
    params, moved_params = (eqx.filter(m, eqx.is_inexact_array) for m in (model, moved))
    assert eqx.tree_equal(params, moved_params)
    assert not eqx.tree_equal(model, moved)


def test_transforms_pass_the_batch_on():
    model, xs = resnet(), images()
    outputs, moved = forward_train(model, xs)
    for transform, expected in (
        (lambda m: scaled(m, 2.0), 2 * outputs),
        (lambda m: with_output(m, "tanh"), jnp.tanh(outputs)),
        (centered, outputs - jax.vmap(model)(xs)),
    ):
        got, transformed = forward_train(transform(model), xs)
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)
        assert eqx.tree_equal(transformed.model, moved)


def test_both_arms_of_a_residual_are_trained():
    xs = images()
    block = Residual(BatchNorm(2), BatchNorm(2))
    outputs, moved = forward_train(block, xs)
    one, trained = forward_train(BatchNorm(2), xs)
    np.testing.assert_allclose(outputs, 2 * one, rtol=1e-12)
    assert eqx.tree_equal(moved.branch, trained)
    assert eqx.tree_equal(moved.shortcut, trained)


class Wrapped(eqx.Module):
    norm: BatchNorm

    def __call__(self, x):
        return self.norm(x)


def test_a_module_that_hides_batch_norm_is_refused(unchecked):
    model = Wrapped(BatchNorm(2))
    with pytest.raises(TypeError, match="Wrapped holds batch normalization and has no method `for"):
        forward_train(Sequential([model, Flatten(), Dense(72, 3, key=jr.key(0))]), images())
    frozen = centered(tanh_mlp())
    forward_train(frozen, inputs(3))  # frozen or none at all: nothing to train


def test_bad_batches_are_named(unchecked):
    with pytest.raises(ValueError, match=r"`xs` has shape \(0, 3\), expected a batch of at least"):
        forward_train(tanh_mlp(), jnp.zeros((0, 3)))
    with pytest.raises(TypeError, match="`xs` has dtype complex128, expected real numbers"):
        forward_train(tanh_mlp(), jnp.zeros((2, 3), complex))
    with pytest.raises(TypeError, match="`x` has dtype int64, expected real floating-point"):
        forward_train(tanh_mlp(), jnp.zeros((2, 3), int))
