"""Runs a study: cell by cell, on all devices, with what is finished always on disk."""

import contextlib
import datetime
import json
import logging
import queue
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from rich.console import Console

from scripts import runtime
from scripts.run_folder import only_run_in, write_config, write_text
from scripts.study import plan, report
from scripts.study.analysis import completed
from scripts.study.cell import compute
from scripts.study.config import StudyConfig
from scripts.study.infinite import Limits
from scripts.study.networks import Cell, groups
from scripts.study.progress import Meter
from scripts.study.report.summary import as_text, summary
from scripts.study.storage import check_same, LOG, Store
from zoo import checks, Dataset, load

_LOGGER = logging.getLogger("scripts.study")


class StudyError(RuntimeError):
    """Some cells of a study failed; the others are finished and kept."""


class _Stopped(Exception):
    """A worker was asked to stop."""


@dataclass(frozen=True)
class Study:
    """A study that can start: its config is checked, its data are loaded, its folder is there."""

    config: StudyConfig
    data: Dataset
    folder: Path


def run(config: StudyConfig | None = None, *, console: Console | None = None) -> xr.Dataset:
    """Runs the study that `config` describes and returns its results.

    They are also on disk, in `config.folder`: `results.nc`, `config.json`, `report.html`,
    `figures/*.pdf`, `tables/*`, `summary.txt` and `study.log`. A study whose folder is there
    already goes on with the cells that are missing.

    **Arguments:**

    - `config`: the study (default: `StudyConfig()`).
    - `console`: where progress and the answer go (default: the terminal).

    **Raises:** as `prepare`, before any work; `StudyError` where cells failed, and `OSError` where
    results cannot be written: what was finished before is kept. `KeyboardInterrupt` passes through
    once the finished cells have been summed up.
    """
    config = StudyConfig() if config is None else config
    with runtime.precision(config.precision):
        return execute(prepare(config), console=console)


def prepare(config: StudyConfig) -> Study:
    """Checks all that can go wrong before work starts, and makes the folder of the run.

    **Raises:** `ValueError` for a config that makes no sense, a study larger than its budget, data
    that cannot be had or hold NaN, or a folder that holds a study of other choices; `ImportError`
    where the package that ships the data is missing; `FileExistsError` where the folder holds
    something else, or another run is in it; `OSError` where it cannot be written.
    """
    config.check()
    check_same(config.folder, config)
    data = load(
        config.dataset,
        root=config.root,
        classes=config.classes,
        n_train=config.n_train,
        n_test=config.n_test,
        seed=config.data_seed,
    )
    for name in ("x_train", "y_train", "x_test", "y_test"):
        checks.finite(name, getattr(data, name))
    _check_images(config, data)
    found = plan.estimates(config, _image(data))
    plan.check_budget(config, found, plan.device_count(config))
    _devices(config)
    config.folder.mkdir(parents=True, exist_ok=True)
    with only_run_in(config.folder):
        pass
    return Study(config, data, config.folder)


def _image(data: Dataset) -> tuple[int, int, int]:
    shape = data.x_train.shape[1:]
    return shape if len(shape) == 3 else (1, 1, int(np.prod(shape)))


def _check_images(config: StudyConfig, data: Dataset) -> None:
    shape = data.x_train.shape[1:]
    if len(shape) != 3 and set(config.architectures) != {"MLP"}:
        raise ValueError(
            f"`architectures` is {config.architectures!r}, but the examples of {config.dataset} "
            f"have the shape {shape}, expected 'MLP' alone: the others take images."
        )


def execute(study: Study, *, console: Console | None = None) -> xr.Dataset:
    """Computes every cell that is missing; see `run`."""
    console = Console() if console is None else console
    with only_run_in(study.folder), _logging(study.folder):
        return _execute(study, console)


def _execute(study: Study, console: Console) -> xr.Dataset:
    config, folder = study.config, study.folder
    if not (folder / "config.json").exists():
        write_config(folder, config)
    store = Store(folder, config, study.data)
    waiting = [[c for c in group if not store.is_finished(c)] for group in groups(config)]
    waiting = [group for group in waiting if group]
    done, total = completed(store.dataset)
    if done:
        console.print(
            f"{done} of {total} cells of {folder} are finished already"
            + ("; going on." if waiting else ".")
        )
    failures: list[tuple[Cell, Exception]] = []
    try:
        if waiting:
            failures = _compute(study, store, waiting, console)
        store.close()
    except KeyboardInterrupt:
        store.close()
        done, total = completed(store.dataset)
        console.print(
            f"Interrupted after {done} of {total} cells; these are kept, and the same command goes "
            "on with the others."
        )
        raise
    finally:
        _report(store.dataset, folder, console)
    if failures:
        cell, error = failures[0]
        raise StudyError(
            f"{len(failures)} of {total} cells failed (the first: {cell}: {error}). The others are "
            f"kept; {folder / LOG} has the details, and the same command tries the failed ones "
            "again."
        ) from error
    return store.dataset


def _compute(
    study: Study, store: Store, waiting: list[list[Cell]], console: Console
) -> list[tuple[Cell, Exception]]:
    """Computes these cells, a group at a time on each device; returns those that failed."""
    config = study.config
    devices = _devices(config)[: len(waiting)]
    limits = Limits(config, study.data)
    todo: queue.SimpleQueue[list[Cell]] = queue.SimpleQueue()
    seconds = _seconds(config, study.data, waiting)
    # Large ones first, so that no device is left with one at the end.
    for group in sorted(waiting, key=lambda cells: -sum(seconds[cell] for cell in cells)):
        todo.put(group)
    found: queue.SimpleQueue[tuple[Cell, Any] | None] = queue.SimpleQueue()
    stop = threading.Event()
    cells = sum(len(group) for group in waiting)
    _LOGGER.info("%d cells on %d devices: %s", cells, len(devices), devices)

    with Meter(config, seconds, console) as meter:

        def one(cell: Cell, device: Any) -> Any:
            starts: list[tuple[str, float]] = []

            def started(part: str) -> None:
                if stop.is_set():
                    raise _Stopped
                starts.append((part, time.monotonic()))
                meter.started(device, cell, part)

            values = compute(config, study.data, cell, limits, started)
            _LOGGER.info("%s: finished in %s", cell, _durations(starts))
            return values

        def work(device: Any) -> None:
            try:
                with jax.default_device(device), contextlib.suppress(queue.Empty):
                    while not stop.is_set():
                        for cell in todo.get_nowait():
                            try:
                                found.put((cell, one(cell, device)))
                            except _Stopped:
                                return
                            except BaseException as error:
                                _LOGGER.error("%s: failed\n%s", cell, traceback.format_exc())
                                found.put((cell, error))
                                if not isinstance(error, Exception):
                                    return
            finally:
                found.put(None)

        workers = [threading.Thread(target=work, args=(device,)) for device in devices]
        for worker in workers:
            worker.start()
        failures = []
        session = _Session(store.dataset)
        try:
            running = len(workers)
            while running:
                item = found.get()
                if item is None:
                    running -= 1
                    continue
                cell, values = item
                if isinstance(values, Exception):
                    failures.append((cell, values))
                elif isinstance(values, BaseException):
                    raise values
                else:
                    store.add(cell, values, session.provenance())
                meter.finished(cell)
        except BaseException:
            stop.set()
            for worker in workers:
                worker.join()
            raise
    return failures


def _durations(starts: list[tuple[str, float]]) -> str:
    """How long each part took, after the whole."""
    ends = [*(start for _, start in starts[1:]), time.monotonic()]
    parts = [f"{name} {end - start:.1f}" for (name, start), end in zip(starts, ends, strict=True)]
    return f"{ends[-1] - starts[0][1]:.1f} s ({', '.join(parts)})"


class _Session:
    """This process's share of a study's provenance."""

    def __init__(self, dataset: xr.Dataset):
        self._before = json.loads(dataset.attrs["provenance"])
        self._began = time.monotonic()
        self._own = {"started": _now(), **runtime.provenance(), "cells": 0}

    def provenance(self) -> list[dict[str, Any]]:
        """That of the sessions before, and of this one with a cell more."""
        self._own["cells"] += 1
        took = round(time.monotonic() - self._began, 1)
        self._own |= {"finished": _now(), "wall_time_s": took}
        return [*self._before, self._own]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _seconds(config: StudyConfig, data: Dataset, waiting: list[list[Cell]]) -> dict[Cell, float]:
    """The estimated time of each cell; the first of a group compiles."""
    found = {(e.label, e.activation, e.width): e for e in plan.estimates(config, _image(data))}
    seconds = {}
    for group in waiting:
        for i, cell in enumerate(group):
            one = found[cell.family.label, cell.family.activation, cell.width]
            seconds[cell] = one.cell_s + (one.compile_s if i == 0 else 0)
    return seconds


def _devices(config: StudyConfig) -> list[Any]:
    devices = jax.local_devices()
    if config.devices is not None and config.devices > len(devices):
        raise ValueError(
            f"`devices` is {config.devices}, expected at most {len(devices)}, which JAX sees here."
        )
    return devices[: config.devices]


@contextlib.contextmanager
def _logging(folder: Path) -> Iterator[None]:
    """Writes what happens, warnings too, into the log file of the run."""
    handler = logging.FileHandler(folder / LOG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [_LOGGER, logging.getLogger("py.warnings")]
    level = _LOGGER.level
    _LOGGER.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        _LOGGER.setLevel(level)
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def _report(dataset: xr.Dataset, folder: Path, console: Console) -> None:
    done, _ = completed(dataset)
    if done == 0:
        return
    answer = summary(dataset)
    console.print(answer)
    write_text(folder / "summary.txt", as_text(answer))
    files = report.write(folder, {folder.name: dataset})
    console.print("Results and report:")
    for file in (folder / "results.nc", *(file for file in files if file.suffix == ".html")):
        console.print(f"  {file}", soft_wrap=True, highlight=False)
