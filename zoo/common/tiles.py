"""Data in tiles, and pairs of tiles, so that memory is that of a tile and loops are rolled.

A batch that is sharded over devices is tiled on each device: a tile holds as many examples of
every shard, so that all devices work on each.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from zoo.common.examples import count

_T = TypeVar("_T")

CACHE_BYTES = 2**25
"""What the intermediate values of one tile may take on a CPU: they stay in its caches."""

DEVICE_BYTES = 2**28
"""The same on an accelerator, where larger products are faster."""


def working_bytes() -> int:
    """What the intermediate values of one tile may take on the default device."""
    return CACHE_BYTES if jax.default_backend() == "cpu" else DEVICE_BYTES


def step_bytes() -> int:
    """The same of a step that runs in no loop: larger ones have fewer steps, each of which costs
    what it takes to begin.
    """
    return 4 * working_bytes()


def shards_of(xs: PyTree) -> int:
    """Into how many shards the first axis of a batch is cut (1 where that is not known)."""
    x = jax.tree.leaves(xs)[0]
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
    tiling = Tiling(count(xs), at_most, shards)
    if tiling.count == 1:
        return whole(xs)
    return tiling.join(jax.lax.map(whole, tiling.split(xs)))


def sum_in_tiles(fn: Callable[[Any, Array], _T], xs: PyTree, at_most: int) -> _T:
    """The sum over tiles of what `fn` gives: at most so many examples at once.

    `fn` takes a batch and a weight for each of its examples: 0 for one that is in a tile before.
    """
    n = count(xs)
    tiling = Tiling(n, at_most)
    places = jnp.arange(tiling.count * tiling.size).reshape(tiling.count, tiling.size)
    weights = (places < n).astype(float)

    def add(total: _T, tile: tuple[Any, Array]) -> tuple[_T, None]:
        return jax.tree.map(jnp.add, total, fn(*tile)), None

    tiles = (tiling.split(xs), weights)
    like = jax.eval_shape(fn, *jax.tree.map(lambda a: a[0], tiles))
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    return jax.lax.scan(add, zero, tiles)[0]


def over_pairs(
    visit: Callable[[_T, Any, Any, Array, Array], _T],
    start: _T,
    xs: tuple[PyTree, PyTree | None],
    tilings: tuple[Tiling, Tiling],
    *,
    of_rows: Callable[[PyTree], Any] = lambda tile: tile,
    of_columns: Callable[[PyTree], Any] = lambda tile: tile,
) -> _T:
    """Visits the pairs of tiles of two sets, row by row, and returns what was carried along.

    **Arguments:**

    - `visit`: from what is carried, what there is of a row and of a column, and their places i, j.
    - `xs`: the sets; None for the second is the first, of which the tiles on and above the diagonal
      are visited.
    - `tilings`: how each is cut; the same for a set with itself.
    - `of_rows`, `of_columns`: what is computed of a tile before its pairs are visited: of a row
      once, of a column with each pair.
    """
    x1, x2 = xs
    tiles1 = tilings[0].split(x1)
    if x2 is None:
        return _above_diagonal(visit, start, tiles1, tilings[0].count, of_columns)
    tiles2 = tilings[1].split(x2)

    def row(carried: _T, place: tuple[Array, PyTree]) -> tuple[_T, None]:
        i, tile = place
        of_row = of_rows(tile)

        def column(carried: _T, place: tuple[Array, PyTree]) -> tuple[_T, None]:
            j, tile = place
            return visit(carried, of_row, of_columns(tile), i, j), None

        return jax.lax.scan(column, carried, (jnp.arange(tilings[1].count), tiles2))

    return jax.lax.scan(row, start, (jnp.arange(tilings[0].count), tiles1))[0]


def first_tiles(
    xs: tuple[PyTree, PyTree | None], tilings: tuple[Tiling, Tiling]
) -> tuple[PyTree, PyTree]:
    """The first of a row and of a column, to tell shapes by."""

    def first(xs: PyTree, tiling: Tiling) -> PyTree:
        return jax.tree.map(lambda tiles: tiles[0], tiling.split(xs))

    x1, x2 = xs
    return first(x1, tilings[0]), first(x1 if x2 is None else x2, tilings[1])


def _above_diagonal(
    visit: Callable[[_T, Any, Any, Array, Array], _T],
    start: _T,
    tiles: PyTree,
    count: int,
    of_tile: Callable[[PyTree], Any],
) -> _T:
    """Row by row: each begins on the diagonal, where row and column are one tile."""

    def at(place: Array) -> Any:
        return of_tile(jax.tree.map(lambda tile: tile[place], tiles))

    def step(carry: tuple[_T, Any], place: tuple[Array, Array]) -> tuple[tuple[_T, Any], None]:
        (carried, of_row), (i, j) = carry, place
        of_column = at(j)
        of_row = jax.tree.map(lambda c, r: jnp.where(i == j, c, r), of_column, of_row)
        return (visit(carried, of_row, of_column, i, j), of_row), None

    like = jax.eval_shape(at, jnp.asarray(0))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    rows, columns = np.triu_indices(count)
    (found, _), _ = jax.lax.scan(step, (start, nothing), (jnp.asarray(rows), jnp.asarray(columns)))
    return found


class Blocks(NamedTuple):
    """A kernel of two sets that is put together of blocks, one for each pair of tiles.

    - `tilings`: of its rows and its columns.
    - `middle`: the axis of a block that the examples of columns are on; those of rows are on 0.
    """

    tilings: tuple[Tiling, Tiling]
    middle: int

    def empty(self, block: jax.ShapeDtypeStruct) -> Array:
        """Zeros in the place of all blocks like this one."""
        rows, columns = (tiling.count for tiling in self.tilings)
        before, after = block.shape[: self.middle], block.shape[self.middle :]
        return jnp.zeros((rows, *before, columns, *after), block.dtype)

    def write(self, kernel: Array, block: Array, i: Array, j: Array) -> Array:
        """With the block of the i-th rows and the j-th columns."""
        start = [i, *[0] * self.middle, j, *[0] * (kernel.ndim - self.middle - 2)]
        placed = jnp.expand_dims(block, (0, self.middle + 1))
        return jax.lax.dynamic_update_slice(kernel, placed, start)

    def write_both(self, kernel: Array, block: Array, i: Array, j: Array) -> Array:
        """With a block of a symmetric kernel, and its mirror image."""
        m = self.middle
        mirrored = jnp.moveaxis(block, range(m), range(m, 2 * m))
        return self.write(self.write(kernel, mirrored, j, i), block, i, j)

    def joined(self, kernel: Array) -> Array:
        """The kernel, an axis for each set."""
        rows, columns = self.tilings
        return columns.join(rows.join(kernel), axis=self.middle)
