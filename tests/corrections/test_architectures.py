"""Kernels and Taylor models of every architecture and transform, against finite differences."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import ntk, o3, taylor_terms
from zoo import (
    activation_function,
    BatchNorm,
    centered,
    CNN,
    Conv,
    Dense,
    forward_train,
    GlobalAveragePool,
    GroupNorm,
    learning_rates,
    MUP,
    Residual,
    scaled,
    Sequential,
    WideResNet,
    with_output,
)

X = jr.normal(jr.key(5), (3, 1, 4, 4))
SMALL = {"activation": "tanh", "bias_std": 0.3, "key": jr.key(0)}


def convolutional(**options):
    return CNN((1, 4, 4), 2, channels=3, depth=2, **(SMALL | options))


def residual():
    """Every kind of layer, the statistics of its batch norm not 0 and 1."""
    keys = jr.split(jr.key(0), 3)
    tanh = activation_function("tanh")
    branch = [BatchNorm(2), tanh, Conv(2, 4, kernel_size=(3, 3), stride=2, key=keys[1])]
    layers = [
        Conv(1, 2, kernel_size=(3, 3), bias_std=0.3, role="input", key=keys[0]),
        Residual(Sequential(branch), Conv(2, 4, kernel_size=(1, 1), stride=2, key=keys[2])),
        GroupNorm(4, groups=2),
        tanh,
        GlobalAveragePool(),
        Dense(4, 2, role="readout", key=keys[2]),
    ]
    return forward_train(Sequential(layers), X)[1]


MODELS = {
    "CNN": lambda: convolutional(parameterization=MUP, readout="mean", stride=2),
    "circular CNN": lambda: scaled(centered(convolutional(padding="CIRCULAR")), 2.0),
    "residual": lambda: with_output(centered(residual()), "tanh"),
    "WideResNet": lambda: with_output(
        WideResNet((1, 4, 4), 2, base_channels=2, norm="group", **SMALL), "softmax"
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name == "residual" else pytest.mark.slow)
        for name in MODELS
    ],
)
def test_kernels_and_taylor_terms_of_every_architecture(name):
    model = MODELS[name]()
    params, static = eqx.partition(model, eqx.is_inexact_array)
    metric = learning_rates(model)

    @jax.jit
    def outputs(params):
        return jax.vmap(eqx.combine(params, static))(X)

    def central(fn, direction, step):
        ahead, behind = (
            fn(jax.tree.map(lambda p, d, s=sign: p + s * step * d, params, direction))
            for sign in (1, -1)
        )
        return (ahead - behind) / (2 * step)

    # Gradient flow of one output moves the others along the tangent kernel, and that along O_3.
    example, output = 1, 0
    gradient = jax.jit(jax.grad(lambda p: outputs(p)[example, output]))(params)
    along = jax.tree.map(lambda rate, g: rate * g, metric, gradient)
    kernel = ntk(model, X, metric=metric)
    np.testing.assert_allclose(
        central(outputs, along, 1e-5), kernel[:, :, example, output], rtol=1e-6, atol=1e-8
    )
    third = o3(model, X, x3=X[example][None], metric=metric)[..., 0, output]
    moved = central(lambda p: ntk(eqx.combine(p, static), X, metric=metric), along, 1e-5)
    np.testing.assert_allclose(moved, third, rtol=1e-5, atol=1e-6 * float(jnp.max(jnp.abs(third))))

    # The error of the quadratic model is cubic.
    direction = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size * 1.0)).reshape(p.shape), params)
    errors = []
    for step in (2e-3, 1e-3):
        small = jax.tree.map(lambda d, s=step: s * d, direction)
        exact = outputs(jax.tree.map(jnp.add, params, small))
        errors.append(jnp.max(jnp.abs(exact - taylor_terms(model, X, small, 2).sum(axis=0))))
    assert float(jnp.log2(errors[0] / errors[1])) == pytest.approx(3, abs=0.4)
