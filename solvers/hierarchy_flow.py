r"""Training of a finite network as predicted by the truncated kernel hierarchy.

    f' = - Theta g,   Theta' = - O_3 g,   ...,   with O_p frozen at the start    (order p)

Order 2 is the frozen tangent kernel, order 3 lets it move. In width n, Theta ~ 1 and O_3 ~ 1/n
(Huang & Yau 2020; Dyer & Gur-Ari 2020); the error of order p grows about like t^p.
"""

from typing import Literal

import diffrax
import jax
from jaxtyping import ArrayLike, Float

from corrections import ntk, o3
from corrections.parameters import Metric, Model
from corrections.smoothness import warn_at_kinks
from solvers.flow import KernelFlow
from solvers.integrate import integrate
from solvers.kernel_problem import Targets
from solvers.losses import LossFunction
from solvers.matrix_free import MatrixFreeFlow, start
from solvers.ode import check_tolerances, Tolerances
from solvers.problem import check_problem
from solvers.result import Times, Trajectory
from zoo import checks
from zoo.precision import full_precision


@full_precision
def hierarchy_flow(
    model: Model,
    x: Float[ArrayLike, "n ..."],
    y: Targets,
    ts: Times,
    *,
    loss: LossFunction,
    order: int = 3,
    method: Literal["matrix_free", "dense"] = "matrix_free",
    x_test: Float[ArrayLike, "m ..."] | None = None,
    metric: Metric | None = None,
    solver: diffrax.AbstractSolver | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    max_steps: int = 100_000,
    throw: bool = True,
    progress: diffrax.AbstractProgressMeter | None = None,
) -> Trajectory:
    """Predicts gradient-flow training of `model` from its kernels O_2 .. O_order at the start.

    The two methods solve the same equations. "matrix_free" never forms a kernel: each right-hand
    side costs a few gradients of the training loss (`solvers.matrix_free`). "dense" stores the
    kernels and shows the predicted one: O_3 takes (n + m) k (n k)^2 numbers for n training and m
    test points with k outputs, and n k Jacobian-vector products of the Jacobian.

    **Arguments:**

    - `model`: any callable PyTree, one example in, k outputs out. At order 3 its activations
      should have second derivatives; at kinks (ReLU) the expansion is suspect.
    - `x`, `y`: training examples (n, ...) and targets (n, k).
    - `ts`: increasing times >= 0, (t,). Time is learning rate x number of steps.
    - `loss`: per example, (f (k,), y (k,)) -> scalar.
    - `order`: 2 freezes the tangent kernel, 3 freezes O_3.
    - `method`: "matrix_free" or "dense".
    - `x_test`: test examples, (m, ...).
    - `metric`: the learning-rate multipliers M, a PyTree prefix of the parameters (default: 1).
    - `solver`, `rtol`, `atol`, `max_steps`, `throw`, `progress`: as in `gradient_flow`.

    **Returns:** a `Trajectory`; with "dense" its `.kernel` is the predicted tangent kernel on the
    training points. A truncated hierarchy can lose positivity at late times: the flow stops there
    with `RESULTS.kernel_not_positive`.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, before any work;
    `SolverError` where the solve fails and `throw=True`. **Warns:** `corrections.KinkWarning` at
    order 3 for activations without second derivatives.
    """
    checks.choice("order", order, (2, 3))
    checks.choice("method", method, ("matrix_free", "dense"))
    problem = check_problem(model, x, y, ts, loss=loss, x_test=x_test, metric=metric)
    tolerances = Tolerances(solver, rtol, atol, max_steps, progress)
    check_tolerances(tolerances)

    if method == "matrix_free":
        warn_at_kinks(model, order - 1)  # with "dense", `o3` does
        flow = MatrixFreeFlow(
            model=model,
            points=problem.points,
            y=problem.y,
            metric=metric,
            loss=loss,
        )
        state = start(model, problem.points, order)
    else:
        x, points = problem.x, problem.points
        tower = [jax.vmap(model)(points), ntk(model, points, x, metric=metric)]
        if order == 3:
            tower.append(o3(model, points, x, x, metric=metric))
        *state, frozen = tower
        flow = KernelFlow(frozen=frozen, y=problem.y, loss=loss, observes_kernel=True)
        state = tuple(state)
    return integrate(flow, state, problem.ts, tolerances=tolerances, throw=throw)
