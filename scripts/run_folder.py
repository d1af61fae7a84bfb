"""The folder of a run: made once, with the choices and the machine of the run in it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from scripts import runtime


def create_folder(folder: Path) -> None:
    """Makes the folder of a run.

    **Raises:** `FileExistsError` where it exists already, whatever is in it.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        held = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        holds = f" (it holds {', '.join(held[:5])})" if held else ""
        raise FileExistsError(
            f"The results folder {folder} exists already{holds}, expected a new one. Nothing in it "
            "was changed: choose another `name`, or move the folder away."
        ) from error


def check_name(name: str | None) -> None:
    """**Raises:** `ValueError` where `name` is not the name of a folder."""
    if name is not None and (not name or Path(name).name != name):
        raise ValueError(f"`name` is {name!r}, expected the name of a folder, not a path.")


def write_config(folder: Path, config: Any) -> None:
    """Writes `config.json`: every choice of the run (a dataclass), and what it ran with."""
    fields = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in dataclasses.asdict(config).items()
    }
    record = {"config": fields, "provenance": runtime.provenance()}
    (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n")
