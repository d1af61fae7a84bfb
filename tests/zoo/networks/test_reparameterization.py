import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import ntk, taylorize
from tests.models import inputs, one_hot, TwoLayerLinear
from zoo import (
    learning_rates,
    MEAN_FIELD,
    MLP,
    MUP,
    NTK,
    PARAMETERIZATIONS,
    reparameterize,
    STANDARD,
    WideResNet,
)

ALL = list(PARAMETERIZATIONS.values())


def mlp(parameterization, width=(7, 5), **options):
    defaults = {"activation": "tanh", "weight_std": 1.3, "bias_std": 0.4, "key": jr.key(0)}
    return MLP(3, 2, width=width, parameterization=parameterization, **(defaults | options))


# Theory section 9 at in_size 3, widths 7 and 5, 2 outputs, sigma_w = 1.3, sigma_b = 0.4: for the
# layers input, hidden, readout the multiplier, init, SGD and Adam rate of (weight, bias).
N, S, B = np.sqrt, 1.3, 0.4
TABLE = {
    "NTK": [
        [(S / N(3), B), (1, 1), (1, 1), None],
        [(S / N(7), B), (1, 1), (1, 1), None],
        [(S / N(5), B), (1, 1), (1, 1), None],
    ],
    "STANDARD": [
        [(1, 1), (S / N(3), B), (1, 1), (1, 1)],
        [(1, 1), (S / N(7), B), (1, 1), (1, 1)],
        [(1, 1), (S / N(5), B), (1, 1), (1, 1)],
    ],
    "MEAN_FIELD": [
        [(S / N(3), B), (1, 1), (7, 7), None],
        [(S / N(7), B), (1, 1), (5, 5), None],
        [(S / 5, B), (1, 1), (5, 1), None],
    ],
    "MUP": [
        [(1, 1), (S / N(3), B), (7, 7), (1, 1)],
        [(1, 1), (S / N(7), B), (1, 5), (1 / 7, 1)],
        [(1, 1), (S / 5, B), (1 / 5, 2), (1 / 5, 1)],
    ],
}


@pytest.mark.parametrize("parameterization", ALL, ids=lambda p: p.name)
def test_multipliers_scales_and_rates_are_the_table(parameterization):
    model = mlp(parameterization)
    sgd = learning_rates(model)
    for layer, rates, expected in zip(
        model.layers, sgd.layers, TABLE[parameterization.name], strict=True
    ):
        multipliers, inits, sgd_rates, _ = expected
        scaling, fans = layer.scaling, layer.fans
        assert (layer.weight_multiplier, layer.bias_multiplier) == pytest.approx(multipliers)
        assert scaling.weight.init(std=S, **fans) == pytest.approx(inits[0])
        assert scaling.bias.init(std=B, **fans) == pytest.approx(inits[1])
        assert (rates.weight, rates.bias) == pytest.approx(sgd_rates)
    if TABLE[parameterization.name][0][3] is None:
        with pytest.raises(ValueError, match=f"{parameterization.name} does not say what Adam's"):
            learning_rates(model, optimizer="adam")
    else:
        adam = learning_rates(model, optimizer="adam")
        for rates, expected in zip(adam.layers, TABLE[parameterization.name], strict=True):
            assert (rates.weight, rates.bias) == pytest.approx(expected[3])


@pytest.mark.smoke
@pytest.mark.parametrize("there", ALL, ids=lambda p: p.name)
@pytest.mark.parametrize("here", ALL, ids=lambda p: p.name)
def test_reparameterized_models_are_the_same_function_and_come_back(here, there):
    model, x = mlp(here), inputs(5)
    moved = reparameterize(model, there)
    assert all(layer.parameterization == there for layer in moved.layers)
    np.testing.assert_allclose(jax.vmap(moved)(x), jax.vmap(model)(x), rtol=1e-12, atol=1e-13)
    back = reparameterize(moved, here)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert jax.tree.structure(back) == jax.tree.structure(model)


@pytest.mark.parametrize("own", [STANDARD, MUP, MEAN_FIELD], ids=lambda p: p.name)
@pytest.mark.parametrize("other", [NTK, MUP], ids=lambda p: p.name)
def test_equivalent_learning_rates_give_the_same_trajectory(own, other):
    """Full-batch gradient descent, 30 steps: 1e-10."""
    model = mlp(other)
    expected = trajectory(model, learning_rates(model), inputs(6))
    assert float(jnp.max(jnp.abs(expected[-1] - expected[0]))) > 0.1
    same = reparameterize(model, own)
    result = trajectory(same, learning_rates(same, equivalent_to=other), inputs(6))
    np.testing.assert_allclose(result, expected, atol=1e-10)


@pytest.mark.slow
def test_equivalent_learning_rates_of_convolutions_and_norms():
    """As above, for a residual network, whose layers are of every kind."""
    x = jr.normal(jr.key(1), (6, 2, 4, 4))
    options = {"base_channels": 2, "norm": "layer", "activation": "tanh", "bias_std": 0.4}
    model = WideResNet((2, 4, 4), 2, **options, key=jr.key(0))
    expected = trajectory(model, learning_rates(model), x)
    assert float(jnp.max(jnp.abs(expected[-1] - expected[0]))) > 0.1
    same = reparameterize(model, STANDARD)
    result = trajectory(same, learning_rates(same, equivalent_to=NTK), x)
    np.testing.assert_allclose(result, expected, atol=1e-10)


@eqx.filter_jit
def trajectory(model, metric, x, eta=0.3, steps=30):
    """The outputs along full-batch gradient descent on cross-entropy."""
    y = one_hot(len(x), 2)

    def step(model):
        def loss(m):
            f = jax.vmap(m)(x)
            return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(f), axis=1))

        gradient = eqx.filter_grad(loss)(model)
        moved = jax.tree.map(lambda m, g: -eta * m * g, metric, gradient)
        return eqx.apply_updates(model, moved), jax.vmap(model)(x)

    params, static = eqx.partition(model, eqx.is_array)

    def scanned(params, _):
        model, f = step(eqx.combine(params, static))
        return eqx.filter(model, eqx.is_array), f

    return jax.lax.scan(scanned, params, None, length=steps)[1]


@pytest.mark.parametrize(
    ("parameterization", "slope"),
    [(NTK, 0.0), (MEAN_FIELD, 0.0), (MUP, 0.0), (STANDARD, 1.0)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_kernel_size_in_width(parameterization, slope):
    """Under its own learning rates the tangent kernel has a limit, for STANDARD it grows like n."""
    widths, sizes = np.array([64, 256, 1024]), []
    for width in widths:
        model = mlp(parameterization, width=(int(width),) * 2)
        kernel = ntk(model, inputs(3), metric=learning_rates(model), outputs="mean")
        sizes.append(float(jnp.trace(kernel)))
    fitted = np.polyfit(np.log(widths), np.log(sizes), 1)[0]
    assert fitted == pytest.approx(slope, abs=0.1)


def test_rates_of_a_taylor_model_leave_its_frozen_base_out():
    model = mlp(MUP)
    rates = learning_rates(taylorize(model, 1))
    assert jax.tree.leaves(rates) == jax.tree.leaves(learning_rates(model))


def test_what_makes_no_sense_is_refused(unchecked):
    with pytest.raises(ValueError, match=r"parameters outside zoo layers \(\.u, \.v\)"):
        learning_rates(TwoLayerLinear(3, key=jr.key(0)))
    with pytest.raises(ValueError, match="`optimizer` is 'lion', expected one of 'sgd', 'adam'"):
        learning_rates(mlp(MUP), optimizer="lion")
    with pytest.raises(ValueError, match="no learning rates make it follow another"):
        learning_rates(mlp(MUP), equivalent_to=NTK, optimizer="adam")
    with pytest.raises(ValueError, match="`weight_std` 0 and so the multiplier 0 in NTK"):
        reparameterize(mlp(STANDARD, weight_std=0.0), NTK)
    with pytest.raises(ValueError, match="`bias_std` 0 and so the multiplier 0 in NTK"):
        learning_rates(mlp(NTK, bias_std=0.0), equivalent_to=STANDARD)
