"""J v and J^T g of many examples, a tile of them at a time: the network runs again with each."""

import jax
from jaxtyping import Array, Float, PyTree, Shaped

from corrections.parameters import Apply, Params
from zoo.common.tiles import in_tiles, sum_in_tiles


def pulled_in_tiles(
    apply: Apply,
    params: Params,
    x: PyTree[Shaped[Array, "n ..."]],
    g: Float[Array, "n k"],
    at_most: int,
) -> Params:
    """J(x)^T g."""

    def pulled(tile: tuple[PyTree, Array], weight: Array) -> Params:
        x, g = tile
        _, pull = jax.vjp(lambda p: jax.vmap(apply, in_axes=(None, 0))(p, x), params)
        return pull(weight[:, None].astype(g.dtype) * g)[0]

    return sum_in_tiles(pulled, (x, g), at_most)


def pushed_in_tiles(
    apply: Apply, params: Params, direction: Params, x: PyTree[Shaped[Array, "n ..."]], at_most: int
) -> Float[Array, "n k"]:
    """J(x) v for a direction v."""

    def push(x: PyTree) -> Array:
        return jax.jvp(lambda p: apply(p, x), (params,), (direction,))[1]

    return in_tiles(push, x, at_most)
