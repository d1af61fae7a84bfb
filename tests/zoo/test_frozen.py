import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from zoo import Frozen


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
