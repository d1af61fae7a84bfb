r"""The expansion in 1/width of gradient descent on squared loss, step by step.

With theta(eps) = theta_0 + eps d_1 + eps^2 d_2 + eps^3 d_3, [.]_j the coefficient of eps^j and
eta = learning_rate / n, the steps at fixed Delta = f0 - y are

    d_1 -> d_1 - eta M J^T Delta
    d_2 -> d_2 - eta [M J(theta(eps))^T Delta]_1
    d_3 -> d_3 - eta ([M J(theta(eps))^T Delta]_2 + M J^T f1)

    f0 = f(theta_0) + J d_1,   f1 = [f(theta(eps))]_2 + [f(theta(eps))]_3,
    Theta1 = [Theta(theta(eps))]_1 + [Theta(theta(eps))]_2

which holds the terms of higher order in eta that gradient flow has not. With the tensors of the
network at the start (those of docs/theory.md, section 5) the same is

    O_3,t       = O_3 - O_4 . eta sum_{s < t} Delta_s
    Theta1_{t+1} = Theta1_t - eta sum_c O_3,t Delta_c + (eta^2 / 2) sum_cd Q Delta_c Delta_d
    S_{t+1}     = S_t - eta sum_c R Delta_c
    f1_{t+1}    = f1_t - eta (Theta_0 f1_t + Theta1_t Delta) + (eta^2 / 2) S_t Delta Delta
                  - (eta^3 / 6) T Delta Delta Delta
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PyTree, Shaped

from corrections import ddntk, dntk, o3, o4
from corrections.kernels.ntk import tangent_kernel
from corrections.parameters import Metric, Model, split, vector_model
from corrections.smoothness import warn_at_kinks
from corrections.symmetric.layouts import resolved
from solvers.expansion.arguments import check_expansion, PairsOfExamples
from solvers.expansion.matrix_free import kernel1, norm_of_kernel1, products_of
from solvers.expansion.record import finish, ratio_to, WidthExpansion
from solvers.flows.jet_products import JetProducts
from solvers.frozen_kernel.kernel_problem import Targets
from solvers.problem import Problem
from solvers.result import RESULTS
from solvers.steps.step_counts import check_steps
from zoo.common import checks
from zoo.common.checks import Number
from zoo.common.precision import full_precision


@full_precision
def width_expansion_descent(
    model: Model,
    x: PyTree[Shaped[ArrayLike, "n ..."]],
    y: Targets,
    steps: Sequence[int] | Int[ArrayLike, " t"] | Float[ArrayLike, " t"],
    *,
    learning_rate: Number,
    method: Literal["matrix_free", "dense"] = "matrix_free",
    x_test: PyTree[Shaped[ArrayLike, "m ..."]] | None = None,
    metric: Metric | None = None,
    kernel_pairs: PairsOfExamples | None = None,
    batch_size: int | None = None,
    throw: bool = True,
) -> WidthExpansion:
    """Gradient descent of a finite network on squared loss, to order 1/width, step by step.

    It holds what `width_expansion` leaves out for steps that are not small: those at
    learning_rate lambda_max / n of order 1 gain their order in 1/width here only.

    **Arguments:**

    - `model`, `x`, `y`, `x_test`, `metric`, `throw`: as in `width_expansion`.
    - `steps`: increasing counts of steps >= 0, (t,).
    - `learning_rate`: of full-batch gradient descent on the mean loss (1 / n) sum 1/2 |f - y|^2.
    - `method`: "matrix_free" (default) carries three sets of parameters; a step costs some ten
      gradients. "dense" stores the tensors of third and fourth order, four of
      (n + m) k (n k)^3 numbers for m test points, and shows `kernel1` on the training points.
    - `kernel_pairs`: (x1, x2), examples of which "matrix_free" shows the kernel.
    - `batch_size`: the most examples that "matrix_free" takes at once.

    **Returns:** a `WidthExpansion` whose `.ts` are the counts of steps.

    **Raises, Warns:** as `width_expansion`; steps beyond the largest stable learning rate diverge.

    Source: docs/theory.md, section 5; Roberts, Yaida & Hanin (2021), "The principles of deep
    learning theory", chapter 11.
    """
    checks.choice("method", method, ("matrix_free", "dense"))
    counted = check_steps(steps)
    counts = counted.as_integers()
    rate = checks.nonnegative_scalar("learning_rate", learning_rate, strictly=True)
    problem, pairs = check_expansion(
        model, x, y, x_test=x_test, metric=metric, kernel_pairs=kernel_pairs,
        batch_size=batch_size, dense=method == "dense",
    )  # fmt: skip
    warn_at_kinks(model, 3)

    x, y = problem.x, problem.y
    n, k = y.shape
    eta = (rate / n).astype(y.dtype)
    descent: _Dense | _MatrixFree
    if method == "dense":
        descent = _dense(model, problem, metric)
        kernel0 = descent.theta[: n * k].reshape(n, k, n, k)
    else:
        network, kernel0 = products_of(model, problem, metric, pairs, batch_size)
        descent = _MatrixFree(network, y)
    (f0, f1, moved), norms = _descended(descent, counts, eta)
    smallest = _smallest_eigenvalue(model, x, metric, batch_size)
    finite = jnp.all(jnp.isfinite(f0) & jnp.isfinite(f1), axis=(1, 2))
    valid = jnp.cumprod(finite).astype(bool)
    expansion = WidthExpansion(
        ts=counted.shown,
        train0=f0[:, :n],
        train1=f1[:, :n],
        test0=f0[:, n:] if problem.x_test is not None else None,
        test1=f1[:, n:] if problem.x_test is not None else None,
        kernel0=kernel0,
        kernel1=moved,
        validity=ratio_to(smallest, norms),
        valid=valid,
        result=RESULTS.where(jnp.all(valid), RESULTS.successful, RESULTS.diverged),  # pyright: ignore
    )
    return finish(expansion, throw=throw)


Row = tuple[Array, Array, Array | None]
"""f0, f1 and Theta1."""


class _Tensors(NamedTuple):
    """Where the recursion of the tensors is. Rows are points, training points first."""

    f0: Float[Array, "points"]
    f1: Float[Array, "points"]
    theta1: Float[Array, "points size"]
    s: Float[Array, "points size size"]
    summed: Float[Array, " size"]


class _Dense(eqx.Module):
    """The recursion of the tensors at the start; `shape` that of the outputs."""

    outputs: Float[Array, "points k"]
    y: Float[Array, "n k"]
    theta: Float[Array, "rows size"]
    o3: Float[Array, "rows size size"]
    o4: Float[Array, "rows size size size"]
    q: Float[Array, "rows size size size"]
    r: Float[Array, "rows size size size"]
    s: Float[Array, "rows size size"]
    t: Float[Array, "rows size size size"]

    def at_start(self) -> _Tensors:
        rows, size = self.theta.shape
        dtype = self.theta.dtype
        nothing = jnp.zeros(rows, dtype)
        kernel = jnp.zeros_like(self.theta)
        return _Tensors(self.outputs.ravel(), nothing, kernel, self.s, jnp.zeros(size, dtype))

    def step(self, state: _Tensors, eta: Array) -> _Tensors:
        size = self.theta.shape[1]
        f0, f1, theta1, s, summed = state
        delta = f0[:size] - self.y.ravel()
        o3 = self.o3 - self.o4 @ summed
        moved = theta1 @ delta - eta / 2 * (s @ delta @ delta)
        moved += eta**2 / 6 * (self.t @ delta @ delta @ delta)
        return _Tensors(
            f0=f0 - eta * (self.theta @ delta),
            f1=f1 - eta * (self.theta @ f1[:size] + moved),
            theta1=theta1 - eta * (o3 @ delta) + eta**2 / 2 * (self.q @ delta @ delta),
            s=s - eta * (self.r @ delta),
            summed=summed + eta * delta,
        )

    def observe(self, state: _Tensors) -> Row:
        n, k = self.y.shape
        kernel = state.theta1[: n * k].reshape(n, k, n, k)
        shape = self.outputs.shape
        return state.f0.reshape(shape), state.f1.reshape(shape), kernel

    def norm(self, state: _Tensors) -> Array:
        return jnp.max(jnp.abs(jnp.linalg.eigvalsh(state.theta1[: self.theta.shape[1]])))


def _dense(model: Model, problem: Problem, metric: Metric | None) -> _Dense:
    x, y, points = problem.x, problem.y, problem.points
    size = y.size

    def flat(tensor: Array, first: int = 0) -> Array:
        """Composite indices flat, and that of the points (slot `first`) before the others."""
        of_slot = [-1 if slot == first else size for slot in range(tensor.ndim // 2)]
        return jnp.moveaxis(tensor.reshape(of_slot), first, 0)

    fourth = flat(o4(model, points, x, x, x, metric=metric))
    third_derivative = flat(ddntk(model, points, x, x, x, kind="I", metric=metric))
    # second[p, a, b, c] = (H_p g_b) . (H_a g_c), of_gradient[p, a, b, c] = (H_a g_p) . (H_b g_c)
    second = flat(ddntk(model, points, x, x, x, kind="II", metric=metric))
    of_gradient = flat(ddntk(model, x, x, points, x, kind="II", metric=metric), first=2)
    return _Dense(
        outputs=jax.vmap(vector_model(model))(points),
        y=y,
        theta=flat(tangent_kernel(model, points, x, metric=metric)),
        o3=flat(o3(model, points, x, x, metric=metric)),
        o4=fourth,
        # D^2 Theta_12 [g_3, g_4]: O_4 without (H_1 g_2 + H_2 g_1) . (H_3 g_4).
        q=fourth - jnp.swapaxes(second, 1, 2) - of_gradient,
        r=third_derivative + second + jnp.swapaxes(second, 1, 2),
        s=flat(dntk(model, points, x, x, metric=metric)),
        t=third_derivative,
    )


class _Paths(NamedTuple):
    """d_1, d_2 and d_3."""

    first: PyTree
    second: PyTree
    third: PyTree


class _MatrixFree(eqx.Module):
    """The recursion of the parameters."""

    network: JetProducts
    y: Float[Array, "n k"]

    def at_start(self) -> _Paths:
        zero = jax.tree.map(jnp.zeros_like, split(self.network.model)[0])
        return _Paths(zero, zero, zero)

    def step(self, state: _Paths, eta: Array) -> _Paths:
        f0, f1 = self._outputs(state, self.network.sets[:1])
        gradients = self.network.directions(f0 - self.y, [state.first, state.second])
        (by_correction,) = self.network.directions(f1, [])
        gradients[2] = jax.tree.map(jnp.add, gradients[2], by_correction)

        def moved(d: Array, gradient: Array) -> Array:
            return d - eta.astype(d.dtype) * gradient

        return _Paths(*(jax.tree.map(moved, *pair) for pair in zip(state, gradients, strict=True)))

    def observe(self, state: _Paths) -> Row:
        f0, f1 = self._outputs(state, self.network.sets)
        return f0, f1, kernel1(self.network, [state.first, state.second])

    def norm(self, state: _Paths) -> Array:
        return norm_of_kernel1(self.network, [state.first, state.second], self.y)

    def _outputs(self, state: _Paths, sets: tuple[PyTree, ...]) -> tuple[Array, Array]:
        """f0 and f1."""
        at_start, first, second, third = self.network.outputs(list(state), sets)
        return at_start + first, second + third


@eqx.filter_jit
def _descended(descent: _Dense | _MatrixFree, counts: Array, eta: Array) -> tuple[Row, Array]:
    """The rows at these counts of steps, and |Theta1| at each."""

    def until(
        carry: tuple[Any, Array], count: Array
    ) -> tuple[tuple[Any, Array], tuple[Row, Array]]:
        state, done = carry
        state = jax.lax.fori_loop(0, count - done, lambda _, state: descent.step(state, eta), state)
        return (state, count), (descent.observe(state), descent.norm(state))

    start: tuple[Any, Array] = (descent.at_start(), jnp.zeros((), counts.dtype))
    return jax.lax.scan(until, start, counts)[1]


@eqx.filter_jit
def _smallest_eigenvalue(
    model: Model, x: PyTree, metric: Metric | None, batch_size: int | None
) -> Array:
    """Of Theta_0 on the training points; 0 where it cannot be told from that."""
    kernel = tangent_kernel(model, x, metric=metric, batch_size=batch_size)
    size = kernel.shape[0] * kernel.shape[1]
    values = jnp.linalg.eigvalsh(kernel.reshape(size, size))
    return jnp.where(resolved(values)[0], values[0], 0)
