"""Products in blocks and in chunks against the products of whole gradients."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections.contraction import blocked_products
from corrections.contraction.blocked_products import blocked_product
from corrections.contraction.products import Deferred, Gradients, materialized, Metrics, Term

POSITIONS, SIZE, OUT, ROWS, REST = 3, 4, 5, 6, 7


def gradients(n, k, seed):
    """Of a layer whose gradients are formed, one that stays in factors, a derivative of one, a
    lookup, and parameters without a rule; and the same as vectors, with NumPy.
    """
    keys = iter(jr.split(jr.key(seed), 20))

    def term(to_bias=True):
        a = jr.normal(next(keys), (n, POSITIONS, SIZE))
        return Term(a, jr.normal(next(keys), (n, k, POSITIONS, OUT)), to_bias)

    formed, factors, derivative = [term()], [term()], [term(False), term()]
    places = jr.randint(next(keys), (n, POSITIONS, 1), 0, ROWS).astype(float)
    lookup = [Term(places, jr.normal(next(keys), (n, k, POSITIONS, OUT)), True, ROWS)]
    rest = jr.normal(next(keys), (n, k, REST))
    layers = [materialized(formed), factors, derivative, lookup]
    whole = [
        (sum(map(weight_of, terms)), sum(map(bias_of, terms)))
        for terms in (formed, factors, derivative, lookup)
    ]
    return Gradients(layers, rest), (whole, np.asarray(rest))


def weight_of(term):
    a = np.asarray(term.input)
    if term.rows is not None:
        a = np.eye(term.rows)[a[..., 0].astype(int)]
    return np.einsum("nkpo,npi->nkoi", term.cotangent, a)


def bias_of(term):
    return np.asarray(term.cotangent).sum(axis=2) * term.to_bias


WEIGHTS = [(0.7, 1.3), (0.5, None), (2.0, 0.25), (1.5, 0.1)]
REST_METRIC = np.linspace(0.5, 2, REST)


def expected(first, second, diagonal):
    (layers1, rest1), (layers2, rest2) = first, second
    total = np.einsum("akp,p,blp->akbl", rest1, REST_METRIC, rest2)
    for (w1, b1), (w2, b2), (weight, bias) in zip(layers1, layers2, WEIGHTS, strict=True):
        total += weight * np.einsum("akoi,bloi->akbl", w1, w2)
        total += (bias or 0) * np.einsum("ako,blo->akbl", b1, b2)
    return np.einsum("akbk->abk", total) if diagonal else total


@pytest.fixture
def smallest(monkeypatch):
    """Parts of two rows, chunks of two entries, one example's pairs at a time."""
    monkeypatch.setattr(blocked_products, "_ROWS", 2)
    monkeypatch.setattr(blocked_products, "working_bytes", lambda: 1)


@pytest.mark.parametrize(("k", "diagonal"), list(itertools.product([1, 3], [False, True])))
def test_blocks_and_chunks_are_the_products_of_whole_gradients(k, diagonal, smallest):
    metrics = Metrics(WEIGHTS, jnp.asarray(REST_METRIC))
    first, of_first = gradients(7, k, 0)
    second, of_second = gradients(4, k, 1)
    for other, of_other in ((None, of_first), (second, of_second)):
        found = jax.jit(lambda other: blocked_product(metrics, first, other, diagonal=diagonal))(
            other
        )
        np.testing.assert_allclose(found, expected(of_first, of_other, diagonal), atol=1e-12)


def test_deferred_gradients_beside_others(smallest):
    gradients_, of_all = gradients(7, 2, 0)
    (term,) = gradients_.layers[1]
    mixed = gradients_._replace(
        layers=[gradients_.layers[0], Deferred(term), *gradients_.layers[2:]]
    )
    found = blocked_product(Metrics(WEIGHTS, jnp.asarray(REST_METRIC)), mixed)
    np.testing.assert_allclose(found, expected(of_all, of_all, False), atol=1e-12)


def test_a_metric_of_one_is_none(smallest):
    first, _ = gradients(5, 2, 0)
    ones = blocked_product(Metrics(WEIGHTS, jnp.ones(REST)), first)
    np.testing.assert_allclose(blocked_product(Metrics(WEIGHTS, None), first), ones, atol=1e-12)
