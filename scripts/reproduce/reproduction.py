"""What every reproduction has: a config with a folder, checks before any work, results on disk.

A reproduction is one module here: it says what is its own (`RunConfig` with its fields, what is
measured, how it is shown) in a constant `REPRODUCTION`, by which the command line finds it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import xarray as xr
from rich.console import Console, RenderableType

from scripts import fields, runtime
from scripts.console import ready
from scripts.run_folder import create_folder, write_config
from zoo.common import checks


@dataclass(frozen=True)
class RunConfig:
    """What can be chosen of every reproduction."""

    name: str
    """Name of the run, and of its folder under `out`."""
    out: Path = Path("runs")
    """Where runs are kept."""
    precision: runtime.Precision = "float64"
    """Floating-point type of everything."""

    def check(self) -> None:
        """**Raises:** `ValueError` that names the field, what came and what was expected."""
        fields.folder_name("name", self.name)
        checks.choice("precision", self.precision, ("float32", "float64"))

    def choices(self) -> dict[str, Any]:
        """What `config.json` holds."""
        return fields.choices(self)


Config = TypeVar("Config", bound=RunConfig)
Inputs = TypeVar("Inputs")
Found = TypeVar("Found", xr.Dataset, xr.DataArray)


@dataclass(frozen=True)
class Prepared(Generic[Config, Inputs]):
    """A run that can start: its config is checked, its inputs are there, its folder is made."""

    config: Config
    inputs: Inputs
    folder: Path


@dataclass(frozen=True)
class Reproduction(Generic[Config, Inputs, Found]):
    """A figure or a table of the literature.

    - `config`: the type of its choices.
    - `inputs`: what it is measured on, or an error where the config cannot be run.
    - `measure`: all the work.
    - `table`: what is printed.
    - `results`: the file of what was measured.
    - `figure`: the file of a figure and what draws it, where there is one.
    """

    config: Callable[[], Config]
    inputs: Callable[[Config], Inputs]
    measure: Callable[[Config, Inputs, Console], Found]
    table: Callable[[Config, Found], RenderableType]
    results: str
    figure: tuple[str, Callable[[Config, Found, Path], None]] | None = None

    def run(self, config: Config | None = None, console: Console | None = None) -> Found:
        """Measures, writes and tells everything.

        **Raises:** as `prepare`, before any work.
        """
        config = self.config() if config is None else config
        with runtime.precision(config.precision):
            return self.execute(self.prepare(config), console=console)

    def prepare(self, config: Config) -> Prepared[Config, Inputs]:
        """Checks all that can go wrong before work starts, and makes the folder of the run.

        **Raises:** `ValueError` for a config that makes no sense, `FileExistsError` where the
        folder exists, what loading the inputs raises.
        """
        config.check()
        with runtime.precision(config.precision):
            inputs = self.inputs(config)
        folder = config.out / config.name
        create_folder(folder)
        return Prepared(config, inputs, folder)

    def execute(
        self, prepared: Prepared[Config, Inputs], *, console: Console | None = None
    ) -> Found:
        """Does what was prepared; see `run`."""
        console, config, folder = ready(console), prepared.config, prepared.folder
        write_config(folder, config.choices())
        found = self.measure(config, prepared.inputs, console)
        found.to_netcdf(folder / self.results, engine="h5netcdf")
        console.print(self.table(config, found))
        files = [self.results, "config.json"]
        if self.figure is not None:
            name, draw = self.figure
            draw(config, found, folder / name)
            files.append(name)
        for file in files:
            console.print(f"  {folder / file}", soft_wrap=True, highlight=False)
        return found
