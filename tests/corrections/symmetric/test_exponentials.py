"""Divided differences of the exponential against matrix exponentials at 60 digits."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.test_util import check_grads

from corrections.symmetric.exponentials import divided_exponential


def truth(nodes, t):
    """The corner of expm(t B), B bidiagonal: -z on the diagonal, 1 above (Opitz)."""
    with mpmath.workdps(60):
        size = len(nodes)
        bidiagonal = mpmath.zeros(size)
        for i, node in enumerate(nodes):
            bidiagonal[i, i] = -mpmath.mpf(float(node))
            if i + 1 < size:
                bidiagonal[i, i + 1] = 1
        return float(mpmath.expm(bidiagonal * mpmath.mpf(float(t)))[0, size - 1])


def nodes_of(kind, order, rng):
    nodes = rng.uniform(0.1, 1, order + 1) * 10.0 ** rng.uniform(-6, 2)
    if kind == "equal":
        nodes[:] = nodes[0]
    elif kind == "close":
        nodes[1:] = nodes[0] * (1 + 10.0 ** rng.uniform(-15, -1, order))
    elif kind == "with zero":
        nodes[0] = 0.0
    return nodes


@pytest.mark.parametrize("kind", ["apart", "equal", "close", "with zero"])
@pytest.mark.parametrize("order", range(6))
def test_matrix_exponential_at_60_digits(order, kind):
    """To 1e-13, relative; an exponential of -z t knows z t roundings."""
    rng = np.random.default_rng(order)
    for _ in range(8):
        nodes, t = nodes_of(kind, order, rng), 10.0 ** rng.uniform(-3, 1)
        found = jax.jit(divided_exponential)(tuple(map(jnp.asarray, nodes)), jnp.asarray(t))
        expected = truth(nodes, t)
        assert abs(float(found) - expected) <= 1e-13 * (1 + nodes.max() * t) * expected


@pytest.mark.long
@pytest.mark.parametrize("nodes", [(0.7, 0.7), (0.0, 0.3), (0.2, 0.2 + 1e-9), (1.0, 30.0)])
def test_derivatives_in_nodes_and_time(nodes):
    def of(a, b, t):
        return divided_exponential((jnp.zeros(()), a, b), t)

    arguments = (*map(jnp.asarray, nodes), jnp.asarray(2.0))
    check_grads(jax.jit(of), arguments, order=2, atol=1e-6, rtol=1e-6)
    slope = jax.jit(jax.grad(of))(*arguments)
    np.testing.assert_allclose(slope, -truth((0.0, nodes[0], *nodes), 2.0), rtol=1e-12)


def test_no_overflow_and_nothing_at_the_start():
    node, long = jnp.asarray(10.0, "float32"), jnp.asarray(1e30, "float32")
    assert float(divided_exponential((node, node, node), long)) == 0
    found = divided_exponential((jnp.zeros(()), jnp.ones(()), jnp.ones(())), jnp.zeros(()))
    assert float(found) == 0
