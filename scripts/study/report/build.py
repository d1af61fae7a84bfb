"""The report of one or several runs: a page, its figures for paper, its tables; rebuilt at will."""

import io
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import tyro
import xarray as xr
from matplotlib.figure import Figure
from rich.console import Console

from scripts.console import ready
from scripts.run_folder import encoded, refuse_links, write_whole
from scripts.study import results, storage
from scripts.study.analysis import completed, groups
from scripts.study.report import figures
from scripts.study.report.comparison import compared, STEMS as COMPARED
from scripts.study.report.figures import ELLIPSES_STEM, Paper, PICTURES
from scripts.study.report.page import page
from scripts.study.report.tables import STEMS, Table, tables

PAGE = "report.html"
MANIFEST = ".report.json"
"""The files of the report that is there, so that the next one knows which are its own."""


@dataclass(frozen=True)
class ReportConfig:
    """Builds the report of runs from the results on disk; several runs are compared."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs, each with a results.nc."""
    out: Path | None = None
    """Where the report goes (default: the folder of the run; of several, a folder beside the first
    that is named after all)."""

    def check(self) -> None:
        """**Raises:** `ValueError` that names the field, what came and what was expected."""
        if not self.runs:
            raise ValueError("`runs` is empty, expected at least one folder of a run.")
        resolved = [run.resolve() for run in self.runs]
        for run, folder in zip(self.runs, resolved, strict=True):
            if resolved.count(folder) > 1:
                raise ValueError(f"`runs` has {run} more than once, expected each run once.")
            if not folder.is_dir():
                raise ValueError(f"`runs` has {run}, which is no folder, expected one of a run.")
            if not (folder / results.FILE).is_file():
                held = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
                raise ValueError(
                    f"`runs` has {run}, a folder without {results.FILE} (it holds {held}), "
                    "expected the folder of a run."
                )
            if completed(storage.read(folder))[0] == 0:
                raise ValueError(
                    f"`runs` has {run}, whose {results.FILE} holds no finished cell, expected at "
                    "least one."
                )
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise ValueError(f"`out` is {self.out}, which is a file, expected a folder.")

    @property
    def folder(self) -> Path:
        """Where the report goes."""
        if self.out is not None:
            return self.out
        first = self.runs[0].resolve()
        if len(self.runs) == 1:
            return self.runs[0]
        return first.parent / "+".join(run.resolve().name for run in self.runs)

    @property
    def names(self) -> list[str]:
        """What the runs are called: their folders' names, with the path where two are the same."""
        short = [run.resolve().name for run in self.runs]
        return [
            name if short.count(name) == 1 else str(run)
            for name, run in zip(short, self.runs, strict=True)
        ]


def run_report(config: ReportConfig, console: Console | None = None) -> list[Path]:
    """Builds the report that `config` describes and tells where it is.

    **Raises:** as `ReportConfig.check`, before anything is written.
    """
    config.check()
    console = ready(console)
    runs = {name: storage.read(run) for name, run in zip(config.names, config.runs, strict=True)}
    parts = ["finite-width", "report", *map(str, config.runs)]
    if config.out is not None:
        parts += ["--out", str(config.out)]
    files = write(config.folder, runs, rebuild=shlex.join(parts))
    console.print(f"The report and its {len(files) - 1} figures and tables:")
    console.print(f"  {files[0]}", soft_wrap=True, highlight=False)
    return files


def write(
    folder: Path, runs: Mapping[str, xr.Dataset], *, rebuild: str | None = None
) -> list[Path]:
    """Writes the report of `runs` (results by name) into `folder`.

    `report.html`, `figures/*.pdf`, `tables/*.csv` and `tables/*.tex`; of several runs the latter in
    a folder a run, and tables that compare them. Each file is replaced whole, the figures and
    tables of an earlier report that are not made any more are removed. The same results give the
    same bytes.

    **Arguments:**

    - `rebuild`: the command that the page says builds it again (default: from `folder`).

    **Returns:** the files, the page first.

    **Raises:** `ValueError` where there is no run, or one without a finished cell;
    `FileExistsError` where a folder of figures or tables is a link.
    """
    if not runs:
        raise ValueError("`runs` is empty, expected the results of at least one run.")
    for name, dataset in runs.items():
        if completed(dataset)[0] == 0:
            raise ValueError(f"`runs` has {name!r} without a finished cell, expected one at least.")
    inner = {name: _inner(i, name) if len(runs) > 1 else "" for i, name in enumerate(runs)}
    kinds = (storage.FIGURES, storage.TABLES)
    refuse_links(folder, [Path(kind) / own for kind in kinds for own in ("", *inner.values())])
    comparison = compared(runs) if len(runs) > 1 else []
    made = {name: tables(dataset) for name, dataset in runs.items()}
    papers = {name: _papers(dataset) for name, dataset in runs.items()}
    command = rebuild or shlex.join(["finite-width", "report", str(folder)])
    text = page(runs, papers, made, comparison, command)
    before = _reported(folder)
    written = [_replace(folder / PAGE, encoded(text))]
    for name, own in inner.items():
        for stem, paper in papers[name].items():
            file = folder / storage.FIGURES / own / f"{stem}.pdf"
            written.append(_replace(file, _pdf(paper.figure)))
        written += _write_tables(folder / storage.TABLES / own, made[name])
    written += _write_tables(folder / storage.TABLES, comparison)
    made_now = [file.relative_to(folder).as_posix() for file in written]
    _replace(folder / MANIFEST, json.dumps(made_now, indent=1).encode())
    for stale in before - set(written):
        stale.unlink(missing_ok=True)
    return written


def _papers(dataset: xr.Dataset) -> dict[str, Paper]:
    """The figures for paper, by stem."""
    papers = {picture.stem: figures.grid(picture, dataset) for picture in PICTURES}
    return papers | {ELLIPSES_STEM: figures.ellipses(groups(dataset))}


def _write_tables(folder: Path, made: Sequence[Table]) -> list[Path]:
    files = []
    for table in made:
        files.append(_replace(folder / f"{table.stem}.csv", encoded(table.csv())))
        files.append(_replace(folder / f"{table.stem}.tex", encoded(table.latex())))
    return files


def _inner(position: int, name: str) -> str:
    """The folder of one of several runs."""
    return f"{position + 1}-{Path(name).name}"


def _reported(folder: Path) -> set[Path]:
    """The figures and tables of the report that is there, by its manifest, which anybody may have
    written: what no report makes, or lies behind a link, is not among them.
    """
    try:
        names = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return set()
    if not isinstance(names, list):
        return set()
    own = [Path(name) for name in names if isinstance(name, str) and _is_made_by_reports(name)]
    return {folder / path for path in own if _is_file_in(folder, path)}


def _is_made_by_reports(name: str) -> bool:
    """Whether this is the path, in the folder of a report, of a figure or a table."""
    pictures = "|".join((*(picture.stem for picture in PICTURES), ELLIPSES_STEM))
    words = "|".join((*STEMS, *COMPARED))
    inner = r"(\d+-[^/\\]+/)?"  # of one of several runs
    figure = rf"{storage.FIGURES}/{inner}({pictures})\.pdf"
    table = rf"{storage.TABLES}/{inner}({words})\.(csv|tex)"
    return re.fullmatch(f"{figure}|{table}", name) is not None


def _is_file_in(folder: Path, path: Path) -> bool:
    """Whether this is a file of the folder itself: neither it nor a folder above it is a link."""
    parts = [folder / path, *(folder / above for above in path.parents[:-1])]
    return parts[0].is_file() and not any(part.is_symlink() for part in parts)


def _pdf(figure: Figure) -> bytes:
    """The same bytes each time: no date, no name of a program."""
    held = io.BytesIO()
    nobody = {"CreationDate": None, "Creator": None, "Producer": None}
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(held, format="pdf", metadata=nobody)
    return held.getvalue()


def _replace(file: Path, content: bytes) -> Path:
    """Writes a file so that whoever looks finds the former one or this one, whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda draft: draft.write_bytes(content))
    return file
