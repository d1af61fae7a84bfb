r"""The neural tangent kernel of a finite network.

    Theta(x1, x2) = J(x1) M J(x2)^T,      J = df/dtheta,      O_2 of the hierarchy

(Jacot et al. 2018), at the parameters the model holds, by its Jacobian.
"""

import functools
from typing import Any, Literal

import einops
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from corrections.parameters import (
    Apply,
    check_batch,
    check_metric,
    check_model,
    Metric,
    Model,
    Params,
    precondition,
    split,
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
) -> Float[Array, "n1 ..."]:
    """The neural tangent kernel Theta = J M J^T.

    **Arguments:**

    - `model`: any callable PyTree, one example in, a vector of k outputs out.
    - `x1`, `x2`: batches of examples, (n1, ...) and (n2, ...); a missing `x2` means `x1`.
    - `metric`: the learning-rate multipliers M, a PyTree prefix of the parameters (default: 1).
    - `outputs`: "full" gives (n1, k, n2, k); "diagonal" only equal outputs, (n1, n2, k); "mean"
      the average over equal outputs, (n1, n2).

    **Raises:** `ValueError` / `TypeError` for an input that is empty, not finite or not floating,
    a model that does not give a vector, a metric that does not fit, an unknown `outputs`.

    Source: Jacot, Gabriel & Hongler (2018), section 4; for the metric docs/theory.md, section 1.
    """
    checks.choice("outputs", outputs, ("full", "mean", "diagonal"))
    x1 = check_batch("x1", x1)
    of_model = check_model(model, "x1", x1)
    if x2 is not None:
        x2 = check_batch("x2", x2)
        check_model(model, "x2", x2, outputs=of_model)
    check_metric(model, metric)
    return _ntk(model, x1, x2, metric, outputs, of_model.shape[0])


@eqx.filter_jit
def _ntk(
    model: Model, x1: Array, x2: Array | None, metric: Metric | None, outputs: Outputs, k: int
) -> Array:
    params, apply = split(model)
    jac1 = jacobian(apply, params, x1)
    jac2 = jac1 if x2 is None else jacobian(apply, params, x2)
    if outputs == "full":
        return einops.rearrange(gram(jac1, jac2, metric), "(a k) (b l) -> a k b l", k=k, l=k)
    by_output = [
        jax.tree.map(lambda leaf: leaf.reshape(-1, k, *leaf.shape[1:]), jac) for jac in (jac1, jac2)
    ]
    diagonal = jax.vmap(functools.partial(gram, metric=metric), in_axes=1, out_axes=-1)(*by_output)
    return diagonal if outputs == "diagonal" else jnp.mean(diagonal, axis=-1)


def jacobian(apply: Apply, params: Params, x: Float[Array, "n ..."]) -> PyTree[Any]:
    """df/dtheta on a batch: the parameters' tree, each leaf with one axis of n k rows in front.

    Row (example, output) is the composite index example * k + output.
    """
    jac = jax.vmap(jax.jacrev(apply), in_axes=(None, 0))(params, x)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), jac)


def gram(rows1: PyTree[Any], rows2: PyTree[Any], metric: Metric | None) -> Float[Array, "m1 m2"]:
    """R1 M R2^T for two trees of the parameters' shape with one axis of rows in front."""
    products = jax.tree.map(
        lambda a, b: a.reshape(a.shape[0], -1) @ b.reshape(b.shape[0], -1).T,
        rows1,
        jax.vmap(functools.partial(precondition, metric))(rows2),
    )
    return functools.reduce(jnp.add, jax.tree.leaves(products))
