r"""The Jacobian of a batch along a path of the parameters, without the network.

Linearizing a network leaves residuals r: what its products with directions need of the forward
pass, and no more. Along a path they are r_0 + eps r_1 + eps^2 r_2 + ..., computed once; every
product J(eps) v and J(eps)^T g after that takes the linear part of the work alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree, Shaped

from corrections.parameters import Metric, Params, precondition, split
from corrections.taylor.jets import coefficients_along, degrees_along, jet, polynomial, Scalar
from zoo.common.precision import full_precision

Push = Callable[[Params], Array]


class Linearization(eqx.Module):
    """J(x; theta(eps)) of a batch of n examples, up to a power of eps, as linear maps from the
    parameters to (n, k).
    """

    coefficients: list[list[Any]]
    """Those of each residual, as far as they are not zero whatever the parameters."""
    structure: Any = eqx.field(static=True)

    def at(self, eps: Scalar) -> Push:
        """v -> J(x; theta(eps)) v, to be differentiated at eps = 0."""
        residuals = [polynomial(eps, coefficients) for coefficients in self.coefficients]
        return jax.tree.unflatten(self.structure, residuals)


@full_precision
@eqx.filter_jit
def linearization(
    model: PyTree, x: PyTree[Shaped[Array, "n ..."]], path: Sequence[PyTree], order: int
) -> Linearization:
    """The linearization of a model on a batch, up to eps^order along a path of its parameters."""
    params, apply = split(model)

    def residuals(params: Params) -> PyTree:
        def outputs(params: Params) -> Array:
            return jax.vmap(apply, in_axes=(None, 0))(params, x)

        return jax.linearize(outputs, params)[1]

    at = jet(params, path[:order])

    def moving(eps: Scalar) -> list[Array]:
        return [r for r in jax.tree.leaves(residuals(at(eps))) if eqx.is_inexact_array(r)]

    leaves, structure = jax.tree.flatten(residuals(params))
    along = coefficients_along(moving, order)
    of_each = zip(degrees_along(moving, order), zip(*along, strict=True), strict=True)
    coefficients = iter([list(c[: degree + 1]) for degree, c in of_each])
    return Linearization(
        [next(coefficients) if eqx.is_inexact_array(leaf) else [leaf] for leaf in leaves], structure
    )


class LinearizedKernel(eqx.Module):
    """A Taylor coefficient of J(x1) M J(x2)^T along a path, from two linearizations."""

    on_x1: Linearization
    on_x2: Linearization | None
    """None: the same as `on_x1`."""

    def transpose(self) -> "LinearizedKernel":
        """That of J(x2) M J(x1)^T."""
        return self if self.on_x2 is None else LinearizedKernel(self.on_x2, self.on_x1)

    def product(
        self, like: Params, metric: Metric | None, vector: Float[Array, "n2 k"], order: int
    ) -> Float[Array, "n1 k"]:
        """The coefficient of eps^order applied to a vector; `like` the parameters in shape."""

        def along(eps: Scalar) -> Array:
            push = self.on_x1.at(eps)
            pushed_of_x2 = push if self.on_x2 is None else self.on_x2.at(eps)
            (pulled,) = jax.linear_transpose(pushed_of_x2, like)(vector)
            return push(precondition(metric, pulled))

        return coefficients_along(along, order)[order]
