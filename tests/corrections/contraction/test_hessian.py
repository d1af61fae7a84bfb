"""Hessians in the coordinates of the factors, against dense ones."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from corrections import hessian_norm
from corrections.contraction.gradient_factors import GradientFactors
from corrections.contraction.hessian import FactorHessian, hessian_size
from tests.foreign_models import batch, MODELS
from zoo import CNN, MLP, parameters, WideResNet

FOREIGN = (
    "plain",
    "Siamese",
    "low-rank adapter",
    "regulariser",
    "transformer block",
    "attention",
    "language model",
    "tied language model",
    "lookups",
    "mixer",
    "nested maps",
    "mapped and called",
    "set of series",
)
ZOO = {
    "MLP": lambda: MLP(4, 2, width=5, depth=3, activation="tanh", bias_std=0.5, key=jr.key(0)),
    "CNN": lambda: CNN((1, 2, 2), 2, channels=3, depth=2, activation="tanh", key=jr.key(0)),
    "WideResNet": lambda: WideResNet(
        (1, 2, 2), 2, base_channels=2, activation="tanh", key=jr.key(0)
    ),
}
FAST = {"MLP", "lookups"}


def model_of(name):
    if name in ZOO:
        return ZOO[name](), batch(2).reshape(2, 1, 2, 2) if name != "MLP" else batch(2)
    return MODELS[name].model, batch(2)


def metric_of(model):
    return jax.tree.map(lambda p: 0.5 + p.ndim, parameters(model))


def dense_hessians(model, x):
    """M^{1/2} H M^{1/2} of each output of each example, (n, k, parameters, parameters)."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    vector, unravel = ravel_pytree(params)
    full = jax.tree.map(lambda m, p: jnp.full(p.shape, m**0.5), metric_of(model), params)
    root = ravel_pytree(full)[0]

    @jax.jit
    def hessians(x):
        def of_example(x):
            return jax.hessian(lambda v: eqx.combine(unravel(v), static)(x))(vector)

        return jax.vmap(of_example)(x)

    return np.asarray(hessians(x)) * np.asarray(root) * np.asarray(root)[:, None]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in FAST else pytest.mark.long) for n in (*ZOO, *FOREIGN)],
)
def test_norms_are_those_of_dense_hessians(name):
    model, x = model_of(name)
    found = hessian_norm(model, x, metric=metric_of(model), matvecs=600, rtol=1e-7)
    eigenvalues = np.linalg.eigvalsh(dense_hessians(model, x))
    assert bool(jnp.all(found.converged))
    np.testing.assert_allclose(found.value, np.abs(eigenvalues).max(-1), rtol=1e-10)


@pytest.mark.long
@pytest.mark.parametrize("name", ["MLP", pytest.param("mixer", marks=pytest.mark.long)])
def test_the_space_holds_the_whole_spectrum(name):
    """Of fewer dimensions than there are parameters, and what it leaves out is zero."""
    model, x = model_of(name)
    factored = GradientFactors(model, jax.eval_shape(lambda: x[0]), metric_of(model))
    hessian = FactorHessian(factored, x[0], jnp.array([0.5, -2.0]))
    matrix = jax.jit(jax.vmap(hessian.product))(jnp.eye(hessian.size))
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    found = np.linalg.eigvalsh(matrix)
    first, second = dense_hessians(model, x[:1])[0]
    expected = np.linalg.eigvalsh(0.5 * first - 2.0 * second)
    np.testing.assert_allclose(
        found[np.abs(found) > 1e-9], expected[np.abs(expected) > 1e-9], rtol=1e-9, atol=1e-11
    )


def test_dimensions_are_sums_of_what_enters_and_leaves():
    model = MLP(30, 10, width=20, depth=2, bias_std=0.5, key=jr.key(0))
    factored = GradientFactors(model, jax.ShapeDtypeStruct((30,), float), None)
    sizes = [(20, 31), (20, 21), (10, 21)]  # out, in with the 1 of the bias
    expected = sum(out + size for out, size in sizes)
    assert hessian_size(factored, jax.ShapeDtypeStruct((30,), float)) == expected
