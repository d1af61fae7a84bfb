"""The kernels of the examples themselves: what enters an infinitely wide network."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zoo.limits.kernels import LayerKernels, LimitLayout, LimitNeeds, LimitSide

_ROUNDS_TO_ITSELF = 16
"""Up to so many channels, products of an example with itself come out within a few roundings."""


class InputBatch(eqx.Module):
    """A batch of examples, and what is known of each by itself.

    - `entries`: vectors (n, d), or images (n, channels, positions).
    - `own`: covariances of each with itself, (n, *positions) in the layout `own_layout`.
    - `marks`: hashes, (n, 2), by which equal examples are found, where rounding would tell them
      apart.
    """

    entries: Float[Array, "n channels ..."]
    own: Float[Array, "n ..."] | None
    marks: Array | None
    layout: LimitLayout = eqx.field(static=True)
    own_layout: LimitLayout = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    space: tuple[int, ...] = eqx.field(static=True)


def input_batch(x: Float[Array, "n channels *space"], needs: LimitNeeds) -> InputBatch:
    """Of vectors or channel-first images, for kernels in the layouts that are needed."""
    n, channels, *space = x.shape
    layout = max(needs.between, LimitLayout.FLAT)
    marks = None
    entries = x.reshape(n, channels, -1) if space else x
    if layout == LimitLayout.FLAT:
        entries = x.reshape(n, -1)
        if entries.shape[1] > _ROUNDS_TO_ITSELF:
            marks = _hashes(entries)
    return InputBatch(entries, _own(x, needs.own), marks, layout, needs.own, channels, tuple(space))


def input_kernels(first: InputBatch, second: InputBatch, *, tangent: bool) -> LayerKernels:
    """K(p, p') = x1(p) . x2(p') / channels.

    Equal examples have the correlation 1 exactly: see `zoo.limits.duals.gaussian_pair`.
    """
    x1, x2 = first.entries, second.entries
    layout, space = first.layout, first.space
    if layout == LimitLayout.FLAT or not space:
        size = x1.shape[1]
        nngp = x1 @ x2.T / size
        if first.marks is not None and second.marks is not None:
            squares = (jnp.sum(x1**2, axis=1) / size)[:, None]
            exact = jax.lax.stop_gradient(squares - nngp)
            equal = jnp.all(first.marks[:, None] == second.marks[None], axis=-1)
            nngp = nngp + jnp.where(equal, exact, 0)
    elif layout == LimitLayout.DIAGONAL:
        nngp = jnp.einsum("acp,bcp->abp", x1, x2) / first.channels
        nngp = nngp.reshape(len(x1), len(x2), *space)
    else:
        nngp = jnp.einsum("acp,bcq->abpq", x1, x2) / first.channels
        nngp = nngp.reshape(len(x1), len(x2), *space, *space)
    return LayerKernels(
        nngp=nngp,
        ntk=None,
        of_scale=None,
        sides=(LimitSide(first.own, first.own_layout), LimitSide(second.own, second.own_layout)),
        error=jnp.zeros((), nngp.dtype),
        layout=layout,
        space=space,
        channels=first.channels,
        gaussian=False,
        fresh=False,
        tangent=tangent,
    )


def _own(x: Float[Array, "n channels *space"], layout: LimitLayout) -> Array | None:
    n, channels, *space = x.shape
    if layout == LimitLayout.NONE:
        return None
    if layout == LimitLayout.FLAT:
        return jnp.sum(x.reshape(n, -1) ** 2, axis=1) / x[0].size
    if layout == LimitLayout.DIAGONAL:
        return jnp.sum(x**2, axis=1) / channels
    flat = x.reshape(n, channels, -1)
    own = jnp.einsum("acp,acq->apq", flat, flat) / channels
    return own.reshape(n, *space, *space)


def _hashes(x: Float[Array, "n d"]) -> Array:
    """Two hashes of 32 bits of each example: equal ones have equal ones."""
    words = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x) + 0.0, jnp.uint32)  # -0 is 0
    words = words.reshape(len(x), -1)
    odd = np.random.default_rng(0).integers(0, 2**31, (2, words.shape[1]), np.uint32) * 2 + 1
    mixed = words[:, None] * jnp.asarray(odd)[None]
    mixed = mixed ^ (mixed >> 15)
    return jnp.sum(mixed, axis=-1, dtype=jnp.uint32)
