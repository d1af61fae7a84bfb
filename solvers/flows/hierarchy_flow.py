r"""Training of a finite network as predicted by the truncated kernel hierarchy.

    f' = - Theta g,   Theta' = - O_3 g,   ...,   with O_p frozen at the start    (order p)

Order 2 is the frozen tangent kernel, order 3 lets it move. In width n, Theta ~ 1 and O_3 ~ 1/n
(Huang & Yau 2020; Dyer & Gur-Ari 2020); the error of order p grows about like t^p.
"""

from collections.abc import Sequence
from typing import Literal

import diffrax
import jax
from jaxtyping import ArrayLike, Float, PyTree, Shaped

from corrections import o3, o4
from corrections.kernels.ntk import tangent_kernel
from corrections.parameters import check_pairs, Metric, Model, vector_model
from corrections.smoothness import warn_at_kinks
from solvers.flows.flow import check_tolerances, Tolerances
from solvers.flows.integrate import integrate
from solvers.flows.jet_products import JetProducts
from solvers.flows.kernel_flow import KernelFlow
from solvers.flows.matrix_free import matrix_free_flow, state_at_start
from solvers.frozen_kernel.frozen_kernel import StoredKernel
from solvers.frozen_kernel.kernel_problem import check_start, check_weights, Targets
from solvers.losses import LossFunction
from solvers.problem import check_matrix_free_only, check_problem
from solvers.result import Times, Trajectory
from zoo.common import checks
from zoo.common.examples import count
from zoo.common.precision import full_precision


@full_precision
def hierarchy_flow(
    model: Model,
    x: PyTree[Shaped[ArrayLike, "n ..."]],
    y: Targets,
    ts: Times,
    *,
    loss: LossFunction,
    order: int = 3,
    method: Literal["matrix_free", "dense"] = "matrix_free",
    x_test: PyTree[Shaped[ArrayLike, "m ..."]] | None = None,
    metric: Metric | None = None,
    weights: Float[ArrayLike, " n"] | None = None,
    kernel_pairs: tuple[PyTree[Shaped[ArrayLike, "n1 ..."]], PyTree[Shaped[ArrayLike, "n2 ..."]]]
    | None = None,
    batch_size: int | None = None,
    start: Sequence[PyTree] | None = None,
    solver: diffrax.AbstractSolver | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    max_steps: int = 100_000,
    throw: bool = True,
    progress: diffrax.AbstractProgressMeter | None = None,
) -> Trajectory:
    """Predicts gradient-flow training of `model` from its kernels O_2 .. O_order at the start.

    The two methods solve the same equations. "matrix_free" never forms a kernel: each right-hand
    side costs a few gradients of the training loss (`solvers.flows.matrix_free`). "dense" stores
    the kernels and shows the predicted one: O_p takes (n + m) k (n k)^(p-1) numbers for n training
    and m test points with k outputs.

    **Arguments:**

    - `model`: any callable PyTree, one example in, k outputs out. At order 3 its activations
      should have second derivatives, at order p those of order p - 1; at kinks (ReLU) the
      expansion is suspect.
    - `x`, `y`: training examples (n, ...) and targets (n, k).
    - `ts`: increasing times >= 0, (t,). Time is learning rate x number of steps.
    - `loss`: per example, (f (k,), y (k,)) -> scalar.
    - `order`: p in 2 .. 5 freezes O_p: 2 the tangent kernel. "dense" goes to 4.
    - `method`: "matrix_free" or "dense".
    - `x_test`: test examples, (m, ...).
    - `metric`: the learning-rate multipliers M, a PyTree prefix of the parameters (default: 1).
    - `weights`: of the examples in the loss, (n,) numbers >= 0, as in `gradient_flow`: examples of
      weight 0 fill up a set whose size is to be a multiple of the devices.
    - `kernel_pairs`: (x1, x2), examples of which "matrix_free" shows the predicted kernel.
    - `batch_size`: the most examples that "matrix_free" takes at once: memory is then that of so
      many, and each product runs the network again. Default: all.
    - `start`: `.final` of an earlier trajectory of the same problem, to go on from; `ts` count from
      there.
    - `solver`, `rtol`, `atol`, `max_steps`, `throw`, `progress`: as in `gradient_flow`.

    **Returns:** a `Trajectory`. Its `.kernel` is the predicted tangent kernel: with "dense" on the
    training points, (t, n, k, n, k); with "matrix_free" on the `kernel_pairs`, (t, n1, k, n2, k),
    if they were asked for. Its `.final` is the state: with "dense" (O_1, .., O_{p-1}), training
    rows then test rows; with "matrix_free" (theta_1, .., theta_{p-1}). A truncated hierarchy can
    lose positivity at late times: the flow stops there with `RESULTS.kernel_not_positive`.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, before any work;
    `SolverError` where the solve fails and `throw=True`. **Warns:** `corrections.KinkWarning` at
    order p > 2 for activations without derivatives of order p - 1.

    Source: Huang & Yau (2020); Dyer & Gur-Ari (2020); docs/theory.md, section 4.
    """
    checks.choice("method", method, ("matrix_free", "dense"))
    if method == "dense":
        checks.choice("order", order, (2, 3, 4))
        check_matrix_free_only(True, kernel_pairs=kernel_pairs, batch_size=batch_size)
    checks.choice("order", order, (2, 3, 4, 5))
    batch_size = checks.integer_or_none("batch_size", batch_size)
    # A stored tangent kernel alone takes first derivatives only.
    forward_mode = method == "matrix_free" or order > 2
    problem = check_problem(
        model, x, y, ts, loss=loss, x_test=x_test, metric=metric, forward_mode=forward_mode
    )
    tolerances = check_tolerances(Tolerances(solver, rtol, atol, max_steps, progress))
    w = check_weights(weights, problem.y)

    if method == "matrix_free":
        warn_at_kinks(model, order - 1)  # with "dense", `o3` and `o4` do
        pairs = check_pairs(model, kernel_pairs)
        state = check_start(start, state_at_start(model, order), given=False)
        network = JetProducts(model, problem.sets, metric, pairs, batch_size)
        flow = matrix_free_flow(network, problem.y, loss=loss, weights=w)
    else:
        x, points = problem.x, problem.points
        (n, k), dtype = problem.y.shape, problem.y.dtype
        shapes = [(count(points), k, *(n, k) * slots) for slots in range(order - 1)]
        like = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)
        given = check_start(start, like, given=False)
        tower = [
            jax.vmap(vector_model(model))(points),
            tangent_kernel(model, points, x, metric=metric),
        ]
        if order > 2:
            tower.append(o3(model, points, x, x, metric=metric))
        if order > 3:
            tower.append(o4(model, points, x, x, x, metric=metric))
        *at_start, frozen = tower
        flow = KernelFlow(StoredKernel(frozen), problem.y, loss, observes_kernel=True, weights=w)
        state = tuple(at_start) if start is None else given
    return integrate(flow, state, problem.ts, tolerances=tolerances, throw=throw)
