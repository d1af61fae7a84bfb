"""How the packages are installed: with the command, and a user's own `scripts` in reach."""

import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from scripts.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, cwd: Path, *path: Path) -> str:
    """What a program prints that is started in `cwd`, which comes first on its path."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_folder_scripts_of_a_users_own_is_not_hidden(tmp_path):
    own = tmp_path / "scripts"
    own.mkdir()
    (own / "mine.py").write_text("NAME = 'mine'\n")
    code = "import scripts.mine, scripts.study; print(scripts.mine.NAME, scripts.study.__name__)"
    assert run(code, tmp_path, ROOT) == "mine scripts.study"


def test_the_command_is_a_function_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["finite-width"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_commands_are_written_as_they_are_installed():
    """`python -m scripts` is there in a clone only."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "scripts").rglob("*")]
    commands = "|".join(COMMANDS)
    old = re.compile(rf"python\W+-m\W+scripts\W+({commands})\b")
    files = [page for page in pages if page.suffix in (".md", ".py", ".jinja")]
    found = [str(file) for file in files if old.search(file.read_text(encoding="utf-8"))]
    assert len(files) > 50
    assert found == []


def test_a_wheel_has_every_file_of_the_packages_and_the_command(tmp_path):
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "finite-width = scripts.__main__:main" in archive.read(entry_points).decode()
    tracked = {
        file.relative_to(ROOT).as_posix()
        for package in ("zoo", "corrections", "solvers", "scripts")
        for kind in ("*.py", "*.jinja")
        for file in (ROOT / package).rglob(kind)
    }
    assert tracked <= names
