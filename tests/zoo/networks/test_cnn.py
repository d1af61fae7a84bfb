import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.zoo.test_convolution import by_loops
from zoo import astype, CNN, MUP, summary


@pytest.mark.parametrize("readout", ["flatten", "mean"])
@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
def test_forward_pass_is_the_formula(padding, readout):
    model = CNN(
        (2, 7, 6),
        3,
        channels=[4, 5],
        kernel_size=(3, 2),
        stride=(2, 1),
        padding=padding,
        readout=readout,
        activation="tanh",
        weight_std=1.3,
        bias_std=0.2,
        readout_std=0.7,
        key=jr.key(0),
    )
    x = jr.normal(jr.key(1), (2, 7, 6))
    conv1, _, conv2, _, _, dense = model.body.layers
    a = np.asarray(x)
    for conv, fan_in in ((conv1, 2 * 6), (conv2, 4 * 6)):
        z = 1.3 / fan_in**0.5 * by_loops(a, np.asarray(conv.weight), (2, 1), padding)
        a = np.tanh(z + 0.2 * np.asarray(conv.bias)[:, None, None])
    a = a.mean(axis=(1, 2)) if readout == "mean" else a.ravel()
    expected = 0.7 / len(a) ** 0.5 * np.asarray(dense.weight) @ a + 0.2 * np.asarray(dense.bias)
    np.testing.assert_allclose(model(x), expected, rtol=1e-12, atol=1e-13)
    assert [layer.role for layer in (conv1, conv2, dense)] == ["input", "hidden", "readout"]


@st.composite
def networks(draw):
    axes = draw(st.integers(1, 2))
    space = draw(st.lists(st.integers(1, 6), min_size=axes, max_size=axes))
    return {
        "in_shape": (draw(st.integers(1, 3)), *space),
        "out_size": draw(st.integers(1, 3)),
        "channels": draw(st.lists(st.integers(1, 4), max_size=3)),
        "kernel_size": draw(st.integers(1, 4)),
        "stride": draw(st.integers(1, 2)),
        "padding": draw(st.sampled_from(["SAME", "CIRCULAR"])),
        "readout": draw(st.sampled_from(["flatten", "mean"])),
        "bias_std": draw(st.none() | st.just(0.3)),
    }


@pytest.mark.long
@settings(max_examples=6, deadline=None)
@given(networks(), st.sampled_from(["float32", "float64"]), st.integers(0, 2**31 - 1))
def test_any_shape_works_batched_and_compiled(options, dtype, seed):
    in_shape, out_size = options["in_shape"], options["out_size"]
    model = eqx.filter_jit(lambda key: astype(CNN(**options, key=key), dtype))(jr.key(seed))
    xs = jr.normal(jr.key(seed + 1), (2, *in_shape), dtype)
    outputs = eqx.filter_jit(lambda model, xs: jax.vmap(model)(xs))(model, xs)
    single = eqx.filter_jit(lambda model, x: model(x))(model, xs[1])
    assert outputs.shape == (2, out_size)
    assert outputs.dtype == dtype
    tolerance = 1e-10 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(outputs[1], single, rtol=tolerance, atol=tolerance)
    # Parameters: counted from the arguments alone.
    positions, channels, expected = options["kernel_size"] ** (len(in_shape) - 1), in_shape[0], 0
    space = in_shape[1:]
    for size in options["channels"]:
        expected += size * channels * positions + (size if options["bias_std"] else 0)
        channels, space = size, [math.ceil(n / options["stride"]) for n in space]
    seen = channels * (math.prod(space) if options["readout"] == "flatten" else 1)
    expected += out_size * seen + (out_size if options["bias_std"] else 0)
    assert summary(model, in_shape).parameters == expected


def test_serialises(tmp_path):
    def made(seed):
        return CNN((1, 4, 4), 2, channels=3, depth=1, bias_std=1.0, key=jr.key(seed))

    eqx.tree_serialise_leaves(tmp_path / "model.eqx", made(0))
    assert eqx.tree_equal(eqx.tree_deserialise_leaves(tmp_path / "model.eqx", made(1)), made(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "`channels` is 0, expected an integer >= 1"),
        ({"channels": [4, 0], "depth": None}, "`channels[1]` is 0, expected an integer >= 1"),
        ({"channels": [4, 4], "depth": 3}, "`depth` is 3 but `channels` lists 2 hidden layers"),
        ({"depth": None}, "`depth` is missing: `channels=4` is one number"),
        ({"in_shape": (8, 8)[:1]}, "`in_shape` is (8,), expected the shape of a channel-first"),
        ({"in_shape": (1, 8, 0)}, "`in_shape[2]` is 0, expected an integer >= 1"),
        ({"out_size": 0}, "`out_size` is 0, expected an integer >= 1"),
        ({"kernel_size": 9, "padding": "VALID"}, "`kernel_size` is (9, 9) on an image of (8, 8)"),
        ({"depth": 4, "padding": "VALID"}, "`kernel_size` is (3, 3) on an image of (2, 2)"),
        ({"kernel_size": (3,)}, "`kernel_size` is (3,), expected one integer or 2, one an axis"),
        ({"padding": "ZERO"}, "`padding` is 'ZERO', expected one of 'SAME'"),
        ({"readout": "max"}, "`readout` is 'max', expected one of 'flatten', 'mean'"),
        ({"readout_std": -1.0}, "`readout_std` is -1.0, expected a finite number >= 0"),
        ({"activation": "swish"}, "`activation` is 'swish', expected one of"),
    ],
)
def test_bad_arguments_are_named(unchecked, options, message):
    arguments = {"in_shape": (1, 8, 8), "out_size": 2, "channels": 4, "depth": 1} | options
    with pytest.raises(ValueError, match=re.escape(message)):
        CNN(**arguments, key=jr.key(0))


def test_wrong_examples_are_named(unchecked):
    model = CNN((1, 8, 8), 2, channels=4, depth=1, parameterization=MUP, key=jr.key(0))
    with pytest.raises(ValueError, match=r"`x` has shape \(8, 8, 1\), expected one example of sha"):
        model(jnp.ones((8, 8, 1)))
    with pytest.raises(ValueError, match=r"\(5, 1, 8, 8\).*For a batch use `jax\.vmap\(model\)"):
        model(jnp.ones((5, 1, 8, 8)))
    with pytest.raises(TypeError, match="`x` has dtype int64, expected real floating-point"):
        model(jnp.ones((1, 8, 8), int))
