"""O_3 and O_4 against the derivatives of the Jacobian's Gram, and the machine's GEMM rate."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from corrections import o3, o4
from corrections.parameters import split
from scripts.benchmark.timing import Comparison, gemm_gflops, median_seconds
from zoo import CNN, MLP, WideResNet
from zoo.common.trainable import partitioned


def tensors(repeats: int) -> Iterator[Comparison]:
    """Times, memory beside the result, and the compile time of a deep network."""
    mlp = MLP(784, 1, width=512, depth=3, activation="tanh", key=jr.key(0))
    x, third = jr.normal(jr.key(1), (64, 784)), naive_third(mlp)
    yield Comparison(
        "O_3, tanh MLP 784-512x3-1, m = 64",
        median_seconds(lambda: o3(mlp, x), repeats),
        "JVP of the per-example Jacobian, then its Gram",
        median_seconds(lambda: third(x), 1),
    )
    m, widths, parameters = 128, 3 * 512, 2 * 512**2 + 512
    more = jr.normal(jr.key(1), (m, 784))
    flops = 4 * m**2 * parameters + 4 * m**3 * widths
    yield Comparison(
        f"O_3, the same, m = {m}: {flops / 1e9:.1f} GFLOP (docs/theory.md, section 3)",
        median_seconds(lambda: o3(mlp, more), repeats),
        "as many in a square matrix product",
        flops / 1e9 / gemm_gflops(repeats),
    )
    cnn = CNN(
        (3, 16, 16), 4, channels=64, depth=4, readout="mean", activation="tanh", key=jr.key(0)
    )
    images = jr.normal(jr.key(1), (8, 3, 16, 16))
    ours, naive = third_compiled(cnn, images), naive_third(cnn).lower(images).compile()
    yield Comparison(
        f"O_3, tanh CNN 64x4-4, n = 8 ({_mib(ours):.0f} MiB beside the result)",
        median_seconds(lambda: o3(cnn, images), repeats),
        f"the same with its convolution ({_mib(naive):.0f} MiB)",
        median_seconds(lambda: naive(images), 1),
    )
    small = MLP(64, 1, width=256, depth=2, activation="tanh", key=jr.key(0))
    y, fourth = jr.normal(jr.key(1), (16, 64)), naive_fourth(small)
    yield Comparison(
        "O_4, tanh MLP 64-256x2-1, m = 16",
        median_seconds(lambda: o4(small, y), repeats),
        "nested JVPs of the Jacobian's Gram",
        median_seconds(lambda: fourth(y), 1),
    )
    resnet = WideResNet((3, 16, 16), 2, activation="tanh", key=jr.key(0))
    start = time.perf_counter()
    third_compiled(resnet, images[:2])
    yield Comparison(
        "O_3, WideResNet-10-1, n = 2: compile time",
        time.perf_counter() - start,
        "30 seconds",
        30.0,
    )


def third_compiled(model: Any, x: jax.Array) -> Any:
    """`o3` compiled for a model and a batch."""
    params, static = partitioned(model)
    return jax.jit(lambda p, x: o3(eqx.combine(p, static), x)).lower(params, x).compile()


def naive_third(model: Any) -> Any:
    """O_3 by its definition: one direction at a time, in vectors of all parameters."""
    params, gram, directions = _naive(model)

    @jax.jit
    def third(x: jax.Array) -> jax.Array:
        along = directions(params, x)
        return jax.lax.map(lambda v: jax.jvp(lambda p: gram(p, x), (params,), (v,))[1], along)

    return third


def naive_fourth(model: Any) -> Any:
    """O_4 by its definition."""
    params, gram, directions = _naive(model)

    def third(params: Any, x: jax.Array) -> jax.Array:
        along = directions(params, x)
        return jax.lax.map(lambda v: jax.jvp(lambda p: gram(p, x), (params,), (v,))[1], along)

    @jax.jit
    def fourth(x: jax.Array) -> jax.Array:
        along = directions(params, x)
        return jax.lax.map(lambda v: jax.jvp(lambda p: third(p, x), (params,), (v,))[1], along)

    return fourth


def _naive(model: Any) -> tuple[Any, Callable, Callable]:
    """The parameters, their function J J^T and the rows of J as trees of parameters."""
    params, apply = split(model)

    def jacobian(params: Any, x: jax.Array) -> Any:
        per_example = jax.vmap(jax.jacrev(apply), in_axes=(None, 0))(params, x)
        return jax.tree.map(lambda j: j.reshape(-1, *j.shape[2:]), per_example)

    def gram(params: Any, x: jax.Array) -> jax.Array:
        rows = jax.tree.leaves(jacobian(params, x))
        return sum((r.reshape(len(r), -1) @ r.reshape(len(r), -1).T for r in rows), jnp.zeros(()))

    return params, gram, jacobian


def _mib(compiled: Any) -> float:
    return compiled.memory_analysis().temp_size_in_bytes / 2**20
