"""Wall times of compiled functions, and the machine's own limits."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr


@dataclass(frozen=True)
class Comparison:
    """A task timed two ways in one run: seconds, medians."""

    task: str
    ours: float
    reference: str
    theirs: float


def median_seconds(fn: Callable[[], Any], repeats: int) -> float:
    """The median wall time of `fn()`, after one call that is not counted (it compiles)."""
    jax.block_until_ready(fn())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(fn())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def gemm_gflops(repeats: int, size: int = 2048) -> float:
    """Rate of a square matrix product in the default float type, in GFLOP/s."""
    a = jr.normal(jr.key(0), (size, size))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    return 2 * size**3 / median_seconds(lambda: product(a, a), repeats) / 1e9


def bandwidth_gb_per_second(repeats: int, size: int = 1 << 26, passes: int = 8) -> float:
    """Rate of reading and writing a long vector in place, in GB/s."""
    a = jnp.ones(size)
    scaled = jax.jit(lambda a: jax.lax.fori_loop(0, passes, lambda _, a: 1.5 * a, a))
    return passes * 2 * a.nbytes / median_seconds(lambda: scaled(a), repeats) / 1e9
