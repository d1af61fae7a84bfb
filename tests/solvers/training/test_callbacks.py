"""What fails while a training runs costs nothing that was computed, and is named."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from solvers import CrossEntropy, RESULTS
from solvers.training.spawn import spawn
from solvers.training.train import train, TrainingError
from tests.models import inputs, one_hot, tanh_mlp

N = 7
MODEL, X, Y = tanh_mlp(depth=1), inputs(N), one_hot(N, 2)
RECORD_AT = [0, 2, 5, 9, 12]
OPTIONS = {
    "loss": CrossEntropy(),
    "optimizer": optax.adam(1e-2),
    "steps": 12,
    "record_at": RECORD_AT,
}


def outputs(model):
    return jax.vmap(model)(X)


def equal(a, b):
    """Whether two trees are the same, NaN where NaN is."""

    def known(leaf):
        return jnp.nan_to_num(leaf) if eqx.is_inexact_array(leaf) else leaf

    return bool(eqx.tree_equal(jax.tree.map(known, a), jax.tree.map(known, b)))


class Changing:
    """A callback that gives one thing, and another at its last call."""

    def __init__(self, first, last, calls=4):
        self.first, self.last, self.left = first, last, calls

    def __call__(self, model):
        self.left -= 1
        assert self.left >= 0, "called again"
        found = self.first if self.left else self.last
        if isinstance(found, Exception):
            raise found
        return found


MISFITS = {
    "shape": (np.zeros(3), np.zeros(4), r"it gave float64\[4\], expected float64\[3\] as at first"),
    "rank": (0.0, np.zeros(1), r"it gave float64\[1\], expected float64\[\]"),
    "dtype": (np.zeros(3), np.zeros(3, int), r"it gave int64\[3\], expected float64\[3\]"),
    "structure": ({"a": 0.0}, {"b": 0.0}, r"it gave PyTreeDef.*'b'.* expected PyTreeDef.*'a'"),
    "from nothing": (None, 0.0, r"it gave float64\[\], expected PyTreeDef.* of nothing"),
    "to nothing": (0.0, None, "of nothing, expected"),
    "string": (0.0, "done", "TypeError: it gave 'done', expected a number or an array"),
    "objects": (0.0, np.array(object()), "TypeError: it gave .*object.* expected a number or an"),
    "keys": (0.0, jr.key(0), "TypeError: it gave an array of dtype key.* expected numbers"),
    "error": (0.0, ZeroDivisionError("it broke"), "ZeroDivisionError: it broke"),
}


@pytest.fixture(scope="module")
def whole():
    return train(MODEL, X, Y, **OPTIONS, callbacks={"outputs": outputs})


def assert_kept(found, whole, rows):
    """A training that ended at a row has the rows before it, and its state goes on from there."""
    step = RECORD_AT[rows]
    assert found.result == RESULTS.call_failed
    assert not bool(found.successful)
    assert (found.failed_at, int(found.state.step)) == (step, step)
    history = found.history
    np.testing.assert_array_equal(history.valid, np.arange(len(RECORD_AT)) < rows)
    for seen, expected in (
        (history.train_loss, whole.history.train_loss),
        (history.callbacks["outputs"], whole.history.callbacks["outputs"]),
    ):
        np.testing.assert_array_equal(seen[:rows], expected[:rows])
        assert bool(jnp.isnan(seen[rows:]).all())
    np.testing.assert_array_equal(history.step_losses[:step], whole.history.step_losses[:step])
    assert bool(jnp.isnan(history.step_losses[step:]).all())
    after = train(MODEL, X, Y, **OPTIONS, state=found.state)
    assert eqx.tree_equal(after.state, whole.state)


@pytest.mark.parametrize("case", MISFITS)
def test_callback_that_fails_is_named_and_nothing_is_lost(case, whole):
    first, last, message = MISFITS[case]
    seen = {"outputs": outputs, "mine": Changing(first, last)}
    with pytest.raises(
        TrainingError, match=r"`callbacks\['mine'\]` failed after step 9: "
    ) as error:
        train(MODEL, X, Y, **OPTIONS, callbacks=seen)
    error.match(message)
    error.match("`.partial` of this error")
    assert error.value.__cause__ is not None
    if isinstance(last, Exception):
        assert error.value.__cause__ is last
    found = error.value.partial
    assert_kept(found, whole, rows=3)
    rows = [jnp.asarray(leaf) for leaf in jax.tree.leaves(first)]
    for leaf, row in zip(jax.tree.leaves(found.history.callbacks["mine"]), rows, strict=True):
        np.testing.assert_array_equal(leaf[:3], jnp.stack([row] * 3))
    seen = {"outputs": outputs, "mine": Changing(first, last)}
    marked = train(MODEL, X, Y, **OPTIONS, callbacks=seen, throw=False)
    assert equal(marked, found)
    assert "`callbacks['mine']` failed after step 9" in marked.failure


def test_callback_that_fails_at_first_leaves_the_start():
    broken = Changing(0, ZeroDivisionError(), calls=1)
    seen = {"a": broken, "outputs": outputs, "z": lambda model: {"one": 1}}
    found = train(MODEL, X, Y, **OPTIONS, callbacks=seen, throw=False)
    assert (found.failed_at, int(found.state.step)) == (0, 0)
    assert eqx.tree_equal(found.model, MODEL)
    assert not bool(found.history.valid.any())
    assert found.history.callbacks["a"] is None
    assert found.history.callbacks["outputs"].shape == (5, N, 2)
    assert found.history.callbacks["z"]["one"].shape == (5,)
    assert "`callbacks['a']` failed after step 0: ZeroDivisionError" in found.failure


def test_callback_that_only_gives_the_shape_of_a_row_cannot_end_a_training(whole):
    seen = {"a": Changing(0, ZeroDivisionError(), calls=1), "outputs": outputs}
    found = train(MODEL, X, Y, **OPTIONS | {"record_at": []}, callbacks=seen)
    assert bool(found.successful)
    assert found.failure is None
    assert eqx.tree_equal(found.state, whole.state)
    assert found.history.callbacks["a"] is None
    assert found.history.callbacks["outputs"].shape == (0, N, 2)


def test_rows_are_copies():
    """Also of an array that a callback gives each time, and writes to."""
    buffer = np.zeros(1000)

    def counts(model):
        buffer[:] += 1
        return buffer

    found = train(MODEL, X, Y, **OPTIONS, callbacks={"counts": counts})
    np.testing.assert_array_equal(found.history.callbacks["counts"][:, 0], [1, 2, 3, 4, 5])


class Meter(diffrax.AbstractProgressMeter):
    """A progress meter that fails where it is told to."""

    where: str

    def init(self):
        return jnp.zeros(())

    def step(self, state, progress):
        if self.where == "step":
            raise ZeroDivisionError("no paper")
        return progress

    def close(self, state):
        if self.where == "close":
            raise ZeroDivisionError("no paper")


def test_progress_meter_that_fails_is_named_and_nothing_is_lost(whole):
    options = {**OPTIONS, "callbacks": {"outputs": outputs}}
    message = "`progress` failed after step {}: ZeroDivisionError: no paper"
    with pytest.raises(TrainingError, match=message.format(1)) as error:
        train(MODEL, X, Y, **options, progress=Meter("step"))
    found = error.value.partial
    assert (found.failed_at, int(found.state.step)) == (1, 1)
    assert eqx.tree_equal(train(MODEL, X, Y, **OPTIONS, state=found.state).state, whole.state)
    with pytest.raises(TrainingError, match=message.format(12)) as error:
        train(MODEL, X, Y, **options, progress=Meter("close"))
    found = error.value.partial
    assert equal((found.state, found.history), (whole.state, whole.history))


def failing_loss(failing):
    """A loss with a check at run time, which fails while the list holds something."""

    def check(value):
        if failing:
            raise ZeroDivisionError("the host says no")
        return value

    def loss(f, y):
        value = CrossEntropy()(f, y)
        like = jax.ShapeDtypeStruct((), value.dtype)
        checked = jax.pure_callback(
            check, like, jax.lax.stop_gradient(value), vmap_method="sequential"
        )
        return value + jax.lax.stop_gradient(checked - value)

    return loss


def test_step_that_fails_at_run_time_loses_no_step_before_it(whole):
    failing = []

    def fails_from_now_on(model):
        if len(failing) == 0 and not jnp.array_equal(
            model.layers[-1].weight, MODEL.layers[-1].weight
        ):
            failing.append(1)
        return outputs(model)

    options = {**OPTIONS, "loss": failing_loss(failing)}
    with pytest.raises(
        TrainingError, match=r"(?s)A step failed after step 2: .*the host says no"
    ) as error:
        train(MODEL, X, Y, **options, callbacks={"outputs": fails_from_now_on})
    found = error.value.partial
    assert (found.failed_at, int(found.state.step)) == (2, 2)
    np.testing.assert_array_equal(found.history.valid, [True, True, False, False, False])
    np.testing.assert_allclose(
        found.history.train_loss[:2], whole.history.train_loss[:2], rtol=1e-12
    )
    # Where nothing was computed before it, it is the error itself.
    with pytest.raises((RuntimeError, ValueError), match="the host says no") as error:
        train(MODEL, X, Y, **options)
    assert not isinstance(error.value, TrainingError)


def test_children_before_one_that_fails_are_kept():
    options = {**OPTIONS, "batch_size": 3, "record_at": [12]}
    parent = train(MODEL, X, Y, **options | {"steps": 4, "record_at": []}, key=jr.key(0))
    keys = jr.split(jr.key(1), 3)
    with pytest.raises(TrainingError, match=r"`callbacks\['a'\]` failed after step 12") as error:
        spawn(parent, X, Y, **options, keys=keys, callbacks={"a": Changing(1, "last", calls=2)})
    (before,) = error.value.before
    alone = [train(MODEL, X, Y, **options, key=k, state=parent.state) for k in keys[:2]]
    assert eqx.tree_equal(before.state, alone[0].state)
    assert eqx.tree_equal(error.value.partial.state, alone[1].state)
    seen = {"a": Changing(1, "last", calls=3)}
    children = spawn(parent, X, Y, **options, keys=keys, callbacks=seen, throw=False)
    assert [bool(child.successful) for child in children] == [True, True, False]


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([outputs], r"`callbacks` is \[<function outputs.*expected functions of the model by name"),
        (outputs, "`callbacks` is <function outputs"),
        ("outputs", "`callbacks` is 'outputs', expected"),
        ({1: outputs}, r"`callbacks` has the key 1, expected names \(strings\)"),
        ({"a": 3}, r"`callbacks\['a'\]` is 3, expected a function"),
    ],
)
def test_callbacks_of_other_types_are_refused_before_any_work(unchecked, callbacks, message):
    def loss(f, y):
        raise AssertionError("work was done")

    for other in ({}, {"steps": 10**9}):
        with pytest.raises(TypeError, match=message):
            train(MODEL, X, Y, **OPTIONS | other, callbacks=callbacks)
