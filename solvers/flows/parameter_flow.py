r"""Exact gradient flow of a network, in parameter space.

    theta' = - M (df/dtheta)^T g,       g = dL/df

the truth that function-space predictions are compared with.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree, Shaped

from corrections.forward_mode import has_forward_mode
from corrections.kernels.ntk import tangent_kernel
from corrections.operators.metric_coordinates import metric_norm
from corrections.parameters import (
    check_pairs,
    Metric,
    Model,
    Pairs,
    Params,
    precondition,
    vector_model,
)
from solvers.flows.flow import check_tolerances, Flow, Motion, Observation, Tolerances
from solvers.flows.integrate import integrate
from solvers.frozen_kernel.kernel_problem import check_weights, Targets
from solvers.losses import LossFunction, mean_loss
from solvers.problem import check_problem
from solvers.result import finish, Times, Trajectory
from zoo import parameters
from zoo.common.examples import one_of
from zoo.common.precision import full_precision

Displacement = tuple[Params]
"""theta - theta_0: small against theta, so that it keeps its digits in float32, and the scale
that a relative error should be relative to."""


class ParameterFlow(Flow):
    """theta' = -M dL/dtheta for a model, observed on its outputs."""

    model: PyTree
    """The model at t = 0."""
    x: PyTree[Shaped[Array, "n ..."]]
    y: Float[Array, "n k"]
    x_test: PyTree[Shaped[Array, "m ..."]] | None
    metric: Metric | None
    loss: LossFunction
    kernel_pairs: Pairs | None
    weights: Float[Array, " n"] | None
    """Of the examples in the loss."""
    forward_mode: bool = eqx.field(static=True)
    """Whether the model has derivatives in forward mode."""

    def model_at(self, state: Displacement) -> PyTree:
        """The model in this state."""
        return eqx.apply_updates(self.model, state[0])

    def motion(self, state: Displacement) -> Motion:
        def training_loss(displacement: Params) -> Float[Array, ""]:
            f = jax.vmap(vector_model(self.model_at((displacement,))))(self.x)
            return mean_loss(self.loss, f, self.y, self.weights)

        gradient = jax.grad(training_loss)(state[0])
        velocity = (jax.tree.map(jnp.negative, precondition(self.metric, gradient)),)
        # The loss cannot rise: dL/dt = - grad . M grad, M >= 0.
        return Motion(velocity, jnp.ones(()), jnp.zeros(()))

    def observe(self, state: Displacement) -> Observation:
        model, pairs = self.model_at(state), self.kernel_pairs
        outputs = jax.vmap(vector_model(model))
        return Observation(
            train=outputs(self.x),
            test=None if self.x_test is None else outputs(self.x_test),
            kernel=None if pairs is None else tangent_kernel(model, *pairs, metric=self.metric),
            displacement=metric_norm(state[0], self.metric),
        )

    def outputs_to_first_order(self, state: Displacement) -> Float[Array, "n k"]:
        # In units of the absolute tolerance: it is that of the displacement's norm, for each entry.
        return jax.vmap(vector_model(self.model_at(state)))(self.x) / _count(state[0]) ** 0.5

    def outputs_moved(self, state: Displacement, change: Displacement) -> tuple[Array, Array]:
        if self.forward_mode:
            return jax.jvp(self.outputs_to_first_order, (state,), (change,))
        here = self.outputs_to_first_order(state)
        there = self.outputs_to_first_order(jax.tree.map(jnp.add, state, change))
        return here, there - here


def _count(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@full_precision
def parameter_flow(
    model: Model,
    x: PyTree[Shaped[ArrayLike, "n ..."]],
    y: Targets,
    ts: Times,
    *,
    loss: LossFunction,
    x_test: PyTree[Shaped[ArrayLike, "m ..."]] | None = None,
    metric: Metric | None = None,
    weights: Float[ArrayLike, " n"] | None = None,
    kernel_pairs: tuple[PyTree[Shaped[ArrayLike, "n1 ..."]], PyTree[Shaped[ArrayLike, "n2 ..."]]]
    | None = None,
    solver: diffrax.AbstractSolver | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    max_steps: int = 100_000,
    throw: bool = True,
    progress: diffrax.AbstractProgressMeter | None = None,
) -> Trajectory:
    """Trains `model` by exact gradient flow, theta' = -M dL/dtheta, solved adaptively.

    **Arguments:**

    - `model`: any callable PyTree, one example in, k outputs out; a Taylor model
      (`corrections.taylorize`) is one. Its parameters are `zoo.parameters(model)`.
    - `x`, `y`: training examples (n, ...) and targets (n, k).
    - `ts`: increasing times >= 0, (t,). Time is learning rate x number of steps.
    - `loss`: per example, (f (k,), y (k,)) -> scalar. Its mean over examples is what is descended.
    - `x_test`: test examples, (m, ...).
    - `metric`: the learning-rate multipliers M, a PyTree prefix of the parameters (default: 1).
    - `weights`: of the examples in the loss, (n,) numbers >= 0, as in `gradient_flow`.
    - `kernel_pairs`: (x1, x2), examples of which the tangent kernel of the network is shown at each
      time.
    - `solver`, `max_steps`, `throw`, `progress`: as in `gradient_flow`.
    - `rtol`, `atol`: tolerances of a step, relative and absolute, on the outputs of the training
      points and on the displacement of the parameters from their start (`atol` in its Euclidean
      norm).

    **Returns:** a `Trajectory`; its `.final` is the trained model, its `.kernel` the tangent kernel
    on the `kernel_pairs`, (t, n1, k, n2, k), if they were asked for.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, before any work;
    `SolverError` where the solve fails and `throw=True`.
    """
    problem = check_problem(model, x, y, ts, loss=loss, x_test=x_test, metric=metric)
    tolerances = check_tolerances(Tolerances(solver, rtol, atol, max_steps, progress))
    flow = ParameterFlow(
        model=model,
        x=problem.x,
        y=problem.y,
        x_test=problem.x_test,
        metric=metric,
        loss=loss,
        kernel_pairs=check_pairs(model, kernel_pairs),
        weights=check_weights(weights, problem.y),
        forward_mode=has_forward_mode(model, one_of(problem.x)),
    )
    displacement = jax.tree.map(jnp.zeros_like, parameters(model))
    tolerances = tolerances._replace(atol=atol / _count(displacement) ** 0.5)
    trajectory = integrate(flow, (displacement,), problem.ts, tolerances=tolerances, throw=False)
    trajectory = eqx.tree_at(lambda t: t.final, trajectory, flow.model_at(trajectory.final))
    return finish(trajectory, throw=throw)
