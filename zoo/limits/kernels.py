"""The kernels of one layer of an infinitely wide network, over examples and positions."""

import math
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class LimitLayout(IntEnum):
    """Which pairs of positions of two examples a kernel holds; each holds those before it too.

    - `NONE`: nothing.
    - `FLAT`: the mean over equal positions, one number a pair of examples.
    - `DIAGONAL`: equal positions, (*space).
    - `FULL`: all pairs, (*space, *space).
    """

    NONE = 0
    FLAT = 1
    DIAGONAL = 2
    FULL = 3


class LimitNeeds(NamedTuple):
    """What is needed of a layer's output: between examples, and of each example with itself."""

    between: LimitLayout = LimitLayout.FLAT
    own: LimitLayout = LimitLayout.NONE

    def at_least(self, between: LimitLayout, own: LimitLayout = LimitLayout.NONE) -> "LimitNeeds":
        """These and more."""
        return LimitNeeds(max(self.between, between), max(self.own, own))


class LimitSide(eqx.Module):
    """One of the two batches: the covariances of each example with itself, (n, *positions)."""

    own: Float[Array, "n ..."] | None
    layout: LimitLayout = eqx.field(static=True)

    def variances(self, axes: int) -> Float[Array, "n *space"]:
        """Of each position, (n, *space), `axes` many."""
        assert self.own is not None
        if self.layout < LimitLayout.FULL or axes == 0:
            return self.own
        n, *space = self.own.shape[: 1 + axes]
        size = math.prod(space)
        diagonal = jnp.diagonal(self.own.reshape(n, size, size), axis1=1, axis2=2)
        return diagonal.reshape(n, *space)


class LayerKernels(eqx.Module):
    """The kernels of a layer's output between two batches of examples.

    - `nngp`: the covariance of one channel, (n1, n2, *positions) in the layout `layout`.
    - `ntk`: the tangent kernel likewise; None: zero, or not asked for.
    - `of_scale`: what the scales of a normalization add to the tangent kernel of a channel z, in
      units of z(x1) z(x2): unlike all else, it differs from channel to channel. None: nothing.
    - `sides`: the batches.
    - `error`: how far off the kernels may be, relative to their diagonal.
    - `space`: lengths of the spatial axes.
    - `channels`: their number in the model that this is the limit of; None where it is not known.
    - `gaussian`: whether channels are independent Gaussians of mean zero: preactivations.
    - `fresh`: whether they are independent of what entered the innermost branch, given its
      covariance: they come out of random weights.
    - `tangent`: whether a tangent kernel is asked for.
    """

    nngp: Float[Array, "n1 n2 ..."]
    ntk: Float[Array, "n1 n2 ..."] | None
    of_scale: Float[Array, ""] | None
    sides: tuple[LimitSide, LimitSide]
    error: Float[Array, ""]
    layout: LimitLayout = eqx.field(static=True)
    space: tuple[int, ...] = eqx.field(static=True)
    channels: int | None = eqx.field(static=True)
    gaussian: bool = eqx.field(static=True)
    fresh: bool = eqx.field(static=True)
    tangent: bool = eqx.field(static=True)

    def between_sides(
        self, of_first: Float[Array, "n1 ..."], of_second: Float[Array, "n2 ..."]
    ) -> tuple[Array, Array]:
        """Numbers of the examples of each batch, (n,), or of their positions, (n, *space), in the
        shapes that broadcast to `nngp`.
        """
        rank, positions = self.nngp.ndim, of_first.ndim - 1
        first = jnp.expand_dims(of_first, (1, *range(2 + positions, rank)))
        second = jnp.expand_dims(of_second, (0, *range(2, rank - positions)))
        return first, second

    def averaged(self) -> "LayerKernels":
        """With the part of the scales in the tangent kernel, averaged over channels."""
        if self.of_scale is None:
            return self
        ntk = self.of_scale * self.nngp
        return self.replaced(ntk=ntk if self.ntk is None else self.ntk + ntk, of_scale=None)

    def replaced(self, **changes: object) -> "LayerKernels":
        """A copy with other fields."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return LayerKernels(**(fields | changes))  # pyright: ignore[reportArgumentType]

    def mapped(
        self, fn: Callable[[Array, LimitLayout], Array], **changes: object
    ) -> "LayerKernels":
        """`fn` on all kernels alike, given the layout of each."""
        sides = tuple(
            LimitSide(None if side.own is None else fn(side.own, side.layout), side.layout)
            for side in self.sides
        )
        ntk = None if self.ntk is None else fn(self.ntk, self.layout)
        return self.replaced(nngp=fn(self.nngp, self.layout), ntk=ntk, sides=sides, **changes)


def own_pairs(side: LimitSide, axes: int) -> tuple[Array, Array]:
    """The variances of the two positions of each entry of a side in the layout `FULL`."""
    variances = side.variances(axes)
    n, *space = variances.shape
    ones = (1,) * axes
    return variances.reshape(n, *space, *ones), variances.reshape(n, *ones, *space)
