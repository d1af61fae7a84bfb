"""Models travel between processes: they pickle with their functions, and compile nothing anew."""

import concurrent.futures
import copy
import multiprocessing
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import ntk
from zoo import (
    Activation,
    activation_function,
    ACTIVATIONS,
    BatchNorm,
    centered,
    CNN,
    Dense,
    Frozen,
    HermiteDual,
    limit,
    MLP,
    monomial,
    Residual,
    scaled,
    Sequential,
    step,
    with_output,
)

KEY = jr.key(0)
X = jr.normal(jr.key(1), (3, 4))

FUNCTIONS = {
    **{name: activation.function for name, activation in ACTIVATIONS.items()},
    "arctan of JAX, which has no name here": jnp.arctan,
    "sign": jnp.sign,
    "step": step,
}


def returned(value):
    return pickle.loads(pickle.dumps(value))


def dense():
    return Dense(4, 4, key=KEY)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activations_come_back_as_themselves(name):
    activation = activation_function(FUNCTIONS[name])
    for back in (returned(activation), copy.copy(activation), copy.deepcopy(activation)):
        assert back.function is activation.function
        assert jax.tree.structure(back) == jax.tree.structure(activation)


def test_those_without_a_module_do_so_by_value():
    for activation in (monomial(3), Activation("x", jnp.tanh, dual=HermiteDual(jnp.tanh, 64))):
        assert jax.tree.structure(returned(activation)) == jax.tree.structure(activation)
    assert monomial(3) == monomial(3)
    assert monomial(3) != monomial(2)


MODELS = {
    "MLP": lambda: MLP(4, 2, width=3, depth=1, activation="tanh", key=KEY),
    "MLP of a function": lambda: MLP(4, 2, width=3, depth=1, activation=jax.nn.relu, key=KEY),
    "centered and scaled": lambda: scaled(
        centered(MLP(4, 2, width=3, depth=1, activation="sigmoid", key=KEY)), 2.0
    ),
    "with an output": lambda: with_output(
        MLP(4, 2, width=3, depth=1, activation="gelu", key=KEY), "sigmoid"
    ),
    "functions between layers": lambda: Sequential(
        [dense(), jnp.tanh, Residual(Sequential([jax.nn.relu, dense()]), jnp.sin), Frozen(dense())]
    ),
    "a frozen network": lambda: Sequential(
        [Frozen(Sequential([dense(), jax.nn.relu])), Dense(4, 2, key=KEY)]
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_come_back_equal_and_share_compiled_programs(name):
    model, traces = MODELS[name](), []

    @eqx.filter_jit
    def outputs(model):
        traces.append(1)
        return jax.vmap(model)(X)

    back = returned(model)
    assert jax.tree.structure(back) == jax.tree.structure(model)
    np.testing.assert_array_equal(outputs(back), outputs(model))
    assert len(traces) == 1
    np.testing.assert_array_equal(ntk(back, X), ntk(model, X))


def test_other_networks_and_limits_come_back_equal():
    models = [
        CNN((1, 4, 4), 2, channels=2, depth=1, activation="elu", key=KEY),
        Sequential([BatchNorm(2), jnp.tanh]),
        limit(MLP(4, 2, width=3, depth=1, activation="tanh", key=KEY)),
    ]
    for model in models:
        assert bool(eqx.tree_equal(returned(model), model))


def kernel(model):
    return np.asarray(ntk(model, X))


@pytest.mark.long
def test_a_pool_of_processes_takes_a_model(monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    model = MODELS["functions between layers"]()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        found = pool.submit(kernel, model).result(timeout=200)
    np.testing.assert_allclose(found, ntk(model, X), rtol=1e-12)
