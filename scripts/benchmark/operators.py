"""The matrix-free kernel and its derivatives, against one training gradient of the same batch."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import jax.random as jr

from corrections import NTKOperator
from corrections.operators.ntk_operator import KernelOperator
from scripts.benchmark.timing import Comparison, median_seconds
from scripts.benchmark.training import NAME, training
from zoo import parameters


def operators(repeats: int) -> Iterator[Comparison]:
    """Theta g, D Theta[v] g and D^2 Theta[v, v] g, and what making each operator takes before."""
    n = 1024
    model, x, y, _, gradient, _ = training(n)
    direction = jax.tree.map(jnp.cos, parameters(model))
    g = jr.normal(jr.key(3), y.shape)
    for order, name in enumerate(("Theta g", "D Theta[v] g", "D^2 Theta[v, v] g")):

        def made(order: int = order) -> KernelOperator:
            return NTKOperator(model, x).coefficient([direction], order)

        operator = made()
        for task, fn in ((name, lambda op=operator: op.mv(g)), (f"making it: {name}", made)):
            yield Comparison(
                f"{task}, {NAME}, D = {n}",
                median_seconds(fn, repeats),
                "one training gradient",
                median_seconds(gradient, repeats),
            )
