"""Flows on accelerators and on several devices, shown without either.

In processes of their own: Equinox reads EQX_ON_ERROR as it is imported, and JAX the number of
devices as it starts. Without EQX_ON_ERROR=nan the checks inside a solve are host callbacks.
"""

import os

import pytest

from tests.processes import run

LOWERED = """
import equinox as eqx, jax, jax.numpy as jnp, lineax as lx
from jax import export
from solvers import CrossEntropy, gradient_flow, hierarchy_flow, mse_flow_operator, posterior
from tests.models import inputs, one_hot, tanh_mlp
from zoo import astype

params, static = eqx.partition(astype(tanh_mlp(), "float32"), eqx.is_array)
x, y, x_test = (a.astype("float32") for a in (inputs(4), one_hot(4, 2), inputs(2, seed=3)))
ts = jnp.array([0.0, 1.0], "float32")

def hierarchy(order):
    def solve(params, x, y, ts):
        model = eqx.combine(params, static)
        options = {"loss": CrossEntropy(), "order": order, "x_test": x_test}
        solved = hierarchy_flow(model, x, y, ts, **options, throw=False)
        return solved.train, solved.test, solved.valid
    return solve, (params, x, y, ts)

def frozen(kernel, y, ts):
    solved = gradient_flow(kernel, y, ts, loss=CrossEntropy(0.1), throw=False)
    return solved.train, solved.valid

def process(kernel, y, ts):
    found = posterior(kernel, y, noise=0.1, method="iterative", throw=False)
    return found.train.mean, found.stats["error"]

def unformed(kernel, y, ts):
    operator = lx.MatrixLinearOperator(kernel, lx.positive_semidefinite_tag)
    times = jnp.array([1.0, jnp.inf], "float32")
    solved = mse_flow_operator(operator, y, times, throw=False)
    return solved.train, solved.valid

solves = [hierarchy(order) for order in (2, 3, 4)]
solves += [(solve, (jnp.eye(4, dtype="float32"), y, ts)) for solve in (frozen, process, unformed)]
for platform in ("tpu", "cuda"):
    for solve, arguments in solves:
        text = export.export(jax.jit(solve), platforms=[platform])(*arguments).mlir_module()
        assert "stablehlo.while" in text
        assert "callback" not in text
        assert "f64" not in text
"""

SHARDED = """
import re
import equinox as eqx, jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from solvers import CrossEntropy, hierarchy_flow
from solvers.flows.matrix_free import matrix_free_flow, state_at_start
from solvers.flows.jet_products import JetProducts
from tests.models import inputs, one_hot, tanh_mlp

model, x, y, x_test = tanh_mlp(width=64), inputs(16), one_hot(16, 2), inputs(8, seed=3)
mesh = Mesh(np.array(jax.devices()), ("data",))
everywhere, cut = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
model4 = eqx.filter_shard(model, everywhere)
x4, y4, x_test4 = (jax.device_put(array, cut) for array in (x, y, x_test))
assert len(jax.devices()) == 4

for order in (2, 3, 4):
    network = JetProducts(model4, (x4, x_test4))
    flow = matrix_free_flow(network, y4, loss=CrossEntropy())
    state = jax.device_put(state_at_start(model4, order), everywhere)
    compiled = eqx.filter_jit(lambda flow, state: flow.motion(state)).lower(flow, state).compile()
    text = getattr(compiled, "compiled", compiled).as_text()
    reduced = re.findall(r"= (.*) all-reduce(?:-start)?[(]", text)
    of_parameters = [shapes for shapes in reduced if "[64,64]" in shapes]
    print(order, reduced)
    assert len(of_parameters) == 1, reduced
    options = {"loss": CrossEntropy(), "order": order}
    one = hierarchy_flow(model, x, y, [0.0, 1.0, 5.0], x_test=x_test, **options)
    four = hierarchy_flow(model4, x4, y4, [0.0, 1.0, 5.0], x_test=x_test4, **options)
    np.testing.assert_allclose(four.train, one.train, atol=1e-12)
    np.testing.assert_allclose(four.test, one.test, atol=1e-12)
"""


@pytest.mark.long
def test_lowers_for_accelerators():
    """Without host callbacks, and in float32 only."""
    run(LOWERED, EQX_ON_ERROR="nan")


@pytest.mark.long
def test_four_devices_give_what_one_gives_with_one_sum_over_devices_a_stage():
    """Of arrays as large as the parameters; the outputs of all points are gathered beside it."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    run(SHARDED, EQX_ON_ERROR="nan", XLA_FLAGS=flags)
