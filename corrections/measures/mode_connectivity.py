r"""Between two networks and along a path of them: the landscape that training has gone through.

    barrier = max over the segment of R(a w + (1 - a) w')  -  (R(w) + R(w')) / 2,    R = 0-1 error

(Fort et al. 2020; Frankle et al. 2020), and the plane in which most of a path of parameters lies.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, Shaped

from corrections.loss_function import check_scalar, target_array
from corrections.operators.metric_coordinates import root_of_metric, without_metric
from corrections.parameters import (
    as_vector,
    check_metric,
    check_model,
    check_parameters,
    check_real,
    check_tree_like,
    Metric,
    Model,
    split,
)
from zoo import Frozen
from zoo.common import checks
from zoo.common.examples import checked_batch, count
from zoo.common.precision import full_precision
from zoo.common.records import short_repr
from zoo.common.tiles import in_tiles


def interpolate(first: Model, second: Model, fraction: float | Array) -> Model:
    """The network on the straight line from `first` (fraction 0) to `second` (fraction 1).

    Parameters are interpolated, and so is what is frozen inside the models, such as the statistics
    of batch normalization. The ends are the two models bit for bit, and so is every point between
    equal models.

    **Raises:** `ValueError` where the two differ in structure or shapes.
    """
    checks.finite_scalar("fraction", fraction)
    check_real("first", first)
    check_real("second", second)
    if jax.tree.structure(first) != jax.tree.structure(second):
        raise ValueError(
            "`second` has another structure than `first`, expected two models of the same "
            "architecture."
        )
    arrays = [eqx.filter(model, eqx.is_array) for model in (first, second)]
    check_tree_like("second", arrays[1], arrays[0], "`first`")
    return _between(first, second, fraction)


@short_repr
class ErrorBarrier(NamedTuple):
    """The barrier between two networks; see `error_barrier`.

    - `value`: the largest risk on the segment minus the mean of the risks at its ends, >= 0; of the
      0-1 error between 0 and 1. A lower estimate where the segment is sampled coarsely.
    - `fractions`: where the risk was taken, from 0 (the first network) to 1.
    - `risks`: the risk there.
    """

    value: Float[Array, ""]
    fractions: Float[Array, " points"]
    risks: Float[Array, " points"]


@full_precision
def error_barrier(
    first: Model,
    second: Model,
    x: PyTree[Shaped[Array, "n ..."]],
    y: Float[Array, "n ..."],
    *,
    points: int = 11,
    risk: Callable[[Array, Array], Array] | None = None,
    batch_size: int | None = None,
) -> ErrorBarrier:
    """The rise of the error on the straight line between two networks.

    max over the segment of R(a w + (1 - a) w') - (R(w) + R(w')) / 2, R the mean risk on (x, y).
    Zero for equal networks; networks without a barrier are linearly connected.

    **Arguments:**

    - `first`, `second`: two models of the same architecture; see `interpolate`.
    - `x`, `y`: examples (n, ...) and targets (n, k), one-hot rows for a classification (of one
      output: labels of the two signs).
    - `points`: of the segment, the ends among them, >= 2.
    - `risk`: per example, (f (k,), y (k,)) -> scalar, such as a loss (default: the 0-1 error).
    - `batch_size`: the most examples that are taken at once (default: all).

    **Raises:** `ValueError` / `TypeError` for batches that are empty, not finite or not real,
    targets that do not fit, models of different structures, fewer than two points.

    Source: Fort et al. (2020), section 2; Frankle, Dziugaite, Roy & Carbin (2020), eq. 1.
    """
    points = checks.integer("points", points, least=2)
    batch_size = checks.integer_or_none("batch_size", batch_size)
    x = checked_batch("x", x)
    outputs = check_model(first, "x", x, called="first")
    check_parameters(second, "second")
    y = target_array(y, (count(x), outputs.shape[0]), because="a row for each example of `x`")
    if risk is not None:
        check_scalar("risk", risk, y, (jnp.floating, jnp.integer, jnp.bool_))
    interpolate(first, second, 0.0)
    at_once = count(x) if batch_size is None else batch_size
    fractions = jnp.linspace(0, 1, points)
    risks = _risks(first, second, x, y, fractions, risk, at_once)
    checks.computed("`first`, `second`, `x` or `risk`", risks)
    return ErrorBarrier(jnp.max(risks) - (risks[0] + risks[-1]) / 2, fractions, risks)


@short_repr
class WeightPath(NamedTuple):
    """The plane in which most of a path of parameters lies; see `weight_path`.

    - `coordinates`: of each point in the plane, (t, 2), in the units of the parameters, about
      `center`.
    - `axes`: two orthonormal directions, a tree like the parameters with 2 in front. With a metric
      M they are orthonormal as M^{-1/2} axes.
    - `center`: the mean of the points, a tree like the parameters.
    - `explained`: the part of the variance along each axis, (2,): between 0 and 1, descending, of
      sum <= 1.
    """

    coordinates: Float[Array, "t 2"]
    axes: PyTree
    center: PyTree
    explained: Float[Array, " 2"]


def weight_path(models: Sequence[Model], *, metric: Metric | None = None) -> WeightPath:
    """The two principal components of a path of parameters.

    **Arguments:**

    - `models`: the network at the points of the path, at least three, such as those that training
      saved. Their parameters are what is looked at.
    - `metric`: the learning-rate multipliers M: lengths are then those of M^{-1/2} theta, and what
      M holds is left out.

    The signs of the axes are such that the path ends at positive coordinates.

    **Raises:** `ValueError` for fewer than three points, points of different structures, a metric
    that does not fit, or points that are all the same.

    Source: Li et al. (2018), "Visualizing the loss landscape of neural nets", section 7.
    """
    checks.sequence("models", models, "a sequence of models, the points of a path")
    if len(models) < 3:
        raise ValueError(f"`models` has {len(models)} points, expected at least three.")
    for i, model in enumerate(models):
        check_real(f"models[{i}]", model)
    params = [split(model)[0] for model in models]
    for i, point in enumerate(params[1:], start=1):
        check_tree_like(f"models[{i}]", point, params[0], "the parameters of `models[0]`")
    check_metric(models[0], metric)
    _, unravel = ravel_pytree(params[0])
    points = jnp.stack([ravel_pytree(point)[0] for point in params])
    checks.finite("models", points)
    # From the first point: a path that does not move is zero, and small steps keep their digits.
    moves = points - points[:1]
    shifts = jnp.stack([without_metric(unravel(move), metric) for move in moves])
    mean = jnp.mean(shifts, axis=0)
    # Of t points in a space of many more dimensions: no matrix over the parameters.
    left, singular, axes = jnp.linalg.svd(shifts - mean[None], full_matrices=False)
    largest = checks.concrete(singular[0])
    if largest is not None and largest == 0:
        raise ValueError("`models` are all the same, expected a path that moves.")
    parts = (singular / singular[0]) ** 2  # whose squares neither vanish nor overflow
    if len(axes) < 2:  # one parameter
        axes = jnp.pad(axes, ((0, 2 - len(axes)), (0, 0)))
        left = jnp.pad(left, ((0, 0), (0, 1)))
        singular, parts = (jnp.pad(values, (0, 1)) for values in (singular, parts))
    coordinates = left[:, :2] * singular[None, :2]
    signs = jnp.where(coordinates[-1] < 0, -1, 1).astype(points.dtype)
    axes = axes[:2] * signs[:, None]
    if metric is not None:
        axes = axes * root_of_metric(metric, params[0])[None]
    return WeightPath(
        coordinates * signs[None],
        jax.vmap(unravel)(axes),
        unravel(points[0] + jnp.mean(moves, axis=0)),
        parts[:2] / jnp.sum(parts),
    )


def _between(first: Any, second: Any, fraction: float | Array) -> Any:
    def is_frozen(node: Any) -> bool:
        return isinstance(node, Frozen)

    def of_leaf(a: Any, b: Any) -> Any:
        if is_frozen(a):
            return Frozen(_between(a.value, b.value, fraction))
        if not eqx.is_inexact_array(a):
            return a
        at = jnp.asarray(fraction, a.real.dtype)
        # Each end from its own side: exact there, and everywhere between equal models.
        between = jnp.where(at < 0.5, a + at * (b - a), b - (1 - at) * (b - a))
        # Of a network that has diverged, 0 times it is not 0.
        return jnp.where(at == 0, a, jnp.where(at == 1, b, between))

    return jax.tree.map(of_leaf, first, second, is_leaf=is_frozen)


@eqx.filter_jit
def _risks(
    first: Model,
    second: Model,
    x: PyTree,
    y: Array,
    fractions: Array,
    risk: Callable[[Array, Array], Array] | None,
    batch_size: int,
) -> Array:
    of_outputs = _zero_one_error if risk is None else risk

    def at(fraction: Array) -> Array:
        model = _between(first, second, fraction)

        def of_example(item: tuple[PyTree, Array]) -> Array:
            x, y = item
            f = as_vector(model(x))
            return of_outputs(f, y.astype(f.dtype)).astype(f.dtype)

        return jnp.mean(in_tiles(of_example, (x, y), batch_size))

    return jax.lax.map(at, fractions)


def _zero_one_error(f: Array, y: Array) -> Array:
    if f.shape[0] == 1:
        return (f[0] > 0) != (y[0] > 0)
    return jnp.argmax(f) != jnp.argmax(y)
