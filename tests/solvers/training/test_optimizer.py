"""What counts as an optimiser, and what it is given."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from corrections.parameters import split
from solvers import CrossEntropy, initial_state, spawn, train
from tests.models import inputs, one_hot, tanh_mlp

N = 6
MODEL, X, Y = tanh_mlp(depth=1), inputs(N), one_hot(N, 2)
LOSS = CrossEntropy()
PARAMS, APPLY = split(MODEL)


@jax.jit
def training_loss(params, rows):
    return jnp.mean(jax.vmap(LOSS)(jax.vmap(APPLY, (None, 0))(params, X[rows]), Y[rows]))


VALUE_AND_GRADIENT = jax.jit(jax.value_and_grad(training_loss))


def assert_same_parameters(model, params, atol=1e-11):
    for found, expected in zip(*map(jax.tree.leaves, (split(model)[0], params)), strict=True):
        np.testing.assert_allclose(found, expected, atol=atol)


def test_gradients_that_are_gathered_over_steps_are_their_mean():
    """An epoch is three batches of two, and a step of Adam for their mean gradient."""
    adam = optax.adam(1e-2)
    params, state = PARAMS, adam.init(PARAMS)
    update = jax.jit(adam.update)
    for epoch in range(4):
        order = jr.permutation(jr.fold_in(jr.key(5), epoch), N).reshape(3, 2)
        gradients = [VALUE_AND_GRADIENT(params, rows)[1] for rows in order]
        mean = jax.tree.map(lambda *each: sum(each) / 3, *gradients)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = update(mean, state, params)
        params = optax.apply_updates(params, updates)
    optimizer = optax.MultiSteps(adam, every_k_schedule=3)
    assert not isinstance(optimizer, optax.GradientTransformation)
    options = {"loss": LOSS, "optimizer": optimizer, "batch_size": 2, "record_at": []}
    found = train(MODEL, X, Y, steps=12, key=jr.key(5), **options)
    assert_same_parameters(found.model, params, atol=1e-7)  # it gathers in float32
    half = train(MODEL, X, Y, steps=7, key=jr.key(5), **options)
    (child,) = spawn(half, X, Y, steps=12, keys=[jr.key(5)], **options)
    assert eqx.tree_equal(child.state, found.state)


@pytest.mark.long
def test_line_searches_are_given_the_loss():
    lbfgs = optax.lbfgs(memory_size=3)
    params, state, rows = PARAMS, lbfgs.init(PARAMS), jnp.arange(N)

    @jax.jit
    def step(params, state):
        value, gradient = VALUE_AND_GRADIENT(params, rows)
        extra = {"value": value, "grad": gradient, "value_fn": lambda p: training_loss(p, rows)}
        updates, state = lbfgs.update(gradient, state, params, **extra)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        for _ in range(3):
            params, state = step(params, state)
    found = train(MODEL, X, Y, loss=LOSS, optimizer=lbfgs, steps=3, record_at=[])
    assert_same_parameters(found.model, params, atol=1e-8)


class ByTheLoss:
    """Steps against the gradient, times the loss before the step."""

    def init(self, params):
        return ()

    def update(self, gradient, state, params=None, **extra_args):
        return jax.tree.map(lambda g: -extra_args["value"] * g, gradient), state


class Plain:
    """Steps against the gradient, and takes nothing else."""

    def init(self, params):
        return ()

    def update(self, gradient, state, params):
        return jax.tree.map(jnp.negative, gradient), state


@pytest.mark.parametrize("optimizer", [ByTheLoss(), Plain()])
def test_objects_of_ones_own_are_given_what_they_take(optimizer):
    value, gradient = VALUE_AND_GRADIENT(PARAMS, jnp.arange(N))
    rate = value if isinstance(optimizer, ByTheLoss) else 1.0
    expected = jax.tree.map(lambda p, g: p - rate * g, PARAMS, gradient)
    found = train(MODEL, X, Y, loss=LOSS, optimizer=optimizer, steps=1, record_at=[])
    assert_same_parameters(found.model, expected)


class NoUpdate:
    def init(self, params):
        return ()

    def __repr__(self):
        return "NoUpdate()"


ASKED = {
    "train": lambda optimizer: train(MODEL, X, Y, loss=LOSS, optimizer=optimizer, steps=1),
    "initial_state": lambda optimizer: initial_state(MODEL, optimizer),
    "spawn": lambda optimizer: spawn(
        initial_state(MODEL, Plain()), X, Y, loss=LOSS, optimizer=optimizer, steps=1,
        batch_size=2, keys=[jr.key(0)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("function", ASKED)
@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (NoUpdate(), r"`optimizer` is NoUpdate\(\), expected an optax .* it lacks `update`"),
        (optax.sgd, r"`optimizer` is <function sgd.*, expected an optax .* it lacks `init`"),
        (optax.MultiSteps, "`optimizer` is the class .*MultiSteps.* make one of it"),
    ],
)
def test_what_lacks_a_part_is_refused_by_name(unchecked, function, optimizer, message):
    with pytest.raises(TypeError, match=message):
        ASKED[function](optimizer)
