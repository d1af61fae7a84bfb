"""States that do not hold the outputs: steps are as small as the outputs ask for."""

import jax.numpy as jnp
import numpy as np
import pytest

from solvers import hierarchy_flow, MeanSquaredError, parameter_flow
from tests.models import inputs, one_hot, tanh_mlp
from zoo import centered, scaled

ALPHA = 1e4


@pytest.mark.long
@pytest.mark.parametrize("order", [2, pytest.param(3, marks=pytest.mark.long), None])
def test_outputs_keep_the_tolerance_where_parameters_hardly_move(order):
    """Parameters of a network scaled by 1e4 move by 1e-4, so that errors of 1e-8, the default
    absolute tolerance, are 1e-4 in the outputs. The reference is its own at 1e-12; `None` is the
    flow of the network itself.
    """
    model = scaled(centered(tanh_mlp()), ALPHA)
    x, y, x_test = inputs(4), one_hot(4, 2), inputs(3, seed=11)
    options = {"loss": MeanSquaredError(), "x_test": x_test}
    solve = parameter_flow if order is None else hierarchy_flow
    if order is not None:
        options["order"] = order
    ts = jnp.array([0.1, 1.0, 10.0]) / ALPHA**2
    found = solve(model, x, y, ts, **options)
    expected = solve(model, x, y, ts, rtol=1e-12, atol=1e-16, **options)
    assert jnp.max(jnp.abs(expected.train[-1])) > 0.5
    np.testing.assert_allclose(found.train, expected.train, atol=1e-6)
    np.testing.assert_allclose(found.test, expected.test, atol=1e-6)
