"""Any model, whatever it does with its layers, has the kernels of its plain gradients."""

import equinox as eqx
import jax
import numpy as np
import pytest

from corrections import nngp, ntk, NTKOperator, o3, o4, taylorize
from corrections.anatomy import Anatomy
from tests.foreign_models import batch, jacobian, MODELS

SLOW = ("neural ODE",)  # to compile
ALL = pytest.mark.parametrize("name", MODELS)
BOTH_MODES = pytest.mark.parametrize("name", [n for n, c in MODELS.items() if not c.reverse_only])
WITH_READOUT = pytest.mark.parametrize("name", [n for n, c in MODELS.items() if c.hidden])
IN_TIME = pytest.mark.parametrize("name", ["frozen layer", "type", "tied embedding"])


def close(result, expected, tolerance=1e-12):
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.smoke
@ALL
def test_layers_are_contracted_where_their_program_shows_that_they_may(name):
    case, found = MODELS[name], []
    eqx.filter_eval_shape(lambda m: found.append(Anatomy(m, batch(1)[0], None)), case.model)
    assert len(found[0].ruled) == case.contracted


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long if n in SLOW else ()) for n in MODELS]
)
def test_the_tangent_kernel_is_that_of_plain_gradients(name):
    model, x1, x2 = MODELS[name].model, batch(3), batch(2, seed=11)
    expected = np.einsum("akp,blp->akbl", jacobian(model, x1), jacobian(model, x2))
    close(ntk(model, x1, x2), expected)
    close(ntk(model, x1, x2, method="jacobian"), expected)


@pytest.mark.long
@BOTH_MODES
def test_tensors_and_operators_are_those_of_plain_gradients(name):
    model, x = MODELS[name].model, batch(2)
    for tensor in (o3, o4):
        close(tensor(model, x), tensor(model, x, method="jacobian"), 1e-11)
    j = jacobian(model, x).reshape(4, -1)
    close(NTKOperator(model, x).as_matrix(), j @ j.T)


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
