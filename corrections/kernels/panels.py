"""The tangent kernel of many examples: gradients that fit into memory are computed once.

Rows come in panels as large as the memory that may be kept (`zoo.memory_limit`) allows; columns
stream past each in tiles. So gradients are computed once where all of them fit, and about n / panel
times where they do not. Of a kernel of one set with itself nothing below the diagonal is computed.

Python walks from tile to tile, not a loop inside of one program: what is kept is then just what the
plan says, and nothing compiled runs inside a loop, where XLA's convolutions are slow on CPUs.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from corrections.contraction.blocked_products import blocked_product
from corrections.contraction.products import Gradients, Metrics
from zoo.common.tiles import step_bytes

Outputs = Literal["full", "mean", "diagonal"]

_COLUMNS = 256
"""The most in a tile of columns."""


class Plan(NamedTuple):
    """What is taken at once.

    - `tile`: examples whose gradients are computed in one step.
    - `panel`: rows whose gradients are kept.
    - `columns`: columns whose gradients are kept beside them.
    """

    tile: int
    panel: int
    columns: int


def plan(
    *, rows: int, columns: int | None, stored: int, working: int, tile: int | None, memory: int
) -> Plan:
    """How a kernel of so many rows and columns is cut.

    **Arguments:**

    - `columns`: None for a set with itself.
    - `stored`, `working`: bytes of an example's gradients, and of what is needed to compute them.
    - `tile`: the most examples in one step; None: what keeps that in the caches.
    - `memory`: what may be kept.
    """
    wide = rows if columns is None else columns
    if tile is None:
        tile = max(1, min(step_bytes(), memory // 16) // (working + stored))
    tile = min(tile, max(rows, wide))
    left = memory - tile * (working + stored) - step_bytes() // 4
    most = max(2, left // stored)
    if rows + (0 if columns is None else columns) <= most:
        return Plan(tile, rows, wide)
    streamed = min(wide, max(1, min(_COLUMNS, most // 5)))
    return Plan(tile, min(rows, most - streamed), streamed)


TileGradients = Callable[[PyTree, Array, int], Gradients]
"""Of a batch, where a tile begins, and the examples in it: the gradients of this tile."""


def kernel_in_panels(
    of_tile: TileGradients,
    metrics: Metrics,
    xs: tuple[PyTree, PyTree | None],
    ns: tuple[int, int],
    chosen: Plan,
    outputs: Outputs,
    k: int,
) -> Array:
    """The kernel of two sets, or of one with itself.

    **Arguments:**

    - `of_tile`: the gradients of a tile of a batch.
    - `xs`, `ns`: the sets, the second None for one with itself; their examples.
    - `k`: outputs of the model.
    """

    def gradients(x: PyTree, start: int, size: int) -> Gradients:
        """Those of `size` examples, a tile at a time."""
        tile = min(chosen.tile, size)
        found = of_tile(x, jnp.asarray(start), tile)
        if tile == size:
            return found
        panel = _put((found, jnp.asarray(0)), _room(found, size))
        for offset in _starts(tile, size, tile):
            # No step is begun before the one before it is done: each would take memory.
            panel = jax.block_until_ready(panel)
            found = of_tile(x, jnp.asarray(start + offset), tile)
            panel = _put((found, jnp.asarray(offset)), panel)
        return panel

    def placed(block: Array, i: int, j: int, kernel: Array | None, *, mirrored: bool) -> Array:
        kernel = _whole(ns, block) if kernel is None else kernel
        at = jnp.asarray(i), jnp.asarray(j)
        return _write((block, *at), kernel, mirrored=mirrored)

    def with_panel(kernel: Array | None, start: int, size: int) -> Array:
        """What is kept for a panel is given back at the end of this."""
        rows, first = gradients(x1, start, size), 0
        if x2 is None:
            block = block_of_kernel(metrics, rows, None, outputs, k)
            kernel = placed(block, start, start, kernel, mirrored=False)
            first = start + size
        for column in _starts(first, n2, chosen.columns):
            columns = gradients(x1 if x2 is None else x2, column, chosen.columns)
            block = block_of_kernel(metrics, rows, columns, outputs, k)
            kernel = placed(block, start, column, kernel, mirrored=x2 is None)
            del columns
        assert kernel is not None
        return kernel

    (x1, x2), (n1, n2) = xs, ns
    if x2 is None and chosen.panel == n1:
        return block_of_kernel(metrics, gradients(x1, 0, n1), None, outputs, k)
    kernel = None
    for start in range(0, n1, chosen.panel):
        kernel = with_panel(kernel, start, min(chosen.panel, n1 - start))
    assert kernel is not None
    return kernel


def _starts(first: int, stop: int, size: int) -> Iterator[int]:
    """Where tiles begin that cover all from `first` to `stop`: the last ends with it, and may begin
    in the one before.
    """
    for start in range(first, stop, size):
        yield max(0, min(start, stop - size))


def _room(tile: Gradients, size: int) -> Gradients:
    """Zeros in the place of the gradients of `size` examples."""
    return jax.tree.map(lambda a: jnp.zeros((size, *a.shape[1:]), a.dtype), tile)


def _whole(ns: tuple[int, int], block: Array) -> Array:
    """Zeros in the place of all blocks like this one."""
    middle = axis_of_columns(block)
    before, after = block.shape[1:middle], block.shape[middle + 1 :]
    return jnp.zeros((ns[0], *before, ns[1], *after), block.dtype)


def axis_of_columns(block: Array | jax.ShapeDtypeStruct) -> int:
    """That of the examples of columns, in (n1, k, n2, k), (n1, n2) or (n1, n2, k)."""
    return 2 if block.ndim == 4 else 1


@eqx.filter_jit
def block_of_kernel(
    metrics: Metrics, rows: Gradients, columns: Gradients | None, outputs: Outputs, k: int
) -> Array:
    """A block of the kernel, from gradients of the outputs, or of "mean" with all k as one."""
    found = blocked_product(metrics, rows, columns, diagonal=outputs == "diagonal")
    return as_outputs(found, outputs, k)


def as_outputs(product: Array, outputs: Outputs, k: int) -> Array:
    """A block of the kernel from products of gradients, which for "mean" are of all k as one."""
    return product[:, 0, :, 0] / k if outputs == "mean" else product


@eqx.filter_jit(donate="all-except-first")
def _put(tile: tuple[Gradients, Array], panel: Gradients) -> Gradients:
    """The panel with a tile in its place."""
    found, at = tile
    return jax.tree.map(
        lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, at, axis=0),
        panel,
        found,
    )


@eqx.filter_jit(donate="all-except-first")
def _write(block: tuple[Array, Array, Array], kernel: Array, *, mirrored: bool) -> Array:
    """The kernel with a block, and with its mirror image."""
    part, i, j = block
    middle = axis_of_columns(part)

    def at(part: Array, i: Array, j: Array, kernel: Array) -> Array:
        start: list[Any] = [0] * part.ndim
        start[0], start[middle] = i, j
        return jax.lax.dynamic_update_slice(kernel, part, start)

    if mirrored:
        mirror = jnp.moveaxis(part, range(middle), range(middle, 2 * middle))
        kernel = at(mirror, j, i, kernel)
    return at(part, i, j, kernel)
