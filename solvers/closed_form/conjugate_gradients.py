r"""Conjugate gradients that stop where rounding stops them, and keep the best iterate.

    A x = b,    A symmetric and positive,    P ~ A^{-1}

The residual that conjugate gradients carry along goes to zero, also when b - A x has long stopped
at the rounding of A x, about eps |A| |x|: so the latter is computed now and then, the best iterate
is the one for which it is smallest, and a column starts again from that one where the two differ
(residual replacement). What does not gain by that has stagnated.

Written out here, since of lineax (`CG`, `GMRES`), `jax.scipy.sparse.linalg` and matfree none keeps
the best iterate or tells stagnation: in float32 `lineax.CG` ends in NaN, or counts the residual it
carries along. Derivatives are those of the exact solution (`jax.lax.custom_linear_solve`).

Sources: Hestenes & Stiefel (1952); Greenbaum (1997), "Estimating the attainable accuracy of
recursively computed residual methods"; van der Vorst & Ye (2000), "Residual replacement strategies
for Krylov subspace iterative methods for the convergence of true residuals".
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Map = Callable[[Array], Array]

CHECK = 20
"""Steps after which the true residual is computed."""


class Found(NamedTuple):
    """What conjugate gradients leave.

    - `error`: |b - A x| of each column.
    - `stagnated`: whether that is above the tolerance, and further steps do not lower it.
    - `steps`: the steps taken; `checks`: the products that true residuals took.
    """

    error: Float[Array, " c"]
    stagnated: Bool[Array, " c"]
    steps: Int[Array, ""]
    checks: Int[Array, ""]


class _Iterate(NamedTuple):
    """A solution (size, c), its residual, and the norm of that, (1, c)."""

    solution: Array
    residual: Array
    error: Array


class _State(NamedTuple):
    """Where each column is, and counts.

    - `now`, and `low`, the one of least error since the last check: with residuals as they are
      carried along. `best`: with its true residual.
    - `mark`: the error of the best as the column last started again, (1, c).
    - `broken`: whether its direction has no curvature but rounding.
    """

    now: _Iterate
    low: _Iterate
    best: _Iterate
    direction: Array
    gamma: Array
    mark: Array
    broken: Array
    stagnated: Array
    steps: Array
    checks: Array


def conjugate_gradients(
    apply: Map,
    precondition: Map,
    right: Float[Array, "size c"],
    *,
    tolerance: Array,
    max_steps: int,
) -> tuple[Float[Array, "size c"], Found]:
    """A^{-1} b for unit vectors b, or zero, and a positive A of norm 1, all columns together.

    `precondition` approximates the inverse. Each column has steps of its own: what comes of one,
    NaN even, does not reach another.
    """

    def solve(matvec: Map, right: Array) -> tuple[Array, Found]:
        return _solve(matvec, precondition, right, tolerance=tolerance, max_steps=max_steps)

    return jax.lax.custom_linear_solve(apply, right, solve, symmetric=True, has_aux=True)


def _solve(
    apply: Map, precondition: Map, right: Array, *, tolerance: Array, max_steps: int
) -> tuple[Array, Found]:
    eps = jnp.finfo(right.dtype).eps

    def active(state: _State) -> Array:
        return (state.best.error > tolerance) & ~state.stagnated

    def going(state: _State) -> Array:
        return active(state) & (state.now.error > tolerance / 2) & ~state.broken

    def step(state: _State) -> _State:
        now, direction = state.now, state.direction
        image = apply(direction)
        curvature = _dot(direction, image)
        # Below that the sign of the curvature is rounding, and so is the step.
        seen = curvature > eps * _dot(direction, direction)
        goes = going(state) & seen
        length = state.gamma / jnp.where(seen, curvature, 1)
        residual = now.residual - length * image
        inverse = precondition(residual)
        gamma = _dot(inverse, residual)
        turned = inverse + gamma / jnp.where(goes, state.gamma, 1) * direction
        moved = _Iterate(now.solution + length * direction, residual, _norm(residual))
        return state._replace(
            now=_where(goes, moved, now),
            low=_where(goes & (moved.error < state.low.error), moved, state.low),
            direction=jnp.where(goes, turned, direction),
            gamma=jnp.where(goes, gamma, state.gamma),
            broken=state.broken | (going(state) & ~seen),
            steps=state.steps + 1,
        )

    def cycle(state: _State) -> _State:
        until = jnp.minimum(state.steps + CHECK, max_steps)
        state = state._replace(low=state.now)
        state = jax.lax.while_loop(lambda s: jnp.any(going(s)) & (s.steps < until), step, state)
        low = state.low
        residual = right - apply(low.solution)
        true = _Iterate(low.solution, residual, _norm(residual))
        best = _where(true.error < state.best.error, true, state.best)
        # Also where one of them is not finite.
        departed = ~(_norm(true.residual - low.residual) <= true.error / 2)
        again = active(state) & departed
        gained = best.error <= state.mark / 2
        inverse = precondition(best.residual)
        return state._replace(
            now=_where(again, best, state.now),
            best=best,
            direction=jnp.where(again, inverse, state.direction),
            gamma=jnp.where(again, _dot(inverse, best.residual), state.gamma),
            mark=jnp.where(again, best.error, state.mark),
            stagnated=state.stagnated | (active(state) & (state.broken | (departed & ~gained))),
            checks=state.checks + 1,
        )

    zero = _Iterate(jnp.zeros_like(right), right, _norm(right))
    inverse = precondition(right)
    start = _State(
        now=zero,
        low=zero,
        best=zero,
        direction=inverse,
        gamma=_dot(inverse, right),
        mark=jnp.full_like(zero.error, jnp.inf),
        broken=jnp.zeros_like(zero.error, bool),
        stagnated=jnp.zeros_like(zero.error, bool),
        steps=jnp.asarray(0),
        checks=jnp.asarray(0),
    )
    last = jax.lax.while_loop(lambda s: jnp.any(active(s)) & (s.steps < max_steps), cycle, start)
    stagnated = last.stagnated & (last.best.error > tolerance)
    found = Found(last.best.error[0], stagnated[0], last.steps, last.checks)
    return last.best.solution, found


def _where(chosen: Array, one: _Iterate, other: _Iterate) -> _Iterate:
    return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), one, other)


def _dot(left: Array, right: Array) -> Array:
    return jnp.sum(left * right, axis=0, keepdims=True)


def _norm(columns: Array) -> Array:
    return jnp.linalg.norm(columns, axis=0, keepdims=True)
