"""Cells that are known to end badly: to be emptied. Each is expected to fail, strictly."""

from types import ModuleType
from typing import Any

import pytest

from tests.hostile import judge

FAULTS: dict[str, dict[str, dict[str, list[str]]]] = {}
"""Fault -> function -> argument -> values."""

KNOWN = {
    str(judge.Cell(function, argument, value)): fault
    for fault, functions in FAULTS.items()
    for function, named in functions.items()
    for argument, values in named.items()
    for value in values
}
"""Cell -> its fault."""


def parameters(package: ModuleType) -> list[Any]:
    """The cells of a package as parameters of a test: those that compute are long."""
    return [_parameter(cell) for cell in judge.cells(package)]


def _parameter(cell: judge.Cell) -> Any:
    marks: list[Any] = [pytest.mark.long] if cell.computes else []
    if str(cell) in KNOWN:
        marks.append(pytest.mark.xfail(strict=True, reason=KNOWN[str(cell)]))
    return pytest.param(cell, marks=marks, id=str(cell))
