"""How times grow where one size is doubled."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

from corrections import ntk, NTKOperator, o3
from scripts.benchmark.timing import Comparison, median_seconds
from zoo import MLP

# Where products are large enough to be what takes the time.
_BASE: dict[str, dict[str, int]] = {
    "NTK": {"n": 128, "width": 1024, "depth": 3, "k": 4},
    "O_3": {"n": 48, "width": 512, "depth": 3, "k": 2},
    "Theta g": {"n": 512, "width": 1024, "depth": 3, "k": 4},
}


def growth(repeats: int) -> Iterator[Comparison]:
    """Exponents of n, width, depth and k, each from two sizes."""
    for name, base in _BASE.items():
        before = median_seconds(_task(name, **base), repeats)
        for size in base:
            after = median_seconds(_task(name, **(base | {size: 2 * base[size]})), repeats)
            exponent = math.log2(after / before)
            yield Comparison(
                f"{name}, {size} = {2 * base[size]}: exponent {exponent:.2f}",
                after,
                f"{size} = {base[size]}",
                before,
            )


def _task(name: str, *, n: int, width: int, depth: int, k: int) -> Callable[[], Any]:
    model = MLP(256, k, width=width, depth=depth, activation="tanh", key=jr.key(0))
    x = jr.normal(jr.key(1), (n, 256))
    if name == "Theta g":
        operator, g = NTKOperator(model, x), jnp.ones((n, k))
        return lambda: operator.mv(g)
    kernel: Callable[..., jax.Array] = {"NTK": ntk, "O_3": o3}[name]
    return lambda: kernel(model, x)
