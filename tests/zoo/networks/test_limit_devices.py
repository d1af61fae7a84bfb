"""Limits of infinite width on accelerators and on several devices, shown without either."""

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from jax import export

from tests.processes import run
from zoo import CNN, limit, MLP

NETWORKS = {
    "MLP": lambda: limit(MLP(8, 1, width=4, depth=2, bias_std=0.1, key=jr.key(0))),
    "MLP by series": lambda: limit(MLP(8, 1, width=4, depth=1, activation="tanh", key=jr.key(0))),
    "CNN": lambda: limit(CNN((2, 2, 2), 1, channels=4, depth=1, readout="mean", key=jr.key(0))),
}


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("name", NETWORKS)
def test_lowers_for_accelerators(name, platform):
    """Without host callbacks, and in float32 only but for the standard deviations."""
    network = NETWORKS[name]()
    shape = (5, 2, 2, 2) if name == "CNN" else (5, 8)

    def kernels(x):
        return network.kernels(x, batch_size=2)

    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    text = export.export(jax.jit(kernels), platforms=[platform])(x).mlir_module()
    assert "callback" not in text
    assert "xf64>" not in text  # no array of them


SHARDED = """
import os
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=4"
)
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, jax.random as jr, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from zoo import CNN, limit
from zoo.networks.infinite_network import _kernels

model = CNN((2, 3, 3), 1, channels=4, depth=2, readout="mean", bias_std=0.1, key=jr.key(0))
network, x = limit(model), jr.normal(jr.key(1), (16, 2, 3, 3))
mesh = Mesh(np.array(jax.devices()), ("data",))
cut = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
expected = network.kernels(x)
for found in (network.kernels(cut), network.kernels(cut, batch_size=8), network.kernels(cut, x)):
    for kernel, one in zip(found, expected):
        np.testing.assert_allclose(kernel, one, rtol=1e-12)
rows = network.kernels(cut).ntk.sharding.shard_shape((16, 16))
assert rows == (4, 16), rows

def flops(x, x2, shards):
    compiled = _kernels.lower(network.rule, x, x2, 16, shards, True).compile()
    found = getattr(compiled, "compiled", compiled).cost_analysis()
    return (found[0] if isinstance(found, list) else found)["flops"]

ratio = flops(cut, x, 4) / flops(x, x, 1)
print(ratio)
assert ratio < 0.4, ratio
"""


@pytest.mark.long
def test_four_devices_give_what_one_gives_with_a_part_of_its_work():
    run(SHARDED)
