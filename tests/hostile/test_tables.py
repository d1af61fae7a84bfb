"""That no public function, and no argument of one, has been forgotten.

A hostile value of each kind is put into each argument of each public function (`test_zoo`,
`test_corrections`, `test_solvers`): the cells come from the signatures. A function that is added
needs a truth in `calls`, its arguments a kind in `arguments`.
"""

import inspect

import pytest

from tests.hostile import arguments
from tests.hostile.calls import CALLS, is_asked, PACKAGES, public


def test_every_public_function_is_asked():
    assert {name for name, value in public().items() if is_asked(name, value)} == set(CALLS)


@pytest.mark.parametrize("function", CALLS)
def test_every_function_has_a_truth_and_every_argument_a_kind(function):
    assert CALLS[function].has_truth
    for argument in inspect.signature(public()[function]).parameters:
        arguments.kind_and_value(function, argument)


def test_every_argument_of_the_table_is_one_of_a_function():
    taken = {
        f"{name}.{argument}"
        for name in CALLS
        for argument in inspect.signature(public()[name]).parameters
    }
    names = {full.split(".")[1] for full in taken}
    assert set(arguments.ARGUMENTS) <= taken | names


def test_no_two_things_that_are_exported_share_a_name():
    exported = [
        name for package in PACKAGES for name, value in vars(package).items() if callable(value)
    ]
    assert len(set(exported)) == len(exported)
