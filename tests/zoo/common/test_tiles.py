import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from zoo.common.tiles import in_tiles, shards_of, sum_in_tiles, Tiling


@pytest.mark.long
@settings(deadline=None, max_examples=15)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 12))
def test_tiles_hold_every_example_and_join_in_order(per_shard, shards, at_most):
    n = per_shard * shards
    tiling = Tiling(n, at_most, shards)
    assert tiling.size <= max(at_most, shards)
    x = jnp.arange(2 * n).reshape(n, 2)
    tiles = tiling.split(x)
    assert tiles.shape == (tiling.count, tiling.size, 2)
    # A tile holds as many examples of every shard.
    shard_of = tiles[:, :, 0] // 2 // per_shard
    np.testing.assert_array_equal(
        shard_of, np.repeat(np.arange(shards), tiling.size // shards)[None].repeat(tiling.count, 0)
    )
    np.testing.assert_array_equal(tiling.join(tiles), x)
    second = jnp.moveaxis(tiles, (0, 1), (1, 2))
    np.testing.assert_array_equal(tiling.join(second, axis=1), x.T)


def test_tiled_functions_give_what_they_give_at_once():
    x = jnp.arange(10.0).reshape(5, 2)
    for at_most in (1, 2, 3, 5, 9):
        np.testing.assert_array_equal(in_tiles(jnp.cumsum, x, at_most), jnp.cumsum(x, axis=1))
        tiled = in_tiles(lambda x: 2 * x, {"x": x}["x"], at_most, batched=True)
        np.testing.assert_array_equal(tiled, 2 * x)


def test_an_array_on_one_device_has_one_shard():
    assert shards_of(jnp.ones(3)) == shards_of({"x": jnp.ones(3)}) == 1


def test_sums_over_tiles_count_every_example_once():
    x = jnp.arange(10.0).reshape(5, 2)
    for at_most in (1, 2, 3, 5, 9):
        total = sum_in_tiles(lambda tile, w: {"sum": (w[:, None] * tile).sum(0)}, x, at_most)
        np.testing.assert_array_equal(total["sum"], x.sum(axis=0))
