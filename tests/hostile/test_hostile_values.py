"""Public functions with hostile values: right, or refused by name, or marked as failed.

The cells are generated from the signatures (`calls`, `arguments`), so that neither a new function
nor a new argument can be forgotten. They run as users run: in JAX's default types, without the
check of annotations that other tests have.
"""

import inspect
from collections.abc import Iterator

import jax
import pytest

from tests.hostile import arguments, judge
from tests.hostile.calls import CALLS, is_asked, public
from tests.hostile.known import KNOWN

CELLS = judge.cells()


@pytest.fixture(autouse=True)
def as_users(unchecked: None, float32: None) -> Iterator[None]:
    """JAX's defaults, and no check of annotations."""
    strict = {"jax_numpy_rank_promotion": "raise", "jax_numpy_dtype_promotion": "strict"}
    usual = {"jax_numpy_rank_promotion": "allow", "jax_numpy_dtype_promotion": "standard"}
    for name, value in usual.items():
        jax.config.update(name, value)
    yield
    for name, value in strict.items():
        jax.config.update(name, value)


def test_every_public_function_is_asked():
    assert {name for name, value in public().items() if is_asked(name, value)} == set(CALLS)


@pytest.mark.parametrize("function", CALLS)
def test_every_function_has_a_truth_and_every_argument_a_kind(function):
    assert CALLS[function].has_truth
    for argument in inspect.signature(public()[function]).parameters:
        arguments.kind_and_value(function, argument)


def test_every_known_failure_is_a_cell():
    assert set(map(str, KNOWN)) <= set(map(str, CELLS))


def _parameter(cell: judge.Cell):
    marks = [pytest.mark.long] if cell.hostile.computes else []
    if str(cell) in KNOWN:
        marks.append(pytest.mark.xfail(strict=True, reason=KNOWN[str(cell)]))
    return pytest.param(cell, marks=marks, id=str(cell))


@pytest.mark.parametrize("cell", map(_parameter, CELLS))
def test_hostile_values_are_refused_by_name_or_right(cell):
    wrong = judge.outcome(cell)
    assert wrong is None, f"{cell} {wrong}"
