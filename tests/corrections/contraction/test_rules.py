"""Rules of layers: Equinox's, a user's own, and where none applies."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import contraction_summary, nngp, ntk, o3
from corrections.contraction.gradient_factors import GradientFactors
from tests import oracles
from tests.corrections.contraction.test_gradient_factors import close, random_metric
from zoo import (
    ContractionRule,
    Dense,
    Flatten,
    register_contraction_rule,
    Sequential,
    Transposed,
)

KEY = jr.key(0)


def tapped(model, x, metric=None):
    count = []
    eqx.filter_eval_shape(
        lambda m: count.append(len(GradientFactors(m, x[0], metric).ruled)), model
    )
    return count[0]


def agrees(model, x):
    metric = random_metric(model)
    close(ntk(model, x, metric=metric), oracles.kernel(model, x, x, metric))
    close(o3(model, x[:2], metric=metric), oracles.third(model, x[:2], x[:2], x[:2], metric))


CONVOLUTIONS = {
    "1d, SAME_LOWER": (eqx.nn.Conv1d(2, 3, 4, padding="SAME_LOWER", key=KEY), (2, 5), 2),
    "2d, stride 2, uneven padding": (
        eqx.nn.Conv2d(2, 3, (3, 2), stride=2, padding=((1, 0), (2, 1)), key=KEY),
        (2, 5, 4),
        2,
    ),
    "2d, reflected": (
        eqx.nn.Conv2d(1, 2, 3, padding=1, padding_mode="REFLECT", use_bias=False, key=KEY),
        (1, 4, 4),
        2,
    ),
    "2d, periodic": (
        eqx.nn.Conv2d(1, 2, 3, padding="SAME", padding_mode="CIRCULAR", key=KEY),
        (1, 4, 4),
        2,
    ),
    "2d, groups": (eqx.nn.Conv2d(2, 4, 3, groups=2, key=KEY), (2, 4, 4), 1),
    "2d, dilated": (eqx.nn.Conv2d(1, 2, 2, dilation=2, key=KEY), (1, 4, 4), 2),
    "2d, dilated, SAME": (
        eqx.nn.Conv2d(1, 2, (2, 3), dilation=(2, 1), padding="SAME", key=KEY),
        (1, 5, 4),
        2,
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        name if "uneven" in name else pytest.param(name, marks=pytest.mark.slow)
        for name in CONVOLUTIONS
    ],
)
def test_convolutions_of_equinox(name):
    conv, shape, rules = CONVOLUTIONS[name]
    x = jr.normal(jr.key(1), (3, *shape))
    size = eqx.filter_eval_shape(conv, x[0]).size
    model = Sequential([conv, jnp.tanh, Flatten(), eqx.nn.Linear(size, 2, key=KEY)])
    assert tapped(model, x) == rules
    agrees(model, x)


class TokenDense(eqx.Module):
    """Acts on each token of (tokens, in); its weight is laid out (in, out)."""

    weight: jax.Array

    def __call__(self, a):
        return 0.5 * (a @ self.weight)


class StatesIt(TokenDense):
    """The same, and says so."""

    def contraction_rule(self):
        return RULE


class Inherits(StatesIt):
    """Of a subclass nobody knows what it computes."""

    def __call__(self, a):
        return super().__call__(a) + jnp.sum(self.weight)


class Scaled(eqx.Module):
    """Holds a parameter that no affine rule knows of."""

    weight: jax.Array
    scale: jax.Array

    def __call__(self, a):
        return self.scale * (self.weight @ a)


RULE = ContractionRule(
    lambda _, a: a,
    lambda _: (0.5, 1.0),
    channel_axis=-1,
    transposed=Transposed(lambda _, delta: delta, lambda _, matrix: matrix),
)
TOKENS = jr.normal(jr.key(1), (3, 4, 2))


def of_tokens(kind):
    first, second = (kind(jr.normal(KEY, shape)) for shape in ((2, 3), (3, 3)))
    layers = [first, jnp.tanh, second, jnp.tanh, Flatten(), Dense(12, 2, key=KEY)]
    return Sequential(layers)


def test_a_layer_of_your_own_states_its_rule():
    assert tapped(of_tokens(StatesIt), TOKENS) == 3
    agrees(of_tokens(StatesIt), TOKENS)


def test_a_layer_of_another_library_is_registered():
    model = of_tokens(TokenDense)
    before = ntk(model, TOKENS)
    assert tapped(model, TOKENS) == 1
    register_contraction_rule(TokenDense, RULE)
    assert tapped(model, TOKENS) == 3
    jax.clear_caches()
    close(ntk(model, TOKENS, method="structured"), before)
    agrees(model, TOKENS)


class Kinds(eqx.Module):
    """Has a field of a name that other layers have too."""

    weight: jax.Array
    kind: str = eqx.field(static=True, default="dense")

    def __call__(self, a):
        return self.weight @ a

    def contraction_rule(self):
        return ContractionRule(lambda layer, a: a[None])


def test_the_summary_calls_a_layer_by_its_class():
    (row,) = contraction_summary(Kinds(jnp.ones((2, 3))), jnp.ones((1, 3))).rows
    assert (row.kind, row.path, row.parameters, row.positions) == ("Kinds", "", 6, 1)


def test_a_rule_that_is_inherited_does_not_count():
    assert tapped(of_tokens(Inherits), TOKENS) == 1
    agrees(of_tokens(Inherits), TOKENS)


def test_a_layer_with_other_parameters_takes_the_jacobian():
    register_contraction_rule(Scaled, ContractionRule(lambda layer, a: a[None]))
    x = jr.normal(jr.key(1), (3, 2))
    model = Sequential([Scaled(jr.normal(KEY, (2, 2)), jnp.array(0.7)), jnp.tanh])
    assert tapped(model, x) == 0
    agrees(model, x)


class StatesNothing(TokenDense):
    """Its rule is none."""

    def contraction_rule(self):
        return self.weight


def test_bad_rules_are_refused(unchecked):
    def patches(layer, a):
        return a[None]

    with pytest.raises(TypeError, match=r"(?s)`layer_type` is Dense.*expected a class"):
        register_contraction_rule(Dense(2, 2, key=KEY), RULE)
    with pytest.raises(TypeError, match=r"`rule` is <function.*expected a `zoo.ContractionRule`"):
        register_contraction_rule(Scaled, patches)
    for name in ("patches", "multipliers", "applies"):
        with pytest.raises(TypeError, match=f"`{name}` is None, expected a function of a layer"):
            ContractionRule(**{"patches": patches, name: None})
    with pytest.raises(TypeError, match="`channel_axis` is 'last', expected an axis"):
        ContractionRule(patches, channel_axis="last")
    with pytest.raises(TypeError, match="`rows` is 3, expected a function of a layer"):
        ContractionRule(patches, rows=3)
    with pytest.raises(TypeError, match=r"`transposed` is <function.*expected a `zoo.Transposed`"):
        ContractionRule(patches, transposed=patches)
    for name in ("patches", "matrix", "applies"):
        with pytest.raises(TypeError, match=f"`{name}` is 3, expected a function of a layer"):
            Transposed(**{"patches": patches, "matrix": patches, name: 3})
    with pytest.raises(
        TypeError, match=r"(?s)`StatesNothing.contraction_rule\(\)` is .*expected a"
    ):
        ntk(of_tokens(StatesNothing), TOKENS)


class OneOutput(eqx.Module):
    """A scalar as a vector of one entry."""

    model: eqx.nn.MLP

    def __call__(self, x):
        return self.model(x)[None]


@pytest.mark.parametrize(("in_size", "shape"), [(3, (3,)), ("scalar", ())])
def test_equinox_networks_of_scalars(in_size, shape):
    """Inputs and outputs without an axis, as `equinox.nn.Linear` has them."""
    model = eqx.nn.MLP(in_size, "scalar", 4, 2, activation=jnp.tanh, key=KEY)
    x = jr.normal(jr.key(1), (3, *shape))
    assert tapped(model, x) == 3
    close(ntk(model, x), oracles.kernel(OneOutput(model), x, x))
    close(o3(model, x), oracles.third(OneOutput(model), x, x, x))
    hidden = np.asarray(x).reshape(3, -1)
    for layer in model.layers[:-1]:
        hidden = np.tanh(hidden @ np.asarray(layer.weight).T + np.asarray(layer.bias))
    close(nngp(model, x), hidden @ hidden.T / 4)
