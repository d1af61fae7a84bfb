"""What errors and warnings advise: whoever follows it gets there."""

import re
import warnings

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from corrections import ntk
from solvers import (
    CrossEntropy,
    gradient_descent,
    gradient_flow,
    max_learning_rate,
    MeanSquaredError,
    mse_descent,
    mse_flow,
    posterior,
    SolverError,
    train,
    TrainingError,
)
from tests.models import inputs, one_hot, tanh_mlp
from zoo import Activation, astype, HermiteDual, limit, MLP, QuadratureWarning

LOSS = MeanSquaredError()
KERNEL = np.array([[4.0, 1.0], [1.0, 3.0]])
Y = np.array([[1.0], [-1.0]])


def advice(error, call, pattern):
    """The text of what `call` raises."""
    with pytest.raises(error) as raised:
        call()
    text = " ".join(str(raised.value).split())
    assert re.search(pattern, text), text
    return text


@pytest.mark.parametrize("argument", ["kernel", "y", "f0"])
def test_integers_are_converted(unchecked, argument):
    def call(**given):
        return mse_flow(**({"kernel": KERNEL, "y": Y, "f0": 0 * Y} | given), ts=[1.0]).train

    whole = np.rint({"kernel": KERNEL, "y": Y, "f0": 0 * Y}[argument]).astype(int)
    advice(TypeError, lambda: call(**{argument: whole}), f"`jnp.asarray\\({argument}, float\\)`")
    expected = call(**{argument: whole.astype(float)})
    np.testing.assert_array_equal(call(**{argument: jnp.asarray(whole, float)}), expected)


def test_complex_numbers_are_no_number_to_convert(unchecked):
    text = advice(TypeError, lambda: mse_flow(KERNEL + 0j, Y, [1.0]), "the real and the imaginary")
    assert "jnp.asarray" not in text


def test_times_are_sorted(unchecked):
    ts = [2.0, 1.0, 1.0]
    advice(ValueError, lambda: gradient_flow(KERNEL, Y, ts, loss=LOSS), r"`jnp.unique\(ts\)`")
    assert gradient_flow(KERNEL, Y, jnp.unique(jnp.array(ts)), loss=LOSS).successful


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("ridge", [0.0, 2.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_below_the_largest_stable_rate(momentum, ridge, dtype):
    kernel, y, steps = KERNEL.astype(dtype), Y.astype(dtype), [20_000]
    options = {"momentum": momentum, "diag_reg": ridge}
    largest = max_learning_rate(kernel + ridge * np.eye(2, dtype=dtype), momentum=momentum)

    def call(rate):
        return mse_descent(kernel, y, steps, learning_rate=rate, **options)

    text = advice(SolverError, lambda: call(1.1 * largest), "take a smaller `learning_rate`")
    assert "`max_learning_rate(kernel, momentum=momentum)`" in text
    assert "rtol" not in text
    assert call(0.99 * largest).successful


def test_steps_of_any_loss():
    rate = max_learning_rate(KERNEL)

    def call(rate):
        return gradient_descent(KERNEL, Y, [20_000], loss=LOSS, learning_rate=rate)

    advice(SolverError, lambda: call(1.1 * rate), "up to `max_learning_rate")
    assert call(0.99 * rate).successful


def test_training_below_the_largest_stable_rate():
    model, x, y = tanh_mlp(), inputs(4), 1e3 * one_hot(4, 2)
    rate = float(max_learning_rate(ntk(model, x)))

    def call(optimizer):
        return train(
            model, x, y, loss=lambda f, y: jnp.sum((f - y) ** 4), optimizer=optimizer, steps=30
        )

    text = advice(TrainingError, lambda: call(optax.sgd(rate)), "a smaller learning rate")
    assert "`optax.clip_by_global_norm`" in text
    assert call(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate))).successful
    assert call(optax.sgd(1e-12)).successful


def test_a_limit_that_does_not_exist():
    kernel, y = np.eye(2), np.eye(2)

    def call(ts, **options):
        return gradient_flow(kernel, y, ts, loss=CrossEntropy(**options))

    text = advice(SolverError, lambda: call([np.inf]), "`label_smoothing`")
    assert "a large finite time" in text
    assert call([np.inf], label_smoothing=0.1).successful
    assert call([1e6]).successful


def test_overflow():
    big = np.float32(1e30)
    with pytest.raises(SolverError, match="use a smaller kernel or targets, or float64"):
        mse_flow(
            KERNEL.astype("float32"),
            Y.astype("float32") * big,
            [1.0],
            kernel_test=big**1.0 * np.ones((1, 2), "float32"),
        )
    assert mse_flow(KERNEL, Y * 1e30, [1.0], kernel_test=1e30 * np.ones((1, 2))).successful


def test_half_precision_of_the_same_weights():
    model, x = astype(tanh_mlp(), "bfloat16"), inputs(3)
    advice(TypeError, lambda: ntk(model, x), r'`zoo.astype\(model, "float32"\)`')
    assert ntk(astype(model, "float32"), x.astype("float32")).dtype == jnp.float32


def test_a_steep_function_takes_more_terms():
    def steep(a):
        return jnp.tanh(5 * a)

    def call(activation):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            network = MLP(2, 1, width=4, depth=1, activation=activation, key=jr.key(0))
            kernel = limit(network).ntk(jnp.eye(2))
        return kernel, [str(one.message) for one in found if one.category is QuadratureWarning]

    _, (text,) = call(steep)
    assert "terms=2048" in text
    assert call(Activation("steep", steep, dual=HermiteDual(steep, terms=2048)))[1] == []
    assert "a kink leaves about" in text.lower()


def test_what_iterative_solves_advise_is_a_number(float32):
    """A singular kernel without noise: the advised `rtol`, or the advised noise, is enough."""
    features = np.asarray(inputs(20, 3), "float32")
    kernel, y = features @ features.T, np.asarray(inputs(20, 1, seed=3), "float32")

    def solve(**options):
        return posterior(kernel, y, method="iterative", preconditioner_rank=0, **options)

    with pytest.raises(RuntimeError) as raised:
        solve(noise=0.0)
    text = " ".join(str(raised.value).split())
    assert "nan" not in text
    factor = float(re.search(r"a `noise` of ([\d.e+-]+) times the kernel", text).group(1))
    noise = factor * float(np.linalg.eigvalsh(kernel)[-1])
    assert solve(noise=noise).successful
