r"""Gradient flow in function space, under a kernel.

    f' = - Theta g,      g = dL/df on the training points,

on training and test points alike, for any loss. With Theta itself moving, as in the truncated
hierarchy, each kernel of the tower is moved by the next and the last one is frozen:

    O_s' = - sum_c O_{s+1}(.., c) g_c,      O_1 = f,  O_2 = Theta
"""

from collections.abc import Sequence

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from solvers.flows.chebyshev import radius_at
from solvers.flows.flow import check_tolerances, Ending, Flow, Motion, Observation, Tolerances
from solvers.flows.integrate import integrate
from solvers.flows.stopping import AtSteadyState, Stop
from solvers.frozen_kernel.frozen_kernel import FrozenKernel, StoredKernel
from solvers.frozen_kernel.kernel_problem import (
    check_kernel_problem,
    check_start,
    check_weights,
    Kernel,
    Targets,
    TestKernel,
)
from solvers.losses import loss_and_residual, LossFunction, mean_loss
from solvers.result import check_times, ends_at_infinity, Times, Trajectory
from zoo.common import checks
from zoo.common.checks import Number
from zoo.common.precision import full_precision

Tower = tuple[Array, ...]
"""O_1 = f (n + m, k), O_2 = Theta (n + m, k, n, k), ...: training rows first, then test rows."""


class KernelFlow(Flow):
    """The truncated hierarchy in function space: the state is O_1 .. O_{p-1}, O_p is `frozen`.

    With `frozen` the tangent kernel this is the frozen-kernel flow. A frozen kernel may be compact:
    (n + m, n) stands for Theta (x) I_k, (n + m, n, k) for one kernel for each output.
    """

    frozen: FrozenKernel
    y: Float[Array, "n k"]
    loss: LossFunction
    observes_kernel: bool = eqx.field(static=True)
    weights: Float[Array, " n"] | None = None

    def motion(self, state: Tower) -> Motion:
        n = self.y.shape[0]
        loss, g = loss_and_residual(self.loss, state[0][:n], self.y, self.weights)
        tower = (*map(StoredKernel, state[1:]), self.frozen)
        velocity = tuple(-kernel.times(g) for kernel in tower)
        return Motion(velocity, loss, jnp.sum(g * velocity[0][:n]))

    def observe(self, state: Tower) -> Observation:
        n = self.y.shape[0]
        f = state[0]
        return Observation(
            train=f[:n],
            test=f[n:] if f.shape[0] > n else None,
            kernel=self._train_kernel(state) if self.observes_kernel else None,
        )

    def _train_kernel(self, state: Tower) -> Array:
        if len(state) > 1:
            return state[1][: self.y.shape[0]]
        return self.frozen.stored().rows[: self.y.shape[0]]


class DampedKernelFlow(Flow):
    """f' = Theta p, p' = -c p - g: heavy-ball momentum under a frozen kernel.

    Its energy L + p . Theta p / 2 falls at the rate c p . Theta p, as long as Theta is positive.
    """

    kernel: FrozenKernel
    y: Float[Array, "n k"]
    loss: LossFunction
    friction: Float[Array, ""]
    weights: Float[Array, " n"] | None

    def motion(self, state: Tower) -> Motion:
        f, p = state
        n = self.y.shape[0]
        loss, g = loss_and_residual(self.loss, f[:n], self.y, self.weights)
        moved = self.kernel.times(p)
        twice_kinetic = jnp.sum(p * moved[:n])
        energy = loss + jnp.abs(twice_kinetic) / 2
        return Motion((moved, -self.friction * p - g), energy, -self.friction * twice_kinetic)

    def observe(self, state: Tower) -> Observation:
        n = self.y.shape[0]
        f = state[0]
        return Observation(f[:n], f[n:] if f.shape[0] > n else None, None)


class _Margin(eqx.Module):
    """How far a flow under a kernel is from where it should stop."""

    stop: Stop
    y: Float[Array, "n k"]
    loss: LossFunction
    weights: Float[Array, " n"] | None

    def __call__(self, state: Tower) -> Array:
        f = state[0][: self.y.shape[0]]
        assert not isinstance(self.stop, AtSteadyState)
        return self.stop.margin(f, self.y, mean_loss(self.loss, f, self.y, self.weights))


class SlowestRate(eqx.Module):
    """How fast the slowest outputs of a flow under a kernel move, in a state.

    Without friction it is lambda, the spectral radius times the smallest eigenvalue of the kernel
    over the largest, its `spread`; with friction c the real part of
    the slower root of mu^2 - c mu + lambda = 0.
    """

    undamped: KernelFlow
    spread: Float[Array, ""]
    friction: Float[Array, ""] | None

    def __call__(self, state: Tower) -> Float[Array, ""]:
        rate = radius_at(self.undamped.velocity, state[:1]) * self.spread
        if self.friction is None:
            return rate
        c = self.friction
        overdamped = 2 * rate / (c + jnp.sqrt(jnp.maximum(c**2 - 4 * rate, 0)))
        return jnp.minimum(overdamped, c / 2)


@full_precision
def gradient_flow(
    kernel: Kernel,
    y: Targets,
    ts: Times,
    *,
    loss: LossFunction,
    f0: Float[ArrayLike, "n k"] | None = None,
    kernel_test: TestKernel | None = None,
    f0_test: Float[ArrayLike, "m k"] | None = None,
    friction: Number | None = None,
    weights: Float[ArrayLike, " n"] | None = None,
    stop: Stop | None = None,
    start: Sequence[Array] | None = None,
    solver: diffrax.AbstractSolver | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    max_steps: int = 100_000,
    throw: bool = True,
    progress: diffrax.AbstractProgressMeter | None = None,
) -> Trajectory:
    """Solves f' = -Theta g, gradient flow under a frozen kernel, for any loss.

    With `friction` c it solves f'' = -c f' - Theta g from f' = 0, the flow of heavy-ball momentum
    m: c = (1 - m) / sqrt(eta), and time is sqrt(eta) x number of steps.

    **Arguments:**

    - `kernel`: Theta on the n training points: (n, n), read as Theta (x) I_k; (n, n, k), one
      kernel an output; (n, k, n, k); or an operator, which is never formed: `KernelBlocks`,
      `corrections.NTKOperator`, or one of lineax on (n, k), or on (n,) for Theta (x) I_k. Symmetric
      and positive semidefinite. Its dtype is that of the solve.
    - `y`: targets, (n, k); one-hot rows for a classification, or for `CrossEntropy`, `Brier` and
      `Hinge` its integer labels (n,).
    - `ts`: increasing times >= 0, (t,). Time is learning rate x number of steps. The last may be
      inf, the limit of training: the state in which outputs move no more than their tolerance,
      once the slowest have had the time to move. How slow they are is known of arrays alone: under
      an operator whose eigenvalues lie decades apart, ask for a large finite time. In float32
      rounding keeps the steps of stiff problems short: the limit under a kernel of condition above
      about 100 asks for float64, and a solve that does not get there fails.
    - `loss`: per example, (f (k,), y (k,)) -> scalar. Its mean over examples is what is descended.
    - `f0`: outputs at t = 0 on the training points, (n, k) (default: 0).
    - `kernel_test`, `f0_test`: the kernel's rows and the outputs at t = 0 for m test points:
      (m, n), (m, n, k), (m, k, n, k) or an operator, as `kernel`; and (m, k) (default: 0).
    - `friction`: c > 0.
    - `weights`: of the examples, (n,), >= 0: what is descended is 1/n sum_i w_i l_i.
    - `stop`: `AtLoss`, `AtAccuracy` or `AtSteadyState`: ends the solve there, with
      `RESULTS.event_occurred` and `t_reached`, and `.final` as it is then.
    - `start`: `.final` of an earlier trajectory, to go on from in the place of `f0` and `f0_test`;
      `ts` count from there.
    - `solver`: a diffrax solver. Default: `diffrax.Tsit5()`, and if it has not arrived after 500
      steps on a problem that is stiff, `RungeKuttaChebyshev` from there on.
    - `rtol`, `atol`: tolerances of a step, relative (at least ten times the rounding of the dtype)
      and absolute (in units of the outputs).
    - `max_steps`: after so many steps the solve gives up.
    - `throw`: raise on failure (default), or return what there is, marked.
    - `progress`: a diffrax progress meter.

    **Returns:** a `Trajectory`; its `.final` is the tuple (f,), training rows then test rows; with
    friction (f, p), f' = Theta p.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, before any work;
    `SolverError` where the solve fails and `throw=True`.

    Derivatives of the solution are forward ones (`jax.jvp`, `jax.jacfwd`).

    Source: Jacot, Gabriel & Hongler (2018), section 4; Lee et al. (2019), eq. 7.
    """
    ts = check_times(ts, infinite=True)
    tolerances = check_tolerances(Tolerances(solver, rtol, atol, max_steps, progress))
    if friction is not None:
        friction = checks.nonnegative_scalar("friction", friction, strictly=True)
    if stop is not None and not isinstance(stop, Stop):
        raise TypeError(
            f"`stop` is {stop!r}, expected `AtLoss`, `AtAccuracy`, `AtSteadyState` or None."
        )
    problem = check_kernel_problem(
        kernel, y, loss=loss, f0=f0, kernel_test=kernel_test, f0_test=f0_test
    )
    rows, f, targets = problem
    w = check_weights(weights, targets)
    parts = (f,) if friction is None else (f, jnp.zeros_like(targets))
    state = check_start(start, parts, given=f0 is not None or f0_test is not None)
    unit = None
    if friction is None:
        rows, unit = rows.in_units()
    flow = undamped = KernelFlow(rows, targets, loss, observes_kernel=False, weights=w)
    if friction is not None:
        flow = DampedKernelFlow(rows, targets, loss, jnp.asarray(friction, targets.dtype), w)
    return integrate(
        flow,
        state,
        ts,
        tolerances=tolerances,
        throw=throw,
        ending=_ending(stop, undamped, friction, ts),
        stabilise=friction is None,  # with friction the eigenvalues are complex
        unit=unit,
    )


def _ending(stop: Stop | None, undamped: KernelFlow, friction: Number | None, ts: Array) -> Ending:
    if isinstance(stop, AtSteadyState) or ends_at_infinity(ts):
        y = undamped.y
        spread = jnp.asarray(undamped.frozen.spread(), y.dtype)
        slowest = SlowestRate(
            undamped, spread, None if friction is None else jnp.asarray(friction, y.dtype)
        )
    else:
        slowest = None
    if stop is None or isinstance(stop, AtSteadyState):
        return Ending(slowest=slowest)
    return Ending(_Margin(stop, undamped.y, undamped.loss, undamped.weights), slowest)
