"""The tangent kernel of many examples, averaged over outputs, against neural-tangents."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from corrections import ntk
from corrections.parameters import split
from scripts.benchmark.kernels import fastest_of_peer, model_of
from scripts.benchmark.timing import Comparison, gemm_gflops, median_seconds
from zoo import memory_limit, parameters

# What is timed: a name, the network for the zoo and the peer, the shape of an example, each n.
_CASES: tuple[tuple[str, str, dict[str, Any], tuple[int, ...], tuple[int, ...]], ...] = (
    (
        "WideResNet-10-1",
        "WideResNet",
        {"depth": 10, "widen": 1, "out_size": 10},
        (3, 32, 32),
        (125, 250, 500, 1000),
    ),
    ("CNN 64x4-10", "CNN", {"width": 64, "depth": 4, "out_size": 10}, (3, 32, 32), (32, 128, 256)),
    (
        "MLP 784-512x3-10",
        "MLP",
        {"width": 512, "depth": 3, "out_size": 10},
        (784,),
        (500, 1000, 2000, 4000),
    ),
)
_LIMITS = ("4 GiB", "1 GiB")


def many(repeats: int) -> Iterator[Comparison]:
    """Each case by n: against the peer's best, and against the operations of gradients once and
    half of one product at the rate of a matrix product; how times grow; less memory against more.
    """
    rate = gemm_gflops(repeats)
    for name, network, options, shape, ns in _CASES:
        readout = {"readout": "mean"} if network == "CNN" else {}
        model = model_of(network, options | readout, shape)
        taken: list[float] = []
        for n in ns:
            x = jnp.asarray(np.random.default_rng(0).normal(size=(n, *shape)))
            counted = repeats if n * math.prod(shape) < 10**6 else min(repeats, 2)
            ours = median_seconds(lambda m=model, x=x: ntk(m, x, outputs="mean"), counted)
            grows = ""
            if taken:
                exponent = math.log(ours / taken[-1]) / math.log(n / ns[len(taken) - 1])
                grows = f" (exponent {exponent:.2f})"
            taken.append(ours)
            task = f"NTK, mean over outputs, {name}, n = {n}{grows}"
            peer = fastest_of_peer(network, options, (n, *shape), counted, trace=True)
            yield Comparison(task, ours, *peer)
            if network != "MLP":  # whose gradients are never formed
                yield Comparison(
                    task,
                    ours,
                    "gradients once and half a product, at the rate of a matrix product",
                    _limit(model, x, rate),
                )
        if network == "WideResNet":
            yield _with_less(model, x, f"{name}, n = {ns[-1]}")


def _limit(model: Any, x: Any, gflops: float) -> float:
    """Seconds of the operations of all gradients, as XLA counts them, and of half a product of all
    of these.
    """
    params, apply = split(model)
    outputs, size = jax.eval_shape(apply, params, x[0]).shape[0], _count(model)
    counted = jax.jit(jax.jacrev(apply)).lower(params, x[0]).compile().cost_analysis()
    assert counted is not None
    operations = len(x) * counted["flops"] + len(x) ** 2 * outputs * size
    return operations / gflops / 1e9


def _count(model: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(parameters(model)))


def _with_less(model: Any, x: Any, name: str) -> Comparison:
    """A quarter of the memory against all that is needed."""
    seconds = []
    for limit in _LIMITS:
        with memory_limit(limit):
            seconds.append(median_seconds(lambda: ntk(model, x, outputs="mean"), 1))
    more, less = _LIMITS
    return Comparison(f"the same, {name}, within {less}", seconds[1], f"within {more}", seconds[0])
