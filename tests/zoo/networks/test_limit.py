"""Infinite-width kernels against a dense recursion, exact cases, and what must not change them."""

import functools
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from corrections import ntk
from tests.zoo.joint_recursion import joint_kernels
from zoo import (
    Activation,
    ACTIVATIONS,
    centered,
    CNN,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    GroupNorm,
    HermiteDual,
    LayerKernels,
    limit,
    LimitLayout,
    LimitNeeds,
    LimitRule,
    MEAN_FIELD,
    MLP,
    MUP,
    NoLimitError,
    NTK,
    QuadratureWarning,
    scaled,
    Sequential,
    STANDARD,
    WideResNet,
)
from zoo.limits.inputs import input_batch, input_kernels

X = jr.normal(jr.key(7), (4, 2, 5, 4))
OPTIONS = {"weight_std": 1.3, "bias_std": 0.4, "key": jr.key(0)}


def cnn(**options):
    options = OPTIONS | {"channels": 4, "depth": 2} | options
    return CNN((2, 5, 4), 1, **options)


def wide_resnet(**options):
    return WideResNet((2, 5, 4), 1, base_channels=2, **(OPTIONS | options))


MODELS = {
    "MLP": MLP(40, 1, width=4, depth=3, readout_std=0.7, **OPTIONS),
    "MLP erf": MLP(40, 1, width=4, depth=2, activation="erf", **OPTIONS),
    "MLP tanh": MLP(40, 1, width=4, depth=2, activation="tanh", **OPTIONS),
    "linear readout alone": MLP(40, 1, width=4, depth=0, **OPTIONS),
    "CNN": cnn(),
    "CNN strides": cnn(stride=(2, 1), kernel_size=(3, 2), activation="erf"),
    "CNN valid": cnn(padding="VALID", kernel_size=2, readout="mean"),
    "CNN circular": cnn(padding="CIRCULAR", stride=2, readout="mean", bias_std=None),
    "CNN mean": cnn(readout="mean", activation="erf", readout_std=0.7),
    "WideResNet": wide_resnet(bias_std=None),
    "WideResNet erf": wide_resnet(activation="erf"),
    "WideResNet layer norm": wide_resnet(norm="layer"),
    "WideResNet group norm": wide_resnet(norm="group", activation="erf"),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.long if "WideResNet " in n else ()) for n in MODELS],
)
def test_kernels_are_those_of_the_dense_recursion(name):
    """Of one matrix over all examples and positions, to 1e-10; tanh by its quadrature."""
    model = MODELS[name]
    xs = X.at[3].set(X[0])  # a duplicate
    xs = xs.reshape(4, 40, 1, 1) if name.startswith(("MLP", "linear")) else xs
    found = limit(model).kernels(xs)
    expected = joint_kernels(model, xs)
    for kernel, oracle in zip(found, expected, strict=True):
        np.testing.assert_allclose(kernel, oracle, rtol=1e-7)  # arccos at correlation 1
        scale = np.abs(oracle).max()
        off = ~np.eye(4, dtype=bool)
        off[0, 3] = off[3, 0] = False
        np.testing.assert_allclose(np.asarray(kernel)[off], oracle[off], atol=1e-10 * scale, rtol=0)
    np.testing.assert_allclose(found.ntk[0, 3], found.ntk[0, 0], rtol=1e-13)
    np.testing.assert_allclose(limit(model).nngp(xs), found.nngp, rtol=1e-13)


@pytest.mark.smoke
def test_relu_diagonal_is_exact():
    """Theta(x, x) = d s^2 |x|^2 / n_0 with d layers of weights (theory, section 6)."""
    model = MLP(40, 1, width=4, depth=4, readout_std=0.8, key=jr.key(0))
    x = X.reshape(4, 40)
    squares = jnp.sum(x**2, axis=1) / 40
    np.testing.assert_allclose(jnp.diagonal(limit(model).ntk(x)), 5 * 0.8**2 * squares, rtol=1e-13)


def test_deep_linear_network_is_exact():
    """K = x . x' / d and Theta = (depth + 1) K with weight_std 1."""
    model = MLP(40, 1, width=4, depth=3, activation="identity", weight_std=1.0, key=jr.key(0))
    x = X.reshape(4, 40)
    found = limit(model).kernels(x)
    np.testing.assert_allclose(found.nngp, x @ x.T / 40, rtol=1e-13)
    np.testing.assert_allclose(found.ntk, 4 * x @ x.T / 40, rtol=1e-13)


def test_images_of_one_pixel_are_vectors():
    x = X.reshape(4, 40)
    as_image = CNN((40, 1, 1), 1, channels=4, depth=2, kernel_size=1, readout="mean", **OPTIONS)
    as_vector = MLP(40, 1, width=4, depth=2, **OPTIONS)
    found, expected = limit(as_image).kernels(x[..., None, None]), limit(as_vector).kernels(x)
    for kernel, oracle in zip(found, expected, strict=True):
        np.testing.assert_allclose(kernel, oracle, rtol=1e-12)


@pytest.mark.parametrize("centre", [False, True])
def test_normalization_without_an_activation_averages_its_scales(centre):
    """Before a layer with weights, and at the end of a centered network."""
    dense = Dense(40, 4, role="input", key=jr.key(0))
    layers = [Flatten(), dense, GroupNorm(4), *([] if centre else [Dense(4, 1, key=jr.key(1))])]
    x, body = X.reshape(4, 40), Sequential(layers)
    nngp, tangent = joint_kernels(SimpleNamespace(body=body), np.asarray(x)[..., None, None])
    found = limit(centered(body) if centre else body).kernels(x)
    np.testing.assert_allclose(found.nngp, 0 * nngp if centre else nngp, rtol=1e-12)
    np.testing.assert_allclose(found.ntk, tangent, rtol=1e-12)


def test_equal_examples_have_their_own_variance_to_the_last_bit(float32):
    """Products of 3072 entries differ from sums of squares by some roundings."""
    needs = LimitNeeds(LimitLayout.FLAT, LimitLayout.FLAT)
    x = 3 + jr.normal(jr.key(0), (50, 3072))
    batch = input_batch(x, needs)
    kernels = input_kernels(batch, input_batch(x[::-1], needs), tangent=False)
    np.testing.assert_array_equal(jnp.diagonal(kernels.nngp[:, ::-1]), batch.own)


@pytest.mark.long
@pytest.mark.parametrize("name", ["MLP", "CNN", "CNN mean"])
def test_tiles_and_the_second_batch_change_nothing(name):
    network = limit(MODELS[name])
    xs = jr.normal(jr.key(1), (5, 2, 5, 4))
    whole = network.kernels(xs)
    for found in (
        network.kernels(xs, batch_size=2),
        network.kernels(xs, xs, batch_size=2),
        eqx.filter_jit(network.kernels)(xs, xs),
    ):
        for kernel, expected in zip(found, whole, strict=True):
            np.testing.assert_allclose(kernel, expected, rtol=1e-11)
    part = network.kernels(xs[:2], xs[1:], batch_size=3)
    np.testing.assert_allclose(part.ntk, whole.ntk[:2, 1:], rtol=1e-11)
    np.testing.assert_allclose(whole.ntk, whole.ntk.T, rtol=1e-13)


@pytest.mark.long
def test_activation_after_a_pool_has_the_variance_of_all_pairs():
    """Against the average of finite networks: 3 % at 2048 channels, and draws that agree."""

    def make(n, key):
        keys = jr.split(key, 3)
        phi, role = ACTIVATIONS["erf"], {"role": "input"}
        return Sequential(
            [
                Conv(2, n, kernel_size=(2, 2), key=keys[0], bias_std=0.3, **role),
                phi,
                GlobalAveragePool(),
                Dense(n, n, key=keys[1], weight_std=1.5),
                phi,
                Dense(n, 1, role="readout", key=keys[2]),
            ]
        )

    xs = X[:3]
    expected = limit(make(4, jr.key(0))).kernels(xs)
    draws = np.array([ntk(make(2048, key), xs, outputs="mean") for key in jr.split(jr.key(1), 12)])
    error = draws.std(axis=0, ddof=1) / 12**0.5
    assert np.all(np.abs(draws.mean(axis=0) - expected.ntk) < 4.5 * error)
    assert np.all(error < 0.02 * expected.ntk)


def test_transforms_move_the_kernels_as_they_move_outputs():
    model = MODELS["MLP"]
    x = X.reshape(4, 40)
    plain = limit(model).kernels(x)
    moved = limit(scaled(centered(model), 3.0)).kernels(x)
    np.testing.assert_array_equal(moved.nngp, jnp.zeros((4, 4)))
    np.testing.assert_allclose(moved.ntk, 9 * plain.ntk, rtol=1e-14)
    np.testing.assert_allclose(limit(scaled(model, 0.5)).nngp(x), plain.nngp / 4, rtol=1e-14)


def test_standard_network_has_the_limit_of_ntk_under_its_rates():
    options = OPTIONS | {"width": 4, "depth": 2}
    x = X.reshape(4, 40)
    standard = MLP(40, 1, parameterization=STANDARD, **options)
    found = limit(standard, equivalent_to=NTK).kernels(x)
    expected = limit(MLP(40, 1, **options)).kernels(x)
    for kernel, oracle in zip(found, expected, strict=True):
        np.testing.assert_allclose(kernel, oracle, rtol=1e-13)
    np.testing.assert_allclose(limit(standard).nngp(x), expected.nngp, rtol=1e-13)
    with pytest.raises(NoLimitError, match=r"the tangent kernel has no limit: under its learning"):
        limit(standard).ntk(x)


def test_mean_field_and_mup_start_with_outputs_that_vanish():
    """Up to the readout's bias; mean field has the tangent kernel of NTK where all widths agree."""
    options = OPTIONS | {"width": 4, "depth": 2}
    x = X.reshape(4, 40)
    expected = limit(MLP(40, 1, **options)).ntk(x)
    for parameterization in (MEAN_FIELD, MUP):
        network = limit(MLP(40, 1, parameterization=parameterization, **options))
        np.testing.assert_allclose(network.nngp(x), jnp.full((4, 4), 0.4**2), rtol=1e-13)
        if parameterization is MEAN_FIELD:
            np.testing.assert_allclose(network.ntk(x), expected, rtol=1e-13)


@pytest.mark.smoke
def test_float32_is_accurate_at_duplicates(float32):
    x32 = np.asarray(X.reshape(4, 40), np.float32)
    x32[2] = x32[0]
    x32[3] = -x32[0]
    model = MLP(40, 1, width=4, depth=4, key=jr.key(0))
    found = limit(model).kernels(x32, x32.copy())
    assert found.ntk.dtype == np.float32
    jax.config.update("jax_enable_x64", True)
    expected = limit(MLP(40, 1, width=4, depth=4, key=jr.key(0))).kernels(x32.astype(float))
    for kernel, oracle in zip(found, expected, strict=True):
        np.testing.assert_allclose(kernel, oracle, rtol=3e-6)
    assert float(found.ntk[0, 2]) == pytest.approx(float(found.ntk[0, 0]), rel=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "MLP",
        "CNN mean",
        "WideResNet",
        pytest.param("WideResNet group norm", marks=pytest.mark.slow),
    ],
)
def test_derivatives_in_stds_are_those_of_differences(name):
    """On a set with a duplicate and a black image: none is NaN."""
    xs = X.at[1].set(X[0]).at[2].set(0.0)
    network = limit(MODELS[name])

    def total(stds):
        given = {"weight_std": stds[0], "readout_std": stds[1]}
        if name != "WideResNet":
            given["bias_std"] = stds[2]
        kernels = network.with_stds(**given).kernels(xs)
        return jnp.sum(kernels.ntk * jnp.cos(jnp.arange(16.0).reshape(4, 4))) + jnp.sum(
            kernels.nngp
        )

    stds = jnp.array([1.2, 0.9, 0.3])
    found = jax.grad(total)(stds)
    for i in range(2 if name == "WideResNet" else 3):
        h = 1e-5 * jnp.eye(3)[i]
        difference = (total(stds + h) - total(stds - h)) / 2e-5
        np.testing.assert_allclose(found[i], difference, rtol=2e-6)
    each = eqx.filter_grad(lambda network: jnp.sum(network.ntk(xs)))(network)
    leaves = jax.tree.leaves(each)
    assert len(leaves) >= 3
    assert all(bool(jnp.isfinite(leaf)) for leaf in leaves)


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["MLP", "CNN mean", "CNN"])
def test_derivatives_in_inputs_are_those_of_differences(name):
    network = limit(MODELS[name])

    def total(x1, x2):
        kernels = network.kernels(x1, x2)
        return jnp.sum(kernels.ntk) + 2 * jnp.sum(kernels.nngp)

    direction = jr.normal(jr.key(5), X[:2].shape)
    found = jnp.vdot(jax.grad(total)(X[:2], X[2:]), direction)
    h = 1e-6
    difference = total(X[:2] + h * direction, X[2:]) - total(X[:2] - h * direction, X[2:])
    np.testing.assert_allclose(found, difference / (2 * h), rtol=1e-6)
    alone = jax.grad(lambda x: jnp.sum(network.ntk(x)))(X.at[1].set(X[0]).at[2].set(0.0))
    assert bool(jnp.all(jnp.isfinite(alone)))


DEGENERATE = st.sampled_from([-1.5, -1.0, 0.0, 1e-8, 1.0, 1.5])
IMAGE_MODELS = {
    "CNN mean": CNN((1, 2, 2), 1, channels=2, depth=2, readout="mean", key=jr.key(0)),
    "CNN": CNN((1, 2, 2), 1, channels=2, depth=2, activation="gelu", key=jr.key(0)),
    "WideResNet layer norm": WideResNet((1, 2, 2), 1, base_channels=2, norm="layer", **OPTIONS),
}


@pytest.mark.long
@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(DEGENERATE, min_size=24, max_size=24),
    name=st.sampled_from(["relu", "erf", "gelu", "sin", "tanh", "leaky_relu", *IMAGE_MODELS]),
)
def test_kernels_are_positive_semidefinite_on_degenerate_sets(values, name):
    """Eigenvalues are above -100 roundings of the largest. Black and constant images are among
    them, and equal ones.
    """
    x = jnp.asarray(values).reshape((6, 1, 2, 2) if name in IMAGE_MODELS else (6, 4))
    for kernel in _network(name).kernels(x):
        eigenvalues = np.linalg.eigvalsh(kernel)
        assert eigenvalues[0] >= -100 * np.finfo(float).eps * max(eigenvalues[-1], 1e-300)


@functools.cache
def _network(name):
    if name in IMAGE_MODELS:
        return limit(IMAGE_MODELS[name])
    return limit(MLP(4, 1, width=2, depth=3, bias_std=0.1, activation=name, key=jr.key(0)))


def test_kinks_without_a_dual_are_warned_of():
    def hard_tanh(x):
        return jnp.clip(x, -1, 1)

    model = MLP(40, 1, width=4, depth=1, activation=hard_tanh, key=jr.key(0))
    with pytest.warns(QuadratureWarning, match=r"is resolved to .* of its kernel only"):
        coarse = limit(model).kernels(X.reshape(4, 40))
    more = Activation("hard_tanh", hard_tanh, dual=HermiteDual(hard_tanh, terms=1024))
    model = MLP(40, 1, width=4, depth=1, activation=more, key=jr.key(0))
    with pytest.warns(QuadratureWarning):
        fine = limit(model).kernels(X.reshape(4, 40))
    np.testing.assert_allclose(coarse.ntk, fine.ntk, rtol=0.06)


class Halve(eqx.Module):
    """A layer of a user's own, with its rule."""

    def __call__(self, a):
        return 0.5 * a

    def limit_rule(self, widths):
        return HalveRule()


class HalveRule(LimitRule):
    def needs(self, after: LimitNeeds) -> LimitNeeds:
        return after

    def __call__(self, kernels: LayerKernels) -> LayerKernels:
        return kernels.mapped(lambda kernel, layout: 0.25 * kernel)


def test_layer_of_a_users_own_has_its_rule():
    def network(*extra):
        keys = jr.split(jr.key(0))
        relu = ACTIVATIONS["relu"]
        layers = [Dense(40, 4, role="input", key=keys[0]), relu, *extra]
        return Sequential([*layers, Dense(4, 1, role="readout", key=keys[1])])

    x = X.reshape(4, 40)
    halved, plain = limit(network(Halve())).kernels(x), limit(network()).kernels(x)
    np.testing.assert_allclose(halved.nngp, plain.nngp / 4, rtol=1e-14)
    np.testing.assert_allclose(halved.ntk, plain.ntk / 4, rtol=1e-14)


def test_sign_and_step_have_a_covariance():
    """Of step: 1/4 + asin(rho) / (2 pi), the arc-cosine kernel of degree 0."""
    x = X.reshape(4, 40)
    rho = np.asarray(x @ x.T)
    rho = rho / np.sqrt(np.outer(np.diag(rho), np.diag(rho)))
    expected = 2 / np.pi * np.arcsin(np.clip(rho, -1, 1))
    model = MLP(40, 1, width=4, depth=1, activation=jnp.sign, weight_std=1.0, key=jr.key(0))
    np.testing.assert_allclose(limit(model).nngp(x), expected, rtol=1e-7)


def test_inputs_whose_kernels_overflow_are_refused(float32):
    network = limit(MLP(3, 1, width=4, depth=1, key=jr.key(0)))
    with pytest.raises(ValueError, match="`x1` or `x2` overflow float32"):
        network.kernels(jnp.full((2, 3), 1e20))
    with pytest.raises(ValueError, match="`x1` has 1 entries out of 6 that are not finite"):
        network.nngp(jnp.ones((2, 3)).at[0, 1].set(jnp.nan))
