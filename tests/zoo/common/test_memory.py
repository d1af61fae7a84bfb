"""What kernels need beside their result, by the compiler's account."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from corrections import ntk
from zoo import memory_limit, WideResNet


@pytest.mark.slow
def test_tiles_bound_the_memory_of_a_wide_resnet(float32):
    """WideResNet-16-4 on 32 x 32 images, 1 GiB kept, steps of 8: under 4 GiB, whatever the number
    of examples but for the kernel itself.
    """
    model = eqx.filter_jit(lambda key: WideResNet((3, 32, 32), 10, depth=16, widen=4, key=key))(
        jr.key(0)
    )
    params, static = eqx.partition(model, eqx.is_inexact_array)

    @jax.jit
    def kernel(params, x):
        return ntk(eqx.combine(params, static), x, batch_size=8)

    needed = []
    for n in (32, 64):
        x = jax.ShapeDtypeStruct((n, 3, 32, 32), jnp.float32)
        with memory_limit("1 GiB"):
            analysis = kernel.lower(params, x).compile().memory_analysis()
        needed.append(analysis.temp_size_in_bytes)
        print(n, f"{needed[-1] / 2**30:.2f} GiB")
    assert needed[1] < 4 * 2**30
    kernel_bytes = 4 * 640**2
    assert needed[1] - needed[0] < 2 * kernel_bytes + 2**25
