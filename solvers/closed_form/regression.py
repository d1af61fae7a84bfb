r"""Regression with the tangent kernel of a network as it is: at the start, or partly trained.

    f(x) = o(x) + Theta_t(x, X) (Theta_t(X, X) + ridge)^{-1} (y - o(X)),     o = f_t  or  0

With o = f_t and no ridge it is where gradient flow of the squared loss takes the network that is
linearised at time t; with o = 0 the kernel has to do all by itself (Fort et al. 2020, section 4).
"""

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PyTree, Shaped

from corrections.kernels.ntk import tangent_kernel
from corrections.parameters import check_metric, check_model, Metric, Model, vector_model
from corrections.symmetric.layouts import warn_where_dropped
from solvers.frozen_kernel.frozen_kernel import Ridge, StoredKernel
from solvers.losses import check_targets, MeanSquaredError
from zoo.common import checks
from zoo.common.checks import Number
from zoo.common.examples import checked_batch, count
from zoo.common.norms import norm
from zoo.common.precision import full_precision
from zoo.common.records import short_repr

Offset = Literal["model", "zero"]


@short_repr
class Regression(NamedTuple):
    """The solution of a kernel regression; see `kernel_regression`.

    - `train`, `test`: predictions on the training points (n, k) and the test points (m, k) or None.
    - `residual`: |prediction - y| on the training points, in units of the outputs: not zero with a
      ridge, or where the kernel is singular.
    - `rank`: directions of the kernel that were fitted, of n k (n with `outputs="mean"`). Those
      whose eigenvalue cannot be told from zero are left at the offset.
    - `norm`: of what is added to the offset, in the space of the kernel (its RKHS norm).
    - `dropped`: the directions that were left.
    """

    train: Float[Array, "n k"]
    test: Float[Array, "m k"] | None
    residual: Float[Array, ""]
    rank: Int[Array, ""]
    norm: Float[Array, ""]
    dropped: Int[Array, ""]


@full_precision
def kernel_regression(
    model: Model,
    x: PyTree[Shaped[ArrayLike, "n ..."]],
    y: Float[ArrayLike, "n ..."],
    x_test: PyTree[Shaped[ArrayLike, "m ..."]] | None = None,
    *,
    offset: Offset = "model",
    ridge: Number = 0.0,
    outputs: Literal["full", "mean"] = "full",
    metric: Metric | None = None,
    batch_size: int | None = None,
) -> Regression:
    """Regression with the data-dependent tangent kernel of a network, at its parameters.

    f(x) = o(x) + Theta(x, X) (Theta(X, X) + ridge)^{-1} (y - o(X))

    Beside it, linearised training from the same parameters, in time and for any loss:
    `hierarchy_flow(model, x, y, ts, order=2, ...)`, whose limit for squared loss this is with
    `offset="model"`. A singular kernel is solved in its range: the minimum-norm solution.

    **Arguments:**

    - `model`: any callable PyTree, at time t of its training.
    - `x`, `y`: training examples (n, ...) and targets (n, k).
    - `x_test`: test examples, (m, ...).
    - `offset`: "model", o = f_t; or "zero", o = 0.
    - `ridge`: added to the eigenvalues of Theta, in its units, >= 0.
    - `outputs`: "full" takes the kernel (n, k, n, k); "mean" its average over equal outputs for
      each output, k^2 times smaller.
    - `metric`, `batch_size`: as in `corrections.ntk`.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, before any work.
    **Warns:** `RoundingWarning` where directions were dropped; with a ridge none is.

    Source: Fort et al. (2020), section 4; Jacot, Gabriel & Hongler (2018), section 5.
    """
    checks.choice("offset", offset, ("model", "zero"))
    checks.choice("outputs", outputs, ("full", "mean"))
    added = Ridge(checks.nonnegative_scalar("ridge", ridge), False)
    x = checked_batch("x", x)
    found = check_model(model, "x", x)
    shape = (count(x), found.shape[0])
    because = "a row for each example of `x`, a column for each output of `model`"
    y = check_targets(MeanSquaredError(), y, shape, because=because).astype(found.dtype)
    points = [x]
    if x_test is not None:
        points.append(checked_batch("x_test", x_test))
        check_model(model, "x_test", points[1], outputs=found)
    check_metric(model, metric)
    options = {"metric": metric, "outputs": outputs, "batch_size": batch_size}
    partners = [None, *[x] * (len(points) - 1)]
    rows = [
        tangent_kernel(model, p, partner, **options)
        for p, partner in zip(points, partners, strict=True)
    ]
    found = _regression(model, points, y, rows, offset == "model", added)
    checks.computed("`model`, `x`, `x_test`, `y` or `metric`", (found.train, found.test))
    warn_where_dropped("the kernel of `model`", found.dropped, y.dtype)
    return found


@eqx.filter_jit
def _regression(
    model: Model,
    points: list[PyTree],
    y: Array,
    rows: list[Array],
    from_model: bool,
    ridge: Ridge,
) -> Regression:
    n, k = y.shape
    kernel, outputs = StoredKernel(*rows), jax.vmap(vector_model(model))
    offset = jnp.concatenate(
        [outputs(p) if from_model else jnp.zeros((count(p), k), y.dtype) for p in points]
    )
    found = kernel.solved(ridge, y - offset[:n])
    moved = kernel.outputs(found.coefficients, k)
    predictions = offset + moved
    squares = jnp.vdot(kernel.layout.outputs(found.coefficients, k), moved[:n])
    return Regression(
        train=predictions[:n],
        test=predictions[n:] if len(points) == 2 else None,
        residual=norm(predictions[:n] - y),
        rank=found.coefficients[..., 0].size - found.dropped,
        norm=jnp.sqrt(jnp.maximum(squares, 0)),
        dropped=found.dropped,
    )
