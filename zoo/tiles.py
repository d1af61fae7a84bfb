"""Data in tiles, so that memory is that of a tile and loops are rolled.

A batch that is sharded over devices is tiled on each device: a tile holds as many examples of
every shard, so that all devices work on each.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

_T = TypeVar("_T")

CACHE_BYTES = 2**25
"""What the intermediate values of one tile may take on a CPU: they stay in its caches."""

DEVICE_BYTES = 2**28
"""The same on an accelerator, where larger products are faster."""

STORED_BYTES = 2**30
"""What gradients of all examples may take where no `batch_size` is given."""


def working_bytes() -> int:
    """What the intermediate values of one tile may take on the default device."""
    return CACHE_BYTES if jax.default_backend() == "cpu" else DEVICE_BYTES


def shards_of(x: Array | None) -> int:
    """Into how many shards the first axis of `x` is cut (1 where that is not known)."""
    if x is None:
        return 1
    try:
        return len(x) // x.sharding.shard_shape(x.shape)[0]
    except (AttributeError, TypeError):
        return 1


class Tiling:
    """How n examples are cut into `count` tiles of `size` examples, the same on each shard.

    Where the tiles do not come out even, some examples are taken twice.
    """

    def __init__(self, n: int, at_most: int, shards: int = 1):
        """**Arguments:**

        - `n`: examples.
        - `at_most`: the most examples in a tile (at least one of each shard).
        - `shards`: a divisor of `n`.
        """
        self.n, self.shards = n, shards
        per_shard = n // shards
        self.count = math.ceil(per_shard / max(1, at_most // shards))
        self._per_shard = math.ceil(per_shard / self.count)
        self.size = self._per_shard * shards

    def split(self, xs: PyTree) -> PyTree:
        """(n, ...) as (count, size, ...)."""

        def split(x: Array) -> Array:
            x = x.reshape(self.shards, self.n // self.shards, *x.shape[1:])
            missing = self.count * self._per_shard - x.shape[1]
            if missing:
                x = jnp.concatenate([x, x[:, :missing]], axis=1)
            x = x.reshape(self.shards, self.count, self._per_shard, *x.shape[2:])
            return jnp.moveaxis(x, 1, 0).reshape(self.count, self.size, *x.shape[3:])

        return jax.tree.map(split, xs)

    def join(self, tiles: PyTree, axis: int = 0) -> PyTree:
        """The inverse of `split`, where `axis` and the one after it are those of the tiles."""

        def join(x: Array) -> Array:
            before, after = x.shape[:axis], x.shape[axis + 2 :]
            x = x.reshape(*before, self.count, self.shards, self._per_shard, *after)
            x = jnp.moveaxis(x, axis, axis + 1)
            x = x.reshape(*before, self.shards, self.count * self._per_shard, *after)
            kept = (slice(None),) * (axis + 1)
            x = x[(*kept, slice(self.n // self.shards))]
            return x.reshape(*before, self.n, *after)

        return jax.tree.map(join, tiles)


def in_tiles(
    fn: Callable[[Any], _T], xs: PyTree, at_most: int, shards: int = 1, *, batched: bool = False
) -> _T:
    """`jax.vmap(fn)(xs)`, at most so many examples at once; `batched`: `fn` takes a batch."""
    whole = fn if batched else jax.vmap(fn)
    tiling = Tiling(len(jax.tree.leaves(xs)[0]), at_most, shards)
    if tiling.count == 1:
        return whole(xs)
    return tiling.join(jax.lax.map(whole, tiling.split(xs)))


def sum_in_tiles(fn: Callable[[Any, Array], _T], xs: PyTree, at_most: int) -> _T:
    """The sum over tiles of what `fn` gives: at most so many examples at once.

    `fn` takes a batch and a weight for each of its examples: 0 for one that is in a tile before.
    """
    n = len(jax.tree.leaves(xs)[0])
    tiling = Tiling(n, at_most)
    places = jnp.arange(tiling.count * tiling.size).reshape(tiling.count, tiling.size)
    weights = (places < n).astype(float)

    def add(total: _T, tile: tuple[Any, Array]) -> tuple[_T, None]:
        return jax.tree.map(jnp.add, total, fn(*tile)), None

    tiles = (tiling.split(xs), weights)
    like = jax.eval_shape(fn, *jax.tree.map(lambda a: a[0], tiles))
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    return jax.lax.scan(add, zero, tiles)[0]
