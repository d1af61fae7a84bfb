"""The zoo's convolution inside a loop, against the same work outside."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import jax.random as jr

from scripts.benchmark.timing import Comparison, median_seconds
from zoo.convolution import convolve

_TILES, _PER_TILE = 8, 16


def convolution(repeats: int) -> Iterator[Comparison]:
    """Values and gradients of convolutions on tiles of a batch, in `lax.map` and one by one.

    XLA's own convolution is timed the same way, to show what the zoo's is for.
    """
    for channels_in, channels, size, stride in ((3, 32, 32, 1), (64, 128, 16, 2)):
        tiles = jr.normal(jr.key(0), (_TILES, _PER_TILE, channels_in, size, size))
        weight = jr.normal(jr.key(1), (channels, channels_in, 3, 3))

        def zoo(image, weight, stride=stride):
            return convolve(image, weight, stride=(stride, stride), padding="SAME")

        def xla(image, weight, stride=stride):
            return jax.lax.conv_general_dilated(image[None], weight, (stride,) * 2, "SAME")[0]

        for name, fn in (("zoo", zoo), ("XLA", xla)):

            def outputs(tile, weight, fn=fn):
                return jax.vmap(fn, in_axes=(0, None))(tile, weight)

            def gradient(tile, weight, outputs=outputs):
                return jax.grad(lambda *a: jnp.sum(outputs(*a) ** 2), argnums=(0, 1))(tile, weight)

            for kind, work in (("values", outputs), ("gradients", gradient)):
                alone = jax.jit(work)
                mapped = jax.jit(lambda tiles, w, f=work: jax.lax.map(lambda t: f(t, w), tiles))
                yield Comparison(
                    f"{name} convolution 3x3, {channels_in} -> {channels} channels, {size} x {size}"
                    f", stride {stride}: {kind} in lax.map",
                    median_seconds(lambda m=mapped, t=tiles, w=weight: m(t, w), repeats),
                    "the same tiles outside",
                    median_seconds(
                        lambda a=alone, t=tiles, w=weight: [a(tile, w) for tile in t], repeats
                    ),
                )
