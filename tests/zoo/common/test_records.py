import inspect

import jax
import jax.numpy as jnp
import pytest

import corrections
import solvers
import zoo
from corrections import Kappa, NormEstimate, spectrum
from zoo import LimitNeeds

RECORDS = [
    value
    for package in (zoo, corrections, solvers)
    for value in vars(package).values()
    if inspect.isclass(value) and issubclass(value, tuple) and value is not LimitNeeds
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_records_of_many_numbers_print_in_a_few_lines(record):
    text = repr(record(*[jnp.zeros((100, 100))] * len(record._fields)))
    assert text.startswith(f"{record.__name__}(")
    assert "100" in text
    assert len(text) < 200


def test_few_numbers_are_shown():
    norm = NormEstimate(jnp.asarray(0.123456789), jnp.asarray(1e-7), jnp.asarray(True))
    assert repr(norm) == "NormEstimate(value=0.1235, residual=1.e-07, converged=True)"
    kappa = Kappa(*[jnp.asarray(2.0)] * 4, norm, norm)
    assert repr(kappa).count("NormEstimate(value=0.1235") == 2
    assert "eigenvalues=[3., 1.]" in repr(spectrum(jnp.diag(jnp.array([1.0, 3.0]))))


def test_records_print_inside_a_trace():
    seen = []
    jax.jit(lambda x: seen.append(repr(NormEstimate(x, x, x > 0))))(jnp.zeros(3))
    assert "value=f64[3]" in seen[0]
