"""What is timed: each function yields the comparisons of one part."""

from collections.abc import Iterator

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr

from scripts.benchmark.convolution import convolution
from scripts.benchmark.dynamics import dynamics
from scripts.benchmark.growth import growth
from scripts.benchmark.kernels import kernels
from scripts.benchmark.operators import operators
from scripts.benchmark.taylor import taylor
from scripts.benchmark.tensors import tensors
from scripts.benchmark.timing import Comparison, median_seconds
from scripts.benchmark.training import NAME, training
from solvers import CrossEntropy, hierarchy_flow
from solvers.matrix_free import matrix_free_flow, state_at_start
from solvers.path_products import PathProducts
from zoo import MLP


def flows(repeats: int) -> Iterator[Comparison]:
    """One right-hand side of the matrix-free hierarchy, against one training gradient."""
    n = 512
    model, x, y, loss, gradient = training(n)
    of_gradient = median_seconds(gradient, repeats)
    velocity = eqx.filter_jit(lambda flow, state: flow.velocity(state))
    for order in (2, 3, 4):
        flow = matrix_free_flow(PathProducts(model, (x,), None, None, None), y, loss=loss)
        state = state_at_start(model, order)
        yield Comparison(
            f"right-hand side of order {order}, {NAME}, n = {n}",
            median_seconds(lambda flow=flow, state=state: velocity(flow, state), repeats),
            "one training gradient",
            of_gradient,
        )


def hierarchy(repeats: int) -> Iterator[Comparison]:
    """A whole solve of order 3, matrix-free against dense: the same numbers."""
    n, k = 24, 3
    model = MLP(64, k, width=128, depth=2, activation="tanh", key=jr.key(0))
    x, y = jr.normal(jr.key(1), (n, 64)), jnp.eye(k)[jnp.arange(n) % k]
    ts = jnp.linspace(0.0, 5.0, 6)

    def solve(method):
        return hierarchy_flow(model, x, y, ts, loss=CrossEntropy(), method=method).train

    yield Comparison(
        f"order-3 flow to t = 5, tanh MLP 64-128x2-3, n = {n}, matrix-free",
        median_seconds(lambda: solve("matrix_free"), repeats),
        "dense",
        median_seconds(lambda: solve("dense"), repeats),
    )


PARTS = {
    "kernels": kernels,
    "tensors": tensors,
    "operators": operators,
    "growth": growth,
    "taylor": taylor,
    "flows": flows,
    "hierarchy": hierarchy,
    "dynamics": dynamics,
    "convolution": convolution,
}
