"""What all reproductions share: one module each, found by the command line."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import xarray as xr

import scripts.reproduce
from scripts.__main__ import COMMANDS, main, reproductions
from scripts.reproduce.reproduction import Reproduction, RunConfig

FOLDER = Path(scripts.reproduce.__file__).parent
OWN = '''"""Doubles of a number.

More about them.
"""

from dataclasses import dataclass

import xarray as xr

from scripts.reproduce.reproduction import Reproduction, RunConfig
from zoo.common import checks


@dataclass(frozen=True)
class DoublesConfig(RunConfig):
    """Doubles a number."""

    name: str = "doubles"
    number: int = 1
    """What is doubled."""

    def check(self) -> None:
        super().check()
        checks.integer("number", self.number)


REPRODUCTION = Reproduction(
    config=DoublesConfig,
    inputs=lambda config: 2,
    measure=lambda config, factor, console: xr.Dataset({"double": factor * config.number}),
    table=lambda config, found: f"the double is {found['double'].item()}",
    results="doubles.nc",
    figure=("doubles.txt", lambda config, found, file: file.write_text("drawn")),
)
'''


@pytest.fixture
def doubles(tmp_path, monkeypatch):
    """The command that one file more among the reproductions is."""
    (tmp_path / "more_doubles.py").write_text(OWN)
    (tmp_path / "helper.py").write_text('"""No reproduction."""\n')
    monkeypatch.setattr(scripts.reproduce, "__path__", [*scripts.reproduce.__path__, str(tmp_path)])
    for name, what in reproductions(tmp_path).items():
        monkeypatch.setitem(COMMANDS, name, what)
    yield "more-doubles"
    sys.modules.pop("scripts.reproduce.more_doubles", None)


def test_a_file_more_is_a_command_more(tmp_path, doubles, capsys):
    assert reproductions(tmp_path) == {doubles: "doubles of a number"}
    out = tmp_path / "runs"
    assert main([doubles, "--number", "21", "--out", str(out)]) == 0
    assert "the double is 42" in capsys.readouterr().out
    folder = out / "doubles"
    held = {file.name for file in folder.iterdir()}
    assert held == {"doubles.nc", "config.json", "doubles.txt"}
    assert xr.load_dataset(folder / "doubles.nc", engine="h5netcdf")["double"].item() == 42
    assert json.loads((folder / "config.json").read_text())["config"] == {
        "name": "doubles",
        "out": str(out),
        "precision": "float64",
        "number": 21,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--number", "0"], "`number` is 0, expected an integer >= 1"),
        (["--name", "a/b"], "`name` is 'a/b', expected the name of a folder"),
    ],
)
def test_what_makes_no_sense_is_said_before_any_work(tmp_path, doubles, capsys, arguments, message):
    assert main([doubles, *arguments, "--out", str(tmp_path / "runs")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_every_reproduction_is_a_command_with_the_choices_of_all():
    found = reproductions(FOLDER)
    assert {"coordinate-check", "infinite-width", "linearity"} <= set(found)
    assert found.items() <= COMMANDS.items()
    for command in found:
        module = importlib.import_module(f"scripts.reproduce.{command.replace('-', '_')}")
        assert isinstance(module.REPRODUCTION, Reproduction)
        config = module.REPRODUCTION.config()
        assert isinstance(config, RunConfig)
        assert config.name == command
        config.check()
