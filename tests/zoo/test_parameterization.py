import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from zoo import Dense, MLP, NTK, PARAMETERIZATIONS, PowerLaw, STANDARD


def test_power_law_is_the_product_of_powers():
    law = PowerLaw(std=2.0, fan_in=-0.5, fan_out=1.0)
    assert law(std=3.0, fan_in=4, fan_out=5) == pytest.approx(9 / 2 * 5)
    assert PowerLaw()(std=3.0, fan_in=4, fan_out=5) == 1


@pytest.mark.parametrize(
    ("parameterization", "weight", "weight_init", "bias", "bias_init"),
    [(NTK, 1.5 / 8, 1.0, 0.3, 1.0), (STANDARD, 1.0, 1.5 / 8, 1.0, 0.3)],
)
def test_multipliers_and_initial_scales(parameterization, weight, weight_init, bias, bias_init):
    """Theory section 9, first two rows, at fan_in = 64."""
    layer = Dense(
        64,
        20_000,
        parameterization=parameterization,
        weight_std=1.5,
        bias_std=0.3,
        key=jr.key(0),
    )
    assert layer.weight_multiplier == pytest.approx(weight)
    assert layer.bias_multiplier == pytest.approx(bias)
    assert layer.bias is not None
    # The standard error of a standard deviation from N draws is 1/sqrt(2 N) of it: 5 of them.
    for tensor, expected in ((layer.weight, weight_init), (layer.bias, bias_init)):
        np.testing.assert_allclose(jnp.std(tensor), expected, rtol=5 / (2 * tensor.size) ** 0.5)


def test_ntk_and_standard_from_one_key_are_the_same_function():
    """Both multiply the same normal draws by the same scale, one of them at the start."""
    x = jr.normal(jr.key(1), (5, 3))
    ntk_model, standard_model = (
        MLP(3, 2, width=16, depth=2, bias_std=0.7, parameterization=p, key=jr.key(0))
        for p in (NTK, STANDARD)
    )
    np.testing.assert_allclose(
        jax.vmap(ntk_model)(x), jax.vmap(standard_model)(x), rtol=1e-12, atol=1e-14
    )
    leaves = [jax.tree.leaves(eqx.filter(m, eqx.is_array)) for m in (ntk_model, standard_model)]
    assert not any(np.allclose(a, b) for a, b in zip(*leaves, strict=True))


@pytest.mark.long
@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    weight_std=st.floats(0.1, 3.0),
    bias_std=st.none() | st.floats(0.1, 3.0),
    seed=st.integers(0, 2**31 - 1),
)
def test_same_function_at_any_shape(sizes, weight_std, bias_std, seed):
    in_size, *widths, out_size = sizes
    x = jr.normal(jr.key(seed + 1), (in_size,))
    outputs = [
        MLP(
            in_size,
            out_size,
            width=widths,
            activation="tanh",
            weight_std=weight_std,
            bias_std=bias_std,
            parameterization=p,
            key=jr.key(seed),
        )(x)
        for p in (NTK, STANDARD)
    ]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-10, atol=1e-12)


def test_a_users_parameterization_is_a_value():
    by_fan_in = dataclasses.replace(
        NTK.readout,
        weight=dataclasses.replace(NTK.readout.weight, multiplier=PowerLaw(std=1.0, fan_in=-1.0)),
    )
    mine = dataclasses.replace(NTK, name="mine", readout=by_fan_in)
    model = MLP(3, 2, width=16, depth=1, weight_std=2.0, parameterization=mine, key=jr.key(0))
    assert model.layers[-1].weight_multiplier == pytest.approx(2 / 16)
    assert model.layers[0].weight_multiplier == pytest.approx(2 / 3**0.5)
    assert mine == dataclasses.replace(mine)
    assert hash(mine) == hash(dataclasses.replace(mine))


def test_parameterizations_are_found_by_name():
    assert PARAMETERIZATIONS["NTK"] is NTK
    assert all(name == p.name for name, p in PARAMETERIZATIONS.items())
    assert set(PARAMETERIZATIONS) == {"NTK", "STANDARD", "MEAN_FIELD", "MUP"}


def test_unknown_role_is_named(unchecked):
    with pytest.raises(ValueError, match=r"`role` is 'output', expected one of 'input', 'hidden'"):
        NTK.scaling("output")
