"""The zoo's convolution inside a loop, against the same work outside."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import jax.random as jr

from scripts.benchmark.timing import Comparison, median_seconds
from zoo.convolution import convolve

_TILES, _PER_TILE = 8, 16


def zoo(image: jax.Array, weight: jax.Array, stride: int) -> jax.Array:
    """The zoo's convolution."""
    return convolve(image, weight, stride=(stride, stride), padding="SAME")


def xla(image: jax.Array, weight: jax.Array, stride: int) -> jax.Array:
    """XLA's own."""
    return jax.lax.conv_general_dilated(image[None], weight, (stride, stride), "SAME")[0]


# Who convolves, channels in and out, length of the image's sides, stride.
_CASES = (
    (zoo, 3, 32, 32, 1),
    (zoo, 64, 128, 16, 2),
    (xla, 64, 128, 16, 2),
)


def convolution(repeats: int) -> Iterator[Comparison]:
    """Values and gradients of convolutions on tiles of a batch, in `lax.map` and one by one.

    XLA's own is timed the same way, to show what the zoo's is for.
    """
    for convolver, channels_in, channels, size, stride in _CASES:
        tiles = jr.normal(jr.key(0), (_TILES, _PER_TILE, channels_in, size, size))
        weight = jr.normal(jr.key(1), (channels, channels_in, 3, 3))

        def outputs(tile, weight, convolver=convolver, stride=stride):
            return jax.vmap(lambda image: convolver(image, weight, stride))(tile)

        def gradients(tile, weight, outputs=outputs):
            return jax.grad(lambda *a: jnp.sum(outputs(*a) ** 2), argnums=(0, 1))(tile, weight)

        for kind, work in (("values", outputs), ("gradients", gradients)):
            alone = jax.jit(work)
            mapped = jax.jit(lambda tiles, w, f=work: jax.lax.map(lambda t: f(t, w), tiles))
            yield Comparison(
                f"{convolver.__name__} convolution 3x3, {channels_in} -> {channels} channels, "
                f"{size} x {size}, stride {stride}: {kind} in lax.map",
                median_seconds(lambda m=mapped, t=tiles, w=weight: m(t, w), repeats),
                "the same tiles outside",
                median_seconds(
                    lambda a=alone, t=tiles, w=weight: [a(tile, w) for tile in t], repeats
                ),
            )
