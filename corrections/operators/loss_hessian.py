r"""The Hessian of the training loss, and the two parts it is made of.

    L = 1/D sum l(f(x), y),     H_L = 1/D sum J^T l'' J  +  1/D sum_a l'_a H_a
                                      Gauss-Newton          residual

Gradient descent of learning rate eta is stable where the largest eigenvalue is below 2 / eta; with
rates M for each parameter it is that of M^{1/2} H_L M^{1/2} (Cohen et al. 2021, "Gradient descent
on neural networks typically occurs at the edge of stability").
"""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, Shaped

from corrections.loss_function import check_targets, LossFunction
from corrections.operators.linear_operator import LinearOperator
from corrections.operators.metric_coordinates import MetricCoordinates
from corrections.parameters import (
    Apply,
    check_metric,
    check_model,
    check_tree_like,
    Metric,
    Model,
    Params,
    split,
)
from corrections.smoothness import warn_at_kinks
from zoo import parameters
from zoo.common import checks
from zoo.common.examples import checked_batch, count
from zoo.common.precision import full_precision

Part = Literal["full", "gauss_newton", "residual"]
PARTS: tuple[Part, ...] = ("full", "gauss_newton", "residual")


class LossHessian(LinearOperator):
    """M^{1/2} H_L M^{1/2} as a linear operator on trees like the parameters; H_L the Hessian of
    L = 1/D sum l(f(x), y), or one of its parts.

    In units of the loss over parameters squared. A product costs about two gradients of a training
    step. `extreme_eigenvalues` and `spectral_density` take it. It is an operator of lineax.
    """

    model: PyTree
    x: PyTree[Shaped[Array, "n ..."]]
    y: Float[Array, "n k"]
    loss: LossFunction
    part: Part = eqx.field(static=True)
    metric: Metric | None
    batch_size: int | None = eqx.field(static=True)

    def __init__(
        self,
        model: Model,
        x: PyTree[Shaped[Array, "n ..."]],
        y: Float[Array, "n ..."],
        *,
        loss: LossFunction,
        part: Part = "full",
        metric: Metric | None = None,
        batch_size: int | None = None,
    ):
        """**Arguments:**

        - `model`: any callable PyTree, one example in, k outputs out.
        - `x`, `y`: examples (n, ...) and targets (n, k).
        - `loss`: per example, (f (k,), y (k,)) -> scalar, such as `solvers.CrossEntropy()`; its
          mean over examples is what is differentiated.
        - `part`: "full"; "gauss_newton", J^T l'' J / D, positive for a convex loss; or "residual",
          the Hessians of the outputs weighted with the slopes of the loss. The two add up.
        - `metric`: the learning-rate multipliers M, a PyTree prefix of the parameters (default: 1).
        - `batch_size`: the most examples that are taken at once (default: all).

        **Raises:** `ValueError` / `TypeError` for batches that are empty, not finite or not
        real, a model that does not give a vector, targets that do not fit, a loss that does not
        give a scalar, a metric that does not fit, an unknown part. **Warns:** `KinkWarning` for
        activations without second derivatives, but for the Gauss-Newton part.
        """
        checks.choice("part", part, PARTS)
        batch_size = checks.integer_or_none("batch_size", batch_size)
        self.x = checked_batch("x", x)
        outputs = check_model(model, "x", self.x, forward_mode=True)
        shape = (count(self.x), outputs.shape[0])
        because = "a row for each example of `x`, a column for each output of `model`"
        self.y = check_targets(loss, y, shape, because=because).astype(outputs.dtype)
        check_metric(model, metric)
        if part != "gauss_newton":
            warn_at_kinks(model, 2, stacklevel=3)
        self.model, self.loss, self.part = model, loss, part
        self.metric, self.batch_size = metric, batch_size

    @property
    def symmetric(self) -> bool:
        """It is."""
        return True

    @property
    def columns_at_once(self) -> int:
        """As many as take little memory beside the network's own."""
        return max(1, 2**22 // self.in_size())

    def transpose(self) -> "LossHessian":
        """The operator itself."""
        return self

    def in_structure(self) -> PyTree:
        """Shapes and dtypes of what the operator takes and gives: those of the parameters."""
        return jax.eval_shape(lambda: split(self.model)[0])

    @full_precision
    def mv(self, vector: PyTree) -> PyTree:
        """The operator applied to a tree like the parameters.

        **Raises:** `ValueError` for a tree of another structure or other shapes.
        """
        vector = parameters(vector)
        check_tree_like("vector", vector, self.in_structure())
        found = _product(self, vector)
        checks.computed("`model`, `x`, `loss`, `metric` or `vector`", found)
        return found

    def out_structure(self) -> PyTree:
        """As `in_structure`."""
        return self.in_structure()

    def prepared(self) -> lx.FunctionLinearOperator:
        """The same operator, the network linearized once for all products."""
        flat = MetricCoordinates(self.model, self.metric)
        n, loss = count(self.x), self.loss

        def full(apply: Apply, params: Params, item: Any) -> Array:
            x, y = item
            return loss(apply(params, x), y) / n

        def gauss_newton(apply: Apply, params: Params, item: Any) -> Array:
            """The loss of the linearised network."""
            x, y = item
            step = jax.tree.map(jnp.subtract, params, flat.params)
            f, change = jax.jvp(lambda p: apply(p, x), (flat.params,), (step,))
            return loss(f + change, y) / n

        def residual(apply: Apply, params: Params, item: Any) -> Array:
            """The outputs, weighted with the slopes of the loss."""
            x, y = item
            slope = jax.grad(loss)(apply(flat.params, x), y)
            return jnp.vdot(jax.lax.stop_gradient(slope), apply(params, x)) / n

        parts = {"full": full, "gauss_newton": gauss_newton, "residual": residual}
        data = (self.x, self.y)
        product = flat.hessian_product(parts[self.part], data, self.batch_size)

        def mv(vector: Params) -> Params:
            flat_vector, unravel = ravel_pytree(vector)
            return unravel(product(flat_vector))

        return lx.FunctionLinearOperator(mv, self.in_structure(), lx.symmetric_tag)


@eqx.filter_jit
def _product(operator: LossHessian, vector: Params) -> Params:
    return operator.prepared().mv(vector)
