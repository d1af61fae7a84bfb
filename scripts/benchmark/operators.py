"""The matrix-free kernel and its derivatives, against one training gradient of the same batch."""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from corrections import NTKOperator
from corrections.parameters import split
from scripts.benchmark.timing import Comparison, median_seconds
from solvers import CrossEntropy
from solvers.losses import mean_loss
from zoo import MLP


def operators(repeats: int) -> Iterator[Comparison]:
    """Theta g, D Theta[v] g and D^2 Theta[v, v] g."""
    n, k = 1024, 10
    model = MLP(784, k, width=512, depth=3, activation="tanh", key=jr.key(0))
    x, loss = jr.normal(jr.key(1), (n, 784)), CrossEntropy()
    y = jax.nn.one_hot(jr.randint(jr.key(2), (n,), 0, k), k)
    params, apply = split(model)

    @eqx.filter_jit
    def training_gradient(params, x):
        outputs = jax.vmap(apply, in_axes=(None, 0))
        return jax.grad(lambda p: mean_loss(loss, outputs(p, x), y))(params)

    direction = jax.tree.map(jnp.cos, params)
    operator, g = NTKOperator(model, x), jr.normal(jr.key(3), (n, k))
    for order, name in enumerate(("Theta g", "D Theta[v] g", "D^2 Theta[v, v] g")):
        of_order = operator.coefficient([direction], order)
        yield Comparison(
            f"{name}, tanh MLP 784-512x3-10, D = {n}",
            median_seconds(lambda op=of_order: op.mv(g), repeats),
            "one training gradient",
            median_seconds(lambda: training_gradient(params, x), repeats),
        )
