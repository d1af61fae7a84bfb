r"""Gradient flow in function space, under a kernel.

    f' = - Theta g,      g = dL/df on the training points,

on training and test points alike, for any loss. With Theta itself moving, as in the truncated
hierarchy, each kernel of the tower is moved by the next and the last one is frozen:

    O_s' = - sum_c O_{s+1}(.., c) g_c,      O_1 = f,  O_2 = Theta
"""

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from solvers.integrate import (
    check_tolerances,
    Flow,
    integrate,
    Observation,
    Tolerances,
)
from solvers.kernel_problem import check_kernel_problem
from solvers.losses import LossFunction, mean_loss, residual
from solvers.result import check_times, Times, Trajectory
from zoo.precision import full_precision

Tower = tuple[Array, ...]
"""O_1 = f (n + m, k), O_2 = Theta (n + m, k, n, k), ...: training rows first, then test rows."""


class KernelFlow(Flow):
    """The truncated hierarchy in function space: the state is O_1 .. O_{p-1}, O_p is `frozen`.

    With `frozen` the tangent kernel this is the frozen-kernel flow. A frozen kernel may be compact:
    (n + m, n) stands for Theta (x) I_k, (n + m, n, k) for one kernel an output.
    """

    frozen: Array
    y: Float[Array, "n k"]
    loss: LossFunction
    observes_kernel: bool = eqx.field(static=True)

    def velocity(self, state: Tower) -> Tower:
        g = self._residual(state)
        return tuple(-contract(kernel, g) for kernel in (*state[1:], self.frozen))

    def observe(self, state: Tower) -> Observation:
        n = self.y.shape[0]
        f = state[0]
        return Observation(
            train=f[:n],
            test=f[n:] if f.shape[0] > n else None,
            kernel=self._train_kernel(state) if self.observes_kernel else None,
        )

    def loss_and_rate(self, state: Tower, velocity: Tower) -> tuple[Array, Array]:
        return function_space_loss(self.loss, self.y, state[0], velocity[0])

    def _residual(self, state: Tower) -> Float[Array, "n k"]:
        return residual(self.loss, state[0][: self.y.shape[0]], self.y)

    def _train_kernel(self, state: Tower) -> Array:
        return (*state, self.frozen)[1][: self.y.shape[0]]


def function_space_loss(
    loss: LossFunction, y: Float[Array, "n k"], f: Array, velocity: Array
) -> tuple[Array, Array]:
    """L and dL/dt = g . f' of outputs (training rows first) that move with this velocity."""
    n = y.shape[0]
    return mean_loss(loss, f[:n], y), jnp.sum(residual(loss, f[:n], y) * velocity[:n])


def contract(kernel: Array, g: Float[Array, "n k"]) -> Array:
    """sum_c O(.., c) g_c over the last slot of a kernel, which may be compact."""
    if kernel.ndim == 2:
        return jnp.einsum("ab,bk->ak", kernel, g)
    if kernel.ndim == 3:
        return jnp.einsum("abk,bk->ak", kernel, g)
    return jnp.tensordot(kernel, g, axes=2)


@full_precision
def gradient_flow(
    kernel: Float[ArrayLike, "n *points"],
    y: Float[ArrayLike, "n k"],
    ts: Times,
    *,
    loss: LossFunction,
    f0: Float[ArrayLike, "n k"] | None = None,
    kernel_test: Float[ArrayLike, "m *points"] | None = None,
    f0_test: Float[ArrayLike, "m k"] | None = None,
    solver: diffrax.AbstractSolver | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    max_steps: int = 100_000,
    throw: bool = True,
    progress: diffrax.AbstractProgressMeter | None = None,
) -> Trajectory:
    """Solves f' = -Theta g, gradient flow under a frozen kernel, for any loss.

    **Arguments:**

    - `kernel`: Theta on the n training points: (n, n), read as Theta (x) I_k; (n, n, k), one
      kernel an output; or (n, k, n, k). Symmetric and positive semidefinite. Its dtype is that of
      the solve.
    - `y`: targets, (n, k); one-hot rows for a classification.
    - `ts`: increasing times >= 0, (t,). Time is learning rate x number of steps.
    - `loss`: per example, (f (k,), y (k,)) -> scalar. Its mean over examples is what is descended.
    - `f0`: outputs at t = 0 on the training points, (n, k) (default: 0).
    - `kernel_test`, `f0_test`: the kernel's rows and the outputs at t = 0 for m test points:
      (m, n), (m, n, k) or (m, k, n, k), as `kernel`; and (m, k) (default: 0).
    - `solver`: a diffrax solver (default: `diffrax.Tsit5()`; for a stiff problem, that is a large
      lambda_max t / n, `diffrax.Kvaerno5()`).
    - `rtol`, `atol`: tolerances of a step, relative and absolute (in units of the outputs).
    - `max_steps`: after so many steps the solve gives up.
    - `throw`: raise on failure (default), or return what there is, marked.
    - `progress`: a diffrax progress meter.

    **Returns:** a `Trajectory`; its `.final` is the tuple (f,), training rows then test rows.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, before any work;
    `SolverError` where the solve fails and `throw=True`.

    Source: Jacot, Gabriel & Hongler (2018), section 4; Lee et al. (2019), eq. 7.
    """
    ts = check_times(ts)
    tolerances = Tolerances(solver, rtol, atol, max_steps, progress)
    check_tolerances(tolerances)
    problem = check_kernel_problem(
        kernel, y, loss=loss, f0=f0, kernel_test=kernel_test, f0_test=f0_test
    )
    flow = KernelFlow(frozen=problem.kernel, y=problem.y, loss=loss, observes_kernel=False)
    return integrate(flow, (problem.f0,), ts, tolerances=tolerances, throw=throw)
