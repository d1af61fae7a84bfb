r"""The truncated hierarchy without its tensors.

Freezing O_p at the start is a formal expansion of the path in parameter space. With
theta(eps) = theta_0 + eps theta_1 + eps^2 theta_2 + ... and [.]_j the coefficient of eps^j at
fixed g = dL/df at f(t):

    f'           = - sum_{j=0}^{p-2} [ Theta(theta(eps)) g ]_j        training and test points alike
    theta_{j+1}' = - [ M J(theta(eps))^T g ]_j,   j = 0 .. p-3,       theta_j(0) = 0

No array has more than one data index; the cost is linear in the data and in the parameters. The
predicted kernel on any pairs of points follows:

    Theta_12(t) = sum_{j=0}^{p-2} [Theta_12(theta(eps))]_j
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from corrections import ntk, taylor_coefficients
from corrections.batched import pulled_in_tiles, pushed_in_tiles
from corrections.linearization import Linearization, linearization
from corrections.parameters import Metric, Model, Params, precondition, split
from corrections.path import coefficients_along, Scalar
from corrections.tiles import in_tiles
from solvers.losses import loss_and_residual, LossFunction
from solvers.ode import Flow, Motion, Observation
from solvers.problem import Pairs

State = tuple[PyTree, ...]
"""f (n + m, k), training rows then test rows; theta_1 .. theta_{p-2}, trees of parameters."""


class MatrixFreeFlow(Flow):
    """The order-p hierarchy as an ODE for f and theta_1 .. theta_{p-2}; p is in the state.

    Each right-hand side runs the network once and linearizes it; at order 2 it is linearized for
    good, once. With a `batch_size` each product runs the network again, so many examples at a time.
    """

    model: PyTree
    sets: tuple[Array, ...]
    """Training points, then test points if there are any."""
    y: Float[Array, "n k"]
    metric: Metric | None
    loss: LossFunction
    kernel_pairs: Pairs | None
    batch_size: int | None = eqx.field(static=True)
    frozen: list[Linearization] | None
    """Of each set, at order 2."""

    def motion(self, state: State) -> Motion:
        f, *path = state
        n = self.y.shape[0]
        loss, g = loss_and_residual(self.loss, f[:n], self.y)
        coefficients = self.products(g, path)
        moved = [moved for moved, _ in coefficients]
        directions = tuple(direction for _, direction in coefficients[:-1])
        velocity = jax.tree.map(jnp.negative, (sum(moved[1:], start=moved[0]), *directions))
        return Motion(velocity, loss, jnp.sum(g * velocity[0][:n]))

    def observe(self, state: State) -> Observation:
        f, *path = state
        n = self.y.shape[0]
        coefficients = self.kernel_coefficients(path)
        kernel = None if coefficients is None else jnp.sum(jnp.stack(coefficients), axis=0)
        return Observation(f[:n], f[n:] if len(self.sets) > 1 else None, kernel)

    def products(self, g: Float[Array, "n k"], path: list[Params]) -> list[tuple[Array, Params]]:
        """The coefficients of Theta g on all points, and of M J^T g, along a path."""
        params, _ = split(self.model)
        order = len(path)
        if self.batch_size is not None:
            return taylor_coefficients(lambda p: self._in_batches(p, g), params, path, order)
        linearized = self.frozen or _linearizations(self.model, self.sets, path)

        def along(eps: Scalar) -> tuple[Array, Params]:
            pushes = [one.at(eps) for one in linearized]
            (pulled,) = jax.linear_transpose(pushes[0], params)(g)
            direction = precondition(self.metric, pulled)
            return jnp.concatenate([push(direction) for push in pushes]), direction

        return coefficients_along(along, order)

    def pulled(self, g: Float[Array, "n k"], path: list[Params]) -> list[Params]:
        """The coefficients of M J^T g alone."""
        params, apply = split(self.model)
        size = self.batch_size or len(g)

        def along(params: Params) -> Params:
            pulled = pulled_in_tiles(apply, params, self.sets[0], g, size)
            return precondition(self.metric, pulled)

        return taylor_coefficients(along, params, path, len(path))

    def _in_batches(self, params: Params, g: Float[Array, "n k"]) -> tuple[Array, Params]:
        """The same at some parameters: first all that is pulled back, then all that is pushed."""
        _, apply = split(self.model)
        size = self.batch_size or 1
        pulled = pulled_in_tiles(apply, params, self.sets[0], g, size)
        direction = precondition(self.metric, pulled)
        pushed = [pushed_in_tiles(apply, params, direction, x, size) for x in self.sets]
        return jnp.concatenate(pushed), direction

    def kernel_coefficients(self, path: list[Params]) -> list[Float[Array, "n1 k n2 k"]] | None:
        """The coefficients of the kernel on the pairs that were asked for, if any were."""
        if self.kernel_pairs is None:
            return None
        x1, x2 = self.kernel_pairs
        params, _ = split(self.model)

        def kernel(params: Params) -> Array:
            model = eqx.combine(params, self.model)
            return ntk(model, x1, x2, metric=self.metric, batch_size=self.batch_size)

        return taylor_coefficients(kernel, params, path, len(path))


def _linearizations(
    model: Model, sets: tuple[Array, ...], path: list[Params]
) -> list[Linearization]:
    """Of each set of points, along a path."""
    return [linearization(model, x, path, len(path)) for x in sets]


def state_at_start(
    model: Model, sets: tuple[Array, ...], order: int, batch_size: int | None = None
) -> State:
    """f_0 and the zero paths of the hierarchy of this order."""
    zero = jax.tree.map(jnp.zeros_like, split(model)[0])
    f = jnp.concatenate([in_tiles(model, x, batch_size or len(x)) for x in sets])
    return f, *(zero,) * (order - 2)


def matrix_free_flow(
    model: Model,
    sets: tuple[Array, ...],
    y: Float[Array, "n k"],
    *,
    order: int,
    loss: LossFunction,
    metric: Metric | None = None,
    kernel_pairs: Pairs | None = None,
    batch_size: int | None = None,
) -> MatrixFreeFlow:
    """The hierarchy of this order for a model, linearized for good where that is all it needs."""
    frozen = _linearizations(model, sets, []) if order == 2 and batch_size is None else None
    return MatrixFreeFlow(model, sets, y, metric, loss, kernel_pairs, batch_size, frozen)
