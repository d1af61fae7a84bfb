"""At the start a network is the random function that theory section 7 and 9 say it is."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import ntk
from tests.zoo.recursion import preactivation_moments
from zoo import (
    ACTIVATIONS,
    AffineLayer,
    CNN,
    MEAN_FIELD,
    MLP,
    MUP,
    NTK,
    record,
    STANDARD,
    WideResNet,
)

X = jr.normal(jr.key(7), (2, 4, 4))

MAKERS = {
    "MLP": functools.partial(MLP, 32, 1, width=256, depth=3),
    "CNN flatten": functools.partial(CNN, (2, 4, 4), 1, channels=96, depth=2, stride=(2, 1)),
    "CNN valid": functools.partial(
        CNN, (2, 4, 4), 1, channels=96, depth=2, kernel_size=2, padding="VALID"
    ),
    "CNN mean": functools.partial(
        CNN, (2, 4, 4), 1, channels=96, depth=2, padding="CIRCULAR", readout="mean"
    ),
    "WideResNet": functools.partial(WideResNet, (2, 4, 4), 1, base_channels=48),
    "WideResNet layer norm": functools.partial(
        WideResNet, (2, 4, 4), 1, base_channels=48, norm="layer"
    ),
}
# Every architecture with a kink and without; the first three with every activation. Those that
# `make test` has no time for are left to `make test-slow`.
QUICK = [("MLP", activation) for activation in ("relu", "sin", "gelu", "erf")] + [
    (name, "tanh") for name in MAKERS if not name.startswith("WideResNet")
]
QUICKEST = [("MLP", "tanh"), ("MLP", "erf"), ("CNN mean", "tanh")]


def marks(case):
    if case in QUICKEST:
        return ()
    return pytest.mark.long if case in QUICK else pytest.mark.slow


CASES = [
    pytest.param(name, activation, marks=marks((name, activation)))
    for name in MAKERS
    for activation in (
        ACTIVATIONS if name in ("MLP", "CNN mean", "WideResNet") else ("relu", "tanh")
    )
]


def preactivations(model, x):
    _, calls = record(model, x)
    return [call.output for call in calls if isinstance(call.layer, AffineLayer)]


@pytest.mark.long
@pytest.mark.parametrize(("name", "activation"), CASES)
def test_preactivation_moments_follow_the_recursion(name, activation):
    """E z^2 of every layer over draws of the network, within 4.5 standard errors.

    About 250 comparisons at 7e-6 each: one chance in 600 of a false alarm for a seed. The recursion
    is that of many channels: at n channels the mean differs by O(1/n), for which 2 % are allowed.
    """
    options = {"activation": activation, "weight_std": 1.2, "bias_std": 0.4, "readout_std": 0.8}
    make = functools.partial(MAKERS[name], **options)

    @jax.jit
    @jax.vmap
    def draw(key):
        return jnp.stack([jnp.mean(z**2) for z in preactivations(make(key=key), X)])

    squares = np.asarray(draw(jr.split(jr.key(0), 250)))
    expected = np.array(preactivation_moments(make(key=jr.key(0)), X))
    error = squares.std(axis=0) / len(squares) ** 0.5
    assert np.all(error[:-1] < 0.05 * expected[:-1])
    np.testing.assert_array_less(
        np.abs(squares.mean(axis=0) - expected), 4.5 * error + 0.02 * expected
    )


@pytest.mark.long
@pytest.mark.parametrize("name", MAKERS)
def test_parameterizations_differ_in_the_readout_only(name):
    """From one key NTK and STANDARD are the same function, layer by layer; MEAN_FIELD and MUP too,
    but for their readout, whose weights are smaller by the root of its fan-in.
    """
    make = functools.partial(MAKERS[name], activation="tanh", bias_std=0.4, key=jr.key(3))
    models = {p.name: make(parameterization=p) for p in (NTK, STANDARD, MEAN_FIELD, MUP)}
    signals = {name: preactivations(model, X) for name, model in models.items()}
    readout = models["NTK"].body.layers[-1]
    shift = 0.4 * readout.bias
    for other in ("STANDARD", "MEAN_FIELD", "MUP"):
        for a, b in zip(signals[other][:-1], signals["NTK"][:-1], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        factor = 1.0 if other == "STANDARD" else readout.fans["fan_in"] ** -0.5
        expected = factor * (signals["NTK"][-1] - shift) + shift
        np.testing.assert_allclose(signals[other][-1], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize(("width", "draws"), [(8, 40_000), (64, 4_000)])
def test_mean_tangent_kernel_of_a_relu_network_is_exact_at_any_width(width, draws):
    """E Theta(x, x) = d s^2 |x|^2 / n_0 with d weight layers (Hanin & Nica 2020; theory, 6)."""
    x, s, hidden = jnp.array([1.0, -2.0, 0.5]), 0.9, 3

    @jax.jit
    @jax.vmap
    def theta(key):
        model = MLP(3, 1, width=width, depth=hidden, readout_std=s, key=key)
        return ntk(model, x[None], outputs="mean")[0, 0]

    kernels = theta(jr.split(jr.key(1), draws))
    exact = (hidden + 1) * s**2 * float(x @ x) / 3
    error = float(jnp.std(kernels)) / draws**0.5
    assert error < 0.01 * exact
    assert abs(float(jnp.mean(kernels)) - exact) < 3.3 * error  # one chance in 1000


@pytest.mark.long
def test_fourth_moment_of_a_relu_network_is_exact():
    """E f^4 / (E f^2)^2 = 3 prod (1 + 5 / n_l) over hidden layers (theory, 6)."""
    widths = (8, 12)
    x = jnp.array([1.0, -2.0, 0.5])

    @jax.jit
    @jax.vmap
    def outputs(key):
        return MLP(3, 1, width=widths, key=key)(x)[0]

    f = outputs(jr.split(jr.key(2), 400_000))
    second = 2**3 * float(x @ x) / 3 / 2**2
    exact = 3 * (1 + 5 / widths[0]) * (1 + 5 / widths[1]) * second**2
    error = float(jnp.std(f**4)) / len(f) ** 0.5
    assert error < 0.03 * exact
    assert abs(float(jnp.mean(f**4)) - exact) < 3.3 * error
    np.testing.assert_allclose(jnp.mean(f**2), second, rtol=0.02)


@pytest.mark.long
def test_weight_tensors_are_normal_draws_of_the_stated_scale():
    for make in MAKERS.values():
        model = make(bias_std=0.3, parameterization=STANDARD, key=jr.key(0))
        for call in record(model, X)[1]:
            if isinstance(call.layer, AffineLayer) and call.layer.weight.size > 500:
                weight = call.layer.weight
                scale = 2**0.5 / call.layer.fans["fan_in"] ** 0.5
                # 5 standard errors of the second and fourth moment of N normal draws
                z, n = weight / scale, weight.size
                np.testing.assert_allclose(jnp.mean(z**2), 1, atol=5 * (2 / n) ** 0.5)
                np.testing.assert_allclose(jnp.mean(z**4), 3, atol=5 * (96 / n) ** 0.5)
    assert eqx.tree_equal(make(key=jr.key(0)), make(key=jr.key(0)))
