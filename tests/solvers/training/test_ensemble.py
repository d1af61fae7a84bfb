"""Ensembles in one program: each seed as it is alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from solvers import CrossEntropy, initial_state, MeanSquaredError, RESULTS, train, train_ensemble
from solvers.training.train import TrainingError
from tests.models import inputs, one_hot, tanh_mlp
from zoo import BatchNorm, Dense, MLP, Sequential

N, SEEDS = 7, 3
X, Y, X_TEST, Y_TEST = inputs(N), one_hot(N, 2), inputs(4, seed=11), one_hot(4, 2)
RECORD_AT = [0, 2, 5, 9]
OPTIONS = {
    "loss": CrossEntropy(),
    "optimizer": optax.adam(3e-2),
    "steps": 9,
    "x_test": X_TEST,
    "y_test": Y_TEST,
    "record_at": RECORD_AT,
    "record_outputs": True,
}
KEY = jr.key(5)


def network(key):
    return MLP(3, 2, width=8, depth=1, activation="tanh", bias_std=0.5, key=key)


def rectified(key):
    return MLP(3, 2, width=8, depth=1, activation="relu", key=key)


def normalized(key):
    first, second = jr.split(key)
    layers = [Dense(3, 8, key=first), BatchNorm(8), Dense(8, 2, key=second)]
    return Sequential(layers)


MODELS = eqx.filter_vmap(network)(jr.split(jr.key(0), SEEDS))


def member(tree, seed):
    return jax.tree.map(lambda leaf: leaf[seed] if eqx.is_array(leaf) else leaf, tree)


def assert_equal(found, expected, rtol=1e-12):
    """Two trees to rounding, NaN where NaN is."""
    arrays, others = eqx.partition(found, eqx.is_array)
    expected_arrays, expected_others = eqx.partition(expected, eqx.is_array)
    assert bool(eqx.tree_equal(others, expected_others))
    for one, other in zip(*map(jax.tree.leaves, (arrays, expected_arrays)), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)


def assert_each_is_alone(found, models, options, rtol=1e-12):
    keys = jr.split(options.get("key", KEY), SEEDS)
    for seed in range(SEEDS):
        alone = options if "key" not in options else options | {"key": keys[seed]}
        expected = train(member(models, seed), X, Y, **alone, throw=False)
        assert_equal(member(found.history, seed), expected.history, rtol)
        assert_equal(member(found.state, seed), expected.state, rtol)
        failed_at = -1 if expected.failed_at is None else expected.failed_at
        assert int(found.failed_at[seed]) == failed_at
        assert bool(found.successful[seed]) == bool(expected.successful)


@pytest.mark.parametrize("make", [network, normalized])
@pytest.mark.parametrize("batches", [{}, {"batch_size": 2, "key": KEY}])
def test_each_seed_is_what_it_is_alone(make, batches):
    models = eqx.filter_vmap(make)(jr.split(jr.key(0), SEEDS))
    options = OPTIONS | batches
    if make is normalized:  # Adam divides by gradients that are zero but for rounding
        options["optimizer"] = optax.sgd(0.1, momentum=0.9)
    found = train_ensemble(models, X, Y, **options)
    assert_each_is_alone(found, models, options)
    assert found.failure is None
    assert found.history.outputs_test.shape == (SEEDS, len(RECORD_AT), 4, 2)
    if batches:
        losses = found.history.step_losses
        assert not np.allclose(losses[0], losses[1])


def test_goes_on_from_a_state_as_one_long_run(tmp_path):
    options = OPTIONS | {"batch_size": 2, "key": KEY, "optimizer": OPTIONS["optimizer"]}
    whole = train_ensemble(MODELS, X, Y, **options)
    first = train_ensemble(MODELS, X, Y, **options | {"steps": 5, "record_at": [0, 2, 5]})
    eqx.tree_serialise_leaves(tmp_path / "state.eqx", first.state)
    like = eqx.filter_vmap(initial_state, in_axes=(0, None))(MODELS, options["optimizer"])
    state = eqx.tree_deserialise_leaves(tmp_path / "state.eqx", like)
    second = train_ensemble(MODELS, X, Y, state=state, **options)
    assert eqx.tree_equal(second.state, whole.state)
    joined = jax.tree.map(lambda *a: jnp.concatenate(a, 1), first.history, second.history)
    assert eqx.tree_equal(joined, whole.history)


def with_readout_times(factor):
    """Networks of which that of seed 1 has a readout times a factor."""
    models = eqx.filter_vmap(rectified)(jr.split(jr.key(0), SEEDS))
    factors = jnp.array([1.0, factor, 1.0])[:, None, None]
    return eqx.tree_at(lambda m: m.layers[-1].weight, models, replace_fn=lambda w: w * factors)


DIVERGING = {
    "at once": (1e200, {}),
    "later": (20.0, {}),
    "in mini-batches": (20.0, {"batch_size": 2, "key": KEY}),
}


@pytest.mark.parametrize("case", DIVERGING)
def test_seed_that_diverges_is_marked_and_the_others_are_what_they_were(case):
    factor, batches = DIVERGING[case]
    models = with_readout_times(factor)
    options = OPTIONS | {"loss": MeanSquaredError(), "optimizer": optax.sgd(0.1)} | batches
    options |= {"steps": 60, "record_at": [0, 3, 10, 60]}
    found = train_ensemble(models, X, Y, throw=False, **options)
    np.testing.assert_array_equal(found.successful, [True, False, True])
    assert_each_is_alone(found, models, options)
    assert bool((found.result == RESULTS.diverged)[1])
    assert (int(found.failed_at[1]) > 3) == (case != "at once")
    with pytest.raises(TrainingError, match=r"not finite for the seeds 1 \(after step") as error:
        train_ensemble(models, X, Y, **options)
    assert_equal(error.value.partial.history, found.history)
    with pytest.raises(ValueError, match=r"`state` has seeds at the steps .* leave them out of it"):
        train_ensemble(models, X, Y, state=found.state, **options)


def test_training_ends_where_all_have_diverged():
    options = OPTIONS | {"loss": MeanSquaredError(), "optimizer": optax.sgd(1e3)}
    options |= {"steps": 10_000, "record_at": [0, 10_000]}
    found = train_ensemble(MODELS, X, Y, throw=False, **options)
    assert not bool(found.successful.any())
    assert bool(jnp.isfinite(found.models.layers[-1].weight).all())
    np.testing.assert_array_equal(found.history.valid[:, 0], True)
    np.testing.assert_array_equal(found.history.valid[:, -1], False)


def test_nothing_is_recorded_where_nothing_is_asked():
    found = train_ensemble(MODELS, X, Y, **OPTIONS | {"record_at": []})
    assert found.history.train_loss.shape == (SEEDS, 0)
    assert found.history.outputs.shape == (SEEDS, 0, N, 2)
    assert bool(found.successful.all())


def test_bad_arguments_are_named(unchecked):
    def fails(kind, match, models=MODELS, **changes):
        with pytest.raises(kind, match=match):
            train_ensemble(models, X, Y, **OPTIONS | changes)

    plain = network(jr.key(0))
    fails(ValueError, r"`models` is not stacked: `models.*` has shape .* same leading axis", plain)
    cut = eqx.tree_at(lambda m: m.layers[-1].bias, MODELS, replace_fn=lambda b: b[:2])
    fails(ValueError, r"`models.*bias` has shape \(2, 2\) and `models.*` \(3, 8, 3\)", cut)
    broken = eqx.tree_at(
        lambda m: m.layers[-1].bias, MODELS, replace_fn=lambda b: b.at[2].set(jnp.nan)
    )
    fails(ValueError, r"`models.*bias` has 2 entries out of 6 that are not finite", broken)
    with_wrong_inputs = eqx.filter_vmap(lambda key: tanh_mlp(in_size=4))(jr.split(KEY, 2))
    fails(ValueError, "`models` does not take an example of `x`", with_wrong_inputs)
    fails(ValueError, "`models` has no parameters", lambda x: x)
    fails(TypeError, "`key` is None, expected a key", batch_size=2)
    fails(TypeError, "`optimizer` is 0.1, expected", optimizer=0.1)
    fails(ValueError, "`state` is not stacked", state=initial_state(plain, OPTIONS["optimizer"]))
    other = eqx.filter_vmap(initial_state, in_axes=(0, None))(MODELS, optax.sgd(0.1))
    fails(ValueError, "`state.optimizer_state` does not match", state=other)
    with pytest.raises(ValueError, match="`models`, `x` or `y` is being traced"):
        jax.jit(lambda x: train_ensemble(MODELS, x, Y, **OPTIONS).history.train_loss)(X)
