"""Functions of `solvers` with hostile values: right, refused by name, or marked as failed."""

import pytest

import solvers
from tests.hostile import judge


@pytest.mark.parametrize("cell", judge.parameters(solvers))
def test_hostile_values_are_refused_by_name_or_right(cell):
    wrong = judge.outcome(cell)
    assert wrong is None, f"{cell} {wrong}"
