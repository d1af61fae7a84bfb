"""What has no infinite-width limit, and arguments that make no sense, are refused by name."""

import re

import jax.numpy as jnp
import jax.random as jr
import pytest

from zoo import (
    activation_function,
    ACTIVATIONS,
    CNN,
    Conv,
    Dense,
    Flatten,
    GroupNorm,
    HermiteDual,
    limit,
    MLP,
    monomial,
    NoLimitError,
    NTK,
    Residual,
    Sequential,
    STANDARD,
    WideResNet,
    with_output,
)

X = jr.normal(jr.key(7), (4, 2, 5, 4))
PERCEPTRON = MLP(40, 1, width=4, depth=3, bias_std=0.4, key=jr.key(0))


def dense(n_in, n_out, role="hidden"):
    return Dense(n_in, n_out, role=role, key=jr.key(0))


def conv(n_in, n_out, **options):
    return Conv(n_in, n_out, kernel_size=(1, 1), key=jr.key(0), **options)


RELU = ACTIVATIONS["relu"]


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            WideResNet((2, 5, 4), 1, base_channels=2, norm="batch", key=jr.key(0)),
            r"`model.body.layers\[1\].branch.layers\[0\]` is a BatchNorm, which",
        ),
        (with_output(PERCEPTRON, "softmax"), "`model` applies a function to the outputs"),
        (Sequential([dense(40, 4), jnp.tanh]), r"`model.layers\[1\]` is tanh, which has no rule"),
        (
            lambda x: x,
            "`model` is <lambda>, which has no rule for infinite width, expected a layer",
        ),
        (
            Sequential([dense(40, 4, "readout"), dense(4, 1, "readout")]),
            "`model` has 2 layers with the role of a readout, expected one at most",
        ),
    ],
)
def test_models_without_a_limit_are_refused(model, text, unchecked):
    with pytest.raises(NoLimitError, match=text):
        limit(model)


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([RELU, dense(40, 1)], r"activation relu of `model.layers\[0\]` does not come after"),
        ([dense(40, 4), RELU, RELU], r"`model.layers\[2\]` does not come after a layer with"),
        ([Residual(RELU), dense(40, 1)], "the activation relu"),
        (
            [dense(40, 4), Residual(RELU), dense(4, 1)],
            r"`model.layers\[1\]` adds a branch and a shortcut of which neither ends in a layer",
        ),
        (
            [dense(40, 4), GroupNorm(4), Residual(Sequential([RELU, dense(4, 4)]))],
            r"`model.layers\[2\]` adds what comes out of a normalization, expected an activation",
        ),
        (
            [dense(30, 1)],
            r"`x1` does not fit `model.layers\[0\]`: 40 entries come to it, expected 30",
        ),
        ([conv(2, 4)], r"`model.layers\[0\]` takes 2 spatial axes, but what comes in has 0"),
        (
            [dense(40, 4), activation_function(jnp.sign), dense(4, 1)],
            "sign: an activation that is piecewise constant has no tangent kernel",
        ),
    ],
)
def test_structures_without_a_limit_are_refused_where_they_are(layers, text):
    network = limit(Sequential(layers))
    with pytest.raises(ValueError, match=text):
        network.ntk(X.reshape(4, 40))


def test_images_of_another_size_are_refused():
    network = limit(CNN((1, 4, 4), 2, channels=3, depth=1, key=jr.key(0)))
    with pytest.raises(ValueError, match=r"layers\[3\]`: 108 entries come to it, expected 48"):
        network.ntk(jnp.ones((2, 1, 6, 6)))


def test_images_need_a_readout():
    with pytest.raises(NoLimitError, match=r"outputs are images of \(5, 4\) positions"):
        limit(Sequential([conv(2, 4)])).nngp(X)
    layers = [conv(2, 4), RELU, GroupNorm(4), Flatten(), dense(80, 1)]
    with pytest.raises(NoLimitError, match=r"normalization of `model.layers\[2\]` does not come"):
        limit(Sequential(layers)).nngp(X)


def test_bad_arguments_are_named(unchecked):
    network = limit(PERCEPTRON)
    x = X.reshape(4, 40)
    with pytest.raises(ValueError, match=r"`x2` has shape \(4, 39\), expected \(n2, 40\)"):
        network.ntk(x, x[:, 1:])
    with pytest.raises(ValueError, match=r"`x1` has shape \(40,\), expected a batch of vectors"):
        network.nngp(x[0])
    with pytest.raises(ValueError, match=r"`x1` has 1 entries out of 160 that are not finite"):
        network.nngp(x.at[1, 2].set(jnp.nan))
    with pytest.raises(ValueError, match=r"`batch_size` is 0, expected an integer >= 1"):
        network.nngp(x, batch_size=0)
    with pytest.raises(TypeError, match=r"`equivalent_to` is 'NTK', expected a `zoo.Parameteriz"):
        limit(PERCEPTRON, equivalent_to="NTK")
    without = limit(MLP(40, 1, width=4, depth=1, key=jr.key(0)))
    with pytest.raises(ValueError, match=r"`bias_std` is 0.1, but the network has no biases"):
        without.with_stds(bias_std=0.1)
    with pytest.raises(ValueError, match="`degree` is 0, expected an integer"):
        monomial(0)
    with pytest.raises(ValueError, match=r"`terms` is 7, expected an even number"):
        HermiteDual(jnp.tanh, terms=7)


@pytest.mark.parametrize(
    ("parameterization", "asked", "advised"),
    [
        (STANDARD, {}, {"rate_power": -1}),
        (NTK, {"rate_power": 1}, {"rate_power": 0}),
        (NTK, {"equivalent_to": STANDARD}, {"equivalent_to": STANDARD, "rate_power": -1}),
    ],
)
def test_the_advice_is_a_call_that_has_a_limit(parameterization, asked, advised):
    model = MLP(40, 1, width=4, depth=1, parameterization=parameterization, key=jr.key(0))
    call = ", ".join(f"{name}={getattr(value, 'name', value)}" for name, value in advised.items())
    with pytest.raises(NoLimitError, match=re.escape(f"`limit(model, {call})`")):
        limit(model, **asked).ntk(X.reshape(4, 40))
    assert limit(model, **advised).ntk(X.reshape(4, 40)).shape == (4, 4)
