"""Where cells are computed: in a thread for each accelerator, in a process for each core of a CPU.

On a CPU every compiled program is mapped into memory in thousands of pieces, of which a process may
have so many only: a process for each group of networks that share their programs. It also keeps
tracing from waiting for Python's lock, and a process that dies takes a cell with it, not the study.
"""

import contextlib
import functools
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax

from scripts import runtime
from scripts.study.cell import compute, Values
from scripts.study.cells import Cell
from scripts.study.config import StudyConfig
from scripts.study.infinite import Limits
from scripts.study.plan import MOST_PROCESSES
from scripts.study.worker import FAILED, FINISHED
from zoo import Dataset

Started = Callable[[Cell, str], None]
"""Hears which part of which cell starts."""
Outcome = Values | BaseException

_LOGGER = logging.getLogger("scripts.study")
_ROOT = Path(__file__).resolve().parents[2]


class WorkerError(RuntimeError):
    """A cell failed in another process, or the process died."""


class _Stopped(Exception):
    """The worker was asked to stop."""


class Worker(Protocol):
    """What computes groups of cells, one at a time."""

    def compute(self, cells: list[Cell], started: Started) -> Iterator[tuple[Cell, Outcome]]:
        """Each of the cells with what was found, or with the error; those of a worker that is
        stopped are missing from there on.
        """
        ...

    def stop(self) -> None:
        """Asks a worker in another thread to end."""
        ...


class DeviceWorker:
    """Computes on a device, in the thread that asks."""

    def __init__(self, config: StudyConfig, data: Dataset, shared: Path, device: Any):
        self._config, self._data, self._device = config, data, device
        self._limits = Limits(config, data, shared)
        self._stop = threading.Event()

    def __str__(self) -> str:
        return str(self._device)

    def stop(self) -> None:
        """At the next part of a cell."""
        self._stop.set()

    def compute(self, cells: list[Cell], started: Started) -> Iterator[tuple[Cell, Outcome]]:
        """See `Worker`."""
        for cell in cells:
            try:
                with jax.default_device(self._device):
                    heard = functools.partial(self._started, started, cell)
                    values = compute(self._config, self._data, cell, self._limits, heard)
            except _Stopped:
                return
            except BaseException as error:
                _LOGGER.error("%s: failed\n%s", cell, traceback.format_exc())
                yield cell, error
                if not isinstance(error, Exception):
                    return
            else:
                yield cell, values

    def _started(self, started: Started, cell: Cell, part: str) -> None:
        if self._stop.is_set():
            raise _Stopped
        runtime.make_room_for_programs()
        started(cell, part)


class ProcessWorker:
    """Computes each group of cells in a process of its own, on one CPU device."""

    def __init__(self, config: StudyConfig, data: Dataset, shared: Path, log: Path, number: int):
        self._config, self._data, self._shared, self._log = config, data, shared, log
        self._number = number
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return f"process {self._number}"

    def stop(self) -> None:
        """At once."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def compute(self, cells: list[Cell], started: Started) -> Iterator[tuple[Cell, Outcome]]:
        """See `Worker`."""
        left = list(cells)
        while left and not self._stopped:
            with self._process_for(left) as process:
                assert process.stdout is not None
                while left:
                    try:
                        kind, held = pickle.load(process.stdout)
                    except (EOFError, pickle.UnpicklingError):
                        break
                    if kind == FINISHED:
                        yield left.pop(0), held
                    elif kind == FAILED:
                        message, trace = held
                        _LOGGER.error("%s: failed\n%s", left[0], trace)
                        yield left.pop(0), WorkerError(message)
                    else:
                        started(left[0], held)
            if left and not self._stopped:
                error = WorkerError(f"its process {_ending(process.returncode)}")
                _LOGGER.error("%s: %s", left[0], error)
                yield left.pop(0), error

    @contextlib.contextmanager
    def _process_for(self, cells: list[Cell]) -> Iterator[subprocess.Popen[bytes]]:
        """A process that computes these cells; killed at the end, if it is there still."""
        # Where this process imports from, a user's own functions too.
        code = f"import sys; sys.path[:] = {[*sys.path, str(_ROOT)]!r}; "
        code += "from scripts.study.worker import main; main()"
        with open(self._log, "ab") as log, self._lock:
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(self._config),
                start_new_session=True,  # Ctrl-C is for this process: it stops the others
            )
            self._process = process
            if self._stopped:
                process.kill()
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                # The precision has to be set before the data are read.
                pickle.dump(self._config, process.stdin)
                pickle.dump((self._data, cells, self._shared), process.stdin)
                process.stdin.flush()
            yield process
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    assert pipe is not None
                    pipe.close()


def workers(config: StudyConfig, data: Dataset, shared: Path, log: Path, most: int) -> list[Worker]:
    """What a study is spread over: at most `most` of them.

    **Arguments:**

    - `shared`: a folder in which the workers keep what they share.
    - `log`: the file that processes write their warnings into.
    """
    count = min(most, worker_count(config))
    devices = jax.local_devices()
    if devices[0].platform == "cpu" and (count > 1 or config.fast_compilation):
        return [ProcessWorker(config, data, shared, log, i + 1) for i in range(count)]
    return [DeviceWorker(config, data, shared, device) for device in devices[:count]]


def worker_count(config: StudyConfig) -> int:
    """How many there are: accelerators, or cores of a CPU, of which 8 at most are taken unasked.

    **Raises:** `ValueError` where more are asked for than there are.
    """
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        there, taken, what = len(devices), len(devices), "devices, which JAX sees here"
    else:
        there = max(os.cpu_count() or 1, len(devices))
        taken, what = min(there, MOST_PROCESSES), "the cores of this CPU"
    if config.devices is not None and config.devices > there:
        raise ValueError(f"`devices` is {config.devices}, expected at most {there}, {what}.")
    return config.devices or taken


def _environment(config: StudyConfig) -> dict[str, str]:
    flags = os.environ.get("XLA_FLAGS", "")
    if config.fast_compilation:
        flags = runtime.with_fast_compilation(flags)
    in_utf8 = {"PYTHONIOENCODING": "utf-8:backslashreplace"}  # as the rest of the log
    return {**os.environ, **in_utf8, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
