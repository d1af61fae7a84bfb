import itertools
import math
import re

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from jax import export

from zoo import astype, CNN, Conv
from zoo.convolution import (
    _by_patches,
    _native,
    convolve,
    cotangent_matrix,
    cotangent_patches,
    kernel_matrix,
    output_space,
    outside_loops,
    PADDINGS,
    pads_of,
    window_patches,
)


def by_loops(image, weight, stride, padding):
    """The sum of the definition, one output entry at a time."""
    space, kernel = image.shape[1:], weight.shape[2:]
    out = [
        (n - k) // s + 1 if padding == "VALID" else math.ceil(n / s)
        for n, k, s in zip(space, kernel, stride, strict=True)
    ]
    low = [
        0 if padding == "VALID" else max((o - 1) * s + k - n, 0) // 2
        for n, k, s, o in zip(space, kernel, stride, out, strict=True)
    ]
    result = np.zeros((weight.shape[0], *out))
    for position in itertools.product(*map(range, out)):
        for offset in itertools.product(*map(range, kernel)):
            at = [s * p + q - lo for s, p, q, lo in zip(stride, position, offset, low, strict=True)]
            if padding == "CIRCULAR":
                at = [a % n for a, n in zip(at, space, strict=True)]
            elif not all(0 <= a < n for a, n in zip(at, space, strict=True)):
                continue
            result[:, *position] += weight[:, :, *offset] @ image[:, *at]
    return result


@st.composite
def convolutions(draw):
    axes = draw(st.integers(1, 2))
    space = draw(st.lists(st.integers(1, 7), min_size=axes, max_size=axes))
    padding = draw(st.sampled_from(PADDINGS))
    longest = space if padding == "VALID" else [5] * axes
    kernel = [draw(st.integers(1, most)) for most in longest]
    stride = draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    channels = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return tuple(space), tuple(kernel), tuple(stride), channels, padding


@pytest.mark.long
@settings(max_examples=15, deadline=None)
@given(convolutions(), st.sampled_from(["float32", "float64"]), st.integers(0, 2**31 - 1))
def test_convolution_is_the_sum_of_its_definition(case, dtype, seed):
    space, kernel, stride, (channels_in, channels), padding = case
    image = jr.normal(jr.key(seed), (channels_in, *space), dtype)
    weight = jr.normal(jr.key(seed + 1), (channels, channels_in, *kernel), dtype)
    expected = by_loops(np.asarray(image), np.asarray(weight), stride, padding)
    result = convolve(image, weight, stride=stride, padding=padding)
    assert result.dtype == dtype
    assert result.shape[1:] == output_space(space, kernel=kernel, stride=stride, padding=padding)
    tolerance = 1e-12 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_same_padding_is_that_of_xla(stride):
    image, weight = jr.normal(jr.key(0), (3, 9, 8)), jr.normal(jr.key(1), (4, 3, 4, 3))
    expected = jax.lax.conv_general_dilated(image[None], weight, stride, "SAME")[0]
    result = convolve(image, weight, stride=stride, padding="SAME")
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.smoke
@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
def test_both_implementations_and_their_derivatives_agree(stride):
    """Values, gradients and the forward derivative of gradients, under vmap, through `convolve`."""
    images, weight = jr.normal(jr.key(0), (4, 3, 6, 5)), jr.normal(jr.key(1), (2, 3, 3, 2))
    pads = tuple(pads_of(n, k, s, "SAME") for n, k, s in zip((6, 5), (3, 2), stride, strict=True))

    def through(fn):
        def loss(weight, images):
            return jnp.sum(jnp.tanh(jax.vmap(lambda image: fn(image, weight))(images)))

        gradient = jax.grad(loss, argnums=(0, 1))
        return jax.jvp(gradient, (weight, images), (weight, jnp.cos(images)))

    results = [
        through(lambda image, weight: convolve(image, weight, stride=stride, padding="SAME")),
        through(lambda image, weight: _by_patches(image, weight, stride=stride, pads=pads)),
        through(lambda image, weight: _native(image, weight, stride=stride, pads=pads)),
    ]
    for other in results[1:]:
        for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def convolutions_in(exported):
    return exported.mlir_module().count("stablehlo.convolution")


@pytest.mark.smoke
def test_accelerators_get_their_own_convolution():
    """Lowered for TPU and CUDA it is XLA's convolution, also inside a loop; on CPU it is none."""
    model = astype(CNN((3, 8, 8), 2, channels=4, depth=2, key=jr.key(0)), "float32")
    batches = jax.ShapeDtypeStruct((2, 5, 3, 8, 8), "float32")

    @jax.jit
    def mapped(batches):
        return jax.lax.map(lambda xs: jax.vmap(model)(xs), batches)

    for platform, count in (("tpu", 2), ("cuda", 2), ("cpu", 0)):
        exported = export.export(mapped, platforms=[platform])(batches)
        assert convolutions_in(exported) == count


def test_a_1x1_convolution_is_a_dense_layer_at_every_position():
    layer = Conv(3, 4, kernel_size=(1, 1), weight_std=1.3, bias_std=0.2, key=jr.key(0))
    image = jr.normal(jr.key(1), (3, 5, 2))
    assert layer.bias is not None
    weight = 1.3 / 3**0.5 * layer.weight[:, :, 0, 0]
    expected = jnp.einsum("oc,cij->oij", weight, image) + 0.2 * layer.bias[:, None, None]
    np.testing.assert_allclose(layer(image), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": (3, 0)}, "`kernel_size[1]` is 0, expected an integer >= 1"),
        ({"stride": (1, 2, 3)}, "`stride` is (1, 2, 3), expected one integer or 2"),
        ({"stride": 0}, "`stride` is 0, expected an integer >= 1"),
        ({"padding": "same"}, "`padding` is 'same', expected one of 'SAME', 'VALID', 'CIRCULAR'"),
        ({"in_channels": 0}, "`in_channels` is 0, expected an integer >= 1"),
        ({"role": "output"}, "`role` is 'output', expected one of"),
    ],
)
def test_bad_arguments_are_named(unchecked, arguments, message):
    options = {"in_channels": 2, "out_channels": 3, "kernel_size": (3, 3)} | arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        Conv(**options, key=jr.key(0))


@pytest.mark.long
@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=2),
    st.integers(1, 4),
    st.sampled_from(PADDINGS),
)
def test_cotangents_of_inputs_are_one_product_at_stride_1(space, length, padding):
    """Against the transpose of `convolve`, kernels longer than the image too."""
    assume(padding != "VALID" or length <= min(space))
    kernel, stride = (length,) * len(space), (1,) * len(space)
    image = jr.normal(jr.key(0), (2, *space))
    weight = jr.normal(jr.key(1), (3, 2, *kernel))
    z, pull = jax.vjp(lambda a: convolve(a, weight, stride=stride, padding=padding), image)
    cotangent = jr.normal(jr.key(2), z.shape)
    seen = cotangent_patches(cotangent, kernel=kernel, padding=padding)
    product = seen @ cotangent_matrix(kernel_matrix(weight), kernel=kernel)
    found = jnp.moveaxis(product.reshape(*space, 2), -1, 0)
    np.testing.assert_allclose(found, pull(cotangent)[0], rtol=1e-12, atol=1e-13)


def test_outside_loops_xla_convolves():
    image, weight = jr.normal(jr.key(0), (2, 5, 5)), jr.normal(jr.key(1), (3, 2, 3, 3))

    def lowered():
        return jax.jit(lambda a: convolve(a, weight, stride=(1, 1), padding="SAME")).lower(image)

    assert "stablehlo.case" in lowered().as_text()
    with outside_loops():
        inside = lowered()
        assert "stablehlo.convolution" in inside.as_text()
        assert "stablehlo.case" not in inside.as_text()
    assert "stablehlo.case" in lowered().as_text()


@pytest.mark.parametrize(
    ("space", "kernel", "stride"),
    [
        ((40, 36), (31, 29), (1, 1)),
        ((40, 36), (31, 29), (2, 3)),
        ((200,), (150,), (2,)),
        ((6, 6, 7), (5, 5, 6), (1, 2, 1)),
    ],
)
def test_large_kernels_take_few_operations(space, kernel, stride):
    """Windows are taken axis by axis: slices are the sum of the kernel's lengths."""
    keys = jr.split(jr.key(0))
    image, weight = jr.normal(keys[0], (2, *space)), jr.normal(keys[1], (3, 2, *kernel))
    pads = ((0, 0),) * len(space)
    expected = _native(image, weight, stride=stride, pads=pads)
    found = _by_patches(image, weight, stride=stride, pads=pads)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    program = jax.make_jaxpr(lambda a, w: _by_patches(a, w, stride=stride, pads=pads))(
        image, weight
    )
    assert len(program.eqns) < 8 * sum(kernel)


@pytest.mark.parametrize(
    ("space", "kernel", "stride", "dilation"),
    [((7, 6), (2, 3), (2, 1), (3, 2)), ((30, 29), (12, 11), (3, 1), (2, 2))],
)
def test_windows_of_entries_that_are_apart(space, kernel, stride, dilation):
    """Few positions of a kernel, and many, which are taken axis by axis."""
    image = jr.normal(jr.key(0), (2, *space))
    found = window_patches(image, kernel=kernel, stride=stride, dilation=dilation)
    expected = jax.lax.conv_general_dilated_patches(
        image[None], kernel, stride, "VALID", rhs_dilation=dilation
    )[0]  # (channels, *kernel) first, then space
    entries = expected.reshape(2, *kernel, -1)
    np.testing.assert_allclose(found, jnp.moveaxis(entries, 0, 2).reshape(found.shape[1], -1).T)
