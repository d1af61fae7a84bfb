"""A study on disk: a file of results that grows, and a journal of cells not in it yet.

Each finished cell is on disk at once, in a small file of the journal. The whole of `results.nc` is
written, and the journal emptied, as often as that takes little of the time; at the end always. A
run that is killed at any moment goes on from both.
"""

import contextlib
import json
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from scripts.run_folder import is_draft, refuse_links, write_config, write_whole
from scripts.study import results
from scripts.study.cells import Cell
from scripts.study.config import StudyConfig
from zoo import Dataset

CONFIG = "config.json"
JOURNAL = "unfinished"
LOG = "study.log"
FIGURES, TABLES = "figures", "tables"
"""Folders of the report."""
ASIDE = ".damaged"
"""Ends the names of entries of the journal that were set aside."""
_SHARE = 0.05
"""Of the time, that writing all results may take."""


class OtherStudyError(ValueError):
    """The folder holds a study of other choices or data."""


def check_same(folder: Path, config: StudyConfig, data: Dataset | None = None) -> None:
    """**Raises:** `OtherStudyError` where the folder holds another study, with the differences in
    choices, or, where `data` is given, of other data; `FileExistsError` where it holds something
    that is no study, or links in place of what a study writes.
    """
    if not folder.exists():
        return
    refuse_links(folder, (".lock", LOG, JOURNAL, FIGURES, TABLES))
    file = folder / CONFIG
    if not file.is_file():
        held = ["a file of that name"]
        if folder.is_dir():
            others = (p for p in folder.iterdir() if p.name not in (".lock", LOG))
            held = sorted(path.name for path in others if not is_draft(path))
        if held:
            raise FileExistsError(
                f"The results folder {folder} exists and holds no study (it holds "
                f"{', '.join(held[:5])}), expected a new folder or that of a study. Nothing in it "
                "was changed: choose another `name`, or move it away."
            )
        return
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        there, digest = held["config"], held["data"]
        if not isinstance(there, dict):
            raise TypeError("its `config` is no mapping of fields to values")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file} cannot be read ({type(error).__name__}: {error}), expected the choices of a "
            "study. Nothing was changed: choose another `name`, or move the folder away."
        ) from error
    _refuse_other(f"The results folder {folder}", config, there, data, digest)


def _refuse_other(
    where: str,
    config: StudyConfig,
    choices: dict[str, Any],
    data: Dataset | None,
    digest: object,
) -> None:
    """**Raises:** `OtherStudyError` where what is there has other choices or, where `data` is
    given, data of another digest.
    """
    differences = config.differences(choices)
    if differences:
        listed = "\n".join(f"  {difference}" for difference in differences)
        raise OtherStudyError(
            f"{where} holds a study of other choices:\n{listed}\n"
            "Nothing in it was changed: choose another `name`, the choices that are there, or move "
            "it away."
        )
    if data is not None and results.digest_of(data) != digest:
        raise OtherStudyError(
            f"{where} holds a study of other data: the examples of {config.dataset} are not those "
            "that it started with, expected the same. Nothing in it was changed: choose another "
            "`name`, put the data back, or move it away."
        )


def begin(folder: Path, config: StudyConfig, data: Dataset) -> None:
    """Writes the choices of a study into its folder, where they are not there already, and clears
    away what a kill left half written.
    """
    if not (folder / CONFIG).exists():
        write_config(folder, config.choices(), data=results.digest_of(data))
    for file in folder.rglob(".*"):
        if is_draft(file):
            with contextlib.suppress(FileNotFoundError):
                file.unlink()


def read(folder: Path) -> xr.Dataset:
    """The results of a run, finished or not, with every finished cell.

    A file of the journal that cannot be read is left out, with a `UserWarning` that names it.

    **Raises:** `FileNotFoundError` where there are none; `ValueError` for a file that is not whole.
    """
    # The journal first: what leaves it while this reads is in the results by then.
    entries = _journal_of(Path(folder))
    dataset = results.read(Path(folder))
    for file in _enter(dataset, entries):
        warnings.warn(
            f"{file} cannot be read as a finished cell of this study: it is left out, and the "
            "command of the study computes the cell again.",
            stacklevel=1,  # the same place each time, so that it is said once
        )
    return dataset


class Store:
    """The results of a study, in memory and on disk."""

    def __init__(self, folder: Path, config: StudyConfig, data: Dataset):
        """Opens a study's folder, new or not; goes on with what is there.

        **Raises:** `ValueError` for results that cannot be read; `OtherStudyError` for those of
        another study.
        """
        self.folder = folder
        self._journal = folder / JOURNAL
        self._written_at, self._write_took = -np.inf, 0.0
        self.dataset = results.empty(config, data)
        file = folder / results.FILE
        if file.exists():
            found = results.read(folder)
            choices, digest = json.loads(found.attrs["config"]), found.attrs.get("data")
            _refuse_other(str(file), config, choices, data, digest)
            results.check_axes(folder, found, self.dataset)
            self.dataset = found
        entries = _journal_of(folder)
        self._damaged = _enter(self.dataset, entries)
        self._entered = {entry.file for entry in entries} - set(self._damaged)

    def set_damaged_aside(self) -> list[Path]:
        """Renames the files of the journal that are no finished cells of this study, and returns
        what they are called now.
        """
        aside = [file.replace(f"{file}{ASIDE}") for file in self._damaged]
        self._damaged = []
        return aside

    def is_finished(self, cell: Cell) -> bool:
        """Whether this cell is there."""
        return bool(self.dataset["finished"].loc[cell.at])

    def add(self, cell: Cell, values: dict[str, Any], provenance: list[dict[str, Any]]) -> None:
        """Keeps a finished cell.

        **Raises:** `OSError` where it cannot be written; what was there before is untouched.
        """
        self._journal.mkdir(exist_ok=True)
        name = "_".join(str(part) for part in cell.at.values())
        of_fixed_width = values | results.in_words(values, str)
        arrays: dict[str, Any] = {f"value:{k}": np.asarray(v) for k, v in of_fixed_width.items()}
        arrays |= {f"at:{key}": np.asarray(value) for key, value in cell.at.items()}
        arrays["provenance"] = json.dumps(provenance)
        arrays["study"] = results.study_of(self.dataset)

        def save(file: Path) -> None:
            with open(file, "wb") as stream:
                np.savez(stream, **arrays)

        file = self._journal / f"{name}.npz"
        write_whole(file, save)
        self._entered.add(file)
        self.dataset.attrs["provenance"] = json.dumps(provenance)
        results.enter(self.dataset, cell.at, values)
        if time.monotonic() - self._written_at > self._write_took / _SHARE:
            self.write()

    def write(self) -> None:
        """Writes `results.nc`, and empties the journal."""
        started = time.monotonic()
        results.write(self.folder, self.dataset)
        self._written_at = time.monotonic()
        self._write_took = self._written_at - started
        for file in self._entered:
            file.unlink(missing_ok=True)
        self._entered.clear()

    def close(self) -> None:
        """Writes what is not in `results.nc` yet, and removes the journal if nothing is left."""
        self.write()
        with contextlib.suppress(OSError):
            self._journal.rmdir()


class _Cell(NamedTuple):
    """A finished cell of the journal, of the study with this digest."""

    study: str
    at: dict[str, Any]
    values: dict[str, Any]
    provenance: str


class _Entry(NamedTuple):
    """A file of the journal; without a cell where it is damaged."""

    file: Path
    cell: _Cell | None


def _journal_of(folder: Path) -> list[_Entry]:
    entries = []
    for file in sorted((folder / JOURNAL).glob("*.npz")):
        with contextlib.suppress(FileNotFoundError):
            entries.append(_Entry(file, _cell_in(file)))
    return entries


def _cell_in(file: Path) -> _Cell | None:
    try:
        with open(file, "rb") as stream, np.load(stream) as arrays:
            at = {key[3:]: arrays[key].item() for key in arrays if key.startswith("at:")}
            values = {key[6:]: arrays[key] for key in arrays if key.startswith("value:")}
            values |= results.in_words(values, object)
            return _Cell(arrays["study"].item(), at, values, arrays["provenance"].item())
    except FileNotFoundError:
        raise
    except Exception:  # whatever NumPy and zipfile make of a damaged file
        return None


def _enter(dataset: xr.Dataset, entries: list[_Entry]) -> list[Path]:
    """Enters these cells, in place, with the longest provenance; returns the files that are no
    cells of this study.
    """
    study, damaged = results.study_of(dataset), []
    took = _time_in(dataset.attrs["provenance"])
    for file, cell in entries:
        try:
            if cell is None or cell.study != study:
                raise ValueError(f"{file} is damaged, or of another study")
            results.check_cell(dataset, cell.at, cell.values)
            longer = _time_in(cell.provenance)
        except (ValueError, TypeError):
            damaged.append(file)
            continue
        if longer > took:
            dataset.attrs["provenance"], took = cell.provenance, longer
        results.enter(dataset, cell.at, cell.values)
    return damaged


def _time_in(provenance: str) -> float:
    return sum(session["wall_time_s"] for session in results.sessions_in(provenance))
