"""Networks that the library knows nothing of, trained: by their plain gradients and by kernels."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import hierarchy_flow, MeanSquaredError, parameter_flow
from tests.foreign_models import batch, MODELS


@pytest.mark.long
@pytest.mark.parametrize("name", ["frozen layer", "type", "tied embedding"])
def test_flows_descend_along_plain_gradients(name):
    """Small Euler steps of the plain gradient, extrapolated to steps of none; and the stored
    kernels of the hierarchy against kernels as operators.
    """
    model, x, y, loss = MODELS[name].model, batch(3), jnp.ones((3, 2)), MeanSquaredError()
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def outputs(params):
        return jax.vmap(eqx.combine(params, static))(x)

    @jax.jit
    def euler(steps):
        def step(_, params):
            slope = jax.grad(lambda p: jnp.mean(jax.vmap(loss)(outputs(p), y)))(params)
            return jax.tree.map(lambda p, g: p - 0.1 / steps * g, params, slope)

        return outputs(jax.lax.fori_loop(0, steps, step, params))

    coarse, middle, fine = (euler(steps) for steps in (100, 200, 400))
    expected = (8 * fine - 6 * middle + coarse) / 3
    options = {"loss": loss, "rtol": 1e-10, "atol": 1e-12}
    flow = parameter_flow(model, x, y, [0.1], **options).train[-1]
    np.testing.assert_allclose(flow, expected, rtol=0, atol=1e-8)
    dense, free = (
        hierarchy_flow(model, x, y, [0.1], order=2, method=method, **options).train[-1]
        for method in ("dense", "matrix_free")
    )
    np.testing.assert_allclose(dense, free, rtol=0, atol=1e-8)
