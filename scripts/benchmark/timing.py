"""Wall times of compiled functions, and the machine's own limits."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jax.random as jr


@dataclass(frozen=True)
class Comparison:
    """A task done two ways in one run: seconds (medians, if nothing else is said), or errors."""

    task: str
    ours: float
    reference: str
    theirs: float
    kind: Literal["seconds", "error"] = "seconds"

    def shown(self) -> tuple[str, str, str, str, str]:
        """As a row: the task, ours, the reference, theirs and the ratio."""
        ratio = self.ours / self.theirs if self.theirs else math.nan
        found = "-" if math.isnan(ratio) else f"{ratio:.3g}"
        return self.task, self._number(self.ours), self.reference, self._number(self.theirs), found

    def _number(self, value: float) -> str:
        if math.isnan(value):
            return "-"
        return f"{1e3 * value:.1f} ms" if self.kind == "seconds" else f"{value:.1e}"


def median_seconds(fn: Callable[[], Any], repeats: int) -> float:
    """The median wall time of `fn()`, after one call that is not counted (it compiles)."""
    return medians_in_turn([fn], repeats)[0]


def medians_in_turn(fns: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """The same of several, which take turns: a machine that slows down slows all of them."""
    return [statistics.median(taken) for taken in seconds_in_turn(fns, repeats)]


def seconds_in_turn(fns: Sequence[Callable[[], Any]], repeats: int) -> list[list[float]]:
    """The wall times of `repeats` calls of each in turn, after one that is not counted."""
    for fn in fns:
        jax.block_until_ready(fn())
    times: list[list[float]] = [[] for _ in fns]
    for _ in range(repeats):
        for fn, taken in zip(fns, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(fn())
            taken.append(time.perf_counter() - start)
    return times


def bytes_taken(fn: Any, *args: Any) -> int:
    """What a function of `jax.jit` takes: arguments, results and what lies between."""
    counted = fn.lower(*args).compile().memory_analysis()
    sizes = (
        counted.argument_size_in_bytes,
        counted.output_size_in_bytes,
        counted.temp_size_in_bytes,
    )
    return sum(sizes)


def gemm_gflops(repeats: int, size: int = 2048) -> float:
    """Rate of a square matrix product in the default float type, in GFLOP/s."""
    a = jr.normal(jr.key(0), (size, size))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    return 2 * size**3 / median_seconds(lambda: product(a, a), repeats) / 1e9


def cholesky_gflops(repeats: int, size: int = 2048) -> float:
    """Rate of a Cholesky factorisation in the default float type, in GFLOP/s."""
    factorised = jax.jit(jnp.linalg.cholesky)
    a = size * jnp.eye(size) + jnp.ones((size, size))
    return size**3 / 3 / median_seconds(lambda: factorised(a), repeats) / 1e9


def bandwidth_gb_per_second(repeats: int, size: int = 1 << 26, passes: int = 8) -> float:
    """Rate of reading and writing a long vector in place, in GB/s."""
    a = jnp.ones(size)
    scaled = jax.jit(lambda a: jax.lax.fori_loop(0, passes, lambda _, a: 1.5 * a, a))
    return passes * 2 * a.nbytes / median_seconds(lambda: scaled(a), repeats) / 1e9
