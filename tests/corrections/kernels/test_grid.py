"""Structured kernels against the Jacobian's over the grid of what the zoo can be made of.

A sample of it runs always, all of it with the slow tests.
"""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import ntk, o3
from zoo import astype, CNN, learning_rates, MEAN_FIELD, MLP, MUP, NTK, STANDARD, WideResNet

PARAMETERIZATIONS = {"NTK": NTK, "STANDARD": STANDARD, "MEAN_FIELD": MEAN_FIELD, "MUP": MUP}
ACTIVATIONS = ("tanh", "relu", "gelu", "sin", "elu")
KEY = jr.key(0)
NETWORKS = {
    "MLP": lambda **options: MLP(6, 2, width=5, depth=2, **options),
    "CNN flatten": lambda **options: CNN((2, 4, 4), 2, channels=3, depth=2, **options),
    "CNN mean": lambda **options: CNN(
        (2, 4, 4), 2, channels=(3, 4), depth=2, stride=(1, 2), readout="mean", **options
    ),
} | {
    f"WideResNet {norm}": lambda norm=norm, **options: WideResNet(
        (1, 4, 4), 2, base_channels=2, norm=norm, **options
    )
    for norm in (None, "layer", "group", "batch")
}
SHAPES = {"MLP": (6,), "CNN": (2, 4, 4), "WideResNet": (1, 4, 4)}
SAMPLE = {
    ("MLP", "relu", "MUP"),
    ("MLP", "elu", "MEAN_FIELD"),
    ("CNN flatten", "gelu", "STANDARD"),
    ("CNN mean", "tanh", "MUP"),
    ("CNN mean", "sin", "NTK"),
}


@pytest.fixture(autouse=True)
def forget_compiled_programs():
    """Each is used once; hundreds of them exhaust what a process may map into its memory."""
    yield
    jax.clear_caches()


def cases(networks, activations, sample):
    """All combinations; each WideResNet, which compiles for long, in one parameterization."""
    found = []
    for i, (network, activation) in enumerate(itertools.product(networks, activations)):
        names = list(PARAMETERIZATIONS)
        if network.startswith("WideResNet"):
            names = [names[i % 4]]
        for name in names:
            marks = () if (network, activation, name) in sample else pytest.mark.slow
            found.append(pytest.param(network, activation, name, marks=marks))
    return found


def model_and_sets(network, activation, parameterization):
    model = NETWORKS[network](
        activation=activation,
        parameterization=PARAMETERIZATIONS[parameterization],
        bias_std=0.3,
        key=KEY,
    )
    shape = SHAPES[network.split()[0]]
    return model, [jr.normal(jr.key(n), (n, *shape)) for n in (3, 2)]


def close(found, expected, tolerance):
    scale = float(jnp.max(jnp.abs(expected)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("network", "activation", "parameterization"), cases(NETWORKS, ACTIVATIONS, SAMPLE)
)
def test_kernels_are_those_of_the_jacobian(network, activation, parameterization):
    model, (x1, x2) = model_and_sets(network, activation, parameterization)
    metric = learning_rates(model)
    full = ntk(model, x1, x2, metric=metric, method="jacobian")
    close(ntk(model, x1, x2, metric=metric, method="structured"), full, 1e-12)
    diagonal = jnp.einsum("akbk->abk", full)
    for outputs, expected in (("diagonal", diagonal), ("mean", diagonal.mean(axis=-1))):
        found = ntk(model, x1, x2, metric=metric, method="structured", outputs=outputs)
        close(found, expected, 1e-12)
    single = astype(model, "float32")
    sets = [x.astype("float32") for x in (x1, x2)]
    close(ntk(single, *sets, metric=learning_rates(single)), full, 1e-5)


SMOOTH = [
    *cases(
        [name for name in NETWORKS if not name.startswith("WideResNet")],
        ("tanh", "gelu"),
        {("CNN mean", "tanh", "MUP")},
    ),
    pytest.param("WideResNet group", "tanh", "NTK", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("network", "activation", "parameterization"), SMOOTH)
def test_third_order_kernels_are_those_of_the_jacobian(network, activation, parameterization):
    model, (x1, x2) = model_and_sets(network, activation, parameterization)
    metric = learning_rates(model)
    full = o3(model, x1[:2], x2[:1], x2, metric=metric, method="jacobian")
    close(o3(model, x1[:2], x2[:1], x2, metric=metric, method="structured"), full, 1e-12)
    single = astype(model, "float32")
    sets = [x.astype("float32") for x in (x1[:2], x2[:1], x2)]
    close(o3(single, *sets, metric=learning_rates(single)), full, 1e-5)
