import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from zoo import (
    BatchNorm,
    CNN,
    Conv,
    forward_train,
    learning_rates,
    MUP,
    reparameterize,
    Residual,
    STANDARD,
    summary,
    WideResNet,
)


@functools.cache
def small(norm=None, seed=0, **options):
    options = {"base_channels": 4, "activation": "tanh"} | options
    make = functools.partial(WideResNet, (2, 8, 8), 3, norm=norm, **options)
    return eqx.filter_jit(lambda key: make(key=key))(jr.key(seed))  # one program: faster


def convolutions(model):
    is_conv = lambda node: isinstance(node, Conv)  # noqa: E731
    return [node for node in jax.tree.leaves(model, is_leaf=is_conv) if is_conv(node)]


@pytest.mark.slow
def test_published_size(float32):
    """WRN-28-10 has 36,479,194 parameters on CIFAR-10, 10 of them the readout's biases."""
    make = functools.partial(WideResNet, (3, 32, 32), 10, depth=28, widen=10, norm="batch")
    model = eqx.filter_jit(lambda key: make(key=key))(jr.key(0))
    found = summary(model, (3, 32, 32))
    assert found.parameters == 36_479_184
    assert found.frozen == 2 * 8_976  # a mean and a variance for each scale and shift
    outputs = eqx.filter_jit(lambda model, x: model(x))(model, jr.normal(jr.key(1), (3, 32, 32)))
    assert outputs.shape == (10,)
    assert bool(jnp.all(jnp.isfinite(outputs)))


@pytest.mark.parametrize(
    ("depth", "blocks"), [(10, 1), pytest.param(16, 2, marks=pytest.mark.slow)]
)
def test_depth_counts_the_convolutions(depth, blocks):
    """6 n + 1 convolutions of 3x3 and the readout; the paper also counts two of the projections."""
    model = small(depth=depth, widen=2)
    kernels = [layer.weight.shape for layer in convolutions(model)]
    assert sum(shape[-1] == 3 for shape in kernels) == 6 * blocks + 1
    # A projection where channels or stride change: in the first block of each group.
    assert [shape[:2] for shape in kernels if shape[-1] == 1] == [(8, 4), (16, 8), (32, 16)]
    assert sum(isinstance(layer, Residual) for layer in model.body.layers) == 3 * blocks
    shapes = {row.out_shape for row in summary(model, (2, 8, 8)).rows if row.kind == "Conv"}
    assert shapes == {(4, 8, 8), (8, 8, 8), (16, 4, 4), (32, 2, 2)}


def test_without_widening_the_first_group_has_no_projection():
    kernels = [layer.weight.shape for layer in convolutions(small())]
    assert [shape[:2] for shape in kernels if shape[-1] == 1] == [(8, 4), (16, 8)]


@pytest.mark.long
def test_forward_pass_is_the_formula():
    """Depth 10, written out: the projection starts from the activated input."""
    model, x = small(bias_std=0.3, weight_std=1.1), jr.normal(jr.key(1), (2, 8, 8))
    first, block1, _, block2, _, block3, _, _, readout = model.body.layers
    z = first(x)
    _, conv1, _, conv2 = block1.branch.layers
    z = z + conv2(jnp.tanh(conv1(jnp.tanh(z))))
    for block in (block2, block3):
        h = jnp.tanh(z)
        conv1, _, conv2 = block.branch.layers
        z = conv2(jnp.tanh(conv1(h))) + block.shortcut(h)
        assert block.shortcut.weight.shape[2:] == (1, 1)
        assert block.shortcut.stride == conv1.stride == (2, 2)
    expected = readout(jnp.tanh(z).mean(axis=(1, 2)))
    np.testing.assert_allclose(model(x), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "norm", [None, "batch", *(pytest.param(n, marks=pytest.mark.slow) for n in ("layer", "group"))]
)
def test_every_norm_runs_under_jit_vmap_and_grad(norm):
    model, xs = small(norm), jr.normal(jr.key(1), (3, 2, 8, 8))
    outputs = eqx.filter_jit(lambda model, xs: jax.vmap(model)(xs))(model, xs)
    single = eqx.filter_jit(lambda model, x: model(x))(model, xs[1])
    np.testing.assert_allclose(outputs[1], single, rtol=1e-10)
    gradient = eqx.filter_jit(eqx.filter_grad(lambda m: jnp.sum(jax.vmap(m)(xs) ** 2)))(model)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    "norm", ["batch", *(pytest.param(n, marks=pytest.mark.slow) for n in ("layer", "group"))]
)
def test_norms_take_part_in_parameterizations(norm):
    model, x = small(norm, parameterization=MUP), jr.normal(jr.key(1), (2, 8, 8))
    moved = reparameterize(model, STANDARD)
    np.testing.assert_allclose(moved(x), model(x), rtol=1e-12)
    back = reparameterize(moved, MUP)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert jax.tree.structure(back) == jax.tree.structure(model)
    rates = learning_rates(model)
    norm_rates = rates.body.layers[1].branch.layers[0]
    assert (norm_rates.scale, norm_rates.shift) == (4, 4)  # as a bias of 4 channels
    adam = learning_rates(model, optimizer="adam").body.layers[1].branch.layers[0]
    assert (adam.scale, adam.shift) == (1, 1)


@pytest.mark.long
@pytest.mark.smoke
def test_adamw_leaves_statistics_bit_for_bit():
    model, xs = small("batch"), jr.normal(jr.key(1), (4, 2, 8, 8))
    _, model = eqx.filter_jit(forward_train)(model, xs)  # statistics that are not 0 and 1
    params = eqx.filter(model, eqx.is_inexact_array)
    gradient = eqx.filter_jit(eqx.filter_grad(lambda m: jnp.sum(jax.vmap(m)(xs) ** 2)))(model)
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers in
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    stepped = eqx.apply_updates(model, updates)
    is_norm = lambda node: isinstance(node, BatchNorm)  # noqa: E731
    norms = [
        [node for node in jax.tree.leaves(tree, is_leaf=is_norm) if is_norm(node)]
        for tree in (model, stepped)
    ]
    assert len(norms[0]) == 7
    for before, after in zip(*norms, strict=True):
        assert eqx.tree_equal(before._statistics, after._statistics)
        assert float(jnp.max(jnp.abs(before.mean))) > 1e-3
        assert not np.allclose(before.scale, after.scale)
    assert len(jax.tree.leaves(params)) == len(convolutions(model)) + 2 * 7 + 1


def test_serialises_with_its_statistics(tmp_path):
    _, model = eqx.filter_jit(forward_train)(small("batch"), jr.normal(jr.key(1), (4, 2, 8, 8)))
    eqx.tree_serialise_leaves(tmp_path / "model.eqx", model)
    again = eqx.tree_deserialise_leaves(tmp_path / "model.eqx", small("batch", seed=1))
    assert eqx.tree_equal(again, model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 12}, "`depth` is 12, expected 6 n + 4 with n blocks a group: 10, 16, 22, 28"),
        ({"depth": 4}, "`depth` is 4, expected 6 n + 4"),
        ({"widen": 0}, "`widen` is 0, expected an integer >= 1"),
        ({"base_channels": 0}, "`base_channels` is 0, expected an integer >= 1"),
        ({"norm": "instance"}, "`norm` is 'instance', expected one of None, 'layer', 'group'"),
        ({"activation": "swish"}, "`activation` is 'swish', expected one of"),
    ],
)
def test_bad_arguments_are_named(unchecked, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        WideResNet((3, 8, 8), 2, **options, key=jr.key(0))


def test_a_wrong_example_is_named(unchecked):
    with pytest.raises(ValueError, match=r"`x` has shape \(8, 8, 2\), expected one example of sha"):
        small()(jnp.ones((8, 8, 2)))


@pytest.mark.long
def test_a_sequence_of_one_axis():
    """Everything but `in_shape` is the same for sequences."""
    for model in (
        WideResNet((2, 9), 3, base_channels=4, key=jr.key(0)),
        CNN((2, 9), 3, channels=4, depth=2, key=jr.key(0)),
    ):
        assert model(jnp.ones((2, 9))).shape == (3,)
