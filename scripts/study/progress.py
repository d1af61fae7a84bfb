"""How far a study is: overall and on each device, with the time left; silent off a terminal."""

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from scripts.study.cells import Cell
from scripts.study.config import StudyConfig


class Meter:
    """A bar for the study and one for each device, in estimated seconds: what is large counts."""

    def __init__(self, config: StudyConfig, seconds: dict[Cell, float], console: Console):
        self._config, self._seconds = config, seconds
        others = 1 + len(config.measures) + 2 * config.infinite_width
        self._parts = others + len(config.solves)
        self._progress = Progress(
            # Where there is little room the description gives way, not the times.
            TextColumn(
                "{task.description}",
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(table_column=Column(min_width=7, no_wrap=True)),
            TextColumn("left"),
            TimeRemainingColumn(compact=True, table_column=Column(min_width=7, no_wrap=True)),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self._counted: dict[Cell, float] = {}
        self._done, self._cells = 0, len(self._seconds)
        self._overall = self._progress.add_task(
            "all cells", total=sum(self._seconds.values()), count=f"0/{self._cells}"
        )
        self._of_device: dict[Any, Any] = {}

    def __enter__(self) -> "Meter":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def started(self, device: Any, cell: Cell, part: str) -> None:
        """A part of a cell starts on a device."""
        seconds = self._seconds[cell]
        if device not in self._of_device:
            self._of_device[device] = self._progress.add_task("", total=None, count="")
        task = self._of_device[device]
        counted = self._counted.get(cell)
        if counted is None:
            self._progress.reset(task, total=seconds)
            self._counted[cell] = 0.0
        else:
            step = min(seconds / self._parts, seconds - counted)
            self._counted[cell] = counted + step
            self._progress.advance(task, step)
            self._progress.advance(self._overall, step)
        self._progress.update(task, description=f"{part}: {self._named(cell)}")

    def _named(self, cell: Cell) -> str:
        """What tells a cell from the others of the study."""
        several = [
            name
            for name, values in (
                (cell.family.activation, self._config.activations),
                (cell.loss, self._config.losses),
            )
            if len(values) > 1
        ]
        words = [cell.family.label, *several, cell.parameterization]
        return " ".join([*words, f"width {cell.width} seed {cell.seed}"])

    def finished(self, cell: Cell) -> None:
        """A cell is finished, or has failed."""
        self._done += 1
        rest = self._seconds[cell] - self._counted.get(cell, 0.0)
        self._counted[cell] = self._seconds[cell]
        self._progress.advance(self._overall, rest)
        self._progress.update(self._overall, count=f"{self._done}/{self._cells}")
