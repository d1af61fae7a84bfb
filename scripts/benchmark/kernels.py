"""The tangent kernel against neural-tangents, where `make peer` has built its environment."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from corrections import ntk
from scripts.architectures import ARCHITECTURES, WIDE_RESNET
from scripts.benchmark.timing import Comparison, median_seconds

PEER_PYTHON = Path(__file__).resolve().parents[2] / ".venv-peer" / "bin" / "python"
_PEER = Path(__file__).with_name("peer.py")

# What is timed, for the zoo; what the peer makes of it; n and the shape of an example.
_CASES: tuple[tuple[str, str, dict[str, Any], tuple[int, ...]], ...] = (
    ("MLP 784-512x3-1", "MLP", {"width": 512, "depth": 3, "out_size": 1}, (128, 784)),
    ("MLP 784-512x3-10", "MLP", {"width": 512, "depth": 3, "out_size": 10}, (64, 784)),
    ("MLP 784-2048x3-1", "MLP", {"width": 2048, "depth": 3, "out_size": 1}, (128, 784)),
    ("CNN 64x4-10", "CNN", {"width": 64, "depth": 4, "out_size": 10}, (32, 3, 16, 16)),
    ("WideResNet-10-1", "WideResNet", {"depth": 10, "widen": 1, "out_size": 10}, (16, 3, 16, 16)),
    ("WideResNet-16-2", "WideResNet", {"depth": 16, "widen": 2, "out_size": 10}, (16, 3, 16, 16)),
)
_OURS = {"CNN": {"readout": "mean"}}
"""Options that the peer's networks have by themselves."""


def kernels(repeats: int) -> Iterator[Comparison]:
    """Each case here, then by each of the peer's implementations, of which the fastest counts."""
    for name, network, options, shape in _CASES:
        model = model_of(network, options | _OURS.get(network, {}), shape[1:])
        x = jnp.asarray(np.random.default_rng(0).normal(size=shape))
        ours = median_seconds(lambda m=model, x=x: ntk(m, x), repeats)
        yield Comparison(
            f"NTK, {name}, n = {shape[0]}", ours, *fastest_of_peer(network, options, shape, repeats)
        )


def model_of(network: str, options: dict[str, Any], shape: Sequence[int]) -> Any:
    """A network by the name of its architecture, with biases where that has them by itself."""
    built = ARCHITECTURES[network]
    biases = {} if built is WIDE_RESNET else {"bias_std": 0.1}
    sizes = {name: value for name, value in options.items() if name != "out_size"}
    return built.make(shape, options["out_size"], key=jr.key(0), **biases, **sizes)


def fastest_of_peer(
    network: str,
    options: dict[str, Any],
    shape: tuple[int, ...],
    repeats: int,
    *,
    trace: bool = False,
) -> tuple[str, float]:
    """Which of its implementations is the fastest, and its seconds; `trace`: of the kernel that is
    averaged over outputs.
    """
    if not PEER_PYTHON.exists():
        return "neural-tangents (not here: make peer)", float("nan")
    n, *rest = shape
    last = (n, *rest[1:], rest[0]) if len(rest) > 1 else shape
    case = {
        "network": network,
        "options": options,
        "shape": last,
        "repeats": repeats,
        "trace": trace,
    }
    command = [str(PEER_PYTHON), str(_PEER), json.dumps([case])]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
        return f"neural-tangents failed: {said[-1]}", float("nan")
    (times,) = json.loads(done.stdout)
    if not times:
        return "neural-tangents failed in each implementation", float("nan")
    fastest = min(times, key=lambda implementation: times[implementation])
    return f"neural-tangents, implementation {fastest}", times[fastest]
