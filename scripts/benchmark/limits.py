"""The kernels of infinite width against `kernel_fn` of neural-tangents: time, memory and numbers.

Each side runs on the CPU in a process of its own, so that a first call is one: it compiles. The
memory of a call is by how much it raises the peak resident memory of the process.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from scripts import runtime
from scripts.benchmark.kernels import model_of, PEER_PYTHON
from scripts.benchmark.peer_limits import inputs, measured
from scripts.benchmark.timing import Comparison
from zoo.networks.infinite_network import limit

_ROOT = Path(__file__).resolve().parents[2]
PEER = (str(PEER_PYTHON), str(Path(__file__).with_name("peer_limits.py")))
OURS = (sys.executable, "-c", "from scripts.benchmark.limits import main; main()")


class Case(NamedTuple):
    """A network, of whatever width, and a batch of examples, channels first; `sets` is 2 for the
    kernel between two batches.
    """

    name: str
    network: str
    options: dict[str, Any]
    shape: tuple[int, ...]
    sets: int = 1


_MLP = {"width": 8, "depth": 3, "out_size": 1}
_CNN = {"width": 8, "depth": 4, "out_size": 1}
_WIDE_RESNET = {"depth": 10, "widen": 1, "out_size": 1}
_CASES = (
    Case("MLP 784-3", "MLP", _MLP, (2000, 784)),
    Case("MLP 784-3", "MLP", _MLP, (2000, 784), sets=2),
    Case("CNN-4, flattened", "CNN", {**_CNN, "readout": "flatten"}, (256, 3, 8, 8)),
    Case("CNN-4, mean", "CNN", {**_CNN, "readout": "mean"}, (48, 3, 8, 8)),
    Case("WideResNet-10-1", "WideResNet", _WIDE_RESNET, (16, 3, 8, 8)),
)


@dataclass(frozen=True)
class Measurement:
    """What one side took: seconds of its first call and of later ones, MiB of the first, and the
    kernels (2, n, n); or how it failed.
    """

    failure: str = ""
    first: float = math.nan
    again: float = math.nan
    mebibytes: float = math.nan
    kernels: np.ndarray | None = None


def limits(repeats: int) -> Iterator[Comparison]:
    """Each case called again, and for the first time."""
    yield from compare(_CASES, repeats)


def compare(cases: tuple[Case, ...], repeats: int) -> Iterator[Comparison]:
    """Memory is that of a first call, with what compiling takes, and stands in its row."""
    for case in cases:
        ours = _measurement(OURS, case, repeats)
        peer = _measurement(PEER, case, repeats)
        sets = " and n others" if case.sets == 2 else ""
        task = f"NNGP and NTK, {case.name}, n = {case.shape[0]}{sets}"
        if ours.failure:
            task = f"{task} ({ours.failure})"
        again = first = f"neural-tangents ({peer.failure})"
        if ours.kernels is not None and peer.kernels is not None:
            difference = _difference(case, ours.kernels, peer.kernels)
            again = f"neural-tangents (differs by {difference})"
            ratio = f"{ours.mebibytes / peer.mebibytes:.2g} x that"
            first = f"its first call, memory {peer.mebibytes:.0f} MiB; ours {ratio}"
        yield Comparison(task, ours.again, again, peer.again)
        yield Comparison(
            f"first call, memory {ours.mebibytes:.0f} MiB", ours.first, first, peer.first
        )


def main() -> None:
    """The process of its own: takes a case in JSON, prints JSON."""
    print(json.dumps(measure(json.loads(sys.argv[1]))))


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Seconds and memory of our side on one case; saves the kernels."""
    with runtime.precision(case["dtype"]):
        network = limit(model_of(case["network"], case["options"], case["shape"][1:]))
        xs = [jnp.asarray(x) for x in inputs(case)]
        return measured(lambda: network.kernels(*xs), case)


def _measurement(command: tuple[str, ...], case: Case, repeats: int) -> Measurement:
    if not Path(command[0]).exists():
        return Measurement("not here: make peer")
    environment = {
        "PYTHONPATH": str(_ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    with tempfile.TemporaryDirectory() as folder:
        kernels = f"{folder}/kernels.npy"
        dtype = jnp.result_type(float).name
        request = case._asdict() | {"dtype": dtype, "repeats": repeats, "kernels": kernels}
        done = subprocess.run(
            [*command, json.dumps(request)],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            env=os.environ | environment,
        )
        if done.returncode:
            return Measurement(f"failed: {done.stderr.strip().splitlines()[-1]}")
        return Measurement(**json.loads(done.stdout), kernels=np.load(kernels))


def _difference(case: Case, ours: np.ndarray, theirs: np.ndarray) -> str:
    """The largest of an entry, relative to it; a diagonal has correlation 1."""
    relative = np.abs(ours / theirs - 1)
    largest = f"{np.max(relative):.0e}"
    if case.sets == 2:
        return largest
    off_diagonal = relative[:, ~np.eye(len(relative[0]), dtype=bool)]
    return f"{largest}, off the diagonal {np.max(off_diagonal):.0e}"
