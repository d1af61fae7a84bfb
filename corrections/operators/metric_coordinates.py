r"""A model as a function of one vector of parameters, in coordinates that have the metric in them.

With theta = M^{1/2} v the metric is gone: norms, eigenvalues and inner products of vectors v are
those that gradient flow theta' = -M dL/dtheta sees. The derivative along a step s of v is the one
along M^{1/2} s of theta.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from corrections.parameters import Apply, Metric, Model, Params, split
from zoo.common.norms import norm
from zoo.common.tiles import sum_in_tiles


class MetricCoordinates:
    """A model, its parameters in a vector, and the square root of the metric. To be made inside the
    trace that uses it.
    """

    def __init__(self, model: Model, metric: Metric | None):
        self.params, self.apply = split(model)
        self.vector, self._unravel = ravel_pytree(self.params)
        self._root = None if metric is None else root_of_metric(metric, self.params)

    def step(self, vector: Float[Array, " parameters"]) -> Params:
        """M^{1/2} v as a direction of the parameters."""
        return self._unravel(vector if self._root is None else self._root * vector)

    def gradient(self, tree: Params) -> Float[Array, " parameters"]:
        """M^{1/2} of a gradient in the parameters."""
        vector, _ = ravel_pytree(tree)
        return vector if self._root is None else self._root * vector

    def hessian_product(
        self,
        per_example: Callable[[Apply, Params, Any], Array],
        data: PyTree,
        batch_size: int | None = None,
    ) -> Callable[[Float[Array, " parameters"]], Float[Array, " parameters"]]:
        """v -> M^{1/2} H M^{1/2} v, H the Hessian of the sum over examples of a scalar
        `per_example(apply, params, item)`, `item` a row of `data`.

        Without a `batch_size` the network is linearized once for all products.
        """

        def total(params: Params, data: PyTree, weights: Array | None = None) -> Array:
            values = jax.vmap(lambda item: per_example(self.apply, params, item))(data)
            return jnp.sum(values if weights is None else weights.astype(values.dtype) * values)

        if batch_size is None:
            _, linear = jax.linearize(jax.grad(lambda params: total(params, data)), self.params)
            return lambda vector: self.gradient(linear(self.step(vector)))

        def product(vector: Array) -> Array:
            def of_tile(tile: PyTree, weights: Array) -> Params:
                slope = jax.grad(lambda params: total(params, tile, weights))
                return jax.jvp(slope, (self.params,), (self.step(vector),))[1]

            return self.gradient(sum_in_tiles(of_tile, data, batch_size))

        return product


def root_of_metric(metric: Metric, params: Params) -> Float[Array, " parameters"]:
    """M^{1/2} as a vector over all parameters."""
    full = jax.tree.map(
        lambda m, part: jax.tree.map(
            lambda p: jnp.broadcast_to(jnp.sqrt(jnp.asarray(m, p.dtype)), p.shape), part
        ),
        metric,
        params,
    )
    return ravel_pytree(full)[0]


def metric_norm(tree: Params, metric: Metric | None) -> Float[Array, ""]:
    """|M^{-1/2} d| of a tree like the parameters, over those whose metric is not 0."""
    return norm(without_metric(tree, metric))


def without_metric(tree: Params, metric: Metric | None) -> Float[Array, " parameters"]:
    """M^{-1/2} d as a vector; 0 where the metric is."""
    vector = ravel_pytree(tree)[0]
    if metric is None:
        return vector
    root = root_of_metric(metric, tree)
    moves = root > 0
    return jnp.where(moves, vector / jnp.where(moves, root, 1), 0)
