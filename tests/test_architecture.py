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


def room(module):
    """The folder that a module is in; a module of a package itself is a room of its own."""
    return ".".join(module.split(".")[:2])


def module_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file):
    """Modules of ours that a file imports; those of annotations alone are left out."""
    tree = ast.parse(file.read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            if not node.module.startswith(ROOMS):
                continue
            for alias in node.names:
                inner = ROOT / Path(*node.module.split("."), f"{alias.name}.py")
                yield f"{node.module}.{alias.name}" if inner.exists() else node.module


def circle(arrows):
    """Some nodes that lead back to themselves; nothing where there are none."""
    left = {node: set(to) for node, to in arrows.items()}
    while ends := [node for node, to in left.items() if not to & left.keys()]:
        for node in ends:
            del left[node]
    return sorted(left)


LIBRARY = [file for file in FILES if file.relative_to(ROOT).parts[0] != "scripts"]


def test_rooms_and_modules_form_no_circle():
    of_modules, of_rooms = {}, {}
    for file in LIBRARY:
        if file.name == "__init__.py":
            continue
        module = module_of(file)
        to = {
            name for name in imports_of(file) if name not in ROOMS
        }  # packages name what is public
        of_modules[module] = to - {module}
        of_rooms.setdefault(room(module), set()).update(room(name) for name in to)
    of_rooms = {name: to - {name} for name, to in of_rooms.items()}
    assert not circle(of_modules)
    assert not circle(of_rooms)


def test_rooms_are_of_a_size_to_live_in():
    folders = {file.parent for file in LIBRARY}
    sizes = {folder: len(list(folder.glob("*.py"))) - 1 for folder in folders}  # but __init__
    assert max(sizes.values()) <= 12, max(sizes, key=sizes.get)


def test_tests_mirror_the_packages():
    """A folder of tests is that of a room."""
    for package in ROOMS[:3]:
        rooms = {folder.name for folder in (ROOT / package).iterdir() if folder.is_dir()}
        tested = {f.name for f in (ROOT / "tests" / package).iterdir() if f.is_dir()}
        assert tested - {"__pycache__"} <= rooms


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_module_says_what_it_is(file):
    assert ast.get_docstring(ast.parse(file.read_text())), f"{file} has no docstring"
