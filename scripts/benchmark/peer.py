# ruff: noqa: E402
# pyright: reportMissingImports=false
"""Times neural-tangents 0.6.5, in the environment that `make peer` builds.

Run by that environment's Python as a file of its own: it imports nothing of this project. Takes a
JSON list of cases and prints a JSON list with the seconds of each of the peer's implementations,
medians after one call that is not counted.
"""

import json
import os
import resource
import statistics
import sys
import time
import types

# Its TensorFlow door wants TensorFlow, which the kernels do not.
sys.modules["neural_tangents.experimental"] = types.ModuleType("neural_tangents.experimental")

import jax
import neural_tangents as nt
import numpy as np
from neural_tangents import stax

# By number: the Jacobian, NTK-vector products, structured derivatives.
IMPLEMENTATIONS = (1, 2, 3)
WEIGHT_STD = 2**0.5


def mlp(width, depth, out_size):
    """Biases as in the zoo's."""
    layers = []
    for _ in range(depth):
        layers += [stax.Dense(width, WEIGHT_STD, 0.1), stax.Relu()]
    return stax.serial(*layers, stax.Dense(out_size, WEIGHT_STD, 0.1))


def cnn(width, depth, out_size):
    """3 x 3, mean readout."""
    layers = []
    for _ in range(depth):
        layers += [_conv(width, 3, 1, 0.1), stax.Relu()]
    return stax.serial(*layers, stax.GlobalAvgPool(), stax.Dense(out_size, WEIGHT_STD, 0.1))


def wide_resnet(depth, widen, out_size):
    """Without norm, laid out as `zoo.WideResNet`."""
    layers, channels = [_conv(16, 3, 1)], 16
    for group in range(3):
        for block in range((depth - 4) // 6):
            wanted, stride = 16 * widen * 2**group, 2 if group > 0 and block == 0 else 1
            branch = [stax.Relu(), _conv(wanted, 3, stride), stax.Relu(), _conv(wanted, 3, 1)]
            shortcut = stax.Identity()
            if stride > 1 or channels != wanted:
                shortcut = stax.serial(stax.Relu(), _conv(wanted, 1, stride))
            both = stax.parallel(stax.serial(*branch), shortcut)
            layers.append(stax.serial(stax.FanOut(2), both, stax.FanInSum()))
            channels = wanted
    return stax.serial(*layers, stax.Relu(), stax.GlobalAvgPool(), stax.Dense(out_size, WEIGHT_STD))


def _conv(channels, size, stride, bias_std=None):
    return stax.Conv(
        channels, (size, size), (stride, stride), padding="SAME", W_std=WEIGHT_STD, b_std=bias_std
    )


def seconds(case):
    """The median time of each implementation on one case."""
    make = {"MLP": mlp, "CNN": cnn, "WideResNet": wide_resnet}[case["network"]]
    init, apply, _ = make(**case["options"])
    shape = case["shape"]  # (n, ...), channels last
    _, params = init(jax.random.PRNGKey(0), (-1, *shape[1:]))
    x = jax.numpy.asarray(np.random.default_rng(0).normal(size=shape), "float32")
    axes, times = (-1,) if case["trace"] else (), {}
    for implementation in IMPLEMENTATIONS:
        kernel = jax.jit(
            nt.empirical_ntk_fn(apply, trace_axes=axes, vmap_axes=0, implementation=implementation)
        )
        try:
            times[implementation] = _median(lambda k=kernel: k(x, None, params), case["repeats"])
        except Exception as error:  # not every one has every network, nor the memory
            print(f"implementation {implementation}: {error}", file=sys.stderr)
    return times


def _median(fn, repeats):
    """One that takes seconds, and so is not the fastest, is timed once."""
    start = time.perf_counter()
    jax.block_until_ready(fn())
    slow = time.perf_counter() - start > 5
    counted = []
    for _ in range(1 if slow else repeats):
        start = time.perf_counter()
        jax.block_until_ready(fn())
        counted.append(time.perf_counter() - start)
    return statistics.median(counted)


def _within_memory():
    """What asks for more than three quarters of this machine's is told so, and not killed."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    _within_memory()
    print(json.dumps([seconds(case) for case in json.loads(sys.argv[1])]))
