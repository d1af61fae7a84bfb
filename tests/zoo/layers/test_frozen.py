import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from corrections import monte_carlo_kernels, ntk, taylorize
from zoo import (
    ACTIVATIONS,
    centered,
    Dense,
    Frozen,
    GroupNorm,
    learning_rates,
    limit,
    MUP,
    NoLimitError,
    NTK,
    ParameterizedLayer,
    parameters,
    Residual,
    Sequential,
    STANDARD,
    summary,
)


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "complex64", "complex128"]
)
def test_round_trip_is_bit_for_bit(dtype):
    values = jnp.array([0.0, -0.0, 1.5, -3e-5, jnp.inf, jnp.nan]).astype(dtype)
    back = Frozen(values).value
    assert back.dtype == values.dtype
    assert np.asarray(back).tobytes() == np.asarray(values).tobytes()


def test_holds_any_tree_and_hides_its_parameters():
    tree = {"a": jnp.ones((2, 3)), "n": jnp.arange(3), "f": jnp.tanh, "none": None}
    frozen = Frozen(tree)
    assert jax.tree.leaves(eqx.filter(frozen, eqx.is_inexact_array)) == []
    back = frozen.value
    assert eqx.tree_equal(back, tree)
    assert bool(eqx.tree_equal(eqx.filter_jit(lambda f: f.value["a"])(frozen), tree["a"]))


def test_what_is_filtered_away_is_gone():
    tree = {"a": jnp.ones((2, 3)), "n": jnp.arange(3), "none": None}
    assert eqx.filter(Frozen(tree), eqx.is_inexact_array).value == dict.fromkeys(tree)


def test_works_batched_under_vmap():
    frozen = eqx.filter_vmap(lambda key: Frozen(jr.normal(key, (3,))))(jr.split(jr.key(0), 4))
    sums = eqx.filter_vmap(lambda f: jnp.sum(f.value))(frozen)
    expected = jax.vmap(lambda key: jnp.sum(jr.normal(key, (3,))))(jr.split(jr.key(0), 4))
    np.testing.assert_array_equal(sums, expected)


class _Shifted(eqx.Module):
    w: jax.Array
    shift: Frozen

    def __call__(self, x):
        return self.w * (x + self.shift.value)


def test_training_with_weight_decay_leaves_it_bit_for_bit():
    model = _Shifted(jnp.ones(3), Frozen(jnp.array([1.0, 2.0, 3.0])))
    before = np.asarray(model.shift.value).tobytes()
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    params = eqx.filter(model, eqx.is_inexact_array)
    gradient = eqx.filter_grad(lambda m: jnp.sum(m(jnp.ones(3)) ** 2))(model)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers in
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    trained = eqx.apply_updates(model, updates)
    assert np.asarray(trained.shift.value).tobytes() == before
    assert not np.allclose(trained.w, model.w)


def test_serialises(tmp_path):
    frozen = Frozen({"a": jnp.array([1.0, jnp.nan])})
    eqx.tree_serialise_leaves(tmp_path / "f.eqx", frozen)
    back = eqx.tree_deserialise_leaves(tmp_path / "f.eqx", Frozen({"a": jnp.zeros(2)}))
    np.testing.assert_array_equal(back.value["a"], frozen.value["a"])


X = jr.normal(jr.key(1), (4, 3))
KEY = jr.key(0)


def with_a_frozen_layer(width=5, key=KEY, **options):
    """Three dense layers, the second of them frozen."""
    first, second, third = jr.split(key, 3)
    layers = [
        Dense(3, width, role="input", key=first, **options),
        ACTIVATIONS["tanh"],
        Frozen(Dense(width, width, key=second, **options)),
        ACTIVATIONS["tanh"],
        Dense(width, 2, role="readout", key=third, **options),
    ]
    return Sequential(layers)


def test_the_kernel_of_a_model_with_a_frozen_layer_is_that_of_the_others():
    """Against the Jacobian of the same network written by hand."""
    model = with_a_frozen_layer(bias_std=0.5)
    first, second, third = model.layers[::2]
    second = second.value
    assert len(jax.tree.leaves(parameters(model))) == 4

    def affine(params, a):
        weight, bias = params
        return weight @ a / jnp.sqrt(weight.shape[1]) + 0.5 * bias

    def outputs(params, x):
        hidden = jnp.tanh(affine(params[0], x))
        hidden = jnp.tanh(affine((second.weight, second.bias), hidden))
        return affine(params[1], hidden)

    params = [(layer.weight, layer.bias) for layer in (first, third)]
    by_hand = jax.vmap(outputs, (None, 0))(params, X)
    np.testing.assert_allclose(jax.vmap(model)(X), by_hand, rtol=1e-13)
    jacobian = jax.jit(jax.vmap(jax.jacrev(outputs), (None, 0)))(params, X)
    rows = jnp.concatenate([leaf.reshape(4, 2, -1) for leaf in jax.tree.leaves(jacobian)], axis=2)
    expected = jnp.einsum("ikp,jlp->ikjl", rows, rows)
    for method in ("structured", "jacobian"):
        np.testing.assert_allclose(ntk(model, X, method=method), expected, rtol=1e-12, atol=1e-14)


def test_optimisers_and_learning_rates_leave_a_frozen_layer_alone():
    model = with_a_frozen_layer()
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    gradient = eqx.filter_grad(lambda m: jnp.sum(m(X[0]) ** 2))(model)
    with jax.numpy_dtype_promotion("standard"):
        params = parameters(model)
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    trained = eqx.apply_updates(model, updates)
    assert not np.allclose(trained.layers[0].weight, model.layers[0].weight)
    np.testing.assert_array_equal(trained.layers[2].value.weight, model.layers[2].value.weight)
    assert len(jax.tree.leaves(learning_rates(model))) == 2
    assert summary(model, (3,)).frozen == 25


@pytest.mark.long
def test_infinitely_wide_networks_are_those_that_finite_ones_approach():
    limits = limit(with_a_frozen_layer()).kernels(X)
    drawn = monte_carlo_kernels(
        lambda key: with_a_frozen_layer(128, key), X, n_samples=32, key=jr.key(2)
    )
    for name in ("nngp", "ntk"):
        distance = np.abs(getattr(drawn, name) - getattr(limits, name))
        assert np.all(distance < 4 * getattr(drawn, f"{name}_error"))


@pytest.mark.parametrize("parameterization", [NTK, MUP], ids=["NTK", "MUP"])
def test_infinitely_wide_the_tangent_kernel_is_the_sum_of_the_parts_of_its_layers(parameterization):
    """Each part is the kernel where all other layers are frozen."""
    options = {"parameterization": parameterization, "key": KEY}
    layers = [
        Dense(3, 4, role="input", bias_std=0.5, **options),
        GroupNorm(4, parameterization=parameterization),
        ACTIVATIONS["erf"],
        Dense(4, 4, bias_std=0.5, **options),
        ACTIVATIONS["relu"],
        Dense(4, 1, role="readout", bias_std=0.5, **options),
    ]
    whole = limit(Sequential(layers)).kernels(X)
    parts = []
    for i in (0, 1, 3, 5):
        frozen = [
            Frozen(layer) if isinstance(layer, ParameterizedLayer) and j != i else layer
            for j, layer in enumerate(layers)
        ]
        part = limit(Sequential(frozen)).kernels(X)
        np.testing.assert_allclose(part.nngp, whole.nngp, rtol=1e-13, atol=1e-15)
        assert np.any(part.ntk != 0)
        parts.append(part.ntk)
    np.testing.assert_allclose(sum(parts), whole.ntk, rtol=1e-12)


def test_frozen_weights_need_no_tangent_kernel():
    """In standard parameterization the readout's part grows with the width, and no other."""

    def network(parameterization, wrap):
        options = {"parameterization": parameterization, "key": KEY}
        first = Dense(3, 8, role="input", **options)
        readout = Dense(8, 1, role="readout", **options)
        return Sequential([first, ACTIVATIONS["relu"], wrap(readout)])

    with pytest.raises(NoLimitError, match=r"`weight` of `model.layers\[2\]`.*like width"):
        limit(network(STANDARD, lambda layer: layer)).ntk(X)
    both = limit(network(NTK, lambda layer: layer)).kernels(X)
    found = limit(network(STANDARD, Frozen)).ntk(X)
    np.testing.assert_allclose(found, 3 * (both.ntk - both.nngp), rtol=1e-12)
    shapes = eqx.filter_eval_shape(lambda: network(STANDARD, Frozen))
    np.testing.assert_array_equal(limit(shapes).ntk(X), found)


@pytest.mark.long
def test_frozen_copies_make_no_second_readout_and_others_do():
    model = with_a_frozen_layer()
    plain = limit(model).kernels(X)
    np.testing.assert_array_equal(limit(centered(model)).ntk(X), plain.ntk)
    np.testing.assert_array_equal(limit(Frozen(model)).nngp(X), plain.nngp)
    np.testing.assert_array_equal(limit(Frozen(centered(model))).ntk(X), 0 * plain.ntk)
    with pytest.raises(NoLimitError, match="`model` is TaylorModel, which has no rule"):
        limit(taylorize(model, 1))
    other = Frozen(Dense(5, 2, role="readout", parameterization=MUP, key=KEY))
    both = Sequential([*model.layers[:-1], Residual(model.layers[-1], other)])
    with pytest.raises(NoLimitError, match="`model` has 2 layers with the role of a readout"):
        limit(both)


def test_what_cannot_be_called_is_named():
    with pytest.raises(TypeError, match="`Frozen` holds a dict, which cannot be called"):
        Frozen({"a": jnp.ones(3)})(jnp.ones(3))
