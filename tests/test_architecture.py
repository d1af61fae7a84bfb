"""The walls of the house: imports point left, and only documented API is used."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("zoo", "corrections", "solvers", "scripts")
PRIVATE = ("jax.core", "jax._src", "jax.interpreters", "equinox.internal")

FILES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))


def imported(file):
    """Every module that a file imports, as dotted names; `from a import b` counts as a.b too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_left_and_are_documented(file):
    room = file.relative_to(ROOT).parts[0]
    to_the_right = ROOMS[ROOMS.index(room) + 1 :]
    for module in imported(file):
        assert module.split(".")[0] not in to_the_right, f"{file} imports {module}"
        assert not module.startswith(PRIVATE), f"{file} imports {module}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_module_says_what_it_is(file):
    assert ast.get_docstring(ast.parse(file.read_text())), f"{file} has no docstring"
