r"""The expansion in 1/width of gradient flow on squared loss.

    f0' = - Theta_0 (f0 - y) / n
    f1' = - (Theta_0 f1 + Theta1(t) (f0 - y)) / n

Freezing O_3 leaves an error of O(1/width), freezing O_4 one of O(1/width^2): f0 + f1 with Theta1
from O_3 and O_4 is right to O(1/width).
"""

import itertools
import math
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree, Shaped

from corrections import o3, o4
from corrections.kernels.ntk import tangent_kernel
from corrections.parameters import Metric, Model, vector_model
from corrections.smoothness import warn_at_kinks
from solvers.expansion.arguments import check_expansion, PairsOfExamples
from solvers.expansion.divided_differences import discount, phi_1
from solvers.expansion.forcing import Interval, Modes, modes_of, PathForcing, rotated, StoredForcing
from solvers.expansion.matrix_free import products_of
from solvers.expansion.quadrature import edges, gauss
from solvers.expansion.record import finish, ratio_to, warn_of_large_steps, WidthExpansion
from solvers.frozen_kernel.kernel_problem import Targets
from solvers.result import check_times, ends_at_infinity, RESULTS, Times
from zoo.common import checks
from zoo.common.checks import Number
from zoo.common.examples import count
from zoo.common.precision import full_precision
from zoo.common.tiles import in_tiles

_SETTLED = 45.0
"""Times of the slowest output after which nothing moves: e^-45 is 3e-20."""


class _Integrals(NamedTuple):
    """f1 in the eigenvectors, the integral of f1, that of Theta1 Delta0 on the test points, and
    where the parameters are.
    """

    f1: Float[Array, " size"]
    integral: Float[Array, " size"]
    forcing: Float[Array, " rows"]
    path: PyTree


@full_precision
def width_expansion(
    model: Model,
    x: PyTree[Shaped[ArrayLike, "n ..."]],
    y: Targets,
    ts: Times,
    *,
    method: Literal["matrix_free", "dense"] = "matrix_free",
    x_test: PyTree[Shaped[ArrayLike, "m ..."]] | None = None,
    metric: Metric | None = None,
    kernel_pairs: PairsOfExamples | None = None,
    batch_size: int | None = None,
    learning_rate: Number | None = None,
    throw: bool = True,
) -> WidthExpansion:
    """Gradient flow of a finite network on squared loss, to order 1/width, without a solve in time.

        f0' = - Theta_0 (f0 - y) / n,      f1' = - (Theta_0 f1 + Theta1(t) (f0 - y)) / n

    with Theta1 the change of the kernel by O_3 and O_4 along f0. All integrals over time are taken
    in the eigenvectors of Theta_0, to rounding, at any times: the limit t = inf too.

    **Arguments:**

    - `model`: any callable PyTree, one example in, k outputs out, with an activation that has third
      derivatives.
    - `x`, `y`: training examples (n, ...) and targets (n, k).
    - `ts`: increasing times >= 0, (t,); the last may be inf. Time is learning rate x number of
      steps of the mean loss (1 / n) sum 1/2 |f - y|^2.
    - `method`: "matrix_free" (default) stores Theta_0 on the training points, (n k)^2 numbers, and
      no other kernel: it takes some twenty gradients for each of 16 nodes of an interval of
      time, of which there are about 2 log2(lambda_max t / n). "dense" stores O_3 and O_4 too,
      (n + m) k (n k)^3 numbers for m test points, and shows `kernel1` on the training points.
    - `x_test`: test examples, (m, ...).
    - `metric`: the learning-rate multipliers M, a PyTree prefix of the parameters (default: 1).
    - `kernel_pairs`: (x1, x2), examples of which "matrix_free" shows the kernel.
    - `batch_size`: the most examples that "matrix_free" takes at once.
    - `learning_rate`: of the gradient descent that this is to describe, if it is one: a flow only
      does where `learning_rate` lambda_max / n is small, and this warns where it is not.
    - `throw`: raise where an outcome is not finite (default), or return what there is, marked.

    **Returns:** a `WidthExpansion`.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit; `ExpansionError` where
    `throw=True` and a row holds no numbers: t = inf has none where Theta_0 is singular on the
    training points. **Warns:** `ValidityWarning` where the corrections are not small;
    `corrections.KinkWarning` for activations without third derivatives. Not inside `jax.jit`: how
    many intervals there are depends on the kernel.

    Source: docs/theory.md, section 5; Dyer & Gur-Ari (2020), section 4; Huang & Yau (2020).
    """
    checks.choice("method", method, ("matrix_free", "dense"))
    ts = check_times(ts, infinite=True)
    problem, pairs = check_expansion(
        model, x, y, x_test=x_test, metric=metric, kernel_pairs=kernel_pairs,
        batch_size=batch_size, dense=method == "dense",
    )  # fmt: skip
    if learning_rate is not None:
        learning_rate = float(checks.nonnegative_scalar("learning_rate", learning_rate))
    if checks.is_traced((model, problem, ts)):
        raise ValueError("`width_expansion` was called inside `jax.jit`, expected concrete arrays.")
    warn_at_kinks(model, 3)

    x, y, points = problem.x, problem.y, problem.points
    (n, k), dtype = y.shape, y.dtype
    outputs = in_tiles(vector_model(model), points, batch_size or count(points))
    kernel = tangent_kernel(model, points, x, metric=metric, batch_size=batch_size)
    kernel = kernel.reshape(-1, n * k)
    train = kernel[: n * k]
    modes = modes_of(train, (outputs[:n] - y).ravel(), kernel[n * k :])
    fastest = float(modes.values[-1])
    if learning_rate is not None:
        warn_of_large_steps(learning_rate, fastest / n)
    forcing: StoredForcing | PathForcing
    if method == "dense":
        third = o3(model, points, x, x, metric=metric).reshape(-1, n * k, n * k)
        fourth = o4(model, points, x, x, x, metric=metric).reshape(*third.shape, n * k)
        forcing = StoredForcing(rotated(modes, third), rotated(modes, fourth))
        kernel0 = train.reshape(n, k, n, k)
    else:
        network, kernel0 = products_of(model, problem, metric, pairs, batch_size)
        forcing = PathForcing(network)

    singular = bool(modes.values[0] <= 0)
    state = _Integrals(
        jnp.zeros(n * k, dtype),
        jnp.zeros(n * k, dtype),
        jnp.zeros(len(modes.rows), dtype),
        forcing.at_start(),
    )
    taus = ts.astype(dtype) / n
    rows, norms, start = [], [], 0.0
    for tau in taus:
        end = float(tau)
        if math.isinf(end) and singular:
            break
        settled = max(_SETTLED / float(modes.values[0]), 2 * start) if math.isinf(end) else end
        within = edges(start, settled, fastest)
        state = _moved(modes, state, tau - start)
        for a, b in itertools.pairwise(within):
            interval = Interval(jnp.asarray(a, dtype), jnp.asarray(b - a, dtype))
            state = _advanced(forcing, modes, state, interval, tau)
        rows.append(_observed(forcing, modes, state, tau))
        norms.append(_norm(forcing, modes, tau, state.path))
        start = end
    there = jnp.arange(len(ts)) < len(rows)
    reached = jnp.asarray(start, dtype)
    while len(rows) < len(ts):
        rows.append(_observed(forcing, modes, state, reached))
        norms.append(jnp.asarray(jnp.nan, dtype))  # there is none at this time
    smallest = jnp.where(singular, 0, modes.values[0])
    moved0, moved1, kernel1 = jax.tree.map(lambda *rows: jnp.stack(rows), *rows)
    f0, f1 = (moved.reshape(-1, *outputs.shape) for moved in (moved0, moved1))
    f0 = outputs[None] + f0
    finite = jnp.all(jnp.isfinite(f0) & jnp.isfinite(f1), axis=(1, 2))
    result = RESULTS.where(jnp.all(finite), RESULTS.successful, RESULTS.diverged)  # pyright: ignore
    expansion = WidthExpansion(
        ts=ts,
        train0=f0[:, :n],
        train1=f1[:, :n],
        test0=f0[:, n:] if len(outputs) > n else None,
        test1=f1[:, n:] if len(outputs) > n else None,
        kernel0=kernel0,
        kernel1=None if kernel0 is None else kernel1.reshape(-1, *kernel0.shape),
        validity=ratio_to(smallest, jnp.stack(norms)),
        valid=there & finite,
        result=RESULTS.no_limit if singular and ends_at_infinity(ts) else result,
    )
    return finish(expansion, throw=throw)


@eqx.filter_jit
def _moved(modes: Modes, state: _Integrals, length: Array) -> _Integrals:
    """What is there already, at the end of an interval of this length."""
    return state._replace(
        f1=state.f1 * discount(modes.values, length),
        integral=state.integral + phi_1(modes.values, length) * state.f1,
    )


@eqx.filter_jit
def _advanced(
    forcing: StoredForcing | PathForcing,
    modes: Modes,
    state: _Integrals,
    interval: Interval,
    end: Array,
) -> _Integrals:
    """With the contribution of an interval to the state at `end`."""
    nodes, weights, _ = gauss(modes.values.dtype)
    driven, path = forcing.at_nodes(modes, state.path, interval)
    size = len(modes.values)
    along = driven[:, :size] @ modes.vectors
    left = (end - (interval.start + interval.length * nodes))[:, None]
    weighted = (interval.length * weights)[:, None]
    reached = weighted * phi_1(modes.values[None], left)
    return _Integrals(
        f1=state.f1 - jnp.sum(weighted * discount(modes.values[None], left) * along, axis=0),
        integral=state.integral - jnp.sum(reached * along, axis=0),
        forcing=state.forcing + jnp.sum(weighted * driven[:, size:], axis=0),
        path=path,
    )


@eqx.filter_jit
def _observed(
    forcing: StoredForcing | PathForcing, modes: Modes, state: _Integrals, tau: Array
) -> tuple[Array, Array, Array | None]:
    """How far the outputs have moved under the frozen kernel, f1, and Theta1."""
    a = modes.coefficients(tau)
    fitted = -modes.vectors @ modes.fitted(tau)
    moved0 = jnp.concatenate([fitted, -modes.rows @ a])
    moved1 = jnp.concatenate(
        [modes.vectors @ state.f1, -modes.rows @ (modes.vectors @ state.integral) - state.forcing]
    )
    return moved0, moved1, forcing.kernel(modes, tau, state.path)


@eqx.filter_jit
def _norm(forcing: StoredForcing | PathForcing, modes: Modes, tau: Array, path: PyTree) -> Array:
    return forcing.norm(modes, tau, path)
