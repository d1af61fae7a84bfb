"""The folder of a run: its choices, one process at a time in it, and files that are whole."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
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


def refuse_links(folder: Path, names: Iterable[str | Path]) -> None:
    """**Raises:** `FileExistsError` where one of these files or folders of a run is a link: what is
    written there, or removed, would be somewhere else.
    """
    for path in (folder / name for name in names):
        if path.is_symlink():
            raise FileExistsError(
                f"{path} is a link to {os.readlink(path)}, expected nothing of that name or what a "
                "run wrote itself. Nothing was changed: remove the link, or use another folder."
            )


def write_config(folder: Path, choices: Mapping[str, Any], **more: Any) -> None:
    """Writes `config.json`: every choice of the run, what it ran with, and `more`."""
    held = {"config": choices, "provenance": runtime.provenance(), **more}
    write_text(folder / "config.json", json.dumps(held, indent=2) + "\n")


def write_whole(file: Path, save: Callable[[Path], Any]) -> None:
    """Writes a file by `save` so that whoever looks finds the former one or this one, whole.

    It is on the disk when this returns, whatever happens to the machine.

    **Raises:** `OSError` where there is no room or no permission; the former file is untouched.
    """
    draft = file.with_name(f".{file.name}.{os.getpid()}.draft")
    try:
        draft.unlink(missing_ok=True)  # it may be a link to somewhere else
        save(draft)
        with open(draft, "rb") as written:
            os.fsync(written.fileno())
        os.replace(draft, file)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    _sync_folder(file.parent)


def is_draft(file: Path) -> bool:
    """Whether `write_whole` was stopped while it wrote this file."""
    return re.fullmatch(r"\..+\.\d+\.draft", file.name) is not None


def write_text(file: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    write_whole(file, lambda draft: draft.write_bytes(encoded(text)))


def encoded(text: str) -> bytes:
    """In UTF-8; what stands for bytes of a path that are no text is escaped."""
    return text.encode("utf-8", "backslashreplace")


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Holds the folder against other runs; a process that dies lets go of it.

    **Raises:** `FileExistsError` where another run has it.
    """
    from filelock import FileLock, Timeout  # a dependency of runs, not of configs

    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise FileExistsError(
            f"Another run is computing in {folder} at this moment, expected none: wait for it, or "
            "choose another `name`. Nothing was changed."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _sync_folder(folder: Path) -> None:
    """Makes a rename last; not every system can."""
    with contextlib.suppress(OSError, AttributeError):
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
