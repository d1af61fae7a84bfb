"""Functions of `zoo` with hostile values: right, refused by name, or marked as failed."""

import pytest

import zoo
from tests.hostile import judge


@pytest.mark.parametrize("cell", judge.parameters(zoo))
def test_hostile_values_are_refused_by_name_or_right(cell):
    wrong = judge.outcome(cell)
    assert wrong is None, f"{cell} {wrong}"
