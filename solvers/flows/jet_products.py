"""Outputs, products with the Jacobian and the kernel of a network along a path of its parameters.

Coefficients of eps on theta(eps) = theta_0 + eps path[0] + eps^2 path[1] + ..., up to the length of
the path. No array has more than one data index, but for the kernel on the pairs asked for.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from corrections import taylor_coefficients
from corrections.kernels.ntk import tangent_kernel
from corrections.operators.batched import pulled_in_tiles, pushed_in_tiles
from corrections.parameters import Metric, Pairs, Params, precondition, split
from corrections.taylor.jets import coefficients_along, Scalar
from corrections.taylor.linearization import linearization
from zoo.common.examples import count
from zoo.common.tiles import in_tiles


class JetProducts(eqx.Module):
    """A network at theta_0, and its data.

    With a `batch_size` each product runs the network again, so many examples at a time.
    """

    model: PyTree
    sets: tuple[PyTree, ...]
    """Training points, then test points if there are any."""
    metric: Metric | None = None
    kernel_pairs: Pairs | None = None
    batch_size: int | None = eqx.field(static=True, default=None)

    def outputs(
        self, path: list[Params], sets: tuple[PyTree, ...]
    ) -> list[Float[Array, "points k"]]:
        """The coefficients of the outputs."""
        params, apply = split(self.model)

        def along(params: Params) -> Array:
            outputs = partial(apply, params)
            return jnp.concatenate(
                [in_tiles(outputs, x, self.batch_size or count(x)) for x in sets]
            )

        return taylor_coefficients(along, params, path, len(path))

    def pulled(self, g: Float[Array, "n k"], path: list[Params]) -> list[Params]:
        """The coefficients of J^T g, of the training points."""
        params, apply = split(self.model)
        size = self.batch_size or len(g)

        def along(params: Params) -> Params:
            return pulled_in_tiles(apply, params, self.sets[0], g, size)

        return taylor_coefficients(along, params, path, len(path))

    def directions(self, g: Float[Array, "n k"], path: list[Params]) -> list[Params]:
        """The coefficients of M J^T g."""
        return [precondition(self.metric, pulled) for pulled in self.pulled(g, path)]

    def kernel_times(
        self, g: Float[Array, "n k"], path: list[Params]
    ) -> list[Float[Array, "points k"]]:
        """The coefficients of Theta g on all points."""
        params, apply = split(self.model)
        order, size = len(path), self.batch_size
        if size is not None:

            def in_batches(params: Params) -> Array:
                pulled = pulled_in_tiles(apply, params, self.sets[0], g, size)
                direction = precondition(self.metric, pulled)
                pushed = [pushed_in_tiles(apply, params, direction, x, size) for x in self.sets]
                return jnp.concatenate(pushed)

            return taylor_coefficients(in_batches, params, path, order)
        linearized = [linearization(self.model, x, path, order) for x in self.sets]

        def along(eps: Scalar) -> Array:
            pushes = [one.at(eps) for one in linearized]
            (pulled,) = jax.linear_transpose(pushes[0], params)(g)
            direction = precondition(self.metric, pulled)
            return jnp.concatenate([push(direction) for push in pushes])

        return coefficients_along(along, order)

    def kernel(self, path: list[Params]) -> list[Float[Array, "n1 k n2 k"]] | None:
        """The coefficients of the kernel on the pairs that were asked for, if any were."""
        if self.kernel_pairs is None:
            return None
        x1, x2 = self.kernel_pairs
        params, _ = split(self.model)

        def along(params: Params) -> Array:
            model = eqx.combine(params, self.model)
            return tangent_kernel(model, x1, x2, metric=self.metric, batch_size=self.batch_size)

        return taylor_coefficients(along, params, path, len(path))
