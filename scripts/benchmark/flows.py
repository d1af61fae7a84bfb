"""The matrix-free hierarchy: a right-hand side against a training gradient, and a whole solve."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from scripts.benchmark.timing import (
    bytes_taken,
    Comparison,
    median_seconds,
    medians_in_turn,
)
from scripts.benchmark.training import NAME, Training, training
from solvers import CrossEntropy, hierarchy_flow
from solvers.flows.jet_products import JetProducts
from solvers.flows.matrix_free import matrix_free_flow, state_at_start
from zoo import MLP, WideResNet

_ORDERS = (2, 3, 4)
_STEPS = 8
"""Right-hand sides in a loop, as a solver takes them; a gradient is called by itself."""


def flows(repeats: int) -> Iterator[Comparison]:
    """Right-hand sides on two networks, and how their time grows with the data."""
    yield from _against_a_gradient(f"{NAME}, n = 1024", training(1024), repeats)
    image = (3, 32, 32)
    model = WideResNet(image, 10, activation="tanh", key=jr.key(0))
    name = "tanh WideResNet-10-1, n = 32"
    yield from _against_a_gradient(name, training(32, model, image), repeats)
    sizes = (1024, 4096)
    runs = [_solve(task, order)[0] for order in _ORDERS for task in map(training, sizes)]
    seconds = medians_in_turn(runs, repeats)
    for order, few, many in zip(_ORDERS, seconds[::2], seconds[1::2], strict=True):
        exponent = math.log(many / few) / math.log(sizes[1] / sizes[0])
        yield Comparison(
            f"order {order}, {NAME}, n = {sizes[1]}: exponent of n {exponent:.2f}",
            many / _STEPS,
            f"n = {sizes[0]}",
            few / _STEPS,
        )


def _against_a_gradient(name: str, task: Training, repeats: int) -> Iterator[Comparison]:
    solves = [_solve(task, order) for order in _ORDERS]
    of_gradient, *of_orders = medians_in_turn([task.gradient, *(run for run, _ in solves)], repeats)
    for order, seconds, (_, taken) in zip(_ORDERS, of_orders, solves, strict=True):
        yield Comparison(
            f"right-hand side of order {order}, {name}, memory {taken / task.bytes_taken:.1f} x",
            seconds / _STEPS,
            "one training gradient",
            of_gradient,
        )


def _solve(task: Training, order: int) -> tuple[Callable[[], Any], int]:
    """Runs `_STEPS` steps of Euler's method; and the bytes of one right-hand side."""
    products = JetProducts(task.model, (task.x,))
    flow = matrix_free_flow(products, task.y, loss=task.loss)
    arrays, rest = eqx.partition(flow, eqx.is_array)
    state = state_at_start(task.model, order)

    def velocity(arrays: Any, state: Any) -> Any:
        return eqx.combine(arrays, rest).velocity(state)

    @jax.jit
    def steps(arrays: Any, state: Any) -> Any:
        def step(_: Any, state: Any) -> Any:
            return jax.tree.map(lambda a, b: a + 1e-3 * b, state, velocity(arrays, state))

        return jax.lax.fori_loop(0, _STEPS, step, state)

    return lambda: steps(arrays, state), bytes_taken(jax.jit(velocity), arrays, state)


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
