r"""How far a network has come: distances between two states of it, in four spaces.

    parameters, kernels    |b - a|_F / |a|_F
    kernels                1 - <K, K'>_F / (|K|_F |K'|_F)
    outputs                mean |f(x) - f'(x)|
    activations            the part of all units that are on in one network and off in the other

Source: Fort et al. (2020), "Deep learning versus kernel learning", section 2.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from corrections.kernels.ntk import tangent_kernel
from corrections.operators.metric_coordinates import metric_norm
from corrections.parameters import (
    as_vector,
    check_metric,
    check_model,
    check_real,
    check_tree_like,
    Metric,
    Model,
)
from zoo import Activation, parameters, record
from zoo.common import checks
from zoo.common.examples import checked_batch, count, one_of
from zoo.common.norms import norm
from zoo.common.precision import full_precision
from zoo.common.tiles import in_tiles

Space = Literal["outputs", "probabilities", "predictions"]
SPACES: tuple[Space, ...] = ("outputs", "probabilities", "predictions")


def relative_change(
    before: PyTree, after: PyTree, *, metric: Metric | None = None
) -> Float[Array, ""]:
    """|after - before| / |before|, the Euclidean norm over all parameters, or over the entries of
    kernels. Without unit, >= 0.

    **Arguments:**

    - `before`, `after`: models, trees or arrays of the same structure and shapes.
    - `metric`: of models, the learning-rate multipliers M: the norm is then that of M^{-1/2} theta,
      over the parameters that M lets move.

    **Raises:** `ValueError` where they differ in structure or shapes, the metric does not fit, or
    `before` is zero.
    """
    check_real("before", before)
    check_real("after", after)
    trees = [parameters(tree) for tree in (before, after)]
    check_tree_like("after", trees[1], trees[0], "`before`")
    if not jax.tree.leaves(trees[0]):
        raise ValueError("`before` holds no floating-point arrays, expected a model or a kernel.")
    if metric is not None:
        check_metric(before, metric)
    for name, tree in zip(("before", "after"), trees, strict=True):
        for leaf in jax.tree.leaves(tree):
            checks.finite(name, leaf)
    change = jax.tree.map(jnp.subtract, trees[1], trees[0])
    moved, size = (metric_norm(tree, metric) for tree in (change, trees[0]))
    checks.nonzero("before", size, "something that a change is relative to")
    return moved / size


@full_precision
def kernel_distance(first: Float[Array, "..."], second: Float[Array, "..."]) -> Float[Array, ""]:
    """1 - <K, K'>_F / (|K|_F |K'|_F): how far two kernels are from being multiples of each other.

    Without unit; symmetric, 0 for multiples, between 0 and 1 for positive kernels (2 for kernels of
    opposite signs). Accurate also where it is small.

    **Arguments:**

    - `first`, `second`: kernels of the same shape, on the same examples; the full kernel
      (n, k, n, k) is what Fort et al. take.

    **Raises:** `ValueError` / `TypeError` for kernels of different shapes, not finite, or zero.

    Source: Fort et al. (2020), eq. 2.
    """
    one, other = _unit("first", first), _unit("second", second)
    checks.shape("second", other, one.shape, "as `first`")
    return _distance(one, other)


def _unit(name: str, kernel: Any) -> Array:
    """A kernel over its norm.

    **Raises:** `ValueError` / `TypeError` where it is empty, not finite, or zero.
    """
    array = checks.real_array(name, kernel, expected="a kernel", half="refused")
    if array.size == 0:
        raise ValueError(f"`{name}` has shape {array.shape}, expected a kernel with entries.")
    checks.finite(name, array)
    checks.nonzero(name, array, "a kernel that has a direction")
    return array / norm(array)


def _distance(one: Array, other: Array) -> Float[Array, ""]:
    """1 - u . v = |u - v|^2 / 2 of unit vectors, without cancellation."""
    return jnp.sum((one - other) ** 2) / 2


def kernel_velocity(
    kernels: Sequence[Array] | Float[Array, "t ..."], ts: Float[Array, " t"] | Sequence[float]
) -> Float[Array, " intervals"]:
    """The kernel distance between successive times over the time between, (t - 1,).

    In units of 1 / `ts` (epochs, steps, gradient-flow time), >= 0.

    **Arguments:**

    - `kernels`: t kernels on the same examples, at least two.
    - `ts`: their increasing times, (t,).

    **Raises:** `ValueError` / `TypeError` for times that do not increase or do not fit, and as
    `kernel_distance`.

    Source: Fort et al. (2020), eq. 3.
    """
    times = checks.real_array("ts", ts, expected="times (t,)", integers=True)
    checks.sequence("kernels", kernels, "a sequence of kernels")
    count = len(kernels)
    if count < 2:
        raise ValueError(f"`kernels` has {count} entries, expected at least two.")
    checks.shape("ts", times, (count,), "one for each of `kernels`")
    checks.finite("ts", times)
    values = checks.concrete(times)
    if values is not None and np.any(np.diff(values) <= 0):
        raise ValueError(f"`ts` is {values}, expected strictly increasing times.")
    units = [_unit(f"kernels[{i}]", kernel) for i, kernel in enumerate(kernels)]
    for i, unit in enumerate(units[1:], start=1):
        checks.shape(f"kernels[{i}]", unit, units[0].shape, "as `kernels[0]`")
    distances = jnp.stack([_distance(one, other) for one, other in itertools.pairwise(units)])
    return distances / jnp.diff(times).astype(distances.dtype)


@full_precision
def function_distance(
    first: Model,
    second: Model,
    x: PyTree[Shaped[Array, "n ..."]],
    *,
    space: Space = "outputs",
    batch_size: int | None = None,
) -> Float[Array, ""]:
    """How much two networks differ on a set of examples.

    **Arguments:**

    - `first`, `second`: any two models with the same outputs.
    - `x`: examples, (n, ...).
    - `space`: "outputs", the mean of |f(x) - f'(x)|, in units of the outputs; "probabilities", the
      same after a softmax, between 0 and sqrt(2); "predictions", the part of the examples whose
      largest outputs differ (of one output: whose signs do), between 0 and 1.
    - `batch_size`: the most examples that are taken at once (default: all).

    **Raises:** `ValueError` / `TypeError` for a batch that is empty, not finite or not real,
    models that do not take it or differ in their outputs, an unknown space.

    Source: Fort et al. (2020), section 2; Benjamin, Rolnick & Kording (2019) for "outputs".
    """
    checks.choice("space", space, SPACES)
    x, batch_size = _checked_pair(first, second, x, batch_size)
    return _function_distance(first, second, x, space, batch_size)


Preactivations = Callable[[Any, Any], PyTree]
"""A model and one example -> what enters its activations."""


@full_precision
def activation_distance(
    first: Model,
    second: Model,
    x: PyTree[Shaped[Array, "n ..."]],
    *,
    preactivations: Preactivations | None = None,
    batch_size: int | None = None,
) -> Float[Array, ""]:
    """The part of all units and examples that are on (what enters the activation is > 0) in one
    network and off in the other: the normalised Hamming distance of their patterns.

    Between 0 and 1, without unit; 1/2 for unrelated patterns.

    **Arguments:**

    - `first`, `second`: two models of the same architecture.
    - `x`, `batch_size`: as in `function_distance`.
    - `preactivations`: for models whose activations are not `zoo.Activation`s: a function of a
      model and one example that gives what enters them, an array or a tree of arrays.

    **Raises:** as `function_distance`; `ValueError` for models without activations of the zoo where
    `preactivations` is missing, or with different ones.

    Source: Fort et al. (2020), section 2.
    """
    x, batch_size = _checked_pair(first, second, x, batch_size)
    if preactivations is not None:
        checks.function("preactivations", preactivations, "a function of a model and an example")
    reads = _recorded if preactivations is None else preactivations
    shapes = [
        eqx.filter_eval_shape(lambda m, x: reads(m, x), model, one_of(x))
        for model in (first, second)
    ]
    if not all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(shapes)):
        raise TypeError(f"`preactivations` gives {shapes[0]!r}, expected a tree of arrays.")
    if not jax.tree.leaves(shapes[0]):
        raise ValueError(
            "`first` calls no activations of the zoo (`zoo.Activation`), expected "
            "`preactivations`, a function of a model and one example that gives what enters them."
        )
    check_tree_like("second", shapes[1], shapes[0], "the activations of `first`")
    return _activation_distance(first, second, x, reads, batch_size)


def smallest_ntk_eigenvalue(
    models: Sequence[Model],
    x: PyTree[Shaped[Array, "n ..."]],
    *,
    metric: Metric | None = None,
    batch_size: int | None = None,
) -> Float[Array, " t"]:
    """The smallest eigenvalue of the tangent kernel Theta(x, x) at each point of a path, (t,).

    Where it stays above some mu > 0 on the way of gradient flow, the loss satisfies the
    Polyak-Lojasiewicz condition and training converges, dL/dt <= -2 mu L / n for squared loss. In
    units of Theta; >= 0 but for rounding, and known to about n k eps times the largest eigenvalue.

    **Arguments:**

    - `models`: the network at the points of the path, such as those that training saved.
    - `x`: the training examples, (n, ...).
    - `metric`, `batch_size`: as in `ntk`. The kernel is stored, (n k, n k).

    **Raises:** as `ntk`; `ValueError` for no models.

    Source: Liu, Zhu & Belkin (2022), "Loss landscapes and optimization in over-parameterized
    non-linear systems and neural networks", theorem 1.
    """
    checks.sequence("models", models, "a sequence of models, the points of a path")
    if len(models) == 0:
        raise ValueError("`models` is empty, expected at least one point of a path.")
    x = checked_batch("x", x)
    for i, model in enumerate(models):
        check_model(model, "x", x, called=f"models[{i}]")
        check_metric(model, metric)
    batch_size = checks.integer_or_none("batch_size", batch_size)
    smallest = []
    for model in models:
        kernel = tangent_kernel(model, x, metric=metric, batch_size=batch_size)
        size = kernel.shape[0] * kernel.shape[1]
        checks.computed(f"`models[{len(smallest)}]`, `x` or `metric`", kernel)
        smallest.append(jnp.linalg.eigvalsh(kernel.reshape(size, size))[0])
    return jnp.stack(smallest)


def _checked_pair(
    first: Model, second: Model, x: Any, batch_size: int | None
) -> tuple[PyTree, int]:
    """The batch and how many examples are taken at once, where both models take them."""
    batch_size = checks.integer_or_none("batch_size", batch_size)
    x = checked_batch("x", x)
    outputs = check_model(first, "x", x, called="first")
    check_model(second, "x", x, called="second")
    check_model(second, "x", x, outputs=outputs, called="second")
    return x, count(x) if batch_size is None else batch_size


@eqx.filter_jit
def _function_distance(
    first: Model, second: Model, x: PyTree, space: Space, batch_size: int
) -> Array:
    def of_example(x: PyTree) -> Array:
        f, g = as_vector(first(x)), as_vector(second(x))
        if space == "predictions":
            return jnp.not_equal(_prediction(f), _prediction(g)).astype(f.dtype)
        if space == "probabilities":
            f, g = jax.nn.softmax(f), jax.nn.softmax(g)
        return norm(f - g)

    return jnp.mean(in_tiles(of_example, x, batch_size))


def _prediction(f: Array) -> Array:
    return jnp.argmax(f) if f.shape[0] > 1 else f[0] > 0


@eqx.filter_jit
def _activation_distance(
    first: Model, second: Model, x: PyTree, reads: Preactivations, batch_size: int
) -> Array:
    def of_example(x: PyTree) -> Array:
        on = [[a > 0 for a in jax.tree.leaves(reads(model, x))] for model in (first, second)]
        differ = jnp.stack([jnp.sum(a != b) for a, b in zip(*on, strict=True)])
        return jnp.sum(differ) / sum(a.size for a in on[0])

    return jnp.mean(in_tiles(of_example, x, batch_size))


def _recorded(model: Any, x: PyTree) -> list[Array]:
    calls = record(model, x)[1]
    return [call.input for call in calls if isinstance(call.layer, Activation)]
