"""Kernels on accelerators and on several devices, shown without either."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jax import export

from corrections import hessian_norm, ntk, NTKOperator, o3, o4, taylorize
from tests.models import inputs, tanh_mlp
from tests.processes import run
from zoo import astype, CNN

CALLS = {
    "ntk": lambda model, x: ntk(model, x),
    "ntk in tiles": lambda model, x: ntk(model, x, batch_size=2),
    "o3": lambda model, x: o3(model, x),
    "o4": lambda model, x: o4(model, x[:1]),
    "operator": lambda model, x: NTKOperator(model, x).mv(jnp.ones((len(x), 2), x.dtype)),
    "Taylor model": lambda model, x: jax.vmap(taylorize(model, 2))(x),
    "hessian_norm": lambda model, x: hessian_norm(model, x[:1]),
}


def lowered(call, model, x, platform):
    params, static = eqx.partition(model, eqx.is_inexact_array)
    fn = jax.jit(lambda params, x: call(eqx.combine(params, static), x))
    return export.export(fn, platforms=[platform])(params, x).mlir_module()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("name", CALLS)
def test_lowers_for_accelerators(name, platform):
    """Without host callbacks, and in float32 only."""
    model, x = astype(tanh_mlp(), "float32"), inputs(3).astype("float32")
    text = lowered(CALLS[name], model, x, platform)
    assert "callback" not in text
    assert "f64" not in text


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_convolutions_are_native_on_accelerators(platform):
    model = CNN((2, 4, 4), 2, channels=3, depth=1, activation="tanh", key=jax.random.key(0))
    x = jnp.ones((2, 2, 4, 4), "float32")
    for name in ("ntk", "o3"):
        text = lowered(CALLS[name], astype(model, "float32"), x, platform)
        assert "stablehlo.convolution" in text
        assert "callback" not in text
        assert "f64" not in text


SHARDED = """
import os
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_force_host_platform_device_count=4"
)
import jax
jax.config.update("jax_enable_x64", True)
import equinox as eqx, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from corrections import ntk, NTKOperator, o3, o4
from corrections.kernels import ntk as of_tangent
from corrections.operators.ntk_operator import _compiled
from corrections.kernels.hierarchy import _contracted, _Options
from tests.models import inputs, tanh_mlp

model, x = tanh_mlp(width=64), inputs(16)
mesh = Mesh(np.array(jax.devices()), ("data",))
everywhere = NamedSharding(mesh, PartitionSpec())
cut = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
model4 = eqx.filter_shard(model, everywhere)

def close(result, expected):
    np.testing.assert_allclose(result, expected, atol=1e-13 * float(np.abs(expected).max()))

close(ntk(model4, cut), ntk(model, x))
close(ntk(model4, cut, batch_size=8), ntk(model, x))
close(o3(model4, cut[:8]), o3(model, x[:8]))
close(o3(model4, jax.device_put(x[:8], cut.sharding), batch_size=4), o3(model, x[:8]))
close(o4(model4, jax.device_put(x[:4], cut.sharding)), o4(model, x[:4]))
g = jnp.ones((16, 2))
close(NTKOperator(model4, cut).mv(g), NTKOperator(model, x).mv(g))

def flops(lower):
    compiled = lower.compile()
    found = getattr(compiled, "compiled", compiled).cost_analysis()
    return (found[0] if isinstance(found, list) else found)["flops"]

def of_ntk(model, x, shards):
    options = of_tangent._Options("full", "auto", None, 2**30)
    return flops(of_tangent._in_one_program.lower(model, x, None, None, options, shards))

def of_o3(model, x, shards):
    sets = (x, None, None)
    return flops(_contracted.lower("o3", model, sets, _Options(None, "auto", None, shards, 2**30)))

def of_o4(model, x, shards):
    sets = (x[:4] if shards == 1 else jax.device_put(x[:4], cut.sharding), None, None, None)
    return flops(_contracted.lower("o4", model, sets, _Options(None, "auto", None, shards, 2**30)))

def of_operator(model, x, shards):
    g = jnp.ones((16, 2)) if shards == 1 else jax.device_put(jnp.ones((16, 2)), cut.sharding)
    return flops(_compiled.lower(NTKOperator(model, x), g))

for count in (of_ntk, of_o3, of_o4, of_operator):
    ratio = count(model4, cut, 4) / count(model, x, 1)
    print(count.__name__, ratio)
    assert ratio < 0.4, ratio
"""


@pytest.mark.long
def test_four_devices_give_what_one_gives_with_a_part_of_its_work():
    run(SHARDED)
