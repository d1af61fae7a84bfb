"""A study on disk: a file of results that grows, and a journal of cells not in it yet.

Each finished cell is on disk at once, in a small file of the journal. The whole of `results.nc` is
written, and the journal emptied, as often as that takes little of the time; at the end always. A
run that is killed at any moment goes on from both.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from scripts.run_folder import write_whole
from scripts.study import results
from scripts.study.config import StudyConfig
from scripts.study.networks import Cell
from zoo import Dataset

CONFIG = "config.json"
JOURNAL = "unfinished"
LOG = "study.log"
_SHARE = 0.05
"""Of the time, that writing all results may take."""


def check_same(folder: Path, config: StudyConfig) -> None:
    """**Raises:** `ValueError` where the folder holds another study, with the differences;
    `FileExistsError` where it holds something that is no study.
    """
    if not folder.exists():
        return
    file = folder / CONFIG
    if not file.is_file():
        is_folder = folder.is_dir()
        names = (p.name for p in folder.iterdir()) if is_folder else ["a file of that name"]
        held = sorted(name for name in names if name not in (".lock", LOG))
        if held:
            raise FileExistsError(
                f"The results folder {folder} exists and holds no study (it holds "
                f"{', '.join(held[:5])}), expected a new folder or that of a study. Nothing in it "
                "was changed: choose another `name`, or move it away."
            )
        return
    try:
        there = json.loads(file.read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} cannot be read ({error}), expected the choices of a study. Nothing was "
            "changed: choose another `name`, or move the folder away."
        ) from error
    differences = config.differences(there)
    if differences:
        listed = "\n".join(f"  {difference}" for difference in differences)
        raise ValueError(
            f"The results folder {folder} holds a study of other choices:\n{listed}\n"
            "Nothing in it was changed: choose another `name`, or the choices that are there."
        )


class Store:
    """The results of a study, in memory and on disk."""

    def __init__(self, folder: Path, config: StudyConfig, data: Dataset):
        """Opens a study's folder, new or not; goes on with what is there.

        **Raises:** `ValueError` for results that cannot be read.
        """
        self.folder = folder
        self._journal = folder / JOURNAL
        self._journal.mkdir(exist_ok=True)
        self._written_at, self._write_took = -np.inf, 0.0
        self.dataset = results.empty(config, data)
        if (folder / results.FILE).exists():
            self.dataset = results.read(folder)
        for file in sorted(self._journal.glob("*.npz")):
            self._enter_from(file)

    def is_finished(self, cell: Cell) -> bool:
        """Whether this cell is there."""
        return bool(self.dataset["finished"].loc[cell.at])

    def add(self, cell: Cell, values: dict[str, Any], provenance: list[dict[str, Any]]) -> None:
        """Keeps a finished cell.

        **Raises:** `OSError` where it cannot be written; what was there before is untouched.
        """
        self.dataset.attrs["provenance"] = json.dumps(provenance)
        results.enter(self.dataset, cell.at, values)
        name = "_".join(str(part) for part in cell.at.values())
        arrays: dict[str, Any] = {f"value:{k}": np.asarray(v) for k, v in values.items()}
        arrays |= {f"at:{key}": np.asarray(value) for key, value in cell.at.items()}
        arrays["outcome"] = arrays.pop("value:outcome").astype(str)
        arrays["provenance"] = json.dumps(provenance)

        def save(file: Path) -> None:
            with open(file, "wb") as stream:
                np.savez(stream, **arrays)

        write_whole(self._journal / f"{name}.npz", save)
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
        shutil.rmtree(self._journal)  # with what a kill may have left half written in it

    def _enter_from(self, file: Path) -> None:
        with np.load(file) as arrays:
            at = {key[3:]: arrays[key].item() for key in arrays if key.startswith("at:")}
            values = {key[6:]: arrays[key] for key in arrays if key.startswith("value:")}
            values["outcome"] = arrays["outcome"].astype(object)
            provenance = arrays["provenance"].item()
        if _time_in(provenance) > _time_in(self.dataset.attrs["provenance"]):
            self.dataset.attrs["provenance"] = provenance
        results.enter(self.dataset, at, values)


def _time_in(provenance: str) -> float:
    return sum(session["wall_time_s"] for session in json.loads(provenance))
