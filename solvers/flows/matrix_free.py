r"""The truncated hierarchy without its tensors.

Freezing O_p at the start is a formal expansion of the path in parameter space. With
theta(eps) = theta_0 + eps theta_1 + eps^2 theta_2 + ... and [.]_j the coefficient of eps^j at
fixed g = dL/df,

    theta_{j+1}' = - [ M J(theta(eps))^T g ]_j,   j = 0 .. p-2,       theta_j(0) = 0

    f = sum_{j=0}^{p-1} [ f(theta(eps)) ]_j                           training and test points alike

    Theta_12 = sum_{j=0}^{p-2} [ Theta_12(theta(eps)) ]_j             on any pairs of points

since [f]_{j+1}' = - [Theta(theta(eps)) g]_j. No array has more than one data index; the cost is
linear in the data and in the parameters, and only training points take part in the solve.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from corrections.operators.batched import pushed_in_tiles
from corrections.operators.metric_coordinates import metric_norm
from corrections.parameters import Model, Params, precondition, split, vector_model
from corrections.taylor.jets import hoist_barrier
from corrections.taylor.linearization import Linearization, linearization
from solvers.flows.flow import Flow, Motion, Observation
from solvers.flows.jet_products import JetProducts
from solvers.losses import loss_and_residual, LossFunction
from zoo.common.examples import count
from zoo.common.tiles import in_tiles

HierarchyState = tuple[Params, ...]
"""theta_1 .. theta_{p-1}, trees of parameters."""


class MatrixFreeFlow(Flow):
    """The order-p hierarchy as an ODE for theta_1 .. theta_{p-1}; p is in the state."""

    network: JetProducts
    y: Float[Array, "n k"]
    loss: LossFunction
    at_start: Float[Array, "points k"]
    """The outputs on all points."""
    linearized: list[Linearization] | None
    """Of each set at theta_0; None where batches run the network again."""
    weights: Float[Array, " n"] | None
    """Of the examples in the loss."""

    def motion(self, state: HierarchyState) -> Motion:
        network, path = hoist_barrier(self.network, list(state))
        f = self._outputs(network, path, train_only=True)
        loss, g = loss_and_residual(self.loss, f, self.y, self.weights)
        pulled = self._pulled(network, g, path[:-1])
        directions = [precondition(network.metric, one) for one in pulled]
        # dL/dt = - sum_j g . [Theta g]_j = - sum_{a + b <= p - 2} [J^T g]_a . M [J^T g]_b
        rates = [_dot(one, _sum(directions[: len(pulled) - a])) for a, one in enumerate(pulled)]
        velocity = tuple(jax.tree.map(jnp.negative, one) for one in directions)
        return Motion(velocity, loss, -sum(rates[1:], start=rates[0]))

    def observe(self, state: HierarchyState) -> Observation:
        network, path = hoist_barrier(self.network, list(state))
        f, n = self._outputs(network, path), len(self.y)
        coefficients = network.kernel(path[:-1])
        kernel = None if coefficients is None else jnp.sum(jnp.stack(coefficients), axis=0)
        test = f[n:] if len(network.sets) > 1 else None
        return Observation(f[:n], test, kernel, metric_norm(_sum(path), network.metric))

    def outputs_to_first_order(self, state: HierarchyState) -> Float[Array, "points k"]:
        return self._first_order(self.network, _sum(state))

    def _outputs(
        self, network: JetProducts, path: list[Params], *, train_only: bool = False
    ) -> Float[Array, "points k"]:
        if len(path) == 1:
            return self._first_order(network, path[0], train_only=train_only)
        return _sum(network.outputs(path, network.sets[:1] if train_only else network.sets))

    def _first_order(
        self, network: JetProducts, direction: Params, *, train_only: bool = False
    ) -> Float[Array, "points k"]:
        """f_0 + J v."""
        sets = network.sets[:1] if train_only else network.sets
        if self.linearized is None:
            params, apply = split(network.model)
            size = network.batch_size or 1
            pushed = [pushed_in_tiles(apply, params, direction, x, size) for x in sets]
        else:
            linearized = self.linearized[: len(sets)]
            pushed = [one.at(jnp.zeros(()))(direction) for one in linearized]
        moved = jnp.concatenate(pushed)
        return self.at_start[: len(moved)] + moved

    def _pulled(
        self, network: JetProducts, g: Float[Array, "n k"], path: list[Params]
    ) -> list[Params]:
        if path or self.linearized is None:
            return network.pulled(g, path)
        params, _ = split(network.model)
        return list(jax.linear_transpose(self.linearized[0].at(jnp.zeros(())), params)(g))


def _sum(trees: Sequence[Params]) -> Params:
    return jax.tree.map(lambda *leaves: sum(leaves[1:], start=leaves[0]), *trees)


def _dot(a: Params, b: Params) -> Float[Array, ""]:
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), a, b)
    return jnp.sum(jnp.stack(jax.tree.leaves(products)))


def state_at_start(model: Model, order: int) -> HierarchyState:
    """The zero paths of the hierarchy of this order."""
    zero = jax.tree.map(jnp.zeros_like, split(model)[0])
    return (zero,) * (order - 1)


def matrix_free_flow(
    network: JetProducts,
    y: Float[Array, "n k"],
    *,
    loss: LossFunction,
    weights: Float[Array, " n"] | None = None,
) -> MatrixFreeFlow:
    """The hierarchy of a network, whose order is that of the state."""
    model, sets, size = network.model, network.sets, network.batch_size
    outputs = vector_model(model)
    at_start = jnp.concatenate([in_tiles(outputs, x, size or count(x)) for x in sets])
    linearized = [linearization(model, x, [], 0) for x in sets] if size is None else None
    return MatrixFreeFlow(network, y, loss, at_start, linearized, weights)
