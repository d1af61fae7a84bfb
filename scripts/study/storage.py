"""A study on disk: a file of results that grows, and a journal of cells not in it yet.

Each finished cell is on disk at once, in a small file of the journal. The whole of `results.nc` is
written, and the journal emptied, as often as that takes little of the time; at the end always. A
run that is killed at any moment goes on from both.
"""

import contextlib
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from scripts.run_folder import is_draft, write_config, write_whole
from scripts.study import results
from scripts.study.config import StudyConfig
from scripts.study.networks import Cell
from zoo import Dataset

CONFIG = "config.json"
JOURNAL = "unfinished"
LOG = "study.log"
_SHARE = 0.05
"""Of the time, that writing all results may take."""


class OtherStudyError(ValueError):
    """The folder holds a study of other choices or data."""


def check_same(folder: Path, config: StudyConfig, data: Dataset | None = None) -> None:
    """**Raises:** `OtherStudyError` where the folder holds another study, with the differences in
    choices, or, where `data` is given, of other data; `FileExistsError` where it holds something
    that is no study.
    """
    if not folder.exists():
        return
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
        held = json.loads(file.read_text())
        there, digest = held["config"], held["data"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} cannot be read ({type(error).__name__}: {error}), expected the choices of a "
            "study. Nothing was changed: choose another `name`, or move the folder away."
        ) from error
    differences = config.differences(there)
    if differences:
        listed = "\n".join(f"  {difference}" for difference in differences)
        raise OtherStudyError(
            f"The results folder {folder} holds a study of other choices:\n{listed}\n"
            "Nothing in it was changed: choose another `name`, or the choices that are there."
        )
    if data is not None and digest_of(data) != digest:
        raise OtherStudyError(
            f"The results folder {folder} holds a study of other data: the examples of "
            f"{config.dataset} are not those that it started with, expected the same. Nothing in "
            "it was changed: choose another `name`, or put the data back."
        )


def digest_of(data: Dataset) -> str:
    """What tells one set of examples from another."""
    digest = hashlib.sha256(repr((data.name, data.classes)).encode())
    for array in (data.x_train, data.y_train, data.x_test, data.y_test):
        values = np.asarray(array)
        digest.update(repr((values.shape, values.dtype.str)).encode() + values.tobytes())
    return digest.hexdigest()


def begin(folder: Path, config: StudyConfig, data: Dataset) -> None:
    """Writes the choices of a study into its folder, where they are not there already, and clears
    away what a kill left half written.
    """
    if not (folder / CONFIG).exists():
        write_config(folder, config, data=digest_of(data))
    for file in folder.rglob(".*"):
        if is_draft(file):
            with contextlib.suppress(FileNotFoundError):
                file.unlink()


def read(folder: Path) -> xr.Dataset:
    """The results of a run, finished or not, with every finished cell.

    **Raises:** `FileNotFoundError` where there are none; `ValueError` for a file that is not whole.
    """
    # The journal first: what leaves it while this reads is in the results by then.
    entries = _journal_of(Path(folder))
    dataset = results.read(Path(folder))
    _enter(dataset, entries)
    return dataset


class Store:
    """The results of a study, in memory and on disk."""

    def __init__(self, folder: Path, config: StudyConfig, data: Dataset):
        """Opens a study's folder, new or not; goes on with what is there.

        **Raises:** `ValueError` for results that cannot be read.
        """
        self.folder = folder
        self._journal = folder / JOURNAL
        self._written_at, self._write_took = -np.inf, 0.0
        self.dataset = results.empty(config, data)
        if (folder / results.FILE).exists():
            self.dataset = results.read(folder)
        _enter(self.dataset, _journal_of(folder))

    def is_finished(self, cell: Cell) -> bool:
        """Whether this cell is there."""
        return bool(self.dataset["finished"].loc[cell.at])

    def add(self, cell: Cell, values: dict[str, Any], provenance: list[dict[str, Any]]) -> None:
        """Keeps a finished cell.

        **Raises:** `OSError` where it cannot be written; what was there before is untouched.
        """
        self._journal.mkdir(exist_ok=True)
        name = "_".join(str(part) for part in cell.at.values())
        arrays: dict[str, Any] = {f"value:{k}": np.asarray(v) for k, v in values.items()}
        arrays |= {f"at:{key}": np.asarray(value) for key, value in cell.at.items()}
        arrays["outcome"] = arrays.pop("value:outcome").astype(str)
        arrays["provenance"] = json.dumps(provenance)

        def save(file: Path) -> None:
            with open(file, "wb") as stream:
                np.savez(stream, **arrays)

        write_whole(self._journal / f"{name}.npz", save)
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
        for file in self._journal.glob("*.npz"):
            file.unlink()

    def close(self) -> None:
        """Writes what is not in `results.nc` yet."""
        self.write()
        # With what a kill may have left half written in it.
        shutil.rmtree(self._journal, ignore_errors=True)


class _Entry(NamedTuple):
    """A finished cell of the journal."""

    at: dict[str, Any]
    values: dict[str, Any]
    provenance: str


def _journal_of(folder: Path) -> list[_Entry]:
    entries = []
    for file in sorted((folder / JOURNAL).glob("*.npz")):
        with contextlib.suppress(FileNotFoundError), np.load(file) as arrays:
            at = {key[3:]: arrays[key].item() for key in arrays if key.startswith("at:")}
            values = {key[6:]: arrays[key] for key in arrays if key.startswith("value:")}
            values["outcome"] = arrays["outcome"].astype(object)
            entries.append(_Entry(at, values, arrays["provenance"].item()))
    return entries


def _enter(dataset: xr.Dataset, entries: list[_Entry]) -> None:
    """Enters these cells, in place, with the longest provenance."""
    for entry in entries:
        if _time_in(entry.provenance) > _time_in(dataset.attrs["provenance"]):
            dataset.attrs["provenance"] = entry.provenance
        results.enter(dataset, entry.at, entry.values)


def _time_in(provenance: str) -> float:
    return sum(session["wall_time_s"] for session in json.loads(provenance))
