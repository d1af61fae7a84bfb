import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import ntk
from corrections.contraction import products as contraction
from corrections.contraction.products import Deferred, layer_product, materialized, Term
from zoo import CNN


def term(n, k, seed):
    """Of a layer of 6 channels, 5 positions that each see 4 numbers."""
    a_key, delta_key = jr.split(jr.key(seed))
    return Term(jr.normal(a_key, (n, 5, 4)), jr.normal(delta_key, (n, k, 5, 6)), True)


@pytest.mark.parametrize(("channels", "bias"), list(itertools.product([1, 2, 6], [0.3, None])))
def test_deferred_gradients_have_the_products_of_formed_ones(channels, bias, monkeypatch):
    """However many channels fit, for symmetric and rectangular products, of odd sizes too."""
    for (n1, k), (n2, l2) in [((3, 1), (3, 1)), ((2, 3), (4, 3)), ((1, 1), (2, 1))]:
        first, second = term(n1, k, 0), term(n2, l2, 1)
        for other in (first, second):
            rows = n1 * k if other is first else n1 * k + n2 * l2
            fitting = channels * rows * 4 * 8
            monkeypatch.setattr(contraction, "working_bytes", lambda f=fitting: 4 * f)
            found = layer_product(Deferred(first), Deferred(other), 0.7, bias)
            expected = layer_product(materialized([first]), materialized([other]), 0.7, bias)
            pairs = layer_product([first], [other], 0.7, bias)
            np.testing.assert_allclose(expected, pairs, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("outputs", ["full", "mean", "diagonal"])
def test_at_once_and_compiled_by_the_user_are_the_same(outputs):
    """Without loops and XLA's convolutions, against tiles and the zoo's."""
    model = CNN((2, 6, 6), 3, channels=4, depth=2, bias_std=0.3, readout="mean", key=jr.key(0))
    x1, x2 = jr.normal(jr.key(1), (5, 2, 6, 6)), jr.normal(jr.key(2), (3, 2, 6, 6))
    for other in (None, x2):
        once = ntk(model, x1, other, outputs=outputs)
        compiled = jax.jit(lambda x1, x2: ntk(model, x1, x2, outputs=outputs))(x1, other)
        tiled = ntk(model, x1, other, outputs=outputs, batch_size=2)
        oracle = ntk(model, x1, other, outputs=outputs, method="jacobian")
        scale = float(jnp.max(jnp.abs(oracle)))
        for found in (once, compiled, tiled):
            np.testing.assert_allclose(found, oracle, rtol=0, atol=1e-13 * scale)
