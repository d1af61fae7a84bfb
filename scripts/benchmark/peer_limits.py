# pyright: reportMissingImports=false
"""The kernels of infinite width by neural-tangents 0.6.5, in the environment of `make peer`.

Run by that environment's Python as a file of its own: it imports nothing of this project. Takes a
case in JSON, as `scripts.benchmark.limits` writes it, and prints what it measured in JSON. What
both sides share stands here too; neural-tangents is imported only where it is used.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np


def inputs(case):
    """The batches, channels first."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=case["shape"]).astype(case["dtype"]) for _ in range(case["sets"])]


def measured(kernels, case):
    """Seconds and MiB of the first call, and seconds of later ones; saves both kernels."""
    before = _peak_mebibytes()
    first, both = _timed(kernels)
    mebibytes = _peak_mebibytes() - before
    again = statistics.median(_timed(kernels)[0] for _ in range(case["repeats"]))
    np.save(case["kernels"], np.stack([both.nngp, both.ntk]))
    return {"first": first, "again": again, "mebibytes": mebibytes}


def _timed(kernels):
    start = time.perf_counter()
    both = jax.block_until_ready(kernels())
    return time.perf_counter() - start, both


def _peak_mebibytes():
    """Of resident memory, on Linux; NaN elsewhere. Not `ru_maxrss`: a process starts with that of
    the one that started it.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    (line,) = (
        line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def cnn(width, depth, out_size, readout):
    """Biases, kernels and padding as those of `peer.cnn`."""
    from neural_tangents import stax
    from peer import WEIGHT_STD

    layers = []
    for _ in range(depth):
        layers += [stax.Conv(width, (3, 3), (1, 1), "SAME", WEIGHT_STD, 0.1), stax.Relu()]
    pool = stax.Flatten() if readout == "flatten" else stax.GlobalAvgPool()
    return stax.serial(*layers, pool, stax.Dense(out_size, WEIGHT_STD, 0.1))


def main():
    """Measures neural-tangents."""
    from peer import mlp, wide_resnet

    case = json.loads(sys.argv[1])
    jax.config.update("jax_enable_x64", case["dtype"] == "float64")
    make = {"MLP": mlp, "CNN": cnn, "WideResNet": wide_resnet}[case["network"]]
    *_, kernel_fn = make(**case["options"])
    xs = [jax.numpy.asarray(np.moveaxis(x, 1, -1)) for x in inputs(case)]
    compiled = jax.jit(lambda x1, x2=None: kernel_fn(x1, x2, ("nngp", "ntk")))
    print(json.dumps(measured(lambda: compiled(*xs), case)))


if __name__ == "__main__":
    main()
