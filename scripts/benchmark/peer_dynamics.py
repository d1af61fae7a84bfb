# ruff: noqa: E402
# pyright: reportMissingImports=false
"""Times `predict.gradient_descent` of neural-tangents 0.6.5, in the environment of `make peer`.

Run by that environment's Python as a file of its own: it imports nothing of this project. Takes the
file of a problem and a case in JSON, as `scripts.benchmark.dynamics` writes them, and prints what
it measured in JSON. Its JAX keeps no programs of a CPU on disk: every process compiles anew.
"""

import json
import os
import statistics
import sys
import threading
import time
import types

# Its TensorFlow door wants TensorFlow, which predictions do not.
sys.modules["neural_tangents.experimental"] = types.ModuleType("neural_tangents.experimental")

import jax
import jax.numpy as jnp
import neural_tangents as nt
import numpy as np


def measure(problem, case):
    """Seconds of the first call, of later ones and of later ones inside `jax.jit`."""
    jax.config.update("jax_enable_x64", problem["kernel"].dtype == np.float64)
    arrays = {name: jax.block_until_ready(jnp.asarray(a)) for name, a in problem.items()}
    predict = solve(case["smoothing"], case["ts"])
    watch = threading.Timer(case["limit"], os._exit, (case["late"],))
    watch.start()
    first, outputs = _timed(predict, arrays)
    watch.cancel()
    np.save(case["outputs"], np.concatenate(outputs, axis=1))
    compiled = jax.jit(predict)
    jax.block_until_ready(compiled(**arrays))
    repeats = 1 if first > 5 else case["repeats"]
    return {
        "first": first,
        "again": statistics.median(_timed(predict, arrays)[0] for _ in range(repeats)),
        "compiled": statistics.median(_timed(compiled, arrays)[0] for _ in range(repeats)),
        "work": f"{velocities(arrays, case)} right-hand sides",
    }


def solve(smoothing, ts, evaluated=lambda: None):
    """A function that solves the problem; its loss calls `evaluated` wherever it is traced."""

    def loss(f, y):
        evaluated()
        targets = (1 - smoothing) * y + smoothing / y.shape[-1]
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(f), axis=-1))

    def predict(kernel, y, f0, kernel_test, f0_test):
        predict_fn = nt.predict.gradient_descent(loss, kernel, y)
        return predict_fn(jnp.asarray(ts, kernel.dtype), f0, f0_test, kernel_test)

    return predict


def velocities(arrays, case):
    """How many right-hand sides a solve takes, by one that counts them."""
    count = 0

    def increase():
        nonlocal count
        count += 1

    counted = solve(case["smoothing"], case["ts"], lambda: jax.debug.callback(increase))
    jax.block_until_ready(counted(**arrays))
    jax.effects_barrier()
    return count


def _timed(predict, arrays):
    start = time.perf_counter()
    outputs = jax.block_until_ready(predict(**arrays))
    return time.perf_counter() - start, outputs


if __name__ == "__main__":
    with np.load(sys.argv[1]) as archive:
        print(json.dumps(measure(dict(archive), json.loads(sys.argv[2]))))
