"""How times grow where a size is doubled, and operations (docs/theory.md, section 3)."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

from corrections import ntk, NTKOperator, o3
from scripts.benchmark.timing import Comparison, median_seconds
from zoo import MLP

_IN_SIZE = 256

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
            doubled = base | {size: 2 * base[size]}
            after = median_seconds(_task(name, **doubled), repeats)
            exponent = math.log2(after / before)
            expected = math.log2(_operations(name, **doubled) / _operations(name, **base))
            yield Comparison(
                f"{name}, {size} = {2 * base[size]}: exponent {exponent:.2f}, of the operations "
                f"{expected:.2f}",
                after,
                f"{size} = {base[size]}",
                before,
            )


def _operations(name: str, *, n: int, width: int, depth: int, k: int) -> int:
    """Multiplications and additions in the products of matrices."""
    m, units, first = n * k, depth * width, _IN_SIZE * width
    rest = (depth - 1) * width**2 + k * width
    if name == "Theta g":
        return 4 * n * (first + 2 * rest)
    factors, grams = 2 * n * (first + rest) + 2 * m * rest, 2 * (n**2 + m**2) * units
    if name == "NTK":
        return factors + grams
    return factors + 2 * m * (m + n) * rest + m * grams


def _task(name: str, *, n: int, width: int, depth: int, k: int) -> Callable[[], Any]:
    model = MLP(_IN_SIZE, k, width=width, depth=depth, activation="tanh", key=jr.key(0))
    x = jr.normal(jr.key(1), (n, _IN_SIZE))
    if name == "Theta g":
        operator, g = NTKOperator(model, x), jnp.ones((n, k))
        return lambda: operator.mv(g)
    kernel: Callable[..., jax.Array] = {"NTK": ntk, "O_3": o3}[name]
    return lambda: kernel(model, x)
