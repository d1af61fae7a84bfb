"""JAX's own hunt for NaN and inf: it is for those of users; ordinary calls pass."""

import pytest

from tests.processes import run

CALLS = """
import jax, jax.numpy as jnp, optax
import warnings; warnings.simplefilter("ignore")
from corrections import ntk, NTKOperator, extreme_eigenvalues
from solvers import *
from zoo import MLP

x = jax.random.normal(jax.random.key(0), (6, 4))
y = jax.nn.one_hot(jnp.arange(6) % 2, 2)
model = MLP(4, 2, width=8, depth=1, activation="tanh", key=jax.random.key(1))
kernel, operator = ntk(model, x), NTKOperator(model, x)
loss, sgd, forever = MeanSquaredError(), optax.sgd(0.1), [0.5, jnp.inf]
rbf = lambda a, b: jnp.exp(-jnp.sum((a[:, None] - b) ** 2, axis=-1))

assert train(model, x, y, loss=loss, optimizer=sgd, steps=3).successful
assert gradient_flow(kernel, y, forever, loss=loss).successful
stopped = gradient_flow(kernel, y, [0.1, 1e3], loss=loss, stop=AtLoss(0.05))
assert stopped.successful and list(stopped.valid) == [True, False], stopped.valid
assert jnp.asarray(stopped.train).shape == (2, 6, 2)
assert mse_flow(kernel, y, forever).successful
assert mse_flow_operator(operator, y, forever).successful
assert ensemble(rbf, rbf, x, y, ts=forever).successful
assert mse_descent(kernel, y, [1, 2**40], learning_rate=0.01).successful
assert extreme_eigenvalues(operator, 2).converged.all()
"""


@pytest.mark.long
@pytest.mark.parametrize("x64", ["0", "1"])
def test_ordinary_calls_do_not_stop(x64):
    run(CALLS, JAX_DEBUG_NANS="1", JAX_DEBUG_INFS="1", JAX_ENABLE_X64=x64)
