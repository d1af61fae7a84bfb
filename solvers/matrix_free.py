r"""The truncated hierarchy without its tensors.

Freezing O_p at the start is a formal expansion of the path in parameter space. With
theta(eps) = theta_0 + eps theta_1 + eps^2 theta_2 + ... and [.]_j the coefficient of eps^j at
fixed g = dL/df at f(t):

    f'           = - sum_{j=0}^{p-2} [ Theta(theta(eps)) g ]_j        training and test points alike
    theta_{j+1}' = - [ M J(theta(eps))^T g ]_j,   j = 0 .. p-3,       theta_j(0) = 0

No array has more than one data index; the cost is linear in the data and in the parameters.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from corrections import taylor_coefficients
from corrections.parameters import Metric, Model, Params, precondition, split
from solvers.losses import loss_and_residual, LossFunction
from solvers.ode import Flow, Motion, Observation

State = tuple[PyTree, ...]
"""f (n + m, k), training rows then test rows; theta_1 .. theta_{p-2}, trees of parameters."""


class MatrixFreeFlow(Flow):
    """The order-p hierarchy as an ODE for f and theta_1 .. theta_{p-2}; p is in the state."""

    model: PyTree
    points: Float[Array, "points ..."]
    """Training points, then test points."""
    y: Float[Array, "n k"]
    metric: Metric | None
    loss: LossFunction

    def motion(self, state: State) -> Motion:
        f, *path = state
        n = self.y.shape[0]
        loss, g = loss_and_residual(self.loss, f[:n], self.y)
        params, apply = split(self.model)
        outputs = jax.vmap(apply, in_axes=(None, 0))

        def products(params: Params) -> tuple[Array, Params]:
            x_train = self.points[:n]
            _, pull = jax.vjp(lambda p: outputs(p, x_train), params)
            direction = precondition(self.metric, pull(g)[0])
            _, moved = jax.jvp(lambda p: outputs(p, self.points), (params,), (direction,))
            return moved, direction

        coefficients = taylor_coefficients(products, params, path, len(path))
        moved = [moved for moved, _ in coefficients]
        directions = tuple(direction for _, direction in coefficients[:-1])
        velocity = jax.tree.map(jnp.negative, (sum(moved[1:], start=moved[0]), *directions))
        return Motion(velocity, loss, jnp.sum(g * velocity[0][:n]))

    def observe(self, state: State) -> Observation:
        n = self.y.shape[0]
        f = state[0]
        return Observation(f[:n], f[n:] if f.shape[0] > n else None, None)


def start(model: Model, points: Float[Array, "points ..."], order: int) -> State:
    """f_0 and the zero paths of the hierarchy of this order."""
    zero = jax.tree.map(jnp.zeros_like, split(model)[0])
    return jax.vmap(model)(points), *(zero,) * (order - 2)
