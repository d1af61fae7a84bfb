import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from zoo import ACTIVATIONS, MLP, STANDARD


def test_forward_pass_is_the_formula():
    model = MLP(6, 2, width=[5, 4], activation="erf", weight_std=1.3, bias_std=0.2, key=jr.key(0))
    x = jr.normal(jr.key(1), (1, 2, 3))
    a = np.asarray(x).reshape(-1)
    for i, layer in enumerate(model.layers):
        assert layer.bias is not None
        a = 1.3 / len(a) ** 0.5 * np.asarray(layer.weight) @ a + 0.2 * np.asarray(layer.bias)
        if i < 2:
            a = np.asarray(jax.scipy.special.erf(a))
    np.testing.assert_allclose(model(x), a, rtol=1e-13)
    assert (model.in_size, model.out_size) == (6, 2)


@pytest.mark.parametrize("parameterization", ["NTK", "STANDARD"])
def test_second_moment_of_a_linear_network_follows_the_recursion(parameterization):
    """With phi = identity, E f^2 = s_w^2(...(s_w^2 |x|^2/d + s_b^2)...) + s_b^2 at any width."""
    from zoo import PARAMETERIZATIONS

    s_w, s_b, s_out, x = 1.2, 0.5, 0.8, jnp.array([1.0, -2.0])

    def draw(key):
        return MLP(
            2,
            1,
            width=7,
            depth=2,
            activation="identity",
            weight_std=s_w,
            bias_std=s_b,
            readout_std=s_out,
            parameterization=PARAMETERIZATIONS[parameterization],
            key=key,
        )(x)[0]

    f = jax.jit(jax.vmap(draw))(jr.split(jr.key(0), 40_000))
    k = s_w**2 * 5 / 2 + s_b**2
    k = s_w**2 * k + s_b**2
    expected = s_out**2 * k + s_b**2
    error = float(jnp.std(f**2)) / len(f) ** 0.5
    assert abs(float(jnp.mean(f**2)) - expected) < 4 * error
    assert error < 0.03 * expected


def test_bias_std_none_means_no_bias_parameters():
    model = MLP(3, 2, width=4, depth=1, key=jr.key(0))
    assert [leaf.shape for leaf in jax.tree.leaves(model)] == [(4, 3), (2, 4)]


def test_depth_zero_is_a_linear_map():
    model = MLP(3, 2, width=4, depth=0, weight_std=1.0, key=jr.key(0))
    x = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(model(x), model.layers[0].weight @ x / 3**0.5, rtol=1e-14)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_named_activation_runs_under_jit_vmap_and_grad(name):
    model = MLP(3, 2, width=4, depth=2, activation=name, key=jr.key(0))
    x = jr.normal(jr.key(1), (5, 3))
    out = eqx.filter_jit(lambda m, x: jax.vmap(m)(x))(model, x)
    assert out.shape == (5, 2)
    gradient = eqx.filter_grad(lambda m: jnp.sum(jax.vmap(m)(x) ** 2))(model)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


def test_gelu_is_exact():
    x = jnp.array(0.7)
    phi = 0.5 * (1 + jax.scipy.special.erf(x / jnp.sqrt(2.0)))
    np.testing.assert_allclose(ACTIVATIONS["gelu"](x), x * phi, rtol=1e-14)


def test_serialises(tmp_path):
    model = MLP(3, 2, width=4, depth=1, parameterization=STANDARD, bias_std=1.0, key=jr.key(0))
    other = MLP(3, 2, width=4, depth=1, parameterization=STANDARD, bias_std=1.0, key=jr.key(1))
    eqx.tree_serialise_leaves(tmp_path / "model.eqx", model)
    assert eqx.tree_equal(eqx.tree_deserialise_leaves(tmp_path / "model.eqx", other), model)


def test_parameters_have_the_default_float_type(float32):
    model = MLP(3, 2, width=4, depth=1, key=jr.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0, "depth": 1}, "`width` is 0, expected an integer >= 1"),
        ({"width": 4.0, "depth": 1}, "`width` is 4.0, expected an integer >= 1"),
        ({"width": [4, -1]}, "`width[1]` is -1, expected an integer >= 1"),
        ({"width": 4}, "`depth` is missing"),
        ({"width": [4, 4], "depth": 3}, "`depth` is 3 but `width` lists 2 hidden layers"),
        ({"width": 4, "depth": -1}, "`depth` is -1, expected an integer >= 0"),
        ({"width": 4, "depth": 1, "activation": "swish"}, "`activation` is 'swish', expected one"),
        ({"width": 4, "depth": 1, "weight_std": -1.0}, "`weight_std` is -1.0, expected a finite"),
        ({"width": 4, "depth": 1, "readout_std": -1.0}, "`readout_std` is -1.0, expected a finite"),
        ({"width": 4, "depth": 1, "bias_std": float("nan")}, "`bias_std` is nan, expected"),
    ],
)
def test_bad_arguments_are_named(unchecked, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        MLP(3, 2, key=jr.key(0), **options)


def test_a_batch_is_refused_with_advice(unchecked):
    model = MLP(3, 2, width=4, depth=1, key=jr.key(0))
    with pytest.raises(ValueError, match=r"`x` has shape \(5, 3\).*jax\.vmap\(model\)"):
        model(jnp.ones((5, 3)))


def test_integers_are_refused(unchecked):
    model = MLP(3, 2, width=4, depth=1, key=jr.key(0))
    with pytest.raises(TypeError, match="`x` has dtype int64, expected real floating"):
        model(jnp.arange(3))


def test_a_name_in_the_place_of_a_parameterization_is_refused(unchecked):
    with pytest.raises(
        TypeError, match=r"`parameterization` is 'NTK', expected.*PARAMETERIZATIONS"
    ):
        MLP(3, 2, width=4, depth=1, parameterization="NTK", key=jr.key(0))
