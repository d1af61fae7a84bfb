"""Kernels of every layout are compared with their transposes, small ones and large ones."""

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from corrections.symmetric.layouts import check_symmetric
from zoo.common import checks

SMALL, LARGE = 6, 600
AXES = {"(n, n)": (1, 0), "(n, n, k)": (1, 0, 2), "(n, k, n, k)": (2, 3, 0, 1)}


def kernel(layout, n):
    shape = {"(n, n)": (n, n), "(n, n, k)": (n, n, 2), "(n, k, n, k)": (n // 2, 2, n // 2, 2)}
    values = jr.normal(jr.key(0), shape[layout])
    return values + values.transpose(AXES[layout])


@pytest.mark.parametrize("n", [SMALL, LARGE])
@pytest.mark.parametrize("layout", AXES)
def test_an_entry_that_differs_from_its_mirror_image_is_named(layout, n):
    assert SMALL**2 < checks.SMALL < LARGE**2
    good = kernel(layout, n)
    bad = good.at[(0, *[-1] * (good.ndim - 1))].add(0.5)
    for _ in range(2):  # the second time from what is known of the array
        check_symmetric("kernel", good)
        with pytest.raises(ValueError, match=r"`kernel` is not symmetric: .* 0\.5 \("):
            check_symmetric("kernel", bad)
    # Rounding is no asymmetry, and what is traced has no values yet.
    check_symmetric("kernel", good * (1 + 1e-6 * jr.normal(jr.key(1), good.shape)))
    jax.jit(lambda a: check_symmetric("kernel", a) or jnp.sum(a))(bad)
