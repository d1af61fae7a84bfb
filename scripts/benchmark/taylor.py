"""Taylor models against one forward pass of their network: times, operations, compile time."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.experimental import jet

from corrections import taylorize
from corrections.parameters import split
from scripts.benchmark.timing import Comparison, median_seconds
from zoo import MLP, WideResNet

_ORDERS = (1, 2, 3, 4)


def taylor(repeats: int) -> Iterator[Comparison]:
    """Orders 1 to 4 by nested JVPs, as `taylorize` takes them; for an MLP of a plain function also
    by JAX's Taylor mode (`jax.experimental.jet`), which has no rules for the zoo's other networks.
    """
    key = jr.key(0)
    image = (3, 32, 32)
    networks = {
        "MLP 784-512x3-10, n = 256": (
            MLP(784, 10, width=512, depth=3, activation="tanh", key=key),
            (256, 784),
        ),
        "WideResNet-10-1, n = 32": (
            WideResNet(image, 10, activation="tanh", key=key),
            (32, *image),
        ),
        "the same, batch norm": (
            WideResNet(image, 10, activation="tanh", norm="batch", key=key),
            (32, *image),
        ),
    }
    for name, (model, shape) in networks.items():
        yield from _orders(f"tanh {name}", model, jr.normal(jr.key(1), shape), repeats)
    plain = MLP(784, 10, width=512, depth=3, activation=lambda a: jnp.tanh(a), key=key)
    x = jr.normal(jr.key(1), (256, 784))
    for order in _ORDERS:
        displacement = jax.tree.map(jnp.cos, split(plain)[0])
        nested = _Compiled(_batched, taylorize(plain, order), x)
        by_jet = _Compiled(lambda d, x, q=order: _by_jet(plain, d, x, q), displacement, x)
        yield Comparison(
            f"order {order}, MLP of a plain tanh, operations {nested.flops / by_jet.flops:.2f} of",
            median_seconds(nested.run, repeats),
            "jax.experimental.jet",
            median_seconds(by_jet.run, repeats),
        )


def _orders(name: str, model: Any, x: jax.Array, repeats: int) -> Iterator[Comparison]:
    forward = _Compiled(_batched, model, x)
    of_forward = median_seconds(forward.run, repeats)
    for order in _ORDERS:
        of_order = _Compiled(_batched, taylorize(model, order), x)
        yield Comparison(
            f"order {order}, {name}, operations {of_order.flops / forward.flops:.2f}, compiled in "
            f"{of_order.seconds:.1f} s",
            median_seconds(of_order.run, repeats),
            "one forward pass",
            of_forward,
        )


class _Compiled:
    """A function compiled for its arguments: how long that took, and what the compiler counts."""

    def __init__(self, fn: Callable[..., Any], *args: Any):
        cached = jax.config.jax_enable_compilation_cache  # pyright: ignore
        jax.config.update("jax_enable_compilation_cache", False)
        start = time.perf_counter()
        compiled = eqx.filter_jit(fn).lower(*args).compile()
        self.seconds = time.perf_counter() - start
        jax.config.update("jax_enable_compilation_cache", cached)
        counted = compiled.compiled.cost_analysis()
        self.flops = (counted[0] if isinstance(counted, list) else counted)["flops"]
        self.run = lambda: compiled(*args)


def _batched(model: Any, x: jax.Array) -> jax.Array:
    return jax.vmap(model)(x)


def _by_jet(model: Any, displacement: Any, x: jax.Array, order: int) -> jax.Array:
    """The Taylor model at the displacement, by Taylor mode: derivatives of f(theta + s d) in s."""
    params, apply = split(model)
    leaves, structure = jax.tree.flatten(params)
    steps = [[d, *[jnp.zeros_like(d)] * (order - 1)] for d in jax.tree.leaves(displacement)]

    def outputs(*leaves: jax.Array) -> jax.Array:
        params = jax.tree.unflatten(structure, leaves)
        return jax.vmap(apply, in_axes=(None, 0))(params, x)

    value, derivatives = jet.jet(outputs, tuple(leaves), tuple(steps))
    factor = 1.0
    for j, derivative in enumerate(derivatives, start=1):
        factor /= j
        value = value + factor * derivative
    return value
