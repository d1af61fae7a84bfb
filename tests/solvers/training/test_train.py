"""Training against loops by hand, closed forms, the flow, and itself in two halves."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from corrections import ntk, taylorize
from corrections.parameters import precondition, split
from solvers import (
    CrossEntropy,
    MeanSquaredError,
    mse_descent,
    parameter_flow,
    RESULTS,
    training_phase,
)
from solvers.losses import mean_loss
from solvers.training.loop import initial_state
from solvers.training.metric_transform import scale_by_metric
from solvers.training.setup import log_spaced
from solvers.training.train import train, TrainingError
from tests.corrections.contraction.test_gradient_factors import random_metric
from tests.models import batch_norm_network, inputs, one_hot, tanh_mlp
from zoo import astype, forward_train, learning_rates, NTK, reparameterize, STANDARD

N = 7
MODEL, X, Y = tanh_mlp(depth=1), inputs(N), one_hot(N, 2)
X_TEST, Y_TEST = inputs(3, seed=11), one_hot(3, 2)
LOSS, SQUARED = CrossEntropy(), MeanSquaredError()
SGD, ADAM = optax.sgd(0.3), optax.adam(1e-2)
MINIBATCHES = {"loss": LOSS, "optimizer": ADAM, "batch_size": 2, "key": jr.key(5)}


def outputs(model):
    return jax.vmap(model)(X)


def by_hand(optimizer, steps, loss=LOSS, order=None):
    """Plain steps of optax: the models and losses before each, until a loss is not finite."""
    params, apply = split(MODEL)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, x, y):
        def training_loss(p):
            return jnp.mean(jax.vmap(loss)(jax.vmap(apply, (None, 0))(p, x), y))

        value, gradient = jax.value_and_grad(training_loss)(params)
        with jax.numpy_dtype_promotion("standard"):  # Adam multiplies integers with floats
            updates, state = optimizer.update(gradient, state, params)
        return value, optax.apply_updates(params, updates), state

    models, losses = [], []
    for s in range(steps):
        rows = slice(None) if order is None else order[s]
        value, after, state = step(params, state, X[rows], Y[rows])
        if not np.isfinite(value):
            break
        models.append(eqx.combine(params, MODEL))
        losses.append(float(value))
        params = after
    return models, losses


def test_integer_labels_are_one_hot_rows():
    labels = jnp.argmax(Y, axis=1)
    options = {"loss": LOSS, "optimizer": SGD, "steps": 3}
    found = train(MODEL, X, labels, x_test=X, y_test=labels, **options)
    rows = train(MODEL, X, Y, x_test=X, y_test=Y, **options)
    np.testing.assert_array_equal(found.history.train_loss, rows.history.train_loss)
    np.testing.assert_array_equal(found.history.test_loss, found.history.train_loss)


@pytest.mark.smoke
def test_schedules_and_clipping_are_the_loop_by_hand():
    schedule = optax.exponential_decay(0.5, 10, 0.7)
    optimizer = optax.chain(optax.clip_by_global_norm(0.2), optax.sgd(schedule, momentum=0.9))
    models, losses = by_hand(optimizer, 31)
    record_at = [0, 3, 4, 30]
    callbacks = {
        "outputs": outputs,
        "more": lambda model: {"bias": model.layers[-1].bias, "one": 1},
    }
    found = train(
        MODEL,
        X,
        Y,
        loss=LOSS,
        optimizer=optimizer,
        steps=30,
        x_test=X_TEST,
        y_test=Y_TEST,
        record_at=record_at,
        callbacks=callbacks,
    )
    history = found.history
    np.testing.assert_allclose(history.step_losses, losses[:30], rtol=1e-12)
    np.testing.assert_allclose(history.train_loss, np.array(losses)[record_at], rtol=1e-12)
    recorded = [models[s] for s in record_at]
    expected = [jnp.mean(jax.vmap(LOSS)(jax.vmap(m)(X_TEST), Y_TEST)) for m in recorded]
    np.testing.assert_allclose(history.test_loss, np.stack(expected), rtol=1e-11)
    expected = np.stack([outputs(m) for m in recorded])
    np.testing.assert_allclose(history.callbacks["outputs"], expected, rtol=1e-10)
    expected = np.stack([m.layers[-1].bias for m in recorded])
    np.testing.assert_allclose(history.callbacks["more"]["bias"], expected, rtol=1e-10)
    np.testing.assert_array_equal(history.callbacks["more"]["one"], np.ones(4))
    np.testing.assert_array_equal(history.steps, record_at)
    assert bool(found.successful)
    assert bool(history.valid.all())
    assert training_phase(history.step_losses) == "lazy"


def test_minibatches_are_those_of_a_permutation_an_epoch():
    """Three batches of two an epoch of seven: the one example that is left over changes."""
    epochs = [np.asarray(jr.permutation(jr.fold_in(jr.key(5), e), N)) for e in range(4)]
    order = np.concatenate([epoch[:6].reshape(3, 2) for epoch in epochs])
    models, losses = by_hand(ADAM, 11, order=order)
    found = train(MODEL, X, Y, steps=10, **MINIBATCHES)
    np.testing.assert_allclose(found.history.step_losses, losses[:10], rtol=1e-12)
    np.testing.assert_allclose(outputs(found.model), outputs(models[10]), rtol=1e-10)
    again = train(MODEL, X, Y, steps=10, **MINIBATCHES)
    assert eqx.tree_equal(again.state, found.state)
    other = train(MODEL, X, Y, steps=10, **MINIBATCHES | {"key": jr.key(6)})
    assert not np.allclose(other.history.step_losses, losses[:10])


@pytest.mark.smoke
def test_stored_and_resumed_equals_one_long_run_bit_for_bit(tmp_path):
    options = {**MINIBATCHES, "callbacks": {"outputs": outputs}}
    whole = train(MODEL, X, Y, steps=20, record_at=[0, 4, 8, 15, 20], **options)
    first = train(MODEL, X, Y, steps=8, record_at=[0, 4, 8], **options)
    eqx.tree_serialise_leaves(tmp_path / "state.eqx", first.state)
    like = initial_state(tanh_mlp(seed=1, depth=1), ADAM)
    state = eqx.tree_deserialise_leaves(tmp_path / "state.eqx", like)
    second = train(MODEL, X, Y, steps=20, record_at=[0, 8, 15, 20], state=state, **options)
    assert eqx.tree_equal(second.state, whole.state)
    joined = jax.tree.map(lambda *a: jnp.concatenate(a), first.history, second.history)
    assert eqx.tree_equal(joined, whole.history)
    nothing = train(MODEL, X, Y, steps=20, record_at=[20], state=whole.state, **options)
    assert eqx.tree_equal(nothing.state, whole.state)
    assert nothing.history.callbacks["outputs"].shape == (0, N, 2)


def test_linearised_network_is_descent_under_its_kernel():
    rate, momentum, steps = 0.4, 0.8, [0, 1, 5, 40]
    optimizer = optax.sgd(rate, momentum=momentum)
    found = train(
        taylorize(MODEL, 1),
        X,
        Y,
        loss=SQUARED,
        optimizer=optimizer,
        steps=40,
        record_at=steps,
        callbacks={"outputs": outputs},
    )
    exact = mse_descent(
        ntk(MODEL, X), Y, steps, learning_rate=rate, momentum=momentum, f0=outputs(MODEL)
    )
    np.testing.assert_allclose(found.history.callbacks["outputs"], exact.train, atol=1e-10)


def test_small_steps_are_gradient_flow():
    """The error falls like the step: slope 1."""
    flow = parameter_flow(MODEL, X, Y, [1.0], loss=LOSS, rtol=1e-10, atol=1e-11).train[0]
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    counts, errors = [20, 80, 320], []
    for steps in counts:
        state = initial_state(MODEL, optimizer)
        state.optimizer_state.hyperparams["learning_rate"] = jnp.asarray(1 / steps)
        found = train(
            MODEL, X, Y, loss=LOSS, optimizer=optimizer, steps=steps, state=state, record_at=[]
        )
        errors.append(float(jnp.max(jnp.abs(outputs(found.model) - flow))))
    assert np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(-1, abs=0.05)


def test_metric_makes_a_standard_network_follow_the_ntk_one():
    standard = reparameterize(MODEL, STANDARD)
    metric = learning_rates(standard, equivalent_to=NTK)
    assert min(jax.tree.leaves(metric)) < 0.5
    sgd = optax.sgd(0.5, momentum=0.5)
    options = {"loss": LOSS, "steps": 60, "callbacks": {"outputs": outputs}}
    a = train(MODEL, X, Y, optimizer=sgd, **options).history
    scaled = optax.chain(scale_by_metric(metric), sgd)
    b = train(standard, X, Y, optimizer=scaled, **options).history
    np.testing.assert_allclose(b.callbacks["outputs"], a.callbacks["outputs"], atol=1e-10)


def test_metric_after_adam_is_a_learning_rate_and_before_it_is_nothing():
    metric, params = random_metric(MODEL), split(MODEL)[0]
    gradient = jax.tree.map(lambda p: p + 0.1, params)
    adam = optax.adam(1e-2, eps=0.0)

    def update(optimizer):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(gradient, optimizer.init(params), params)[0]

    def close(a, b):
        return eqx.tree_equal(a, b, rtol=1e-12, atol=1e-14)

    after = update(optax.chain(adam, scale_by_metric(metric)))
    before = update(optax.chain(scale_by_metric(metric), adam))
    assert close(after, precondition(metric, update(adam)))
    assert close(before, update(adam))
    with pytest.raises(ValueError, match="`metric` has the entry -1"):
        scale_by_metric(-1.0).init(params)


def test_divergence_stops_where_the_loop_by_hand_does():
    optimizer = optax.sgd(100.0)
    models, losses = by_hand(optimizer, 500, loss=SQUARED)
    last = len(models) - 1
    options = {"loss": SQUARED, "optimizer": optimizer}
    with pytest.raises(TrainingError, match=f"not finite after step {last + 1} of 500") as error:
        train(MODEL, X, Y, steps=500, **options)
    found = error.value.partial
    assert found.result == RESULTS.diverged
    assert (found.failed_at, int(found.state.step)) == (last + 1, last)
    np.testing.assert_allclose(found.model.layers[-1].bias, models[-1].layers[-1].bias, rtol=1e-8)
    history = found.history
    np.testing.assert_allclose(history.step_losses[: last + 1], losses, rtol=1e-8)
    assert bool(jnp.isnan(history.step_losses[last + 1 :]).all())
    np.testing.assert_array_equal(history.valid, history.steps <= last)
    np.testing.assert_array_equal(jnp.isnan(history.train_loss), history.steps > last)
    assert training_phase(history.step_losses) == "divergent"
    # The loss after the last step counts, whether it is recorded or not.
    assert bool(train(MODEL, X, Y, steps=last, record_at=[0], **options).successful)
    for record_at in ([0], [last, last + 1]):
        late = train(MODEL, X, Y, steps=last + 1, record_at=record_at, throw=False, **options)
        assert (late.failed_at, int(late.state.step)) == (last + 1, last)
        assert eqx.tree_equal(late.model, found.model)


def test_parameters_that_are_not_finite_stop_it():
    schedule = optax.scale_by_schedule(lambda s: jnp.where(s == 3, jnp.inf, -0.1))
    found = train(MODEL, X, Y, loss=LOSS, optimizer=schedule, steps=9, throw=False)
    assert (found.failed_at, int(found.state.step)) == (4, 3)
    models, losses = by_hand(optax.sgd(0.1), 4)
    np.testing.assert_allclose(found.history.step_losses[:4], losses, rtol=1e-12)
    np.testing.assert_allclose(outputs(found.model), outputs(models[3]), rtol=1e-10)


def test_loss_that_is_not_finite_at_the_start_leaves_the_start():
    def loss(f, y):
        return jnp.sum(f / 0.0)

    found = train(MODEL, X, Y, loss=loss, optimizer=SGD, steps=4, throw=False)
    assert (found.failed_at, int(found.state.step)) == (0, 0)
    assert eqx.tree_equal(found.model, MODEL)
    assert not bool(found.history.valid.any())


def test_outputs_on_all_points_are_recorded_where_asked():
    """With targets and without, whole and in batches, up to a divergence."""
    record_at = [0, 2, 5]
    options = {"loss": SQUARED, "optimizer": SGD, "steps": 5, "record_at": record_at}
    seen = {"train": outputs, "test": lambda model: jax.vmap(model)(X_TEST)}
    expected = train(MODEL, X, Y, callbacks=seen, **options).history
    assert expected.outputs is expected.outputs_test is None
    options["record_outputs"] = True
    found = train(MODEL, X, Y, x_test=X_TEST, y_test=Y_TEST, **options).history
    np.testing.assert_allclose(found.outputs, expected.callbacks["train"], rtol=1e-12)
    np.testing.assert_allclose(found.outputs_test, expected.callbacks["test"], rtol=1e-12)
    of_test = jax.vmap(jax.vmap(SQUARED), (0, None))(found.outputs_test, Y_TEST)
    np.testing.assert_allclose(found.test_loss, of_test.mean(1), rtol=1e-12)
    untold = train(MODEL, X, Y, x_test=X_TEST, batch_size=2, key=jr.key(0), **options).history
    assert untold.test_loss is None
    assert untold.outputs.shape == (3, N, 2)
    np.testing.assert_allclose(untold.outputs_test[0], found.outputs_test[0], rtol=1e-12)
    assert train(MODEL, X, Y, **options).history.outputs_test is None
    options |= {"optimizer": optax.sgd(1e200), "throw": False, "x_test": X_TEST}
    failed = train(MODEL, X, Y, **options).history
    np.testing.assert_array_equal(failed.valid, [True, False, False])
    np.testing.assert_array_equal(jnp.isnan(failed.outputs_test[:, 0, 0]), ~failed.valid)
    empty = train(MODEL, X, Y, **options | {"record_at": []}).history
    assert (empty.outputs.shape, empty.outputs_test.shape) == ((0, N, 2), (0, 3, 2))


def test_batch_norm_gathers_the_statistics_of_batches():
    model, images = batch_norm_network(), jr.normal(jr.key(2), (N, 1, 4, 4))
    found = train(model, images, Y, loss=LOSS, optimizer=SGD, steps=1)
    hidden = jax.vmap(model.layers[0])(images)
    axes = (0, *range(2, hidden.ndim))
    moved = found.model.layers[1]
    np.testing.assert_allclose(moved.mean, 0.1 * jnp.mean(hidden, axis=axes), rtol=1e-12)
    np.testing.assert_allclose(moved.variance, 0.9 + 0.1 * jnp.var(hidden, axis=axes), rtol=1e-12)
    # Steps take the statistics of their batch, records those that were gathered.
    frozen, batch = eqx.filter_jit(
        lambda model, x: (
            mean_loss(LOSS, jax.vmap(model)(x), Y),
            mean_loss(LOSS, forward_train(model, x)[0], Y),
        )
    )(model, images)
    np.testing.assert_allclose(found.history.train_loss[0], frozen, rtol=1e-12)
    np.testing.assert_allclose(found.history.step_losses[0], batch, rtol=1e-12)


def test_optimisers_that_take_the_loss_are_given_it():
    """A loss on a plateau: that of a model of order 0."""
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=2)
    found = train(taylorize(MODEL, 0), X, Y, loss=LOSS, optimizer=plateau, steps=4)
    assert float(found.state.optimizer_state.scale) == 0.5


def test_in_32_bits_with_a_progress_meter(capsys):
    model, x, y = astype(MODEL, "float32"), X.astype("float32"), Y.astype("float32")
    meter = diffrax.TextProgressMeter(0.3)
    sgd = optax.sgd(optax.linear_schedule(0.3, 0.1, 10))
    found = train(model, x, y, loss=LOSS, optimizer=sgd, steps=10, progress=meter)
    jax.effects_barrier()
    shown = capsys.readouterr().out.split()
    assert (shown[0], shown[-1]) == ("0.00%", "100.00%")
    assert len(shown) > 2
    assert found.history.train_loss.dtype == found.model.layers[-1].weight.dtype == jnp.float32
    exact = by_hand(sgd, 11)[1]
    np.testing.assert_allclose(found.history.step_losses, exact[:10], rtol=1e-5)


def test_log_spaced_steps_have_both_ends():
    np.testing.assert_array_equal(log_spaced(1), [0, 1])
    np.testing.assert_array_equal(log_spaced(1000, per_decade=1), [0, 1, 10, 100, 1000])
    spaced = log_spaced(12345, per_decade=7)
    assert (spaced[0], spaced[-1]) == (0, 12345)
    ratios = spaced[20:] / spaced[19:-1]
    np.testing.assert_allclose(ratios, 10 ** (1 / 7), rtol=0.02)


def test_bad_arguments_are_named(unchecked):
    options = {"loss": LOSS, "optimizer": SGD, "steps": 3}

    def fails(kind, match, *args, **changes):
        with pytest.raises(kind, match=match):
            train(*(args or (MODEL, X, Y)), **options | changes)

    fails(ValueError, "`batch_size` is 8, expected at most the 7 examples", batch_size=8)
    fails(TypeError, "`key` is None, expected a key", batch_size=2)
    fails(ValueError, "`steps` is 0, expected an integer >= 1", steps=0)
    fails(TypeError, "`optimizer` is 0.1, expected an optax transformation", optimizer=0.1)
    fails(TypeError, "`progress` is True, expected a diffrax", progress=True)
    fails(ValueError, "`x_test` or `y_test` was given alone", x_test=X)
    alone = {"y_test": Y, "record_outputs": True}
    fails(ValueError, "`x_test` or `y_test` was given alone", **alone)
    fails(ValueError, "`x_test`", x_test=X[:, :2], record_outputs=True)
    fails(ValueError, "`y_test` does not fit `x_test`: `y` has shape", x_test=X_TEST, y_test=Y)
    fails(ValueError, "`y` does not hold labels for CrossEntropy", MODEL, X, 2 * Y)
    fails(ValueError, r"`record_at` is \[2, 1\], expected increasing", record_at=[2, 1])
    fails(ValueError, r"`record_at` is \[4\], expected increasing", record_at=[4])
    fails(TypeError, r"`callbacks\['a'\]` is 3, expected a function", callbacks={"a": 3})
    state = initial_state(MODEL, ADAM)
    fails(ValueError, "`state.optimizer_state` does not match a state of `optimizer`", state=state)
    state = initial_state(tanh_mlp(), SGD)
    fails(ValueError, "`state.model` does not match `model`", state=state)
    state = eqx.tree_at(lambda s: s.step, initial_state(MODEL, SGD), jnp.asarray(5, jnp.int32))
    fails(ValueError, "`steps` is 3, expected at least the 5 steps of `state`", state=state)
    with pytest.raises(ValueError, match=r"being traced, .* call it outside `jax.jit`"):
        jax.jit(lambda x: train(MODEL, x, Y, **options).history.train_loss)(X)
