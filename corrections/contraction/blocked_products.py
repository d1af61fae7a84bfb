"""Products of the gradients of many examples: the same numbers as `product` gives, in pieces that
stay in the caches, of what is symmetric those on and above the diagonal. Not to be differentiated:
loops would keep each piece.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from corrections.contraction.products import (
    Deferred,
    Gradients,
    gram,
    layer_product,
    LayerGradients,
    Materialized,
    Metrics,
    repeated,
    Term,
)
from zoo.common.tiles import in_tiles, working_bytes

_ROWS = 256
"""Products of matrices that have fewer rows run at a lower rate."""

_MOST_PARTS = 4
"""Into which the rows of a symmetric product are cut: 10 of 16 blocks are computed."""


class _Blocks(NamedTuple):
    """Which parts of a product are computed: of rows and of columns, and pairs of them.

    `columns` is None for a set with itself, of which the pairs are those on and above the diagonal.
    """

    rows: list[slice]
    columns: list[slice] | None

    def pairs(self) -> Iterator[tuple[int, int]]:
        """The places of the parts of each block."""
        if self.columns is None:
            return itertools.combinations_with_replacement(range(len(self.rows)), 2)
        return itertools.product(range(len(self.rows)), range(len(self.columns)))

    def whole(self, parts: list[Array], diagonal: bool) -> Array:
        """All blocks in one array."""
        if self.columns is not None:
            return parts[0]
        n, middle = self.rows[-1].stop, 1 if diagonal else 2
        outputs = parts[0].shape[1 + middle :]
        shape = (n, n, *outputs) if diagonal else (n, *outputs, n, *outputs)
        found = jnp.zeros(shape, parts[0].dtype)
        for part, (i, j) in zip(parts, self.pairs(), strict=True):
            rows, columns = self.rows[i], self.rows[j]
            mirror = jnp.moveaxis(part, range(middle), range(middle, 2 * middle))
            between = () if diagonal else (slice(None),)
            found = found.at[(columns, *between, rows)].set(mirror)
            found = found.at[(rows, *between, columns)].set(part)
        return found


@jax.named_scope("kernel_products")
def blocked_product(
    metrics: Metrics, first: Gradients, second: Gradients | None = None, *, diagonal: bool = False
) -> Float[Array, "n1 ..."]:
    """`product(metrics, first, second)`; a missing `second` means `first`."""
    other = first if second is None else second
    n1, k = first.rest.shape[:2]
    blocks = _Blocks(_parts(n1, k), None) if second is None else _ALL
    scale = None if metrics.rest is None else repeated(metrics.rest, first)
    totals = _gram(first.rest, other.rest, scale, blocks, diagonal)
    for metric, layer1, layer2 in zip(metrics.layers, first.layers, other.layers, strict=True):
        # One after the other: two of them at a time get in each other's way in the caches.
        same = layer2 is layer1
        totals, layer1 = jax.lax.optimization_barrier((totals, layer1))
        parts = _layer_product(layer1, layer1 if same else layer2, metric, blocks, diagonal)
        totals = [total + part for total, part in zip(totals, parts, strict=True)]
    return blocks.whole(totals, diagonal)


_ALL = _Blocks([slice(None)], [slice(None)])


def _parts(n: int, k: int) -> list[slice]:
    """The rows of a symmetric product of n examples with k outputs, in parts."""
    count = min(n, _MOST_PARTS, max(1, n * k // _ROWS))
    bounds = [int(bound) for bound in np.linspace(0, n, count + 1)]
    return [slice(i, j) for i, j in itertools.pairwise(bounds)]


def _layer_product(
    first: LayerGradients,
    second: LayerGradients,
    metric: tuple[Any, Any],
    blocks: _Blocks,
    diagonal: bool,
) -> list[Array]:
    if isinstance(first, Materialized):
        assert isinstance(second, Materialized)
        weight, bias = metric
        of_weight = _gram(first.weight, second.weight, None, blocks, diagonal)
        parts = [weight * part for part in of_weight]
        if bias is None:
            return parts
        of_bias = _gram(first.bias, second.bias, None, blocks, diagonal)
        return [part + bias * other for part, other in zip(parts, of_bias, strict=True)]
    rows, columns = blocks.rows, blocks.rows if blocks.columns is None else blocks.columns
    if isinstance(first, Deferred):
        whole = layer_product(first, second, *metric)
        return [whole[rows[i], :, columns[j]] for i, j in blocks.pairs()]  # pyright: ignore
    assert isinstance(second, list)
    parts = []
    for i, j in blocks.pairs():
        these, those = (
            jax.tree.map(lambda a, s=s: a[s], terms)
            for terms, s in ((first, rows[i]), (second, columns[j]))
        )
        pairs = sum(_bytes_of_pair(t1, t2, diagonal) for t1 in these for t2 in those)
        at_most = max(1, 8 * working_bytes() // (pairs * len(those[0].input)))

        def of_rows(these: LayerGradients, those: LayerGradients = those) -> Array:
            return layer_product(these, those, *metric, diagonal=diagonal)  # pyright: ignore

        parts.append(in_tiles(of_rows, these, at_most, batched=True))
    return parts


def _bytes_of_pair(first: Term, second: Term, diagonal: bool) -> int:
    """What products of all positions and outputs of a pair of examples take."""
    (k1, p1), (k2, p2) = first.cotangent.shape[1:3], second.cotangent.shape[1:3]
    return (k1 if diagonal else k1 * k2) * p1 * p2 * first.input.dtype.itemsize


def _gram(
    first: Float[Array, "n1 k size"],
    second: Float[Array, "n2 l size"],
    scale: Float[Array, " size"] | None,
    blocks: _Blocks,
    diagonal: bool,
) -> list[Array]:
    """Blocks of `gram(first * scale, second)`, the long axis in chunks."""
    size, sets = first.shape[-1], [first] if second is first else [first, second]
    row_bytes = sum(a.shape[0] * a.shape[1] for a in sets) * first.dtype.itemsize
    chunk = max(_ROWS, working_bytes() // 2 // row_bytes)

    def parts_of(a: Array, slices: list[slice], start: Array | int, length: int) -> list[Array]:
        # Each is cut out of the whole: slices of slices would be copied once more.
        bounds = [rows.indices(len(a))[:2] for rows in slices]
        return [
            jax.lax.dynamic_slice(a, (first, 0, start), (stop - first, a.shape[1], length))
            for first, stop in bounds
        ]

    def of_chunk(start: Array | int, length: int) -> list[Array]:
        rows = columns = parts_of(first, blocks.rows, start, length)
        if blocks.columns is not None:
            columns = parts_of(second, blocks.columns, start, length)
        if scale is not None:
            part = jax.lax.dynamic_slice_in_dim(scale, start, length)[None, None]
            rows = [part * a for a in rows]
        return [gram(rows[i], columns[j], diagonal) for i, j in blocks.pairs()]

    count = size // chunk
    if count <= 1:
        return of_chunk(0, size)

    def add(totals: list[Array], start: Array) -> tuple[list[Array], None]:
        return [t + p for t, p in zip(totals, of_chunk(start, chunk), strict=True)], None

    totals, _ = jax.lax.scan(add, of_chunk(0, chunk), chunk * jnp.arange(1, count))
    if size % chunk:
        last = of_chunk(count * chunk, size % chunk)
        totals = [total + part for total, part in zip(totals, last, strict=True)]
    return totals
