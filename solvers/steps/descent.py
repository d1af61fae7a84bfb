r"""Gradient descent in function space, step by step, for any loss.

Under a frozen kernel a step of optax.sgd on the parameters of the linearised network moves

    p <- m p + g,      f <- f - eta_s Theta p            g = dL/df on the examples of the batch

(Nesterov: f <- f - eta_s Theta (g + m p)), on training and test points alike.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from solvers.frozen_kernel.kernel_problem import (
    check_kernel_problem,
    check_start,
    check_weights,
    Kernel,
    KernelProblem,
    Targets,
    TestKernel,
)
from solvers.losses import LossFunction, residual
from solvers.result import finish, RESULTS, Trajectory
from solvers.steps.stability import SMALLER_STEPS
from solvers.steps.step_counts import check_steps
from zoo.common import checks
from zoo.common.checks import Number
from zoo.common.precision import full_precision

Schedule = Callable[[Any], Any]
"""Learning rate of step s = 0, 1, ..: an optax schedule."""


@full_precision
def gradient_descent(
    kernel: Kernel,
    y: Targets,
    steps: Sequence[int] | Float[ArrayLike, " t"] | Int[ArrayLike, " t"],
    *,
    loss: LossFunction,
    learning_rate: Number | Schedule,
    momentum: Number | None = None,
    nesterov: bool = False,
    batches: Int[ArrayLike, "s b"] | None = None,
    f0: Float[ArrayLike, "n k"] | None = None,
    kernel_test: TestKernel | None = None,
    f0_test: Float[ArrayLike, "m k"] | None = None,
    weights: Float[ArrayLike, " n"] | None = None,
    start: Sequence[Array] | None = None,
    throw: bool = True,
) -> Trajectory:
    """Gradient descent of any loss under a frozen kernel, in discrete steps.

    It is what `optax.sgd(learning_rate, momentum, nesterov)` does to the parameters of the
    linearised network. For squared loss and many steps `mse_descent` has it in closed form. At a
    kink of the loss (`Hinge`) the step is that of the gradient that the loss gives there.

    **Arguments:**

    - `kernel`, `y`, `f0`, `kernel_test`, `f0_test`, `weights`: as in `gradient_flow`.
    - `steps`: increasing counts of steps >= 0, (t,), after which the outputs are shown.
    - `loss`: per example, (f (k,), y (k,)) -> scalar. Its mean over the batch is what is descended.
    - `learning_rate`: eta > 0, of the mean loss; or an optax schedule of the step s = 0, 1, ...
    - `momentum`: m in [0, 1) (default: none).
    - `nesterov`: whether it is Nesterov's.
    - `batches`: indices of the training points of each step, (s, b), repeated after s steps
      (default: all points at each).
    - `start`: `.final` of an earlier descent, to go on from in the place of `f0` and `f0_test`;
      `steps` count from there, schedule and batches go on.
    - `throw`: raise where the outputs overflow (default), or return what there is, marked.

    **Returns:** a `Trajectory` whose `.ts` are the steps. `.final` is (f, p, s): outputs on
    training and test points, the accumulated gradients (n, k), steps done. Numbers that overflow
    are `RESULTS.diverged`, and `t_reached` is the last step before.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, before any work;
    `SolverError` where it diverges and `throw=True`.

    Source: Lee et al. (2019), section 2.2 and appendix F (momentum).
    """
    counts = check_steps(steps)
    integers = counts.as_integers()
    rate = _check_learning_rate(learning_rate)
    m = checks.nonnegative_scalar("momentum", 0.0 if momentum is None else momentum, below=1.0)
    problem = check_kernel_problem(
        kernel, y, loss=loss, f0=f0, kernel_test=kernel_test, f0_test=f0_test
    )
    targets = problem.y
    w = check_weights(weights, targets)
    indices = _check_batches(batches, len(targets))
    parts = (problem.f0, jnp.zeros_like(targets), jnp.zeros((), jnp.int32))
    f, p, done = check_start(start, parts, given=f0 is not None or f0_test is not None)
    descent = _Step(problem, loss, w, indices, rate, m.astype(targets.dtype), nesterov)
    found = _descended(descent, (f, p, done), integers, counts.shown.astype(targets.dtype))
    return finish(found, throw=throw, on_divergence=SMALLER_STEPS)


def _check_learning_rate(learning_rate: Number | Schedule) -> Array | Schedule:
    if not callable(learning_rate):
        return checks.nonnegative_scalar("learning_rate", learning_rate, strictly=True)
    rate: Any = eqx.filter_eval_shape(learning_rate, jax.ShapeDtypeStruct((), jnp.int32))
    number = isinstance(rate, int | float)
    if hasattr(rate, "dtype"):
        real = any(jnp.issubdtype(rate.dtype, kind) for kind in (jnp.floating, jnp.integer))
        number = real and rate.shape == ()
    if not number:
        got = eqx.tree_pformat(rate, struct_as_array=True)
        raise TypeError(f"`learning_rate` gives {got} for step s, expected a real number.")
    return learning_rate


def _check_batches(batches: Any, n: int) -> Int[Array, "s b"] | None:
    if batches is None:
        return None
    array = checks.as_array("batches", batches, "indices of training points (s, b)")
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"`batches` has dtype {array.dtype}, expected indices of training points.")
    checks.shape("batches", array, ("s", "b"), because="the points of each step")
    values = checks.concrete(array)
    if values is not None and (values.min() < 0 or values.max() >= n):
        raise ValueError(
            f"`batches` holds indices from {values.min()} to {values.max()}, expected 0 to {n - 1}."
        )
    return array


class _Step(eqx.Module):
    """A rule for steps of (f, p, s)."""

    problem: KernelProblem
    loss: LossFunction
    weights: Float[Array, " n"] | None
    batches: Int[Array, "s b"] | None
    learning_rate: Array | Schedule
    momentum: Float[Array, ""]
    nesterov: bool

    def __call__(self, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        f, p, s = state
        rate = self.learning_rate(s) if callable(self.learning_rate) else self.learning_rate
        rate = jnp.asarray(rate, f.dtype)
        g = self._gradient(f, s)
        p = self.momentum * p + g
        along = g + self.momentum * p if self.nesterov else p
        return f - rate * self.problem.kernel.times(along), p, s + 1

    def _gradient(self, f: Array, s: Array) -> Float[Array, "n k"]:
        y = self.problem.y
        if self.batches is None:
            return residual(self.loss, f[: len(y)], y, self.weights)
        batch = self.batches[s % len(self.batches)]
        weights = None if self.weights is None else self.weights[batch]
        return jnp.zeros_like(y).at[batch].add(residual(self.loss, f[batch], y[batch], weights))


@eqx.filter_jit
def _descended(
    descent: _Step,
    start: tuple[Array, Array, Array],
    counts: Int[Array, " t"],
    steps: Float[Array, " t"],
) -> Trajectory:
    n = len(descent.problem.y)
    first = start[2]

    def finite(state: tuple[Array, Array, Array]) -> Array:
        return jnp.all(jnp.isfinite(state[0])) & jnp.all(jnp.isfinite(state[1]))

    def to(carry: tuple, count: Array) -> tuple[tuple, tuple[Array, Array]]:
        def unfinished(carry: tuple) -> Array:
            state, healthy = carry
            return (state[2] - first < count) & healthy

        def step(carry: tuple) -> tuple:
            state, _ = carry
            moved = descent(state)
            healthy = finite(moved)
            # The last finite state is kept.
            kept = jax.tree.map(lambda new, old: jnp.where(healthy, new, old), moved, state)
            return kept, healthy

        carry = jax.lax.while_loop(unfinished, step, carry)
        return carry, (carry[0][0], carry[1])

    (final, healthy), (outputs, valid) = jax.lax.scan(
        to, (start, finite(start)), counts.astype(first.dtype)
    )
    outputs = jnp.where(valid[:, None, None], outputs, jnp.nan)
    result = RESULTS.where(healthy, RESULTS.successful, RESULTS.diverged)  # pyright: ignore
    return Trajectory(
        ts=steps,
        train=outputs[:, :n],
        test=outputs[:, n:] if len(descent.problem.f0) > n else None,
        kernel=None,
        valid=valid,
        t_reached=(final[2] - first).astype(steps.dtype),
        result=result,
        stats={"num_steps": final[2] - first},
        final=final,
    )
