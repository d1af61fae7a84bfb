r"""How linear a network is in its parameters: norms of its first two derivatives.

    |J| = sup |J v|,    |H| = sup |v . H v|,    kappa = |y - f| |D^2 f| / |D f|^2       over |v| = 1

The smaller kappa, the closer training follows the linearised network (Chizat, Oyallon & Bach 2019);
of wide networks with a linear output |H| vanishes like width^{-1/2} (Liu, Zhu & Belkin 2020). All
norms are Euclidean in M^{-1/2} theta, with M the metric, and matrix-free.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, Shaped

from corrections.contraction.gradient_factors import GradientFactors
from corrections.contraction.hessian import FactorHessian, hessian_size
from corrections.loss_function import target_array
from corrections.operators.krylov import extreme_eigenpairs
from corrections.operators.linear_operator import flat_operator
from corrections.operators.metric_coordinates import MetricCoordinates
from corrections.operators.ntk_operator import NTKOperator
from corrections.parameters import (
    Apply,
    check_metric,
    check_model,
    Metric,
    Model,
    Params,
    vector_model,
)
from corrections.smoothness import warn_at_kinks
from zoo.common import checks
from zoo.common.examples import checked_batch, count, one_of
from zoo.common.norms import norm
from zoo.common.precision import full_precision
from zoo.common.records import short_repr
from zoo.common.tiles import in_tiles, working_bytes


@short_repr
class NormEstimate(NamedTuple):
    """An operator norm that was found by iteration.

    - `value`: the norm, >= 0; never above the true one but by rounding.
    - `residual`: of its eigenvector, in the units of `value`: the operator has a singular value (an
      eigenvalue in magnitude) within that distance of `value`.
    - `converged`: whether that is at most `rtol` times the value. Where it is False, `value` is a
      lower bound and nothing more.
    """

    value: Float[Array, "..."]
    residual: Float[Array, "..."]
    converged: Bool[Array, "..."]


@full_precision
def jacobian_norm(
    model: Model,
    x: PyTree[Shaped[Array, "n ..."]],
    *,
    metric: Metric | None = None,
    matvecs: int = 200,
    rtol: float = 1e-4,
    batch_size: int | None = None,
    key: PRNGKeyArray | None = None,
) -> NormEstimate:
    """The norm of the Jacobian of all outputs of all examples: sup |J M^{1/2} v| over |v| = 1.

    It is the square root of the largest eigenvalue of the tangent kernel Theta = J M J^T, in units
    of outputs over parameters.

    **Arguments:**

    - `model`: any callable PyTree, one example in, k outputs out.
    - `x`: a batch of examples, (n, ...).
    - `metric`: the learning-rate multipliers M, a PyTree prefix of the parameters (default: 1).
    - `matvecs`: the most products with Theta that are taken.
    - `rtol`: the residual, relative to the value, at which it has converged.
    - `batch_size`: the most examples that are taken at once (default: all).
    - `key`: for the start of the iteration (default: `jax.random.key(0)`).

    **Returns:** a `NormEstimate` of scalars.

    **Raises:** `ValueError` / `TypeError` for a batch that is empty, not finite or not real, a
    model that does not give a vector, a metric that does not fit, counts below 1.
    """
    matvecs = checks.integer("matvecs", matvecs)
    checks.nonnegative_number("rtol", rtol, strictly=True)
    key = checks.key_or_default("key", key)
    x = checked_batch("x", x)
    operator = NTKOperator(model, x, metric=metric, batch_size=batch_size)
    with jax.numpy_dtype_promotion("standard"):
        return _jacobian_norm(operator, matvecs, rtol, key)


@full_precision
def hessian_norm(
    model: Model,
    x: PyTree[Shaped[Array, "n ..."]],
    *,
    metric: Metric | None = None,
    matvecs: int = 200,
    rtol: float = 1e-4,
    key: PRNGKeyArray | None = None,
) -> NormEstimate:
    """The spectral norm of the Hessian of each output of each example in the parameters:
    sup |v . M^{1/2} H M^{1/2} v| over |v| = 1.

    In units of outputs over parameters squared.

    **Arguments:**

    - `model`, `x`, `metric`, `key`: as in `jacobian_norm`.
    - `matvecs`: the most products with each Hessian that are taken, each about two gradients.
    - `rtol`: the residual, relative to the value, at which it has converged. The value itself is
      then closer: its error goes like the square of the residual.

    **Returns:** a `NormEstimate` of arrays (n, k).

    **Raises:** as `jacobian_norm`. **Warns:** `KinkWarning` for activations without second
    derivatives, whose Hessians leave the kinks out.

    Source: Liu, Zhu & Belkin (2020), section 3.
    """
    x, matvecs, key = checked_estimate(model, x, metric, matvecs, rtol, key)
    warn_at_kinks(model, 2)
    with jax.numpy_dtype_promotion("standard"):
        return hessian_norms(model, x, metric, matvecs, rtol, key)


@short_repr
class Kappa(NamedTuple):
    """The inverse relative scale, and what it is made of; see `kappa`.

    - `value`: kappa = distance x second derivative / Jacobian^2, >= 0 and without unit.
    - `residual`, `converged`: as in `NormEstimate`; the residual has the unit of `value`.
    - `distance`: |y - f|, over all examples and outputs.
    - `jacobian`: |D f|, a `NormEstimate`.
    - `second_derivative`: |D^2 f| = sup |D^2 f[u, v]| over |u| = |v| = 1, a `NormEstimate`.
    """

    value: Float[Array, ""]
    residual: Float[Array, ""]
    converged: Bool[Array, ""]
    distance: Float[Array, ""]
    jacobian: NormEstimate
    second_derivative: NormEstimate


@full_precision
def kappa(
    model: Model,
    x: PyTree[Shaped[Array, "n ..."]],
    y: Float[Array, "n ..."],
    *,
    metric: Metric | None = None,
    matvecs: int = 200,
    rtol: float = 1e-3,
    starts: int = 3,
    iterations: int = 30,
    batch_size: int | None = None,
    key: PRNGKeyArray | None = None,
) -> Kappa:
    """The inverse relative scale of a network: kappa = |y - f| |D^2 f| / |D f|^2.

    It bounds how far training moves the network away from its linearisation, relative to how far
    it has to go: small kappa is lazy training. f is the vector of all outputs of all examples, and
    norms are operator norms; kappa does not change where examples are given twice.

    |D^2 f| of more than one output is found by alternating between the unit vector w of outputs and
    the largest eigenvalue of sum_a w_a H_a: each step raises it, and `converged` says that it is
    stationary. It is the largest of several starts, and so a lower bound of the global supremum.

    **Arguments:**

    - `model`, `x`, `metric`, `batch_size`, `key`: as in `jacobian_norm`.
    - `y`: targets, (n, k).
    - `matvecs`: the most products for the Jacobian, and for the Hessian in each step.
    - `rtol`: the residual, relative to the value, at which it has converged.
    - `starts`, `iterations`: starts of the alternating iteration, and the most steps of each.

    **Raises:** as `jacobian_norm`; `ValueError` for targets that do not fit. **Warns:** as
    `hessian_norm`.

    Source: Chizat, Oyallon & Bach (2019), "On lazy training in differentiable programming", eq. 3.
    """
    x, matvecs, key = checked_estimate(model, x, metric, matvecs, rtol, key)
    starts = checks.integer("starts", starts)
    iterations = checks.integer("iterations", iterations)
    batch_size = checks.integer_or_none("batch_size", batch_size)
    outputs = check_model(model, "x", x)
    y = target_array(y, (count(x), outputs.shape[0]), because="a row for each example of `x`")
    warn_at_kinks(model, 2)
    first, second = jr.split(key)
    jacobian = jacobian_norm(
        model,
        x,
        metric=metric,
        matvecs=matvecs,
        rtol=rtol,
        batch_size=batch_size,
        key=first,
    )
    with jax.numpy_dtype_promotion("standard"):
        counts = (matvecs, starts, iterations)
        curved = _second_derivative(model, x, metric, counts, rtol, batch_size, second)
        f = jax.vmap(vector_model(model))(x)
        distance = norm(y.astype(f.dtype) - f)
    value = (distance / jacobian.value) * (curved.value / jacobian.value)
    relative = curved.residual / curved.value + 2 * jacobian.residual / jacobian.value
    residual = jnp.where(value > 0, value * relative, 0)
    # Where nothing moves there is no ratio of how.
    converged = curved.converged & jacobian.converged & (jacobian.value > 0)
    return Kappa(value, residual, converged, distance, jacobian, curved)


@eqx.filter_jit
def _jacobian_norm(
    operator: NTKOperator, matvecs: int, rtol: float, key: PRNGKeyArray
) -> NormEstimate:
    product, size, dtype, _ = flat_operator(operator)
    start = jr.normal(key, (1, size), dtype)
    # An error of 2 r |J| in |J|^2 is one of r in |J|.
    found = extreme_eigenpairs(product, start, which="largest", matvecs=matvecs, rtol=rtol)
    value = jnp.sqrt(jnp.maximum(found.values[0], 0))
    residual = found.residuals[0] / jnp.where(value > 0, value, 1)
    return NormEstimate(value, residual, found.converged[0])


_CYCLE = 32
"""Products between two restarts for the Hessian of an output: its vectors are short."""


@eqx.filter_jit
def hessian_norms(
    model: Model, x: PyTree, metric: Metric | None, matvecs: int, rtol: float, key: PRNGKeyArray
) -> NormEstimate:
    """`hessian_norm`, of arguments that fit."""
    factored = GradientFactors(model, one_of(x), metric)
    (k,), dtype = factored.outputs.shape, factored.outputs.dtype
    outputs = jnp.eye(k, dtype=dtype)
    size = hessian_size(factored, one_of(x))

    def of_output(item: tuple[PyTree, Array]) -> NormEstimate:
        hessian = FactorHessian(factored, *item)
        start = jr.normal(key, (1, hessian.size), dtype)
        found = extreme_eigenpairs(
            hessian.product,
            start,
            which="magnitude",
            matvecs=matvecs,
            rtol=rtol,
            cycle=_CYCLE,
            orthogonal=False,
        )
        return NormEstimate(jnp.abs(found.values[0]), found.residuals[0], found.converged[0])

    stored = (_CYCLE * size + 4 * factored.sizes()[1]) * dtype.itemsize
    at_most = max(1, working_bytes() // stored)

    def of_example(x: PyTree) -> NormEstimate:
        return in_tiles(lambda w: of_output((x, w)), outputs, at_most)

    return in_tiles(of_example, x, max(1, at_most // k))


@eqx.filter_jit
def _second_derivative(
    model: Model,
    x: PyTree,
    metric: Metric | None,
    counts: tuple[int, int, int],
    rtol: float,
    batch_size: int | None,
    key: PRNGKeyArray,
) -> NormEstimate:
    """|D^2 f| of all outputs of all examples, by alternating iteration."""
    matvecs, starts, iterations = counts
    flat = MetricCoordinates(model, metric)
    outputs = jax.eval_shape(flat.apply, flat.params, one_of(x))
    (k,), wide = outputs.shape, jnp.promote_types(outputs.dtype, flat.vector.dtype)
    size, dtype = flat.vector.shape[0], flat.vector.dtype
    at_once = count(x) if batch_size is None else batch_size

    def second(u: Array) -> Array:
        """D^2 f[u, u], (n, k)."""
        step = flat.step(u)

        def along(params: Params, x: PyTree) -> Array:
            return jax.jvp(lambda p: flat.apply(p, x), (params,), (step,))[1]

        return in_tiles(
            lambda x: jax.jvp(lambda p: along(p, x), (flat.params,), (step,))[1], x, at_once
        )

    class _Search(NamedTuple):
        weights: Array
        vector: Array
        value: Array
        residual: Array
        steps: Array

    def improved(state: _Search) -> _Search:
        product = flat.hessian_product(_weighted, (x, state.weights), batch_size)
        found = extreme_eigenpairs(
            product, state.vector[None], which="magnitude", matvecs=matvecs, rtol=rtol / 3
        )
        u = found.vectors[0]
        image = second(u).astype(wide)
        value = norm(image)
        weights = image / jnp.where(value > 0, value, 1)
        # Stationary where u is also an eigenvector for the weights that it gives.
        moved = flat.hessian_product(_weighted, (x, weights), batch_size)(u)
        residual = norm(moved.astype(wide) - value * u.astype(wide))
        return _Search(weights, u, value, residual, state.steps + 1)

    def unfinished(state: _Search) -> Array:
        return (state.residual > rtol * state.value) & (state.steps < iterations)

    def of_start(key: PRNGKeyArray) -> tuple[Array, Array]:
        for_weights, for_vector = jr.split(key)
        weights = jr.normal(for_weights, (count(x), k), dtype)
        weights /= jnp.linalg.norm(weights)
        vector = jr.normal(for_vector, (size,), dtype)
        infinite = jnp.asarray(jnp.inf, wide)
        one, none = jnp.ones((), wide), jnp.zeros((), int)
        start = _Search(weights.astype(wide), vector, one, infinite, none)
        done = jax.lax.while_loop(unfinished, improved, start)
        return done.value, done.residual

    values, residuals = jax.lax.map(of_start, jr.split(key, starts))
    best = jnp.argmax(values)
    value, residual = values[best], residuals[best]
    return NormEstimate(value, residual, residual <= rtol * value)


def _weighted(apply: Apply, params: Params, item: Any) -> Array:
    """The weighted outputs w . f(x)."""
    x, weights = item
    return jnp.vdot(weights, apply(params, x))


def checked_estimate(
    model: Model,
    x: Any,
    metric: Metric | None,
    matvecs: int,
    rtol: float,
    key: PRNGKeyArray | None,
) -> tuple[PyTree, int, PRNGKeyArray]:
    """The batch, the count and the key, where all arguments of an estimate fit."""
    matvecs = checks.integer("matvecs", matvecs)
    checks.nonnegative_number("rtol", rtol, strictly=True)
    x = checked_batch("x", x)
    check_model(model, "x", x, forward_mode=True)
    check_metric(model, metric)
    return x, matvecs, checks.key_or_default("key", key)
