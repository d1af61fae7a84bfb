r"""Squared loss under a frozen kernel, solved in closed form in the kernel's eigenvectors.

With L = 1/(2 D) |f - y|^2, Theta e_i = lam_i e_i and Delta = y - f_0, at any time

    f(t) = f_0 + Theta a(t),    a(t) = sum_i u_i(t) (e_i . Delta) e_i,    test rows by the same a

    gradient flow       u_i = (1 - exp(-lam_i t / D)) / lam_i
    gradient descent    u_{s+1} = u_s + v_{s+1},    v_{s+1} = m v_s + (eta / D) (1 - lam_i u_s)

The parameters of the linearised network are theta_0 + M J^T a. A ridge on their displacement,
L + reg/(2 D) |theta - theta_0|^2, puts lam_i + reg in the place of lam_i in u_i.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree, Shaped

from corrections.parameters import (
    check_metric,
    check_model,
    Metric,
    Model,
    precondition,
    split,
)
from corrections.symmetric.layouts import warn_where_dropped
from corrections.symmetric.matrix_functions import MatrixFunction
from solvers.frozen_kernel.frozen_kernel import check_ridge, Ridge, RidgeScale, Solution
from solvers.frozen_kernel.kernel_problem import check_kernel_problem, KernelProblem
from solvers.losses import MeanSquaredError
from solvers.result import (
    as_times,
    check_increasing,
    ends_at_infinity,
    finish,
    last_valid,
    RESULTS,
    Times,
    Trajectory,
)
from solvers.steps.stability import SMALLER_STEPS
from solvers.steps.step_counts import check_steps, StepCounts
from zoo.common import checks
from zoo.common.checks import Number
from zoo.common.examples import checked_batch, count
from zoo.common.precision import full_precision


@full_precision
def mse_flow(
    kernel: Float[ArrayLike, "n *points"],
    y: Float[ArrayLike, "n k"],
    ts: Times,
    *,
    f0: Float[ArrayLike, "n k"] | None = None,
    kernel_test: Float[ArrayLike, "m *points"] | None = None,
    f0_test: Float[ArrayLike, "m k"] | None = None,
    diag_reg: Number = 0.0,
    diag_reg_scale: RidgeScale = "absolute",
    throw: bool = True,
) -> Trajectory:
    """Gradient flow of squared loss under a frozen kernel, exactly, at any times.

    f(t) = f_0 + Theta (1 - exp(-Theta t / D)) / Theta (y - f_0), for `MeanSquaredError` and the
    same times as `gradient_flow`. A singular kernel leaves its null space at f_0, at all times, and
    so does what cannot be told from it, eigenvalues below 10 units of rounding of the largest, once
    it could have moved. `.dropped` counts such directions. With a ridge there are none.

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
    `SolverError` for a kernel (with its ridge) that has a negative eigenvalue, where `throw=True`.
    **Warns:** `RoundingWarning` where directions were dropped.

    Derivatives in all arguments, times too, of first and second order, also where eigenvalues are
    equal or close, and at t = inf.

    Source: Lee et al. (2019), eqs. 8-11; docs/theory.md, section 5 (f0).
    """
    ts = check_increasing("ts", ts, expected="times (t,)")
    problem = check_kernel_problem(
        kernel, y, loss=MeanSquaredError(), f0=f0, kernel_test=kernel_test, f0_test=f0_test
    )
    problem.kernel.stored(_NEEDS_EIGENVECTORS)
    ridge = check_ridge(diag_reg, diag_reg_scale)
    ts = as_times(ts, problem.y.dtype)
    shown = _flow(problem, ts, ridge, ends_at_infinity(ts))
    overflow = "Numbers overflow: use a smaller kernel or targets, or float64."
    found = finish(_in_time(ts, shown), throw=throw, on_divergence=overflow)
    warn_where_dropped("`kernel`", found.dropped, problem.y.dtype)
    return found


@full_precision
def mse_descent(
    kernel: Float[ArrayLike, "n *points"],
    y: Float[ArrayLike, "n k"],
    steps: Sequence[int] | Float[ArrayLike, " t"] | Int[ArrayLike, " t"],
    *,
    learning_rate: Number,
    momentum: Number = 0.0,
    f0: Float[ArrayLike, "n k"] | None = None,
    kernel_test: Float[ArrayLike, "m *points"] | None = None,
    f0_test: Float[ArrayLike, "m k"] | None = None,
    diag_reg: Number = 0.0,
    diag_reg_scale: RidgeScale = "absolute",
    throw: bool = True,
) -> Trajectory:
    """Gradient descent of squared loss under a frozen kernel, exactly, after any number of steps.

    Without momentum f_s = f_0 + (1 - (1 - eta Theta / D)^s) (y - f_0). With heavy-ball momentum m,
    v <- m v - eta dL/dtheta, theta <- theta + v, as `optax.sgd(eta, momentum=m)` steps.

    **Arguments:**

    - `kernel`, `y`, `f0`, `kernel_test`, `f0_test`, `diag_reg`, `diag_reg_scale`, `throw`: as in
      `mse_flow`.
    - `steps`: increasing counts of steps from 0 to 2^62, (t,), exact in every precision.
    - `learning_rate`: eta > 0, of the mean loss. Up to `max_learning_rate` descent converges.
    - `momentum`: m in [0, 1).

    **Returns:** a `Trajectory` whose `.ts` are the steps; `.final` as in `mse_flow`. Numbers that
    overflow are `RESULTS.diverged`.

    **Raises, Warns:** as `mse_flow`.
    """
    counts = check_steps(steps)
    rate = checks.nonnegative_scalar("learning_rate", learning_rate, strictly=True)
    m = checks.nonnegative_scalar("momentum", momentum, below=1.0)
    problem = check_kernel_problem(
        kernel, y, loss=MeanSquaredError(), f0=f0, kernel_test=kernel_test, f0_test=f0_test
    )
    problem.kernel.stored(_NEEDS_EIGENVECTORS)
    ridge = check_ridge(diag_reg, diag_reg_scale)
    ts = as_times(counts.shown, problem.y.dtype)
    shown = _descent(problem, counts, rate, m, ridge)
    found = finish(_in_time(ts, shown), throw=throw, on_divergence=SMALLER_STEPS)
    warn_where_dropped("`kernel`", found.dropped, problem.y.dtype)
    return found


@full_precision
def linearized_model(
    model: Model,
    x: PyTree[Shaped[ArrayLike, "n ..."]],
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
    x = checked_batch("x", x)
    outputs = check_model(model, "x", x)
    check_metric(model, metric)
    a = checks.real_array("coefficients", coefficients, expected="an array (n, k)")
    checks.shape("coefficients", a, (count(x), *outputs.shape), "one for each output of `model`")
    checks.finite("coefficients", a)
    params, apply = split(model)
    _, pull = jax.vjp(lambda p: jax.vmap(apply, in_axes=(None, 0))(p, x), params)
    return eqx.apply_updates(model, precondition(metric, pull(a.astype(outputs.dtype))[0]))


class Steps(MatrixFunction):
    """What descent has made of a unit residual after a count of steps with momentum: u_s.

    With the affine map of (u, v, 1) that a step is, 1 + S(z), u_s is an entry of (1 + S)^s, and its
    divided differences are blocks of powers of a matrix with S(z_i) on its diagonal and dS/dz above
    it: repeated squaring of what the power adds to 1 keeps the digits of small eigenvalues.

    - `bits`: of the count of steps, the lowest first.
    - `rate`: of a step, learning rate / n.
    """

    bits: Bool[Array, " bits"]
    rate: Float[Array, ""]
    momentum: Float[Array, ""]

    def divided(self, *nodes: Array) -> Array:
        shape = jnp.broadcast_shapes(*(node.shape for node in nodes))
        m, size = self.momentum, 3 * len(nodes)
        # u' = u + v',  v' = m v + rate (1 - z u)
        fixed = jnp.zeros((3, 3), m.dtype).at[:2, 2].set(self.rate)
        fixed = fixed.at[0, 1].set(m).at[1, 1].set(m - 1)
        slope = jnp.zeros((3, 3), m.dtype).at[:2, 0].set(-self.rate)
        step = jnp.zeros((*shape, size, size), fixed.dtype)
        for i, node in enumerate(nodes):
            here = slice(3 * i, 3 * i + 3)
            block = jax.vmap(lambda z: fixed + z * slope)(jnp.broadcast_to(node, shape).ravel())
            step = step.at[..., here, here].set(block.reshape(*shape, 3, 3))
            if i:
                step = step.at[..., 3 * i - 3 : 3 * i, here].set(slope)

        def square(carry: tuple[Array, Array], bit: Array) -> tuple[tuple[Array, Array], None]:
            total, power = carry
            total = jnp.where(bit, total + power + total @ power, total)
            return (total, 2 * power + power @ power), None

        (total, _), _ = jax.lax.scan(square, (jnp.zeros_like(step), step), self.bits)
        return total[..., 0, -1]

    def reach(self) -> Array:
        powers = 2.0 ** jnp.arange(len(self.bits), dtype=self.rate.dtype)
        return self.rate * (1 + jnp.sum(jnp.where(self.bits, powers, 0))) / (1 - self.momentum)

    def scale(self, values: Array) -> Array:
        return jnp.maximum(values, 1 / self.reach())


_NEEDS_EIGENVECTORS = (
    "Its eigenvectors are needed: use `mse_flow_operator`, or `gradient_descent` for steps."
)


@eqx.filter_jit
def _flow(problem: KernelProblem, ts: Array, ridge: Ridge, to_the_limit: bool) -> dict[str, Any]:
    n = len(problem.y)
    kernel, missing = problem.kernel.stored(), problem.y - problem.f0[:n]
    return _shown(problem, kernel.flowed(ts, ridge, missing, to_the_limit))


@eqx.filter_jit
def _descent(
    problem: KernelProblem,
    counts: StepCounts,
    learning_rate: Array,
    momentum: Array,
    ridge: Ridge,
) -> dict[str, Any]:
    n = len(problem.y)
    missing = problem.y - problem.f0[:n]
    dtype = missing.dtype
    rate = (learning_rate / n).astype(dtype)

    def after(bits: Array) -> Steps:
        return Steps(bits, rate, momentum.astype(dtype))

    found = problem.kernel.stored().relaxed(after, counts.bits, ridge, missing)
    return _shown(problem, found)


def _shown(problem: KernelProblem, found: Solution) -> dict[str, Any]:
    """A `Trajectory` without its times, which may be infinite."""
    n, k = problem.y.shape
    kernel = problem.kernel.stored()
    coefficients, positive, dropped = found
    outputs = problem.f0[None] + jax.lax.map(lambda a: kernel.outputs(a, k), coefficients)
    finite = jnp.all(jnp.isfinite(outputs), axis=(1, 2))
    valid = positive & jnp.cumprod(finite).astype(bool)
    diverged = RESULTS.where(jnp.all(finite), RESULTS.successful, RESULTS.diverged)  # pyright: ignore
    result = RESULTS.where(positive, diverged, RESULTS.kernel_not_positive)  # pyright: ignore
    outputs = jnp.where(valid[:, None, None], outputs, jnp.nan)
    final = kernel.layout.outputs(coefficients[-1], k)
    return {
        "train": outputs[:, :n],
        "test": outputs[:, n:] if len(problem.f0) > n else None,
        "kernel": None,
        "valid": valid,
        "result": result,
        "stats": {},
        "final": jnp.where(valid[-1], final, jnp.nan),
        "dropped": dropped,
    }


def _in_time(ts: Array, shown: dict[str, Any]) -> Trajectory:
    return Trajectory(ts=ts, t_reached=last_valid(ts, shown["valid"]), **shown)
