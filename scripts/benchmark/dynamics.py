"""Gradient flow under a frozen kernel, against `predict.gradient_descent` of neural-tangents.

Both solve the same problem in processes of their own, so that a first call is one: it traces and
compiles. Both are compared with a solve in float64 by a method that is neither's, of order 8, at
tolerances of 1e-10.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from corrections import ntk
from scripts import runtime
from scripts.benchmark.kernels import PEER_PYTHON
from scripts.benchmark.timing import Comparison
from solvers import CrossEntropy, gradient_flow, RESULTS, Trajectory
from zoo import load, MLP

Problem = dict[str, np.ndarray]
"""What both solve: kernel (n, n), y (n, k), f0 (n, k), kernel_test (m, n), f0_test (m, k)."""

_ROOT = Path(__file__).resolve().parents[2]
PEER = (str(PEER_PYTHON), str(Path(__file__).with_name("peer_dynamics.py")))
OURS = (sys.executable, "-c", "from scripts.benchmark.dynamics import main; main()")

# Of `jax.experimental.ode.odeint`, which the peer does not let its users set.
_PEER_TOLERANCES = {"rtol": 1.4e-8, "atol": 1.4e-8}

LIMIT = 120.0
"""Seconds after which a first call is given up."""

_PROCESSES = 3
"""First calls of which the median is shown: each is one in a process of its own."""

_LATE = 3  # the exit status that says so


class Case(NamedTuple):
    """A solve of cross-entropy, from 0 to the time `end` in units of 1 / lambda_max."""

    smoothing: float
    end: float

    def __str__(self) -> str:
        smoothing = f", label smoothing {self.smoothing:g}" if self.smoothing else ""
        return f"cross-entropy{smoothing}, to lambda_max t = {self.end:g}"

    @property
    def ts(self) -> list[float]:
        """Where outputs are compared."""
        return [0.01 * self.end, 0.1 * self.end, self.end]


_CASES = (Case(0.0, 1e4), Case(0.0, 1e6), Case(0.1, 1e6))


@dataclass(frozen=True)
class Measurement:
    """What one side took: seconds of its first call, of later ones and of later ones inside
    `jax.jit`; how near it came, and how.
    """

    report: str
    first: float = math.nan
    again: float = math.nan
    compiled: float = math.nan


class Setting(NamedTuple):
    """A case whose problem lies in `folder`, and the outputs it should give. Runs of one number
    share what they have compiled.
    """

    folder: Path
    case: Case
    repeats: int
    exact: np.ndarray
    run: int = 0


def dynamics(repeats: int) -> Iterator[Comparison]:
    """First calls and later ones; errors and numbers of right-hand sides stand beside them."""
    yield from compare(digits(256, 64), _CASES, repeats)


def compare(problem: Problem, cases: tuple[Case, ...], repeats: int) -> Iterator[Comparison]:
    """Each case by both: with the library's defaults, and as near as the peer's defaults are."""
    n, k = problem["y"].shape
    for case in cases:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            np.savez(folder / "problem.npz", **problem)  # pyright: ignore[reportArgumentType]
            setting = Setting(folder, case, repeats, reference(problem, case))
            ours, peer = measured(OURS, setting), _peer(setting)
            near = measured(OURS, setting, _PEER_TOLERANCES)
            cold = [
                ours.first,
                *(measured(OURS, setting._replace(run=i)).first for i in range(1, _PROCESSES)),
            ]
            warm = [measured(OURS, setting).first for _ in range(_PROCESSES)]
            theirs = [peer.first, *(_peer(setting).first for _ in range(_PROCESSES - 1))]
        task = f"flow of {case}, n = {n}, k = {k}"
        calls = f"neural-tangents, called again ({peer.report})"
        inside = "the same inside a `jax.jit`, called again"
        first = f"its first call, of {_PROCESSES}"
        for what, ours_took, against, peer_took in (
            (f"{task}, called again ({ours.report})", ours.again, calls, peer.again),
            ("the same", ours.again, inside, peer.compiled),
            (f"at the peer's tolerances ({near.report})", near.again, inside, peer.compiled),
            (f"first call, of {_PROCESSES} processes", median(cold), first, median(theirs)),
            ("the same, compiled by an earlier process", median(warm), first, median(theirs)),
        ):
            yield Comparison(what, ours_took, against, peer_took)


def digits(n: int, m: int) -> Problem:
    """Digits, n to train on and m to test on, under the tangent kernel of a wide network. It is
    scaled: the largest eigenvalue of Theta / n is 1. In the default float type.
    """
    with runtime.precision("float64"):
        data = load("digits", n_train=n, n_test=m)
        model = MLP(64, 10, width=512, depth=3, key=jr.key(0))
        kernel = ntk(model, jnp.concatenate([data.x_train, data.x_test]), outputs="mean")
        kernel = kernel * (n / jnp.linalg.eigvalsh(kernel[:n, :n])[-1])
        outputs = 0.1 * jr.normal(jr.key(1), (n + m, 10))
    arrays = {
        "kernel": kernel[:n, :n],
        "y": data.y_train,
        "f0": outputs[:n],
        "kernel_test": kernel[n:, :n],
        "f0_test": outputs[n:],
    }
    return {name: np.asarray(array, jnp.result_type(float)) for name, array in arrays.items()}


def reference(problem: Problem, case: Case) -> np.ndarray:
    """The outputs at `case.ts`, training rows first, from the problem as it was rounded."""
    with runtime.precision("float64"):
        exact = {name: array.astype(np.float64) for name, array in problem.items()}
        options = {"rtol": 1e-10, "atol": 1e-12, "max_steps": 10_000_000}
        return _outputs(_solved(exact, case, solver=diffrax.Dopri8(), **options))


def relative_error(outputs: np.ndarray, exact: np.ndarray) -> float:
    """The largest error in units of the largest output, at the time where that is worst."""
    worst = np.max(np.abs(outputs - exact), axis=(1, 2)) / np.max(np.abs(exact), axis=(1, 2))
    return float(np.max(worst))


def main() -> None:
    """The process of its own: takes the file of a problem and a case in JSON, prints JSON."""
    with np.load(sys.argv[1]) as archive:
        print(json.dumps(measure(dict(archive), json.loads(sys.argv[2]))))


def measure(problem: Problem, request: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the first call and of later ones; saves the outputs."""
    case = Case(request["smoothing"], request["ts"][-1])
    with runtime.precision("float64" if problem["kernel"].dtype == np.float64 else "float32"):
        arrays = {name: jax.block_until_ready(jnp.asarray(a)) for name, a in problem.items()}

        def timed() -> tuple[float, Trajectory]:
            start = time.perf_counter()
            trajectory = _solved(arrays, case, throw=False, **request["tolerances"])
            jax.block_until_ready(trajectory.train)
            return time.perf_counter() - start, trajectory

        watch = threading.Timer(request["limit"], os._exit, (request["late"],))
        watch.start()
        first, trajectory = timed()
        watch.cancel()
        repeats = 1 if first > 30 else request["repeats"]
        again = median(timed()[0] for _ in range(repeats))
    np.save(request["outputs"], _outputs(trajectory))
    return {"first": first, "again": again, "compiled": again, "work": work(trajectory)}


def work(trajectory: Trajectory) -> str:
    """What a solve took, and how it failed where it did."""
    stats = trajectory.stats
    velocities = stats.get("num_velocities")  # not every solver has its own counted
    took = f"{stats['num_steps']} steps" if velocities is None else f"{velocities} right-hand sides"
    if trajectory.successful:
        return took
    reason = RESULTS[trajectory.result].split(". ")[0]
    return f"{took}, FAILED at t = {float(trajectory.t_reached):.3g}: {reason}"


def _solved(arrays: dict[str, Any], case: Case, **options: Any) -> Trajectory:
    loss = CrossEntropy(label_smoothing=case.smoothing)
    return gradient_flow(ts=case.ts, loss=loss, **arrays, **options)


def _outputs(trajectory: Trajectory) -> np.ndarray:
    assert trajectory.test is not None
    return np.concatenate([trajectory.train, trajectory.test], axis=1)


def _peer(setting: Setting) -> Measurement:
    if not PEER_PYTHON.exists():
        return Measurement("not here: make peer")
    return measured(PEER, setting)


def measured(
    command: tuple[str, ...], setting: Setting, tolerances: dict[str, float] | None = None
) -> Measurement:
    """A case in a new process, which finds the programs that earlier ones have compiled for it."""
    folder, case, repeats, exact, run = setting
    request = {
        "smoothing": case.smoothing,
        "ts": case.ts,
        "tolerances": tolerances or {},
        "repeats": repeats,
        "outputs": str(folder / "outputs.npy"),
        "limit": LIMIT,
        "late": _LATE,
    }
    environment = {
        "PYTHONPATH": str(_ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(folder / f"cache{run}"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "EQX_ON_ERROR": "nan",  # as the command line has it: callbacks would defeat the cache
    }
    done = subprocess.run(
        [*command, str(folder / "problem.npz"), json.dumps(request)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        env=os.environ | environment,
    )
    if done.returncode == _LATE:
        return Measurement(f"stopped after {LIMIT:g} s", LIMIT, LIMIT, LIMIT)
    if done.returncode:
        return Measurement(f"failed: {done.stderr.strip().splitlines()[-1]}")
    seconds = json.loads(done.stdout)
    work = seconds.pop("work")
    error = relative_error(np.load(folder / "outputs.npy"), exact)
    return Measurement(f"error {error:.1e}, {work}", **seconds)
