"""Children of a training: the same but for the order of their data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from corrections import error_barrier
from solvers import CrossEntropy, RESULTS
from solvers.training.loop import distance, initial_state
from solvers.training.spawn import spawn
from solvers.training.train import train, TrainingError
from tests.models import inputs, one_hot, tanh_mlp

N = 9
MODEL, X, Y = tanh_mlp(depth=1), inputs(N), one_hot(N, 2)
RATE = 1e-2
OPTIONS = {"loss": CrossEntropy(), "optimizer": optax.adam(RATE), "batch_size": 3}


@pytest.fixture(scope="module")
def parent():
    return train(MODEL, X, Y, steps=10, key=jr.key(0), **OPTIONS)


def gap(a, b):
    return float(distance(a.state.parameters, b.state.parameters))


@pytest.mark.smoke
def test_children_differ_by_their_keys_alone_and_go_on_from_the_parent(parent):
    keys = [jr.key(0), jr.key(1), jr.key(1)]
    children = spawn(parent, X, Y, steps=25, keys=keys, **OPTIONS)
    assert eqx.tree_equal(children[1].state, children[2].state)
    assert gap(children[0], children[1]) > 1e-3
    # The child that has the parent's own key is the parent trained on.
    whole = train(MODEL, X, Y, steps=25, key=jr.key(0), **OPTIONS)
    assert eqx.tree_equal(children[0].state, whole.state)
    for child in children:
        assert int(child.state.step) == 25
        assert int(child.state.optimizer_state[0].count) == 25
        assert child.history.step_losses.shape == (15,)
        assert bool(child.successful)


def test_children_at_one_distance_are_less_than_a_step_beyond_it(parent):
    target, keys = 0.15, jr.split(jr.key(3), 3)
    children = spawn(
        parent, X, Y, steps=1000, keys=keys, match="distance", distance=target, **OPTIONS
    )
    for child, key in zip(children, keys, strict=True):
        end = int(child.state.step)
        assert 11 < end < 1000
        assert gap(child, parent) >= target
        before = train(MODEL, X, Y, steps=end - 1, key=key, state=parent.state, **OPTIONS)
        assert gap(before, parent) < target
        assert gap(child, parent) - target < gap(child, before)
        np.testing.assert_array_equal(child.history.valid, child.history.steps <= end)
        np.testing.assert_array_equal(
            jnp.isfinite(child.history.step_losses), jnp.arange(990) < end - 10
        )
    assert gap(children[0], children[1]) > 1e-3


def test_distance_that_is_not_reached_is_marked(parent):
    options = {**OPTIONS, "keys": [jr.key(1)], "match": "distance", "distance": 1e3}
    (child,) = spawn(parent, X, Y, steps=12, throw=False, **options)
    assert child.result == RESULTS.max_steps_reached
    assert int(child.state.step) == 12
    with pytest.raises(TrainingError, match="did not go as far as `distance` in the 12 steps"):
        spawn(parent, X, Y, steps=12, **options)


def test_children_of_the_same_order_have_no_barrier(parent):
    first, second = spawn(parent.state, X, Y, steps=40, keys=[jr.key(1)] * 2, **OPTIONS)
    barrier = error_barrier(first.model, second.model, X, Y, risk=CrossEntropy())
    assert float(barrier.value) == 0


def test_bad_arguments_are_named(unchecked, parent):
    good = {**OPTIONS, "steps": 20, "keys": jr.split(jr.key(0), 2)}

    def fails(kind, text, start=parent, **changes):
        with pytest.raises(kind, match=text):
            spawn(start, X, Y, **good | changes)

    fails(TypeError, "`parent` is of type MLP, expected a `Training` or", start=MODEL)
    fails(ValueError, "`batch_size` is None, expected", batch_size=None)
    fails(ValueError, "`keys` is empty", keys=[])
    fails(TypeError, "`keys` is 3, expected one key for each child", keys=3)
    fails(TypeError, r"`keys\[1\]` is 1.0, expected a key", keys=[jr.key(0), 1.0])
    fails(TypeError, "expected one key for each child", keys=jr.key(0))
    fails(ValueError, "`match` is 'loss', expected one of", match="loss")
    fails(ValueError, '`distance` is 1.0 with `match="time"`', distance=1.0)
    fails(ValueError, "`distance` is None, expected a finite number > 0", match="distance")
    fails(ValueError, "`steps` is 5, expected at least the 10 steps of `parent`", steps=5)
    other = initial_state(MODEL, optax.sgd(0.1))
    fails(ValueError, "`parent.optimizer_state` does not match", start=other)
    with pytest.raises(ValueError, match="being traced"):
        jax.jit(lambda x: spawn(parent, x, Y, **good)[0].history.train_loss)(X)
