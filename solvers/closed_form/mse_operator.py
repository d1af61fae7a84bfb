r"""Squared loss under a frozen kernel that is not formed: an operator, or blocks of a kernel.

    f(t) = f_0 + Theta u(t),    u(t) = (1 - exp(-Theta t / n)) / Theta (y - f_0)

u(t) by Lanczos' method at finite times, by preconditioned conjugate gradients at t = inf.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from solvers.closed_form.iterative import KrylovSolution, learned_at, solve
from solvers.closed_form.krylov_outcome import advice, check_krylov_options, outcome, tolerance
from solvers.frozen_kernel.kernel_problem import check_kernel_problem
from solvers.frozen_kernel.operators import at_each, check_kernel_operator, Operator, space_of
from solvers.losses import MeanSquaredError
from solvers.result import (
    as_times,
    check_times,
    ends_at_infinity,
    last_valid,
    marked,
    raise_where_failed,
    RESULTS,
    SolverError,
    Times,
    Trajectory,
)
from zoo.common import checks
from zoo.common.checks import Number
from zoo.common.precision import full_precision


@full_precision
def mse_flow_operator(
    kernel: Operator,
    y: Float[ArrayLike, "n k"],
    ts: Times,
    *,
    f0: Float[ArrayLike, "n k"] | None = None,
    kernel_test: Operator | None = None,
    f0_test: Float[ArrayLike, "m k"] | None = None,
    diag_reg: Number = 0.0,
    rtol: float | None = None,
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
      output (of all of them for an operator on (n, k)); default: 1e-6 in float64, 1e-4 in float32.
      That of test outputs can be larger, by up to the square root of the kernel's condition number.
    - `max_iterations`: of each Krylov method. Finite times store as many vectors (n, k).
    - `preconditioner_rank`: of the approximation of the kernel that speeds up t = inf; 0: none.
    - `throw`: raise where a solve fails (default), or return what there is, marked: NaN in rows
      that are not valid, or where rounding kept them from `rtol` their best iterates.

    **Returns:** a `Trajectory`. Its `.final` are the coefficients u at the last time, (n, k), as in
    `mse_flow`; its `.stats` hold `num_products`, evaluations of the training kernel, `num_steps`,
    the most of a Krylov method, and at each time, (t,), `error`, a bound on the relative error, and
    `backward_error`, that error of Theta u relative to |Theta| |u| + |y - f_0|.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, before any work;
    `SolverError` where the error stays above `rtol` (its `.partial` holds what the solve came to),
    or a negative eigenvalue was met: one that matters at the times asked for is.

    Derivatives at finite times are forward ones (`jax.jvp`, `jax.jacfwd`).

    Source: Lee et al. (2019), eqs. 8-11; Saad (1992); Frangella, Tropp & Udell (2021).
    """
    ts = check_times(ts, infinite=True)
    space = check_kernel_operator("kernel", kernel)
    problem = check_kernel_problem(
        kernel, y, loss=MeanSquaredError(), f0=f0, kernel_test=kernel_test, f0_test=f0_test
    )
    n = space.points
    starts = problem.f0[:n], problem.f0[n:] if len(problem.f0) > n else None
    damping = checks.nonnegative_scalar("diag_reg", diag_reg)
    max_iterations, preconditioner_rank = check_krylov_options(
        rtol, max_iterations, preconditioner_rank
    )
    rtol = tolerance(rtol, space.dtype)
    ts = as_times(ts, space.dtype)
    shown = _flow(
        kernel,
        kernel_test,
        problem.y,
        starts,
        ts,
        ends_at_infinity(ts),
        damping.astype(space.dtype),
        jnp.asarray(rtol, space.dtype),
        max_iterations,
        preconditioner_rank,
    )
    options = {
        "rtol": rtol,
        "max_iterations": max_iterations,
        "rank_helps": ends_at_infinity(ts) and preconditioner_rank < space.size,
        "damping": ("diag_reg", diag_reg),
    }
    found = Trajectory(ts=ts, t_reached=last_valid(ts, shown["valid"]), **shown)
    return _finish(found, options, throw=throw)


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
) -> dict[str, Any]:
    """A `Trajectory` without its times, which may be infinite: all numbers, whatever they are;
    `valid` says which are.
    """
    space = space_of("kernel", kernel)
    right = space.columns(y - starts[0])
    options: dict[str, Any] = {"damping": diag_reg, "rtol": rtol, "max_iterations": max_iterations}
    parts = []
    finite = ts[:-1] if to_the_limit else ts
    if len(finite):
        parts.append(learned_at(kernel, right, finite / len(y), **options))
    if to_the_limit:
        limit = solve(kernel, right, preconditioner_rank=preconditioner_rank, **options)
        parts.append(limit.as_one_time())

    def at_times(of: Callable[[KrylovSolution], Array]) -> Array:
        return jnp.concatenate([of(part) for part in parts])

    def moved_by(rows: Operator, part: KrylovSolution) -> Array:
        return part.units.outputs(at_each(rows, part.units.of_unit_columns(part.scaled)))

    def outputs(start: Array, moved: Array) -> Array:
        return start[None] + moved.reshape(len(ts), *start.shape)

    error = at_times(lambda part: part.error)
    positive = jnp.all(jnp.stack([part.positive for part in parts]))
    valid = positive & jnp.cumprod(jnp.all(error <= rtol, axis=1)).astype(bool)
    test = None
    if kernel_test is not None and starts[1] is not None:
        test = outputs(starts[1], at_times(functools.partial(moved_by, kernel_test)))
    return {
        "train": outputs(starts[0], at_times(lambda part: part.image)),
        "test": test,
        "kernel": None,
        "valid": valid,
        "result": outcome(error, positive, at_times(lambda part: part.stagnated), rtol),
        "stats": {
            "num_products": sum(part.products for part in parts),
            "num_steps": jnp.max(jnp.stack([part.steps for part in parts])),
            "error": jnp.max(error, axis=1),
            "backward_error": jnp.max(at_times(lambda part: part.backward_error), axis=1),
        },
        "final": space.rows(parts[-1].solution[-1]),
    }


def _finish(found: Trajectory, options: dict[str, Any], *, throw: bool) -> Trajectory:
    """What is returned or raised of a solve with its numbers, whatever they are."""

    def error() -> SolverError:
        partial = found
        if bool(found.result == RESULTS.kernel_not_positive):
            text, partial = RESULTS[found.result], _where(found.valid, found)
        else:
            reason = advice(found.result, found.stats, dtype=found.train.dtype, **options)
            text = (
                f"The Krylov solves came to relative errors {found.stats['error']} at the times "
                f"{found.ts}, expected at most `rtol` = {options['rtol']:g}. {reason} `.partial` "
                "of this error holds what they came to."
            )
        return SolverError(f"{text} `throw=False` returns what is valid.", partial)

    best = found.valid | (found.result == RESULTS.rounding)
    return raise_where_failed(_where(best, found), error, throw=throw)


def _where(usable: Bool[Array, " t"], found: Trajectory) -> Trajectory:
    """NaN in the place of the rows that cannot be used."""
    train, test = marked((found.train, found.test), usable)
    final = marked(found.final[None], usable[-1:])[0]
    return eqx.tree_at(
        lambda t: (t.train, t.test, t.final),
        found,
        (train, test, final),
        is_leaf=lambda leaf: leaf is None,
    )
