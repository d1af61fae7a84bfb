r"""A displacement d of a network's parameters: what the linearised network makes of it.

How long it is, which part of it lies in the row space of the Jacobian, where gradient flow of the
linearised network stays, and how far it takes the network from its linearisation:

    |f(theta + d) - f(theta) - J d|  <=  sup |H| R^2 / 2   over the segment,    R = |M^{-1/2} d|
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, Shaped

from corrections.kernels.ntk import tangent_kernel
from corrections.measures.linearity import checked_estimate, hessian_norms, NormEstimate
from corrections.operators.metric_coordinates import metric_norm, root_of_metric
from corrections.parameters import (
    check_metric,
    check_model,
    direction,
    Metric,
    Model,
    Params,
    split,
)
from corrections.smoothness import warn_at_kinks
from corrections.symmetric.positive_matrix import positive_matrix
from zoo.common import checks
from zoo.common.examples import checked_batch
from zoo.common.precision import full_precision
from zoo.common.records import short_repr


@short_repr
class LinearityBound(NamedTuple):
    """How far a step leaves the linearisation, and what the Hessian on the way allows.

    - `deviation`: |f(theta + d) - f(theta) - J d|, (n, k).
    - `bound`: max |H| R^2 / 2 over the points of the segment that were looked at, (n, k). With the
      supremum over the whole segment it could not be below `deviation`; this is a lower estimate of
      that.
    - `radius`: R = |M^{-1/2} d|.
    - `places`: fractions of the step where |H| was taken, from 0 to 1.
    - `hessian`: a `NormEstimate`, (places, n, k).
    - `converged`: whether all of those have.
    """

    deviation: Float[Array, "n k"]
    bound: Float[Array, "n k"]
    radius: Float[Array, ""]
    places: Float[Array, " places"]
    hessian: NormEstimate
    converged: Bool[Array, ""]


@full_precision
def linearity_bound(
    model: Model,
    x: PyTree[Shaped[Array, "n ..."]],
    displacement: PyTree,
    *,
    samples: int = 5,
    metric: Metric | None = None,
    matvecs: int = 200,
    rtol: float = 1e-3,
    key: PRNGKeyArray | None = None,
) -> LinearityBound:
    """The deviation from the linearised network after a step d, beside its bound by the Hessian:

        |f(theta + d) - f(theta) - J d|  <=  sup |H| R^2 / 2   over the segment,    R = |d|

    **Arguments:**

    - `model`, `x`, `metric`, `matvecs`, `rtol`, `key`: as in `hessian_norm`. With a metric
      R = |M^{-1/2} d|: where M is 0, d has to be.
    - `displacement`: d, a tree like `zoo.parameters(model)`.
    - `samples`: points of the segment at which |H| is taken, the ends among them, >= 2.

    **Raises:** as `hessian_norm`; `ValueError` for a displacement of another structure than the
    parameters, or one that moves what the metric holds. **Warns:** as `hessian_norm`.

    Source: Liu, Zhu & Belkin (2020), "On the linearity of large non-linear models", proposition 2.
    """
    samples = checks.integer("samples", samples, least=2)
    x, matvecs, key = checked_estimate(model, x, metric, matvecs, rtol, key)
    warn_at_kinks(model, 2)
    displacement = _checked(model, displacement, metric)
    radius = metric_norm(displacement, metric)
    places = jnp.linspace(0, 1, samples, dtype=radius.dtype)
    norms = []
    for place in places:
        step = jax.tree.map(lambda d, at=place: at.astype(d.dtype) * d, displacement)
        moved = eqx.apply_updates(model, step)
        with jax.numpy_dtype_promotion("standard"):
            norms.append(hessian_norms(moved, x, metric, matvecs, rtol, key))
    hessian = NormEstimate(*(jnp.stack(parts) for parts in zip(*norms, strict=True)))
    deviation = _deviation(model, displacement, x)
    bound = jnp.max(hessian.value, axis=0) * radius**2 / 2
    return LinearityBound(deviation, bound, radius, places, hessian, jnp.all(hessian.converged))


@full_precision
def row_space_fraction(
    model: Model,
    x: PyTree[Shaped[Array, "n ..."]],
    displacement: PyTree,
    *,
    metric: Metric | None = None,
    batch_size: int | None = None,
) -> Float[Array, ""]:
    """The part of a displacement that lies in the row space of the Jacobian at the parameters:

        |P d|^2 / |d|^2 = (J d) . Theta^+ (J d) / |M^{-1/2} d|^2,    Theta = J M J^T

    Between 0 and 1, without unit. Training of the linearised network moves in that space alone
    (that of M J^T): the rest is what the change of the Jacobian has added. Directions whose
    eigenvalue of Theta cannot be told from zero are left out.

    **Arguments:**

    - `model`, `x`: the network at the start, and the training examples (n, ...).
    - `displacement`: d, a tree like `zoo.parameters(model)`.
    - `metric`: the learning-rate multipliers M; where they are 0, d has to be.
    - `batch_size`: as in `ntk`. The kernel is stored, (n k, n k).

    **Raises:** as `ntk`; `ValueError` for a displacement of another structure than the parameters,
    one that is all zero, or one that moves what the metric holds.
    """
    x = checked_batch("x", x)
    check_model(model, "x", x, forward_mode=True)
    check_metric(model, metric)
    displacement = _checked(model, displacement, metric)
    length = metric_norm(displacement, metric)
    checks.nonzero("displacement", length, "one that moves some parameter")
    kernel = tangent_kernel(model, x, metric=metric, batch_size=batch_size)
    fraction = _fraction(model, x, displacement, kernel, length)
    checks.computed("`model`, `x`, `displacement` or `metric`", fraction)
    return fraction


@eqx.filter_jit
def _fraction(
    model: Model, x: PyTree, displacement: Params, kernel: Array, length: Array
) -> Float[Array, ""]:
    params, apply = split(model)

    def change(x: PyTree) -> Array:
        return jax.jvp(lambda p: apply(p, x), (params,), (displacement,))[1]

    pushed = jax.vmap(change)(x).ravel()
    system = positive_matrix(kernel.reshape(pushed.size, pushed.size))
    pushed = pushed / length
    inside = jnp.sum(pushed * system.solve(pushed[:, None])[:, 0])
    return jnp.clip(inside, 0, 1)


def _checked(model: Model, displacement: PyTree, metric: Metric | None) -> Params:
    """`displacement` as a direction of the parameters that moves nothing the metric holds.

    **Raises:** `ValueError` where it has another structure, is not finite, or is not 0 where the
    metric is.
    """
    params, _ = split(model)
    displacement = direction("displacement", displacement, params)
    if metric is not None:
        outside = checks.concrete(_outside(displacement, metric))
        if outside is not None and outside > 0:
            raise ValueError(
                f"`displacement` moves {int(outside)} parameters whose `metric` is 0, expected "
                "zeros there: gradient flow under this metric does not move them."
            )
    return displacement


def _outside(displacement: Params, metric: Metric) -> Array:
    vector = ravel_pytree(displacement)[0]
    return jnp.sum((root_of_metric(metric, displacement) == 0) & (vector != 0))


@eqx.filter_jit
def _deviation(model: Model, displacement: Params, x: PyTree) -> Array:
    params, apply = split(model)

    def of_example(x: PyTree) -> Array:
        f, change = jax.jvp(lambda p: apply(p, x), (params,), (displacement,))
        return jnp.abs(apply(eqx.apply_updates(params, displacement), x) - f - change)

    return jax.vmap(of_example)(x)
