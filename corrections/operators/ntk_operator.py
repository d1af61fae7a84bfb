r"""The neural tangent kernel as an operator: Theta g without Theta.

    Theta(x1, x2) g = J(x1) M (J(x2)^T g)

is one reverse and one forward pass, whatever the number of examples (theory, section 4), and so are
its derivatives where the parameters move along a path: solvers and Lanczos methods run on them.
The pass through the network itself is made once, with the operator, not with each product.
"""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree, Shaped

from corrections.operators.batched import pulled_in_tiles, pushed_in_tiles
from corrections.operators.linear_operator import LinearOperator
from corrections.parameters import (
    check_metric,
    check_model,
    direction,
    Metric,
    Model,
    Params,
    precondition,
    split,
)
from corrections.taylor.linearization import linearization, LinearizedKernel
from corrections.taylor.taylor_model import taylor_coefficients
from zoo.common import checks
from zoo.common.examples import checked_batch, count
from zoo.common.precision import full_precision


class KernelOperator(LinearOperator):
    """A linear operator from one vector of k outputs for each example of one set, (n2, k), to the
    same on another set, (n1, k): `NTKOperator`, or a coefficient of it along a path. It is an
    operator of lineax: sums, multiples and `lineax.linear_solve` work on it.
    """

    kernel: eqx.AbstractVar["NTKOperator"]
    """The kernel that this is, or is a coefficient of."""
    order: eqx.AbstractVar[int]
    """The power of eps that this is the coefficient of; 0 for the kernel itself."""

    @abc.abstractmethod
    def transpose(self) -> "KernelOperator":
        """The operator from (n1, k) to (n2, k)."""

    @abc.abstractmethod
    def _product(self, vector: Array) -> Array:
        """The operator applied to a vector that fits."""

    @property
    def symmetric(self) -> bool:
        """Whether both sets are the same."""
        return self.kernel.x2_given is None

    @property
    def positive(self) -> bool:
        """Whether it is the kernel itself, of a set with itself."""
        return self.symmetric and self.order == 0

    @property
    def columns_at_once(self) -> int:
        """Those of one example."""
        return self.in_structure().shape[1]

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape (n2, k) and dtype of what the operator takes."""
        outputs = self.kernel.outputs
        return jax.ShapeDtypeStruct((count(self.kernel.x2), *outputs.shape), outputs.dtype)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """Shape (n1, k) and dtype of what it gives."""
        taken = self.in_structure()
        return jax.ShapeDtypeStruct((count(self.kernel.x1), *taken.shape[1:]), taken.dtype)

    @full_precision
    def mv(self, vector: Float[Array, "n2 k"]) -> Float[Array, "n1 k"]:
        """The operator applied to a vector.

        **Raises:** `ValueError` / `TypeError` for a vector of another shape or of no floating type.
        """
        expected = self.in_structure()
        vector = checks.real_array("vector", vector, expected=f"an array {expected.shape}")
        checks.shape("vector", vector, expected.shape, "a vector of outputs for each example")
        return _compiled(self, vector.astype(expected.dtype))


class NTKOperator(KernelOperator):
    """The neural tangent kernel Theta(x1, x2) = J(x1) M J(x2)^T as a linear operator.

    It maps g, one vector of k outputs for each example of `x2`, (n2, k), to Theta g, (n1, k). A
    product costs about as much as the gradient of one training step; memory is linear in the data.
    Unless there is a `batch_size`, the network runs once on all examples when the operator is made,
    and what its derivatives need is kept.
    """

    model: PyTree
    x1: PyTree[Shaped[Array, "n1 ..."]]
    x2_given: PyTree[Shaped[Array, "n2 ..."]] | None
    metric: Metric | None
    batch_size: int | None = eqx.field(static=True)
    outputs: jax.ShapeDtypeStruct = eqx.field(static=True)
    _linearized: LinearizedKernel | None

    def __init__(
        self,
        model: Model,
        x1: PyTree[Shaped[Array, "n1 ..."]],
        x2: PyTree[Shaped[Array, "n2 ..."]] | None = None,
        *,
        metric: Metric | None = None,
        batch_size: int | None = None,
    ):
        """**Arguments:**

        - `model`: any callable PyTree, one example in, k outputs out.
        - `x1`, `x2`: batches of examples; a missing `x2` means `x1`, and the operator is symmetric
          and positive semidefinite.
        - `metric`: the learning-rate multipliers M, a PyTree prefix of the parameters (default: 1).
        - `batch_size`: the most examples that are taken at once: memory is then that of so many,
          and each product runs the network again. Default: all, and the network runs once.

        **Raises:** `ValueError` / `TypeError` for batches that are empty, not finite or not
        real, a model that does not give a vector, a metric that does not fit, a `batch_size`
        below 1.
        """
        batch_size = checks.integer_or_none("batch_size", batch_size)
        self.x1 = checked_batch("x1", x1)
        self.x2_given = None if x2 is None else checked_batch("x2", x2)
        self.outputs = outputs = check_model(model, "x1", self.x1, forward_mode=True)
        if self.x2_given is not None:
            check_model(model, "x2", self.x2_given, outputs=outputs)
        check_metric(model, metric)
        self.model, self.metric, self.batch_size = model, metric, batch_size
        self._linearized = self.linearized((), 0)

    @property
    def x2(self) -> PyTree[Shaped[Array, "n2 ..."]]:
        """The examples that the operator takes vectors on."""
        return self.x1 if self.x2_given is None else self.x2_given

    @property
    def kernel(self) -> "NTKOperator":
        """This operator."""
        return self

    @property
    def order(self) -> int:
        """0."""
        return 0

    def transpose(self) -> "NTKOperator":
        """Theta(x2, x1): takes (n1, k), gives (n2, k)."""
        if self.symmetric:
            return self
        return eqx.tree_at(
            lambda op: (op.x1, op.x2_given, op._linearized),
            self,
            (self.x2, self.x1, _transposed(self._linearized)),
            is_leaf=lambda node: node is None,
        )

    def coefficient(self, path: Sequence[PyTree], order: int) -> "NTKCoefficient":
        """The coefficient of eps^order in Theta where the parameters are
        theta + eps path[0] + eps^2 path[1] + ...: 1/order! times the derivative.

        Order 1 along one direction v is D Theta[v]; twice that of order 2 is D^2 Theta[v, v]. See
        `taylor_coefficients`.

        **Raises:** `ValueError` / `TypeError` for an order that is no integer >= 0, a path whose
        entries are not like the parameters of the model.
        """
        return NTKCoefficient(self, path, order)

    def linearized(self, path: Sequence[PyTree], order: int) -> LinearizedKernel | None:
        """The coefficient of eps^order along a path without the network; None in batches."""
        if self.batch_size is not None:
            return None
        on_x1 = linearization(self.model, self.x1, path, order)
        if self.symmetric:
            return LinearizedKernel(on_x1, None)
        return LinearizedKernel(on_x1, linearization(self.model, self.x2, path, order))

    def _product(self, vector: Array) -> Array:
        params, _ = split(self.model)
        if self._linearized is None:
            return _in_batches(self, params, vector)
        return self._linearized.product(params, self.metric, vector, 0)


class NTKCoefficient(KernelOperator):
    """A Taylor coefficient of the neural tangent kernel along a path of the parameters; see
    `NTKOperator.coefficient`.
    """

    kernel: NTKOperator
    path: tuple[PyTree, ...]
    order: int = eqx.field(static=True)
    _linearized: LinearizedKernel | None

    def __init__(self, kernel: NTKOperator, path: Sequence[PyTree], order: int):
        """**Arguments, Raises:** as `NTKOperator.coefficient`."""
        order = checks.integer("order", order, least=0)
        if not isinstance(path, list | tuple):
            raise TypeError(
                f"`path` is of type {type(path).__name__}, expected a list or tuple of trees like "
                "the parameters: the coefficients of eps, eps^2, ..."
            )
        checks.instance("kernel", kernel, NTKOperator, "an `NTKOperator`")
        params, _ = split(kernel.model)
        self.path = tuple(direction(f"path[{i}]", step, params) for i, step in enumerate(path))
        self.kernel, self.order = kernel, order
        self._linearized = kernel.linearized(self.path, order)

    def transpose(self) -> "NTKCoefficient":
        """The coefficient of Theta(x2, x1)."""
        return eqx.tree_at(
            lambda op: (op.kernel, op._linearized),
            self,
            (self.kernel.transpose(), _transposed(self._linearized)),
            is_leaf=lambda node: node is None,
        )

    def _product(self, vector: Array) -> Array:
        params, _ = split(self.kernel.model)
        if self._linearized is not None:
            return self._linearized.product(params, self.kernel.metric, vector, self.order)
        coefficients = taylor_coefficients(
            lambda p: _in_batches(self.kernel, p, vector), params, self.path, self.order
        )
        return coefficients[self.order]


def _transposed(linearized: LinearizedKernel | None) -> LinearizedKernel | None:
    return None if linearized is None else linearized.transpose()


@eqx.filter_jit
def _compiled(operator: KernelOperator, vector: Array) -> Array:
    return operator._product(vector)


def _in_batches(operator: NTKOperator, params: Params, vector: Array) -> Array:
    """Theta g, a tile of examples at a time: first all that is pulled back, then pushed."""
    apply = split(operator.model)[1]
    size = operator.batch_size or 1
    pulled = pulled_in_tiles(apply, params, operator.x2, vector, size)
    direction = precondition(operator.metric, pulled)
    return pushed_in_tiles(apply, params, direction, operator.x1, size)
