"""Runs a study: cell by cell, with what is finished always on disk."""

import dataclasses
import datetime
from dataclasses import dataclass
from pathlib import Path

import xarray as xr
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from scripts import runtime
from scripts.run_folder import create_folder, write_config
from scripts.study import results
from scripts.study.cell import cells, compute
from scripts.study.config import StudyConfig
from scripts.study.figures import draw
from scripts.study.table import as_text, summary
from zoo import checks, Dataset, load


@dataclass(frozen=True)
class Study:
    """A study that can start: its config is checked, its data are loaded, its folder is made."""

    config: StudyConfig
    data: Dataset
    folder: Path


def run(config: StudyConfig | None = None, *, console: Console | None = None) -> xr.Dataset:
    """Runs the study that `config` describes and returns its results.

    They are also on disk, in the folder `config.out / config.name`: `results.nc`, `config.json`,
    `summary.txt` and `figures/*.png`. `results.nc` is rewritten, whole, after every cell.

    **Arguments:**

    - `config`: the study (default: `StudyConfig()`).
    - `console`: where progress and the table go (default: the terminal).

    **Raises:** as `prepare`, before any work. `KeyboardInterrupt` passes through once the finished
    cells have been summed up.
    """
    config = StudyConfig() if config is None else config
    with runtime.precision(config.precision):
        return execute(prepare(config), console=console)


def prepare(config: StudyConfig) -> Study:
    """Checks all that can go wrong before work starts, and makes the folder of the run.

    **Raises:** `ValueError` for a config that makes no sense or data that cannot be had or hold
    NaN, `ImportError` where the package that ships the data is missing, `FileExistsError` where the
    folder exists.
    """
    config.check()
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
    if config.name is None:
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        config = dataclasses.replace(config, name=f"{Path(config.dataset).stem}-{now}")
    folder = config.out / str(config.name)
    create_folder(folder)
    return Study(config, data, folder)


def execute(study: Study, *, console: Console | None = None) -> xr.Dataset:
    """Computes every cell; see `run`."""
    console = Console() if console is None else console
    config, data, folder = study.config, study.data, study.folder
    write_config(folder, config)
    dataset = results.empty(config, data)
    results.write(folder, dataset)
    todo = cells(config)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("starting", total=len(todo) * len(config.solves))
            for cell in todo:

                def started(solve: str, cell=cell) -> None:
                    progress.update(task, description=f"{cell}: {solve}")

                result = compute(config, data, cell, started)
                results.enter(dataset, config, data, cell, result)
                results.write(folder, dataset)
                progress.advance(task, len(config.solves))
    except KeyboardInterrupt:
        done, total = results.completed(dataset)
        console.print(f"Interrupted after {done} of {total} cells; these are kept.")
        raise
    finally:
        _report(config, dataset, folder, console)
    return dataset


def _report(config: StudyConfig, dataset: xr.Dataset, folder: Path, console: Console) -> None:
    done, _ = results.completed(dataset)
    if done == 0:
        return
    answer = summary(dataset, config)
    console.print(answer)
    (folder / "summary.txt").write_text(as_text(answer))
    files = draw(dataset, config, folder)
    console.print("Results, config and pictures:")
    for file in (folder / results.FILE, folder / "config.json", *files):
        console.print(f"  {file}", soft_wrap=True, highlight=False)
