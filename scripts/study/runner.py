"""Runs a study: cell by cell, on all devices, with what is finished always on disk."""

import contextlib
import datetime
import json
import logging
import queue
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr
from rich.console import Console

from scripts import runtime
from scripts.console import ready
from scripts.run_folder import only_run_in, write_text
from scripts.study import examples, plan, report
from scripts.study.analysis import completed, COMPUTED
from scripts.study.cells import Cell, groups
from scripts.study.config import StudyConfig
from scripts.study.examples import Examples
from scripts.study.networks import check_own
from scripts.study.progress import Meter
from scripts.study.report.summary import as_text, summary
from scripts.study.storage import ASIDE, begin, check_same, LOG, Store
from scripts.study.workers import Outcome, Worker, worker_count, workers
from zoo import Dataset
from zoo.common import checks

_LOGGER = logging.getLogger("scripts.study")


_Found = tuple[Cell, Outcome] | Exception | None
"""What a thread passes on: a cell with its values or its error, its worker's failure, its end."""


class StudyError(RuntimeError):
    """Some cells of a study failed; the others are finished and kept."""


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

    **Raises:** `ValueError` for a config that makes no sense, a study larger than its budget (of
    what is still to compute), data that cannot be had or hold NaN, or a folder that holds a study
    of other choices or data, or results that cannot be read; `ImportError` where the package that
    ships the data is missing; `FileExistsError` where the folder holds something else, or another
    run is in it; `OSError` where it cannot be written.
    """
    config.check()
    config.sources()
    check_same(config.folder, config)
    data = examples.read(config)
    for name in ("x_train", "y_train", "x_test", "y_test"):
        checks.finite(name, getattr(data, name))
    found = Examples.of(data)
    found.check(config)
    check_own(config, found)
    check_same(config.folder, config, data)
    waiting = _waiting(config, Store(config.folder, config, data))
    planned = plan.of_cells(plan.estimates(config, found), waiting)
    plan.check_budget(config, planned, worker_count(config), found.outputs)
    config.folder.mkdir(parents=True, exist_ok=True)
    with only_run_in(config.folder):
        pass
    return Study(config, data, config.folder)


def execute(study: Study, *, console: Console | None = None) -> xr.Dataset:
    """Computes every cell that is missing; see `run`."""
    console = ready(console)
    with only_run_in(study.folder), _logging(study.folder):
        return _execute(study, console)


def _execute(study: Study, console: Console) -> xr.Dataset:
    config, folder = study.config, study.folder
    check_same(folder, config, study.data)  # now that no other run can come between
    begin(folder, config, study.data)
    store = Store(folder, config, study.data)
    for file in store.set_damaged_aside():
        console.print(
            f"{file.name.removesuffix(ASIDE)} of {file.parent} cannot be read as a finished cell "
            f"of this study: it is kept there as {file.name}, and the cell is computed again.",
            highlight=False,
            markup=False,
        )
    waiting = _waiting(config, store)
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
        _report_beside_an_error(store.dataset, folder, console)
        raise
    except Exception:
        _report_beside_an_error(store.dataset, folder, console)
        raise
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
    """Computes these cells, a group at a time by each worker; returns those that failed."""
    config = study.config
    todo: queue.SimpleQueue[list[Cell]] = queue.SimpleQueue()
    seconds = _seconds(config, study.data, waiting)
    # Large ones first, so that no worker is left with one at the end.
    for group in sorted(waiting, key=lambda cells: -sum(seconds[cell] for cell in cells)):
        todo.put(group)
    found: queue.SimpleQueue[_Found] = queue.SimpleQueue()
    with (
        tempfile.TemporaryDirectory() as shared,
        Meter(config, seconds, console) as meter,
    ):
        places = (Path(shared), study.folder / LOG)
        crew = workers(config, study.data, *places, most=len(waiting))
        cells = sum(len(group) for group in waiting)
        _LOGGER.info("%d cells: %s", cells, ", ".join(map(str, crew)))

        def work(worker: Worker) -> None:
            starts: list[tuple[str, float]] = []

            def started(cell: Cell, part: str) -> None:
                starts.append((part, time.monotonic()))
                meter.started(worker, cell, part)

            try:
                with contextlib.suppress(queue.Empty):
                    while True:
                        for cell, outcome in worker.compute(todo.get_nowait(), started):
                            if isinstance(outcome, dict):
                                _LOGGER.info("%s: finished in %s", cell, _durations(starts))
                            starts.clear()
                            found.put((cell, outcome))
            except Exception as error:  # of the worker itself
                found.put(error)
            finally:
                found.put(None)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in crew]
        for thread in threads:
            thread.start()
        failures = []
        session = _Session(store.dataset)

        def keep(cell: Cell, outcome: Outcome) -> None:
            if isinstance(outcome, Exception):
                failures.append((cell, outcome))
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                store.add(cell, outcome, session.provenance(cell))
            meter.finished(cell)

        try:
            running = len(crew)
            while running:
                item = found.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    running -= 1
                else:
                    keep(*item)
        except BaseException as error:
            for worker in crew:
                worker.stop()
            for thread in threads:
                thread.join()
            if not isinstance(error, OSError):  # else there is no room for what they finished
                _keep_finished(found, keep)
            raise
    return failures


def _keep_finished(
    found: "queue.SimpleQueue[_Found]", keep: Callable[[Cell, Outcome], None]
) -> None:
    """Keeps the cells that workers finished while they were asked to stop."""
    with contextlib.suppress(queue.Empty):
        while True:
            item = found.get_nowait()
            if isinstance(item, tuple) and isinstance(item[1], dict):
                keep(*item)


def _waiting(config: StudyConfig, store: Store) -> list[list[Cell]]:
    """The cells that are not finished, those together that share their compiled programs."""
    unfinished = ([c for c in group if not store.is_finished(c)] for group in groups(config))
    return [group for group in unfinished if group]


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
        self._computed: list[str] = []
        self._own = {"started": _now(), **runtime.provenance(), "cells": 0}
        self._own[COMPUTED] = self._computed

    def provenance(self, cell: Cell) -> list[dict[str, Any]]:
        """That of the sessions before, and of this one with a cell more."""
        self._computed.append(str(cell))
        self._own["cells"] = len(self._computed)
        took = round(time.monotonic() - self._began, 1)
        self._own |= {"finished": _now(), "wall_time_s": took}
        return [*self._before, self._own]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _seconds(config: StudyConfig, data: Dataset, waiting: list[list[Cell]]) -> dict[Cell, float]:
    """The estimated time of each cell; the first of a group compiles."""
    found = {(e.label, e.activation, e.width): e for e in plan.estimates(config, Examples.of(data))}
    seconds = {}
    for group in waiting:
        for i, cell in enumerate(group):
            one = found[cell.family.label, cell.family.activation, cell.width]
            seconds[cell] = one.cell_s + (one.compile_s if i == 0 else 0)
    return seconds


@contextlib.contextmanager
def _logging(folder: Path) -> Iterator[None]:
    """Writes what happens, warnings too, into the log file of the run."""
    handler = logging.FileHandler(folder / LOG, encoding="utf-8", errors="backslashreplace")
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
    """Writes the report and prints the answer, where there is anything to say."""
    done, _ = completed(dataset)
    if done == 0:
        return
    answer = summary(dataset)
    write_text(folder / "summary.txt", as_text(answer))
    files = report.write(folder, {folder.name: dataset})
    console.print(answer)
    console.print("Results and report:")
    for file in (folder / "results.nc", *(file for file in files if file.suffix == ".html")):
        console.print(f"  {file}", soft_wrap=True, highlight=False)


def _report_beside_an_error(dataset: xr.Dataset, folder: Path, console: Console) -> None:
    """The same while an error is on its way, which this must not hide."""
    try:
        _report(dataset, folder, console)
    except Exception as error:
        _LOGGER.error("The report failed\n%s", traceback.format_exc())
        console.print(f"The report failed too ({type(error).__name__}: {error}); see {LOG}.")
