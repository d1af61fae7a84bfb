r"""Squared loss under a frozen kernel that is not formed: an operator, or blocks of a kernel.

    f(t) = f_0 + Theta u(t),    u(t) = (1 - exp(-Theta t / n)) / Theta (y - f_0)

u(t) by Lanczos' method at finite times, by preconditioned conjugate gradients at t = inf.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from solvers.iterative import check_krylov_options, learned_at, outcome, solve
from solvers.kernel_problem import check_kernel_problem
from solvers.losses import MeanSquaredError
from solvers.operators import check_kernel_operator, Operator, product, space_of
from solvers.result import (
    check_times,
    ends_at_infinity,
    raise_where_failed,
    RESULTS,
    SolverError,
    Times,
    Trajectory,
)
from zoo import checks
from zoo.precision import full_precision


@full_precision
def mse_flow_operator(
    kernel: Operator,
    y: Float[ArrayLike, "n k"],
    ts: Times,
    *,
    f0: Float[ArrayLike, "n k"] | None = None,
    kernel_test: Operator | None = None,
    f0_test: Float[ArrayLike, "m k"] | None = None,
    diag_reg: float = 0.0,
    rtol: float = 1e-6,
    max_iterations: int = 300,
    preconditioner_rank: int = 32,
    throw: bool = True,
) -> Trajectory:
    """Gradient flow of squared loss under a kernel that is not formed, at any times.

    f(t) = f_0 + Theta (1 - exp(-Theta t / n)) / Theta (y - f_0): what `mse_flow` computes from the
    eigenvectors of a stored kernel, from products with vectors alone.

    **Arguments:**

    - `kernel`: Theta on the training points: `KernelBlocks`, `corrections.NTKOperator`, or a lineax
      operator that is tagged symmetric or positive semidefinite, on (n,), read as Theta (x) I_k, or
      on (n, k).
    - `y`: targets, (n, k).
    - `ts`: increasing times >= 0, (t,); the last may be `inf`.
    - `f0`, `f0_test`: outputs at t = 0, (n, k) and (m, k) (default: 0).
    - `kernel_test`: the operator from the training points to m test points.
    - `diag_reg`: a ridge on the displacement of the parameters, in units of the kernel.
    - `rtol`: the error of the training outputs at each time, relative to |y - f_0| of the worst
      output (of all of them for an operator on (n, k)). That of test outputs can be larger, by up
      to the square root of the kernel's condition number.
    - `max_iterations`: of each Krylov method. Finite times store as many vectors (n, k).
    - `preconditioner_rank`: of the approximation of the kernel that speeds up t = inf; 0: none.
    - `throw`: raise where a solve fails (default), or return NaN, marked.

    **Returns:** a `Trajectory`. Its `.final` are the coefficients u at the last time, (n, k), as in
    `mse_flow`; its `.stats` hold `num_products`, evaluations of the training kernel, and `error`,
    bounds on the relative error at each time, (t,).

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, before any work;
    `SolverError` where the error stays above `rtol`, or a negative eigenvalue was met: one that
    matters at the times asked for is.

    Source: Lee et al. (2019), eqs. 8-11; Saad (1992); Frangella, Tropp & Udell (2021).
    """
    ts = check_times(ts, infinite=True)
    space = check_kernel_operator("kernel", kernel)
    problem = check_kernel_problem(
        kernel, y, loss=MeanSquaredError(), f0=f0, kernel_test=kernel_test, f0_test=f0_test
    )
    n = space.points
    starts = problem.f0[:n], problem.f0[n:] if len(problem.f0) > n else None
    checks.nonnegative_number("diag_reg", diag_reg)
    check_krylov_options(rtol, max_iterations, preconditioner_rank)
    trajectory = _flow(
        kernel,
        kernel_test,
        problem.y,
        starts,
        ts.astype(space.dtype),
        ends_at_infinity(ts),
        jnp.asarray(diag_reg, space.dtype),
        jnp.asarray(rtol, space.dtype),
        max_iterations,
        preconditioner_rank,
    )
    return _finish(trajectory, rtol, max_iterations, throw=throw)


@eqx.filter_jit
def _flow(
    kernel: Operator,
    kernel_test: Operator | None,
    y: Array,
    starts: tuple[Array, Array | None],
    ts: Array,
    to_the_limit: bool,
    diag_reg: Array,
    rtol: Array,
    max_iterations: int,
    preconditioner_rank: int,
) -> Trajectory:
    space = space_of("kernel", kernel)
    right = space.columns(y - starts[0])
    options: dict[str, Any] = {"damping": diag_reg, "rtol": rtol, "max_iterations": max_iterations}
    solutions, images, errors = [], [], []
    products, positive = jnp.asarray(0), jnp.asarray(True)
    finite = ts[:-1] if to_the_limit else ts
    if len(finite):
        found = learned_at(kernel, right, finite / len(y), **options)
        solutions, images, errors = [found.solution], [found.image], [found.error]
        products, positive = products + found.products, positive & found.positive
    if to_the_limit:
        limit = solve(kernel, right, preconditioner_rank=preconditioner_rank, **options)
        solutions.append(limit.solution[None])
        images.append(limit.image[None])
        errors.append(limit.error[None])
        products, positive = products + limit.products, positive & limit.positive
    solution, error = jnp.concatenate(solutions), jnp.concatenate(errors)
    valid = positive & jnp.cumprod(error <= rtol).astype(bool)

    def outputs(start: Array, moved: Array) -> Array:
        found = start[None] + moved.reshape(len(ts), *start.shape)
        return jnp.where(valid[:, None, None], found, jnp.nan)

    test = None
    if kernel_test is not None and starts[1] is not None:
        together = jnp.moveaxis(solution, 0, 1).reshape(space.size, -1)
        rows = product(kernel_test, together).reshape(-1, len(ts), right.shape[1])
        test = outputs(starts[1], jnp.moveaxis(rows, 1, 0))
    return Trajectory(
        ts=ts,
        train=outputs(starts[0], jnp.concatenate(images)),
        test=test,
        kernel=None,
        valid=valid,
        t_reached=jnp.max(jnp.where(valid, ts, 0)),
        result=outcome(error, positive, rtol),
        stats={"num_products": products, "error": error},
        final=jnp.where(valid[-1], space.rows(solution[-1]), jnp.nan),
    )


def _finish(trajectory: Trajectory, rtol: float, max_iterations: int, *, throw: bool) -> Trajectory:

    def error() -> SolverError:
        if bool(trajectory.result == RESULTS.kernel_not_positive):
            message = RESULTS[trajectory.result]
        else:
            message = (
                f"The Krylov solves came to relative errors {trajectory.stats['error']} at the "
                f"times {trajectory.ts}, expected at most `rtol` = {rtol} within `max_iterations` "
                f"= {max_iterations}. Take more iterations or a larger `rtol`; for t = inf a "
                "larger `preconditioner_rank`. A singular kernel fits no targets outside its "
                "range: there t = inf needs `diag_reg` > 0."
            )
        return SolverError(
            f"{message} `throw=False` returns what is valid, and so does `.trajectory` of this "
            "error.",
            trajectory,
        )

    return raise_where_failed(trajectory, error, throw=throw)
