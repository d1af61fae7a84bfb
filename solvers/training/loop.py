r"""Steps of an optimiser, compiled: many in one loop, up to a step, a distance or a breakdown.

    theta_{s+1} = theta_s + u(g_s),       g_s = dL/dtheta of the batch of step s

The batches of an epoch are those of a permutation that depends on the key and the epoch alone, so
that a run which was stopped and goes on takes the steps of one that was not.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from corrections.parameters import as_vector, check_parameters, Model, Params
from solvers.losses import LossFunction, mean_loss
from solvers.training.optimizer import as_transformation, Optimizer
from zoo import forward_train, parameters
from zoo.common.examples import count, rows_of
from zoo.common.norms import norm
from zoo.common.tiles import in_tiles
from zoo.common.trainable import partitioned

CHUNK = 1000
"""The most steps that are taken in one call: what they return has this size, however many there
are, so that it compiles once."""


class TrainingState(eqx.Module):
    """Where a training is: all that it takes to go on, apart from the data.

    A PyTree that `equinox.tree_serialise_leaves` stores; `initial_state` makes one to read it into.

    - `model`: the model.
    - `optimizer_state`: that of the optimiser.
    - `step`: how many steps have been taken.

    In that of an ensemble (`train_ensemble`) every array has a leading axis of seeds:
    `eqx.filter_vmap(initial_state, in_axes=(0, None))(models, optimizer)` makes one to read into.
    """

    model: PyTree
    optimizer_state: PyTree
    step: Int[Array, "*seeds"]

    @property
    def parameters(self) -> Params:
        """Those of the model: `zoo.parameters(state.model)`."""
        return parameters(self.model)


def initial_state(model: Model, optimizer: Optimizer) -> TrainingState:
    """The state of a training of `model` before its first step.

    **Raises:** `ValueError` / `TypeError` for a model or an optimiser that does not train.
    """
    check_parameters(model)
    params: Any = parameters(model)
    optimizer_state = as_transformation(optimizer).init(params)
    return TrainingState(model, optimizer_state, jnp.zeros((), jnp.int32))


class TrainingProblem(eqx.Module):
    """What a step is made of."""

    x: PyTree[Shaped[Array, "n ..."]]
    y: Float[Array, "n k"]
    loss: LossFunction
    optimizer: optax.GradientTransformation
    batch_size: int | None = eqx.field(static=True)
    key: PRNGKeyArray | None

    def step(self, state: TrainingState, order: Array | None) -> tuple[TrainingState, Array]:
        """The state after a step, and the loss of its batch before it."""
        x, y = self._batch(state.step, order)

        params, rest = partitioned(state.model)

        def training_loss(params: Params) -> tuple[Array, Model]:
            outputs, moved = forward_train(eqx.combine(params, rest), x)
            return mean_loss(self.loss, jax.vmap(as_vector)(outputs), y), moved

        # Batch normalization moves its statistics in the forward pass.
        (value, moved), gradient = eqx.filter_value_and_grad(training_loss, has_aux=True)(params)
        optimizer = optax.with_extra_args_support(self.optimizer)
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies integers with floats
            # What optimisers with a line search take, such as `optax.lbfgs`, and others ignore.
            updates, optimizer_state = optimizer.update(
                gradient,
                state.optimizer_state,
                params,
                value=value,
                grad=gradient,
                value_fn=lambda params: training_loss(params)[0],
            )
        params = optax.apply_updates(params, updates)
        model = eqx.combine(params, partitioned(moved)[1])
        return TrainingState(model, optimizer_state, state.step + 1), value

    def order(self, step: Array, before: Array | None, first: Array) -> Int[Array, " n"] | None:
        """The order of the examples in the epoch of `step`, where `before` is the order of the step
        before it (of the step `first` it is not known yet).
        """
        if before is None or self.key is None:
            return None
        key = jr.fold_in(self.key, step // self._batches_an_epoch)
        begins = (step == first) | (step % self._batches_an_epoch == 0)
        return jax.lax.cond(begins, lambda: jr.permutation(key, len(self.y)), lambda: before)

    @property
    def _batches_an_epoch(self) -> int:
        return len(self.y) // (self.batch_size or len(self.y))

    def _batch(self, step: Array, order: Array | None) -> tuple[PyTree, Array]:
        if order is None or self.batch_size is None:
            return self.x, self.y
        start = step % self._batches_an_epoch * self.batch_size
        rows = jax.lax.dynamic_slice_in_dim(order, start, self.batch_size)
        return rows_of(self.x, rows), self.y[rows]


class Target(NamedTuple):
    """A distance |theta - origin| to go in parameter space."""

    origin: Params
    distance: Float[Array, ""]

    def reached(self, state: TrainingState) -> Bool[Array, ""]:
        """Whether the state is as far from the origin."""
        return distance(state.parameters, self.origin) >= self.distance


def distance(params: Params, origin: Params) -> Float[Array, ""]:
    """|theta - theta'|, Euclidean."""
    moved = jax.tree.map(lambda p, o: norm(p - o), params, origin)
    return norm(jnp.stack(jax.tree.leaves(moved)))


class Advance(NamedTuple):
    """What a stretch of steps gave.

    - `state`: after the last of them.
    - `losses`: before each of them, of its batch; as many as there were steps.
    - `failed_at`: the first step whose loss or parameters are not finite, -1 where there is none.
    """

    state: TrainingState
    losses: Float[Array, " chunk"]
    failed_at: Int[Array, ""]


@eqx.filter_jit
def advance(
    problem: TrainingProblem, state: TrainingState, stop: Int[Array, ""], target: Target | None
) -> Advance:
    """Steps from `state` up to the step `stop`, at most `CHUNK`, or until the target is reached.

    It stops at numbers that are not finite as well, and leaves them in its state: a caller who
    wants the last finite one goes there from where it came, and so nobody pays for a copy.
    """
    first = state.step
    arrays, static = eqx.partition(state, eqx.is_array)

    def goes_on(carry: Any) -> Array:
        arrays, _, _, failed_at = carry
        going = (arrays.step < stop) & (failed_at < 0)
        return going if target is None else going & ~target.reached(eqx.combine(arrays, static))

    def body(carry: Any) -> Any:
        arrays, order, losses, _ = carry
        before = eqx.combine(arrays, static)
        order = problem.order(before.step, order, first)
        after, value, failed_at = _tried(problem, before, order)
        losses = losses.at[before.step - first].set(value.astype(losses.dtype))
        return eqx.filter(after, eqx.is_array), order, losses, failed_at

    losses = jnp.zeros(CHUNK, problem.y.dtype)
    order = None if problem.batch_size is None else jnp.zeros(len(problem.y), int)
    start = (arrays, order, losses, jnp.full((), -1, first.dtype))
    arrays, _, losses, failed_at = jax.lax.while_loop(goes_on, body, start)
    return Advance(eqx.combine(arrays, static), losses, failed_at)


def _tried(
    problem: TrainingProblem, before: TrainingState, order: Array | None
) -> tuple[TrainingState, Array, Int[Array, ""]]:
    """A step, the loss before it, and where it failed (-1 if nowhere)."""
    after, value = problem.step(before, order)
    params = jax.tree.leaves(after.parameters)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in params]))
    failed_at = jnp.where(finite, -1, after.step)
    return after, value, jnp.where(jnp.isfinite(value), failed_at, before.step)


@eqx.filter_jit
def advance_seeds(
    problem: TrainingProblem,
    state: TrainingState,
    stop: Int[Array, ""],
    failed_at: Int[Array, " s"],
) -> Advance:
    """As `advance`, all seeds at once, up to `stop` or until none is left: the states of those that
    have failed, `failed_at` some step, hold no numbers.

    `problem.key` are the keys of the seeds (s,), and so are the arrays of the model and of the
    optimiser in `state`; they have one step, so that permutations are drawn once an epoch only.
    """
    first = state.step
    arrays, static = eqx.partition((state.model, state.optimizer_state), eqx.is_array)

    def state_of(arrays: PyTree, step: Array) -> TrainingState:
        model, optimizer_state = eqx.combine(arrays, static)
        return TrainingState(model, optimizer_state, step)

    def order_of(key: PRNGKeyArray | None, before: Array, step: Array) -> Array | None:
        return eqx.tree_at(lambda d: d.key, problem, key).order(step, before, first)

    def tried(arrays: PyTree, order: Array | None, failed_at: Array, step: Array) -> Any:
        after, value, failure = _tried(problem, state_of(arrays, step), order)
        moved = eqx.filter((after.model, after.optimizer_state), eqx.is_array)
        return moved, value, jnp.where(failed_at < 0, failure, failed_at)

    def goes_on(carry: Any) -> Array:
        _, step, _, _, failed_at = carry
        return (step < stop) & jnp.any(failed_at < 0)

    def body(carry: Any) -> Any:
        arrays, step, orders, losses, failed_at = carry
        if orders is not None:
            orders = jax.vmap(order_of, (0, 0, None))(problem.key, orders, step)
        arrays, values, failed_at = jax.vmap(tried, (0, 0, 0, None))(
            arrays, orders, failed_at, step
        )
        losses = losses.at[:, step - first].set(values.astype(losses.dtype))
        return arrays, step + 1, orders, losses, failed_at

    seeds = len(failed_at)
    losses = jnp.zeros((seeds, CHUNK), problem.y.dtype)
    orders = None if problem.key is None else jnp.zeros((seeds, len(problem.y)), int)
    start = (arrays, first, orders, losses, failed_at)
    arrays, step, _, losses, failed_at = jax.lax.while_loop(goes_on, body, start)
    return Advance(state_of(arrays, step), losses, failed_at)


def last_finite(
    problem: TrainingProblem, source: TrainingState, state: TrainingState, failed_at: int
) -> TrainingState:
    """The last state whose loss and parameters are finite, of a training that went from `source` to
    `state` and failed there or later; the first one where there is none.
    """
    begin = state if failed_at > int(state.step) else source
    if failed_at <= int(begin.step):
        return begin
    return advance(problem, begin, jnp.asarray(failed_at - 1, jnp.int32), None).state


class Examples(NamedTuple):
    """What a model is looked at on: examples, and their targets where there are any."""

    x: PyTree[Shaped[Array, "n ..."]]
    y: Float[Array, "n k"] | None


class Seen(NamedTuple):
    """What is seen of a model on some examples.

    - `loss`: the mean loss; None without targets.
    - `outputs`: those of each example; None where they were not asked for.
    """

    loss: Float[Array, ""] | None
    outputs: Float[Array, "n k"] | None


@eqx.filter_jit
def evaluated(
    model: Model,
    examples: Examples,
    loss: LossFunction,
    batch_size: int | None,
    with_outputs: bool,  # static, as all that is no array
) -> Seen:
    """What the model as it is gives, at most so many examples at once."""

    def of_example(example: Examples) -> Seen:
        outputs = as_vector(model(example.x))
        value = None if example.y is None else loss(outputs, example.y)
        return Seen(value, outputs if with_outputs else None)

    at_once = count(examples.x) if batch_size is None else batch_size
    losses, outputs = in_tiles(of_example, examples, at_once)
    return Seen(None if losses is None else jnp.mean(losses), outputs)
