r"""Squared loss under a frozen kernel, solved in closed form in the kernel's eigenvectors.

With L = 1/(2 D) |f - y|^2, Theta e_i = lam_i e_i and Delta = y - f_0, at any time

    f(t) = f_0 + Theta a(t),    a(t) = sum_i u_i(t) (e_i . Delta) e_i,    test rows by the same a

    gradient flow       u_i = (1 - exp(-lam_i t / D)) / lam_i
    gradient descent    u_{s+1} = u_s + v_{s+1},    v_{s+1} = m v_s + (eta / D) (1 - lam_i u_s)

The parameters of the linearised network are theta_0 + M J^T a. A ridge on their displacement,
L + reg/(2 D) |theta - theta_0|^2, puts lam_i + reg in the place of lam_i in u_i.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from corrections.parameters import (
    check_metric,
    check_model,
    Metric,
    Model,
    precondition,
    split,
)
from solvers.kernel_problem import check_kernel_problem, KernelProblem, OperatorRows
from solvers.losses import MeanSquaredError
from solvers.result import (
    check_increasing,
    check_steps,
    finish,
    RESULTS,
    Times,
    Trajectory,
)
from zoo import checks
from zoo.precision import full_precision

Regularization = Literal["absolute", "relative"]


@full_precision
def mse_flow(
    kernel: Float[ArrayLike, "n *points"],
    y: Float[ArrayLike, "n k"],
    ts: Times,
    *,
    f0: Float[ArrayLike, "n k"] | None = None,
    kernel_test: Float[ArrayLike, "m *points"] | None = None,
    f0_test: Float[ArrayLike, "m k"] | None = None,
    diag_reg: float = 0.0,
    diag_reg_scale: Regularization = "absolute",
    throw: bool = True,
) -> Trajectory:
    """Gradient flow of squared loss under a frozen kernel, exactly, at any times.

    f(t) = f_0 + Theta (1 - exp(-Theta t / D)) / Theta (y - f_0), for `MeanSquaredError` and the
    same times as `gradient_flow`. A singular kernel leaves its null space at f_0, at all times.

    **Arguments:**

    - `kernel`, `y`, `f0`, `kernel_test`, `f0_test`: as in `gradient_flow`.
    - `ts`: increasing times >= 0, (t,); the last may be `inf`, the limit of training.
    - `diag_reg`: added to the eigenvalues of the kernel: a ridge on the displacement of the
      parameters.
    - `diag_reg_scale`: its unit: "absolute", that of the kernel; or "relative", the mean of the
      kernel's diagonal.
    - `throw`: raise for a kernel that is not positive (default), or return NaN, marked.

    **Returns:** a `Trajectory`. Its `.final` are the coefficients a at the last time, (n, k): the
    linearised network is then at theta_0 + M J^T a (`linearized_model`), and a . Theta a is the
    squared norm of f - f_0 in the space of the kernel.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, before any work;
    `SolverError` for a kernel with a negative eigenvalue, where `throw=True`.

    Source: Lee et al. (2019), eqs. 8-11; docs/theory.md, section 5 (f0).
    """
    ts = check_increasing("ts", ts, expected="times (t,)")
    problem = check_kernel_problem(
        kernel, y, loss=MeanSquaredError(), f0=f0, kernel_test=kernel_test, f0_test=f0_test
    )
    _check_stored(problem)
    reg = _check_regularization(diag_reg, diag_reg_scale)
    return finish(_solved(problem, ts, _Flow(), reg), throw=throw)


@full_precision
def mse_descent(
    kernel: Float[ArrayLike, "n *points"],
    y: Float[ArrayLike, "n k"],
    steps: Sequence[int] | Float[ArrayLike, " t"] | Int[ArrayLike, " t"],
    *,
    learning_rate: float,
    momentum: float = 0.0,
    f0: Float[ArrayLike, "n k"] | None = None,
    kernel_test: Float[ArrayLike, "m *points"] | None = None,
    f0_test: Float[ArrayLike, "m k"] | None = None,
    diag_reg: float = 0.0,
    diag_reg_scale: Regularization = "absolute",
    throw: bool = True,
) -> Trajectory:
    """Gradient descent of squared loss under a frozen kernel, exactly, after any number of steps.

    Without momentum f_s = f_0 + (1 - (1 - eta Theta / D)^s) (y - f_0). With heavy-ball momentum m,
    v <- m v - eta dL/dtheta, theta <- theta + v, as `optax.sgd(eta, momentum=m)` steps.

    **Arguments:**

    - `kernel`, `y`, `f0`, `kernel_test`, `f0_test`, `diag_reg`, `diag_reg_scale`, `throw`: as in
      `mse_flow`.
    - `steps`: increasing counts of steps >= 0, (t,).
    - `learning_rate`: eta > 0, of the mean loss. Up to `max_learning_rate` descent converges.
    - `momentum`: m in [0, 1).

    **Returns:** a `Trajectory` whose `.ts` are the steps; `.final` as in `mse_flow`. Numbers that
    overflow are `RESULTS.diverged`.

    **Raises:** as `mse_flow`.
    """
    counts = check_steps(steps)
    checks.nonnegative_number("learning_rate", learning_rate, strictly=True)
    checks.nonnegative_number("momentum", momentum)
    if momentum >= 1:
        raise ValueError(f"`momentum` is {momentum}, expected a number in [0, 1).")
    problem = check_kernel_problem(
        kernel, y, loss=MeanSquaredError(), f0=f0, kernel_test=kernel_test, f0_test=f0_test
    )
    _check_stored(problem)
    reg = _check_regularization(diag_reg, diag_reg_scale)
    rule = _Descent(float(learning_rate), float(momentum))
    return finish(_solved(problem, counts, rule, reg), throw=throw)


@full_precision
def linearized_model(
    model: Model,
    x: Float[ArrayLike, "n ..."],
    coefficients: Float[ArrayLike, "n k"],
    *,
    metric: Metric | None = None,
) -> Model:
    """The network with the parameters theta_0 + M J^T a: where training of its linearisation is.

    **Arguments:**

    - `model`: the network at theta_0.
    - `x`: the training examples, (n, ...).
    - `coefficients`: a, (n, k): `.final` of `mse_flow` or `mse_descent` under the network's full
      kernel `ntk(model, x, metric=metric)`.
    - `metric`: the learning-rate multipliers M, a PyTree prefix of the parameters (default: 1).

    **Returns:** a model of the same structure. It is the network itself at these parameters; the
    linearised one is `corrections.taylorize(result, 1, at=model)`. At t = inf they are those of
    least |M^{-1/2} (theta - theta_0)| among all that fit the targets.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit.
    """
    x = checks.batch("x", x)
    outputs = check_model(model, "x", x)
    check_metric(model, metric)
    a = checks.real_array("coefficients", coefficients, expected="an array (n, k)")
    checks.shape("coefficients", a, (len(x), *outputs.shape), "one for each output of `model`")
    checks.finite("coefficients", a)
    params, apply = split(model)
    _, pull = jax.vjp(lambda p: jax.vmap(apply, in_axes=(None, 0))(p, x), params)
    return eqx.apply_updates(model, precondition(metric, pull(a.astype(outputs.dtype))[0]))


class _Flow(NamedTuple):
    """Gradient flow: what of each direction has been learned."""

    def learned(self, values: Array, n: int, t: Array) -> Array:
        """U(t) for each eigenvalue (not zero), at a time that may be infinite."""
        return -jnp.expm1(-values * (t / n)) / values


class _Descent(NamedTuple):
    """Steps with momentum."""

    learning_rate: float
    momentum: float

    def learned(self, values: Array, n: int, t: Array) -> Array:
        """U after t steps: powers of an affine map of (u, v), by repeated squaring of what it adds
        to the identity, which keeps the digits of small eigenvalues.
        """
        rate, m = self.learning_rate / n, self.momentum
        one, zero = jnp.ones_like(values), jnp.zeros_like(values)
        # u' = u + v',  v' = m v + rate (1 - value u)
        rows = [
            [-rate * values, m * one, rate * one],
            [-rate * values, (m - 1) * one, rate * one],
            [zero, zero, zero],
        ]
        step = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)

        def square(_: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            total, power, left = carry
            total = jnp.where(jnp.mod(left, 2) == 1, total + power + total @ power, total)
            power = jnp.where(left > 1, 2 * power + power @ power, power)
            return total, power, jnp.floor(left / 2)

        bits = jnp.finfo(values.dtype).nmant + 1  # larger counts are no whole numbers in this type
        start = (jnp.zeros_like(step), step, t)
        return jax.lax.fori_loop(0, bits, square, start)[0][..., 0, 2]


class _Ridge(NamedTuple):
    size: float
    relative: bool


def _check_stored(problem: KernelProblem) -> None:
    """**Raises:** `TypeError` for a kernel that is an operator."""
    if isinstance(problem.kernel, OperatorRows):
        raise TypeError(
            "`kernel` is an operator, expected an array: its eigenvectors are needed. Use "
            "`mse_flow_operator`, or `gradient_descent` for steps."
        )


def _check_regularization(diag_reg: float, scale: Regularization) -> _Ridge:
    checks.nonnegative_number("diag_reg", diag_reg)
    checks.choice("diag_reg_scale", scale, ("absolute", "relative"))
    return _Ridge(float(diag_reg), scale == "relative")


@eqx.filter_jit
def _solved(problem: KernelProblem, ts: Array, rule: _Flow | _Descent, ridge: _Ridge) -> Trajectory:
    n, k = problem.y.shape
    kernel = problem.kernel
    assert not isinstance(kernel, OperatorRows)
    ts = ts.astype(kernel.dtype)
    blocks = _blocks(kernel, n)  # (count, points, size)
    size = blocks.shape[1] * n // kernel.shape[0]
    values, vectors = jnp.linalg.eigh(blocks[:, :size])
    largest = jnp.max(jnp.abs(values), axis=1, keepdims=True)
    rounding = size * jnp.finfo(values.dtype).eps * largest
    positive = jnp.all(values > -100 * rounding)
    seen = values > rounding
    diagonal = jnp.mean(values, axis=1, keepdims=True)
    damped = values + (ridge.size * diagonal if ridge.relative else ridge.size)
    missing = _to_blocks(problem.y - problem.f0[:n], kernel.ndim)
    along = jnp.swapaxes(vectors, 1, 2) @ missing

    def at(t: Array) -> tuple[Array, Array]:
        learned = jnp.where(seen, rule.learned(jnp.where(seen, damped, 1), n, t), 0)
        weights = vectors @ (learned[..., None] * along)
        moved = _from_blocks(blocks @ weights, (len(problem.f0), k), kernel.ndim)
        return problem.f0 + moved, _from_blocks(weights, (n, k), kernel.ndim)

    outputs, weights = jax.lax.map(at, ts)
    finite = jnp.all(jnp.isfinite(outputs), axis=(1, 2))
    valid = positive & jnp.cumprod(finite).astype(bool)
    diverged = RESULTS.where(jnp.all(finite), RESULTS.successful, RESULTS.diverged)  # pyright: ignore
    result = RESULTS.where(positive, diverged, RESULTS.kernel_not_positive)  # pyright: ignore
    outputs = jnp.where(valid[:, None, None], outputs, jnp.nan)
    reached = jnp.max(jnp.where(valid, ts, 0))
    return Trajectory(
        ts=ts,
        train=outputs[:, :n],
        test=outputs[:, n:] if len(problem.f0) > n else None,
        kernel=None,
        valid=valid,
        t_reached=reached,
        result=result,
        stats={},
        final=jnp.where(valid[-1], weights[-1], jnp.nan),
    )


def _blocks(kernel: Array, n: int) -> Float[Array, "count points size"]:
    """The kernel as its independent blocks: one for all outputs, one for each, or the whole."""
    if kernel.ndim == 2:
        return kernel[None]
    if kernel.ndim == 3:
        return jnp.moveaxis(kernel, 2, 0)
    points, k = kernel.shape[:2]
    return kernel.reshape(1, points * k, n * k)


def _to_blocks(f: Float[Array, "points k"], ndim: int) -> Float[Array, "count size columns"]:
    """Outputs as columns that the blocks act on."""
    if ndim == 2:
        return f[None]
    return f.T[..., None] if ndim == 3 else f.reshape(1, -1, 1)


def _from_blocks(columns: Array, shape: tuple[int, int], ndim: int) -> Float[Array, "points k"]:
    if ndim == 2:
        return columns[0]
    return columns[..., 0].T if ndim == 3 else columns.reshape(shape)
