"""Whether a model has derivatives in forward mode, which only some of what is computed here needs.

A function with a rule for reverse mode alone (`jax.custom_vjp`) has gradients, and so tangent
kernels and training. It has no products with its Jacobian; and a derivative of its gradient is one
of its rule, which need not be a symmetric Hessian (a straight-through estimator has none).
"""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from zoo.common.trainable import partitioned


class ForwardModeError(TypeError):
    """A model has no forward-mode derivatives where they are needed."""


def check_forward_mode(model: PyTree, x: Any) -> None:
    """**Raises:** `ForwardModeError` where `model`, given `x` or what has its shape and dtype, has
    no derivatives along directions of its parameters.
    """
    eqx.filter_eval_shape(_check, model, x)


def has_forward_mode(model: PyTree, x: Any) -> bool:
    """Whether it has them."""
    try:
        check_forward_mode(model, x)
    except ForwardModeError:
        return False
    return True


@eqx.filter_jit  # never run: what has been traced once is not traced again
def _check(model: PyTree, x: Any) -> None:
    params, rest = partitioned(model)

    def tangent(direction: PyTree) -> Any:
        return jax.jvp(lambda p: eqx.combine(p, rest)(x), (params,), (direction,))[1]

    # JAX finds that a rule is missing when it compiles. But a tangent is linear in its direction,
    # and so it has a derivative in it, whose rule is found missing where that of the tangent is.
    try:
        jax.jvp(tangent, (params,), (params,))
    except (NotImplementedError, TypeError) as error:
        raise ForwardModeError(
            "`model` has a rule for reverse-mode derivatives only (`jax.custom_vjp`), expected "
            "functions with a rule for forward mode (`jax.custom_jvp`) or none: what was asked for "
            "takes derivatives along directions of the parameters, or second ones. `ntk`, `train` "
            "and `parameter_flow` do without."
        ) from error
