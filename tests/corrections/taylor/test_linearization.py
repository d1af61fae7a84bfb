import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import ntk, NTKOperator, taylor_coefficients
from corrections.parameters import split
from tests.models import inputs
from zoo import CNN, MLP, WideResNet


def flops(fn, *args):
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(("order", "at_most"), [(0, 1.25), (1, 3.4), (2, 6.0)])
def test_a_product_takes_the_linear_part_of_the_work_alone(order, at_most):
    """In operations of a training gradient; with the network's own passes 1.6, 4.2 and 7.1."""
    model = MLP(392, 10, width=256, depth=3, activation="tanh", key=jr.key(0))
    x, g = jr.normal(jr.key(1), (64, 392)), jr.normal(jr.key(2), (64, 10))
    params, apply = split(model)

    def loss(params):
        return jnp.sum(jax.vmap(apply, in_axes=(None, 0))(params, x) ** 2)

    coefficient = NTKOperator(model, x).coefficient([jax.tree.map(jnp.cos, params)], order)
    arrays, static = eqx.partition(coefficient, eqx.is_array)
    product = flops(lambda a, g: eqx.combine(a, static).mv(g), arrays, g)
    assert product <= at_most * flops(jax.grad(loss), params)


class Counted(eqx.Module):
    """Notes each time that it is traced."""

    weight: jax.Array
    calls: list = eqx.field(static=True)

    def __call__(self, x):
        self.calls.append(None)
        return jnp.tanh(self.weight @ x)


def test_products_do_not_trace_the_model():
    model = Counted(inputs(2, 3), [])
    operator = NTKOperator(model, inputs(4)[:, :3])
    made = len(model.calls)
    operator.mv(jnp.ones((4, 2)))
    operator.transpose().as_matrix()
    assert len(model.calls) == made
    again = NTKOperator(model, 2 * inputs(4)[:, :3])
    again.mv(jnp.ones((4, 2)))
    assert again.linearized((), 0).on_x1.structure == operator.linearized((), 0).on_x1.structure


@pytest.mark.parametrize(
    "model",
    [
        CNN((2, 4, 4), 2, channels=3, depth=1, activation="relu", key=jr.key(0)),
        CNN((2, 4, 4), 2, channels=3, depth=1, bias_std=0.3, activation="gelu", key=jr.key(0)),
        pytest.param(
            WideResNet((2, 8, 8), 2, norm="batch", activation="tanh", key=jr.key(0)),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["kinks", "convolutions", "residual"],
)
def test_coefficients_of_any_network(model):
    """Also where residuals are no floats: the masks of a relu."""
    size = 8 if isinstance(model, WideResNet) else 4
    x1, x2 = (jr.normal(jr.key(n), (n, 2, size, size)) for n in (3, 2))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    path, g = [jax.tree.map(jnp.cos, params)], inputs(2, 2, seed=4)
    kernels = taylor_coefficients(
        lambda p: ntk(eqx.combine(p, static), x1, x2, method="jacobian"), params, path, order=2
    )
    operator = NTKOperator(model, x1, x2)
    for order, kernel in enumerate(kernels):
        expected = jnp.einsum("nkml,ml->nk", kernel, g)
        found = operator.coefficient(path, order).mv(g)
        scale = jnp.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * scale)
