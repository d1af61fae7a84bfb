r"""The neural tangent kernel of a finite network.

    Theta(x1, x2) = J(x1) M J(x2)^T,      J = df/dtheta,      O_2 of the hierarchy

(Jacot et al. 2018), at the parameters the model holds.
"""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from corrections.anatomy import Anatomy
from corrections.contraction import Factors, ONE_OUTPUT
from corrections.parameters import (
    check_batch,
    check_metric,
    check_model,
    Method,
    METHODS,
    Metric,
    Model,
)
from zoo import checks
from zoo.precision import full_precision

Outputs = Literal["full", "mean", "diagonal"]


@full_precision
def ntk(
    model: Model,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."] | None = None,
    *,
    metric: Metric | None = None,
    outputs: Outputs = "full",
    method: Method = "auto",
    batch_size: int | None = None,
) -> Float[Array, "n1 ..."]:
    """The neural tangent kernel Theta = J M J^T.

    **Arguments:**

    - `model`: any callable PyTree, one example in, a vector of k outputs out.
    - `x1`, `x2`: batches of examples, (n1, ...) and (n2, ...); a missing `x2` means `x1`.
    - `metric`: the learning-rate multipliers M, a PyTree prefix of the parameters (default: 1).
    - `outputs`: "full" gives (n1, k, n2, k); "diagonal" only equal outputs, (n1, n2, k); "mean"
      the average over equal outputs, (n1, n2).
    - `method`: "auto" never forms the gradients of dense layers, and of convolutions only where
      that is cheaper (`corrections.contraction`); what it has no rule for takes the Jacobian.
      "structured" insists that every dense layer and convolution has its rule; "jacobian" takes the
      Jacobian of all parameters. All give the same numbers, to rounding.
    - `batch_size`: computes tiles of so many examples of `x1` against so many of `x2`: memory is
      then that of a tile, beside the kernel itself. Default: all at once.

    **Raises:** `ValueError` / `TypeError` for an input that is empty, not finite or not floating,
    a model that does not give a vector, a metric that does not fit, an unknown `outputs` or
    `method`, a `batch_size` below 1; `ValueError` for "structured" where a layer's rule does not
    apply.

    Source: Jacot, Gabriel & Hongler (2018), section 4; for the metric docs/theory.md, section 1.
    """
    checks.choice("outputs", outputs, ("full", "mean", "diagonal"))
    checks.choice("method", method, METHODS)
    if batch_size is not None:
        checks.integer("batch_size", batch_size)
    x1 = check_batch("x1", x1)
    of_model = check_model(model, "x1", x1)
    if x2 is not None:
        x2 = check_batch("x2", x2)
        check_model(model, "x2", x2, outputs=of_model)
    check_metric(model, metric)
    return _ntk(model, x1, x2, metric, outputs, method, batch_size)


@eqx.filter_jit
def _ntk(
    model: Model,
    x1: Array,
    x2: Array | None,
    metric: Metric | None,
    outputs: Outputs,
    method: Method,
    batch_size: int | None,
) -> Array:
    anatomy = Anatomy(model, x1[0], metric, method=method)
    of_pair = _products(anatomy, outputs)
    if batch_size is None:
        factors1 = jax.vmap(anatomy.factors)(x1)
        factors2 = factors1 if x2 is None else jax.vmap(anatomy.factors)(x2)
        kernel = jax.vmap(lambda f1: jax.vmap(lambda f2: of_pair(f1, f2))(factors2))(factors1)
    else:

        def row(x: Array) -> Array:
            f1 = anatomy.factors(x)
            others = x1 if x2 is None else x2
            return jax.lax.map(
                lambda x: of_pair(f1, anatomy.factors(x)), others, batch_size=batch_size
            )

        kernel = jax.lax.map(row, x1, batch_size=batch_size)
    return jnp.swapaxes(kernel, 1, 2) if outputs == "full" else kernel


def _products(anatomy: Anatomy, outputs: Outputs) -> Callable[[Factors, Factors], Any]:
    """What an entry of the kernel is made of: the products of two examples' gradients."""
    if outputs == "full":
        return anatomy.product

    def of_one_output(first: Factors, second: Factors) -> Array:
        return anatomy.product(*(_as_only_output(f) for f in (first, second)))[0, 0]

    diagonal = jax.vmap(of_one_output, in_axes=(ONE_OUTPUT, ONE_OUTPUT))
    if outputs == "diagonal":
        return diagonal
    return lambda first, second: jnp.mean(diagonal(first, second))


def _as_only_output(factors: Factors) -> Factors:
    inputs, cotangents, rest = factors
    return Factors(inputs, tuple(delta[None] for delta in cotangents), rest[None])
