"""Options of Krylov solves, how such a solve ended, and what helps where it failed."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from solvers.result import RESULTS
from zoo.common import checks


def check_krylov_options(
    rtol: Any, max_iterations: Any, preconditioner_rank: Any
) -> tuple[int, int]:
    """The two counts as integers of Python.

    **Raises:** `ValueError` for options out of range.
    """
    if rtol is not None:
        checks.nonnegative_number("rtol", rtol, strictly=True)
    return (
        checks.integer("max_iterations", max_iterations),
        checks.integer("preconditioner_rank", preconditioner_rank, least=0),
    )


def tolerance(rtol: float | None, dtype: Any) -> float:
    """`rtol`, or what solves in this type of numbers reach."""
    if rtol is not None:
        return rtol
    return RTOL if jnp.finfo(dtype).eps < RTOL / 100 else RTOL_32


def outcome(error: Array, positive: Array, stagnated: Array, rtol: Array) -> Any:
    """How a solve ended whose relative errors these are; NaN has not converged."""
    ok, failed = RESULTS.successful, RESULTS.max_steps_reached
    above = ~(error <= rtol)
    stopped = RESULTS.where(jnp.all(stagnated | ~above), RESULTS.rounding, failed)  # pyright: ignore
    arrived = RESULTS.where(jnp.any(above), stopped, ok)  # pyright: ignore
    return RESULTS.where(positive, arrived, RESULTS.kernel_not_positive)  # pyright: ignore


def advice(
    result: Any,
    stats: dict[str, Any],
    *,
    rtol: float,
    max_iterations: int,
    rank_helps: bool,
    dtype: Any,
    damping: tuple[str, Any],
) -> str:
    """Why a solve did not come to `rtol`, and what helps; `damping` by its name and value."""
    name, value = damping
    bits, eps = jnp.dtype(dtype).name, float(jnp.finfo(dtype).eps)
    wider = [] if bits == "float64" else ["float64 (`jax_enable_x64`, and arrays of it)"]
    more = f"a `{name}` of {eps / rtol:.0e} times the kernel's largest eigenvalue"
    if bool(result == RESULTS.rounding):
        least = 2 * float(jnp.max(stats["error"]))
        larger = [f"`rtol` >= {least:.1g}"] if least < 0.5 else []
        options = wider + larger + ([more] if value == 0 or not (wider or larger) else [])
        return (
            f"It stagnated there: the rounding of {bits} allows no less, the backward error is "
            f"{float(jnp.max(stats['backward_error'])):.1g}. Use {', or '.join(options)}."
        )
    outside = "A singular kernel fits no targets outside its range:"
    if int(stats["num_steps"]) >= max_iterations:
        rank = ", a larger `preconditioner_rank`" if rank_helps else ""
        singular = f" {outside} there use {more}." if value == 0 else ""
        return (
            f"It was stopped there by `max_iterations` = {max_iterations}. Use more{rank}, or a "
            f"larger `rtol`.{singular}"
        )
    lost = "" if value == 0 else f", in which `{name}` = {value:g} is lost"
    return (
        f"The kernel is singular to the rounding of {bits}{lost} (or not symmetric). {outside} use "
        f"{', or '.join([*wider, more])}."
    )


RTOL, RTOL_32 = 1e-6, 1e-4
"""Relative residuals that a solve comes to in float64 and in float32, where the kernels of networks
on up to some thousand images, without noise, allow 3e-6 to 3e-4."""
