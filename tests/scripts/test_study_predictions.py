import ast
from pathlib import Path

import pytest

from scripts.study.predictions import FROZEN, INFINITE, named, NETWORK, PAIRS, SOLVES
from scripts.study.report.svg import VARIABLES
from tests.scripts.studies import small

STUDY = Path(__file__).resolve().parents[2] / "scripts" / "study"
FILES = sorted(file for file in STUDY.rglob("*.py") if file.name != "predictions.py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(STUDY)))
def test_the_names_of_solves_stand_in_one_place(file):
    """A literal that is a solve's name, or takes one apart, decides something a second time."""
    names = {solve.name for solve in SOLVES} - {NETWORK}
    held = {
        node.value
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert not held & (names | {"Taylor", "Taylor ", "order ", "NTK "})


def test_solves_are_those_asked_for_in_one_order():
    def chosen(**options):
        return [solve.name for solve in small("runs", **options).solves]

    assert chosen(orders=(4, 2), taylor_orders=(3, 1), infinite_width=True) == [
        "network",
        "frozen NTK",
        "infinite NTK",
        "order 4",
        "Taylor 1",
        "Taylor 3",
    ]
    assert chosen(orders=(), infinite_width=True) == ["network", "infinite NTK"]


def test_each_solve_looks_different_in_colours_that_the_page_knows():
    looks = {(solve.colour, solve.marker) for solve in SOLVES}
    assert len(looks) == len(SOLVES)
    assert {solve.colour for solve in SOLVES} <= set(VARIABLES)


def test_what_is_known_of_a_solve_says_what_it_does():
    assert PAIRS == ((FROZEN, "order 3"), ("order 3", "order 4"))
    assert [s.name for s in SOLVES if s.keeps_its_kernel] == [FROZEN, INFINITE]
    assert [s.name for s in SOLVES if s.predicts_its_kernel] == ["order 3", "order 4"]
    assert named(FROZEN).in_a_sentence == "the frozen NTK"
    assert named("order 3").in_a_sentence == "order 3"
