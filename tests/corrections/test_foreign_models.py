"""Any model, whatever it does with its layers, has the kernels of its plain gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corrections import nngp, ntk, NTKOperator, o3, o4, taylorize
from corrections.contraction.gradient_factors import GradientFactors
from tests.foreign_models import batch, Foreign, jacobian, linear, MODELS

ALL = pytest.mark.parametrize("name", MODELS)
LONG = {"neural ODE": pytest.mark.long}
IN_TURN = pytest.mark.parametrize("name", [pytest.param(n, marks=LONG.get(n, ())) for n in MODELS])
BOTH_MODES = pytest.mark.parametrize("name", [n for n, c in MODELS.items() if not c.reverse_only])
WITH_READOUT = pytest.mark.parametrize("name", [n for n, c in MODELS.items() if c.hidden])
IN_TIME = pytest.mark.parametrize("name", ["frozen layer", "type", "tied embedding"])


def close(result, expected, tolerance=1e-12):
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.smoke
@ALL
def test_layers_are_contracted_where_their_program_shows_that_they_may(name):
    case, found = MODELS[name], []
    eqx.filter_eval_shape(lambda m: found.append(GradientFactors(m, batch(1)[0], None)), case.model)
    assert len(found[0].ruled) == case.contracted


REFUSED = {
    "mapped and more": [
        f"['{part}']` is called inside a transformation (such as `scan`" for part in "cde"
    ],
    "compiled inside": ["['a']` is called with other arrays than its own"],
    "gain": ["['net'].layers[0]` is called with other arrays than its own"],
    "regulariser": ["['a']` has arrays that are also used outside of its calls"],
    "type": ["['a']` is told apart from a layer of a subclass of its type"],
}


@pytest.mark.parametrize(("name", "texts"), REFUSED.items(), ids=REFUSED)
def test_structured_names_each_layer_that_cannot_be_contracted_and_why(name, texts, unchecked):
    with pytest.raises(ValueError, match='`method` is "structured" and these lay') as raised:
        ntk(MODELS[name].model, batch(1), method="structured")
    assert all(f"Linear `model.parts{text}" in str(raised.value) for text in texts)
    ntk(MODELS["unused layers"].model, batch(1), method="structured")


def counted(forward, layers):
    """How often a model of many layers is traced to find those that may be contracted."""
    traces = []

    def counting(parts, x):
        traces.append(None)
        return forward(parts, x)

    model = Foreign([linear(i % 8) for i in range(layers)], counting)
    found = []
    eqx.filter_eval_shape(lambda m: found.append(GradientFactors(m, batch(1)[0], None)), model)
    return len(traces), len(found[0].ruled)


def test_few_traces_find_the_layers():
    """As it is, and with stand-ins; once more where some are called under `vmap`, and without those
    that are refused; halves of halves for the one that is told apart, and again with the others.
    """

    def chain(parts, x):
        for layer in parts:
            x = jnp.tanh(layer(x))
        return x

    def mapped(parts, x):
        return sum(jax.vmap(layer)(x[None])[0] for layer in parts[::2]) + chain(parts[1::2], x)

    def kept(parts, x):
        of_kept = sum(jax.checkpoint(lambda h, a=a: a(h))(x) for a in parts[::2])
        return of_kept + chain(parts[1::2], x)

    def told_apart(parts, x):
        return chain(parts, x) if type(parts[5]) is eqx.nn.Linear else x

    assert counted(chain, 32) == (2, 32)
    assert counted(mapped, 32) == (3, 32)
    assert counted(kept, 32) == (3, 16)
    traces, layers = counted(told_apart, 32)
    assert layers == 31
    assert traces <= 2 + 3 * 5


def test_a_model_that_changes_between_traces_is_refused():
    traces = []

    def changing(parts, x):
        traces.append(None)
        return parts[1](parts[0](x)) + (parts[0](x) if len(traces) > 3 else 0.0)

    with pytest.raises(ValueError, match="`model` calls other layers when it is traced again"):
        ntk(Foreign([linear(0), linear(1)], changing), batch(2))


@pytest.mark.parametrize("name", ["two heads", "frozen readout"])
def test_models_without_one_readout_have_no_last_hidden_representation(name, unchecked):
    forward = {
        "two heads": lambda p, x: p[0](x) + p[1](jnp.tanh(x)),
        "frozen readout": lambda p, x: jax.lax.stop_gradient(p[1])(jnp.tanh(p[0](x))),
    }[name]
    with pytest.raises(ValueError, match="`model` does not end in a dense layer that gives"):
        nngp(Foreign([linear(0), linear(1)], forward), batch(2))


@IN_TURN
def test_the_tangent_kernel_is_that_of_plain_gradients(name):
    model, x1, x2 = MODELS[name].model, batch(3), batch(2, seed=11)
    expected = np.einsum("akp,blp->akbl", jacobian(model, x1), jacobian(model, x2))
    close(ntk(model, x1, x2), expected)
    close(ntk(model, x1, x2, method="jacobian"), expected)


@pytest.mark.long
@BOTH_MODES
def test_third_order_and_operators_are_those_of_plain_gradients(name):
    model, x = MODELS[name].model, batch(2)
    close(o3(model, x), o3(model, x, method="jacobian"), 1e-11)
    j = jacobian(model, x).reshape(4, -1)
    close(NTKOperator(model, x).as_matrix(), j @ j.T)


@pytest.mark.long
@pytest.mark.parametrize("name", ["Siamese", "low-rank adapter", "regulariser", "frozen norm"])
def test_fourth_order_is_that_of_plain_gradients(name):
    model, x = MODELS[name].model, batch(1)
    close(o4(model, x), o4(model, x, method="jacobian"), 1e-11)


@WITH_READOUT
def test_the_last_hidden_representation_is_the_one_of_the_readout(name):
    case, x = MODELS[name], batch(3)
    hidden = jax.vmap(lambda x: case.hidden(case.parts, x))(x)
    close(nngp(case.model, x), hidden @ hidden.T / hidden.shape[1])


@pytest.mark.long
@IN_TIME
@pytest.mark.parametrize("order", [1, 2])
def test_taylor_models_have_the_kernels_of_their_plain_gradients(name, order):
    model, x = MODELS[name].model, batch(2)
    moved = jax.tree.map(lambda w: 1.1 * w if eqx.is_array(w) else w, model)
    taylor = taylorize(moved, order, at=model)
    j = jacobian(taylor, x)
    close(ntk(taylor, x), np.einsum("akp,blp->akbl", j, j))
