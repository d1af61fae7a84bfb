r"""Regression with Gaussian processes whose kernels are those of infinitely wide networks.

    mean        m(x)     = f_0(x) + K(x, X) (K(X, X) + s^2)^{-1} (y - f_0(X))
    covariance  C(x, x') = K(x, x') - K(x, X) (K(X, X) + s^2)^{-1} K(X, x')

Exact solves factorise K + s^2 (Cholesky). Iterative ones compute C as B K B^T + s^2 A A^T with
A = K(., X) (K + s^2)^{-1} and B = [-A, 1]: errors are of second order in those of A.

Sources: Rasmussen & Williams (2006), eqs. 2.23-2.24, 2.30; for networks Lee et al. (2018),
Matthews et al. (2018).
"""

from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from corrections.symmetric.layouts import (
    check_kernel,
    check_symmetric,
    NEGATIVE,
    warn_where_dropped,
)
from corrections.symmetric.positive_matrix import (
    is_positive,
    largest_eigenvalue_bound,
    positive_matrix,
    PositiveMatrix,
)
from solvers.closed_form.gaussian import Gaussian, PredictionError, raise_unless_successful
from solvers.closed_form.iterative import solve, Units
from solvers.closed_form.krylov_outcome import advice, check_krylov_options, outcome, tolerance
from solvers.frozen_kernel.frozen_kernel import frozen_kernel, OperatorKernel, StoredKernel
from solvers.frozen_kernel.operators import (
    check_kernel_operator,
    check_test_operator,
    Operator,
    outputs_or_zero,
    product,
    Space,
)
from solvers.losses import check_targets, MeanSquaredError
from solvers.result import raise_where_failed, RESULTS
from zoo.common import checks
from zoo.common.checks import Number
from zoo.common.precision import full_precision

Method = Literal["auto", "exact", "iterative"]


class Posterior(eqx.Module):
    """What the data leave of a Gaussian process; see `posterior`.

    - `train`, `test`: the function, without noise, on training points and on test points (or None).
    - `log_marginal_likelihood`: log p(y), summed over outputs. NaN where K + noise is singular, so
      that y has no density; None from `method="iterative"`.
    - `result`: a member of `RESULTS`.
    - `stats`: of an iterative solve `num_products`, evaluations of the kernel; `num_steps`, the
      most of a column; `error`, the largest relative residual |b - (K + noise) u| / |b| of a
      column; and `backward_error`, the largest |b - (K + noise) u| / (|K + noise| |u| + |b|).
    - `dropped`: of an exact solve the directions of K + noise that cannot be told from zero:
      nothing is learned of them, so that they stay as they are in the prior.
    """

    train: Gaussian
    test: Gaussian | None
    log_marginal_likelihood: Float[Array, ""] | None
    result: Any
    stats: dict[str, Any]
    dropped: Int[Array, ""] | None = None

    @property
    def successful(self) -> Bool[Array, ""]:
        """Whether the numbers can be used. All are NaN otherwise, but for those of a solve that
        rounding kept from its tolerance (`RESULTS.rounding`): as good as `stats` says.
        """
        return jnp.asarray(self.result == RESULTS.successful)


@full_precision
def posterior(
    kernel: Float[ArrayLike, "n *points"] | Operator,
    y: Float[ArrayLike, "n k"],
    *,
    kernel_test: Float[ArrayLike, "m *points"] | Operator | None = None,
    kernel_test_test: Float[ArrayLike, "m *queries"] | None = None,
    noise: Number = 0.0,
    f0: Float[ArrayLike, "n k"] | None = None,
    f0_test: Float[ArrayLike, "m k"] | None = None,
    method: Method = "auto",
    rtol: float | None = None,
    max_iterations: int = 1000,
    preconditioner_rank: int = 32,
    throw: bool = True,
) -> Posterior:
    """The posterior of a Gaussian process under observations y = f(x) + noise.

    m(x) = f_0(x) + K(x, X) (K + noise)^{-1} (y - f_0(X)),
    C(x, x') = K(x, x') - K(x, X) (K + noise)^{-1} K(X, x')

    With the covariance K of an infinitely wide network at initialisation it is the Bayesian network
    (NNGP), and also the network of which gradient flow trains the readout alone, at t = inf:

        k = limit(model).nngp
        posterior(k(x), y, kernel_test=k(x_test, x), kernel_test_test=k(x_test), noise=0.1)

    With its tangent kernel Theta it is the NTK-GP, Bayesian regression in the tangent features:

        k = limit(model).ntk
        posterior(k(x), y, kernel_test=k(x_test, x), kernel_test_test=k(x_test), noise=0.1)

    The mean of the NTK-GP without noise is that of `ensemble` at t = inf, networks that were
    trained by gradient flow. Their covariance differs, for they start from functions of covariance
    K, not Theta: no posterior has it unless K = Theta.

    **Arguments:**

    - `kernel`: K(X, X) on the training points, the prior covariance: (n, n), read as K (x) I_k;
      (n, k, n, k); or an operator: `KernelBlocks`, `corrections.NTKOperator`, or a lineax operator
      that is tagged symmetric or positive semidefinite, on (n,) or on (n, k).
    - `y`: observations, (n, k).
    - `kernel_test`: K(x, X) for m test points, (m, n), (m, k, n, k), or an operator as `kernel` is.
    - `kernel_test_test`: K(x, x) of the test points, (m, m) or (m, k, m, k); without it their
      covariance is not computed.
    - `noise`: the variance of the observation noise, in squared units of the outputs. Without noise
      a singular kernel is inverted in its range.
    - `f0`, `f0_test`: the prior mean, (n, k) and (m, k) (default: 0).
    - `method`: "exact", by the Cholesky factor of the stored kernel; "iterative", by preconditioned
      conjugate gradients, from products with vectors alone, which knows no covariance of training
      points; "auto", iterative for an operator.
    - `rtol`, `max_iterations`, `preconditioner_rank`: of an iterative solve: the largest residual
      of a column relative to its right-hand side (default: 1e-6 in float64, 1e-4 in float32), the
      steps for one, and the rank of the approximation of the kernel that speeds it up (0: none).
    - `throw`: raise on failure (default), or return what there is, marked: NaN, or for a solve that
      rounding kept from `rtol` its best iterate.

    **Returns:** a `Posterior`, of the function without noise.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, before any work;
    `PredictionError` for a kernel with a negative eigenvalue, or a solve that did not reach `rtol`:
    its `.partial` holds the best iterate. **Warns:** `RoundingWarning` where directions were
    dropped: without noise, of a kernel that is singular in its precision, or with noise below that.

    Derivatives in kernels, noise and observations: of an exact solve of any order where nothing is
    dropped.

    Source: Rasmussen & Williams (2006), eqs. 2.23-2.24, 2.30 and 5.8.
    """
    checks.choice("method", method, ("auto", "exact", "iterative"))
    variance = checks.nonnegative_scalar("noise", noise)
    max_iterations, preconditioner_rank = check_krylov_options(
        rtol, max_iterations, preconditioner_rank
    )
    if isinstance(kernel, Operator):
        if method == "exact":
            raise ValueError(
                '`method` is "exact" and `kernel` an operator, expected a stored kernel or '
                '"iterative".'
            )
        method = "iterative"
    problem = _check_problem(kernel, y, kernel_test, kernel_test_test, f0, f0_test)
    variance = variance.astype(problem.y.dtype)
    if method == "iterative":
        rtol = tolerance(rtol, problem.y.dtype)
        small = jnp.asarray(rtol, problem.y.dtype)
        found = _iterative(problem, variance, small, max_iterations, preconditioner_rank)
        options = {
            "rtol": rtol,
            "max_iterations": max_iterations,
            "rank_helps": preconditioner_rank < problem.space.size,
            "damping": ("noise", noise),
        }
        return _finish_iterative(found, options, throw=throw)
    found = raise_unless_successful(_exact(problem, variance), throw=throw)
    warn_where_dropped("`kernel`", found.dropped, problem.y.dtype)
    return found


class _Problem(NamedTuple):
    """What fits each other; `kernel_test_test` as a matrix."""

    space: Space
    kernel: StoredKernel | OperatorKernel
    kernel_test_test: Array | None
    y: Float[Array, "n k"]
    f0: Float[Array, "n k"]
    f0_test: Array | None


def _check_problem(
    kernel: Any, y: Any, kernel_test: Any, kernel_test_test: Any, f0: Any, f0_test: Any
) -> _Problem:
    is_operator = isinstance(kernel, Operator)
    if is_operator:
        space = check_kernel_operator("kernel", kernel)
    else:
        kernel, layout = check_kernel("kernel", kernel, layouts=(2, 4))
        outputs = kernel.shape[1] if layout.axes == 4 else None
        space = Space(kernel.shape[0], outputs, kernel.dtype)
    k = space.outputs or (np.shape(y)[-1] if np.ndim(y) == 2 else 1)
    because = f"a row for each point of `kernel`, which has {space.points}"
    target = check_targets(MeanSquaredError(), y, (space.points, k), because=because)
    start = outputs_or_zero("f0", f0, target.shape, space.dtype, what="the prior mean")
    start_test = None
    if kernel_test is None:
        for name, value in (("kernel_test_test", kernel_test_test), ("f0_test", f0_test)):
            if value is not None:
                raise ValueError(f"`{name}` was given without `kernel_test`, expected both.")
    else:
        check_rows = _check_operator_rows if is_operator else _check_rows
        kernel_test, m = check_rows(kernel_test, space)
        start_test = outputs_or_zero("f0_test", f0_test, (m, k), space.dtype, what="the prior mean")
        if kernel_test_test is not None:
            corner = checks.real_array(
                "kernel_test_test", kernel_test_test, expected="K(x, x)", half="refused"
            )
            expected = (m, m) if space.outputs is None else (m, k, m, k)
            checks.shape(
                "kernel_test_test", corner, expected, "of the test points of `kernel_test`"
            )
            checks.finite("kernel_test_test", corner)
            side = m * (space.outputs or 1)
            kernel_test_test = corner.astype(space.dtype).reshape(side, side)
            check_symmetric("kernel_test_test", kernel_test_test)
    return _Problem(
        space,
        frozen_kernel(kernel, kernel_test),
        kernel_test_test,
        target.astype(space.dtype),
        start,
        start_test,
    )


def _check_operator_rows(kernel_test: Any, space: Space) -> tuple[Operator, int]:
    """The operator of K(x, X), and the number of test points."""
    return kernel_test, check_test_operator("kernel_test", kernel_test, space)


def _check_rows(kernel_test: Any, space: Space) -> tuple[Array, int]:
    """K(x, X), and the number of test points."""
    if isinstance(kernel_test, Operator):
        raise TypeError("`kernel_test` is an operator, expected an array, as `kernel` is one.")
    rows = checks.real_array(
        "kernel_test", kernel_test, expected="the kernel's test rows", half="refused"
    )
    k, n = space.outputs, space.points
    checks.shape("kernel_test", rows, ("m", n) if k is None else ("m", k, n, k), "as `kernel`")
    checks.finite("kernel_test", rows)
    return rows.astype(space.dtype), len(rows)


@eqx.filter_jit
def _exact(problem: _Problem, noise: Array) -> Posterior:
    space, stored = problem.space, problem.kernel.stored()
    (kernel,) = stored.blocks()
    system = positive_matrix(kernel, noise)
    residual = space.columns(problem.y - problem.f0)
    weights = system.solve(residual)
    normal = space.size * residual.shape[1] * jnp.log(2 * jnp.pi)
    determinant = residual.shape[1] * system.log_determinant()
    density = -0.5 * (jnp.sum(residual * weights) + determinant + normal)
    positive = system.positive & is_positive(kernel)
    train = Gaussian(
        problem.f0 + space.rows(kernel @ weights),
        _unflattened(_left_of_noise(kernel, noise, system), space),
    )
    test = None
    if problem.f0_test is not None and stored.test is not None:
        (rows,), prior = stored.layout.blocks(stored.test), problem.kernel_test_test
        covariance = None
        if prior is not None:
            left = prior - rows @ system.solve(rows.T)
            left = (left + left.T) / 2
            # What it is the difference of is known to the rounding of the whole kernel.
            largest = largest_eigenvalue_bound(kernel) + largest_eigenvalue_bound(prior)
            positive = positive & is_positive(left, largest)
            covariance = _unflattened(left, space)
        test = Gaussian(problem.f0_test + space.rows(rows @ weights), covariance)
    ok, failed = RESULTS.successful, RESULTS.kernel_not_positive
    result = RESULTS.where(positive, ok, failed)  # pyright: ignore
    return _marked(Posterior(train, test, density, result, {}, system.dropped))


def _left_of_noise(
    kernel: Float[Array, "n n"], noise: Float[Array, ""], system: PositiveMatrix
) -> Float[Array, "n n"]:
    """K - K (K + s)^{-1} K = s - s (K + s)^{-1} s, whichever takes less from less. Where part of
    the inverse was dropped it is the first, which leaves that part as it is in K.
    """
    small = (noise <= jnp.mean(jnp.diagonal(kernel))) & (system.dropped == 0)

    def from_noise(kernel: Array) -> Array:
        return noise * (jnp.eye(len(kernel), dtype=kernel.dtype) - noise * system.inverse())

    def from_kernel(kernel: Array) -> Array:
        return kernel - kernel @ system.solve(kernel)

    left = jax.lax.cond(small, from_noise, from_kernel, kernel)
    return (left + left.T) / 2


@eqx.filter_jit
def _iterative(
    problem: _Problem, noise: Array, rtol: Array, max_iterations: int, preconditioner_rank: int
) -> Posterior:
    space, kernel = problem.space, problem.kernel.as_operators()
    right = space.columns(problem.y - problem.f0)
    across, prior = None, problem.kernel_test_test
    if prior is not None:
        across = kernel.across(len(prior))
        right = jnp.concatenate([right, across], axis=1)
    found = solve(
        kernel.train,
        right,
        damping=noise,
        rtol=rtol,
        max_iterations=max_iterations,
        preconditioner_rank=preconditioner_rank,
    )
    split = space.columns(problem.y).shape[1]
    own, other = (
        Units(found.units.kernel, right) for right in jnp.split(found.units.right, [split])
    )
    weights, reach = jnp.split(found.scaled, [split], axis=1)
    train = Gaussian(problem.f0 + space.rows(found.image[:, :split]), None)
    test, positive = None, found.positive
    if problem.f0_test is not None and kernel.test is not None:
        moved = product(kernel.test, own.of_unit_columns(weights))
        covariance = None
        if across is not None and prior is not None:
            reach = other.coefficients(reach)
            learned = across.T @ reach
            corrected = reach.T @ (found.image[:, split:] + noise * reach)
            matrix = prior - learned - learned.T + corrected
            matrix = (matrix + matrix.T) / 2
            # The error of CG is of second order here: well below what the slack allows.
            scale = jnp.max(jnp.abs(jnp.diagonal(prior)))
            scale = jnp.where(scale == 0, 1, scale)
            values = jnp.linalg.eigvalsh(matrix / scale)
            slack = jnp.linalg.norm(across / scale) * jnp.linalg.norm(reach)
            slack = slack * jnp.maximum(rtol, jnp.max(found.error[split:]))
            slack = slack + NEGATIVE * jnp.finfo(values.dtype).eps * jnp.linalg.norm(prior / scale)
            positive = positive & jnp.all(values >= -slack)
            covariance = _unflattened(matrix, space)
        test = Gaussian(problem.f0_test + space.rows(own.outputs(moved)), covariance)
    stats = {
        "num_products": found.products,
        "num_steps": found.steps,
        "error": jnp.max(found.error),
        "backward_error": jnp.max(found.backward_error),
    }
    result = outcome(found.error, positive, found.stagnated, rtol)
    return Posterior(train, test, None, result, stats)


def _finish_iterative(found: Posterior, options: dict[str, Any], *, throw: bool) -> Posterior:
    """What is returned or raised of a solve with its numbers, whatever they are."""

    def error() -> PredictionError:
        partial = found
        if bool(found.result == RESULTS.kernel_not_positive):
            text, partial = RESULTS[found.result], _marked(found)
        else:
            reason = advice(found.result, found.stats, dtype=found.train.mean.dtype, **options)
            text = (
                "A solve with the kernel did not converge. It came to the relative residual "
                f"{float(found.stats['error']):.2g}, expected at most `rtol` = "
                f"{options['rtol']:g}. {reason} `.partial` of this error holds the best iterate."
            )
        return PredictionError(f"{text} `throw=False` returns what is valid.", partial)

    best = jnp.asarray(found.successful | (found.result == RESULTS.rounding))
    return raise_where_failed(_where(best, found), error, throw=throw)


def _unflattened(matrix: Float[Array, "size size"], space: Space) -> Array:
    if space.outputs is None:
        return matrix
    k = space.outputs
    return rearrange(matrix, "(n k) (m l) -> n k m l", k=k, l=k)


def _marked(found: Posterior) -> Posterior:
    """NaN in the place of numbers that cannot be used."""
    return _where(found.successful, found)


def _where(usable: Bool[Array, ""], found: Posterior) -> Posterior:
    def mark(tree: Any) -> Any:
        return jax.tree.map(lambda a: jnp.where(usable, a, jnp.nan), tree)

    return Posterior(
        mark(found.train),
        mark(found.test),
        mark(found.log_marginal_likelihood),
        found.result,
        found.stats,
        found.dropped,
    )
