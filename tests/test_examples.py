"""Examples that are PyTrees, and outputs of any shape, through every public function of a model."""

import warnings
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import corrections
import solvers
from tests.test_public_entries import CALLING, dense, LONG, LOSS, Net, net, TS, X, Y

MASK = jnp.array([[True, False], [True, True], [False, True]])
TREES = {
    "dictionary": {"mask": MASK, "rest": (X[:, :3],)},
    "tuple": (MASK, X[:, :3]),
}


def masked(w, x):
    mask, rest = x if isinstance(x, tuple) else (x["mask"], x["rest"][0])
    return w @ jnp.concatenate([jnp.where(mask, 1.0, 0.0), rest])


@pytest.mark.parametrize("tree", [pytest.param("tuple", marks=pytest.mark.long), "dictionary"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long if n in LONG else ()) for n in CALLING]
)
def test_examples_may_be_trees(name, tree):
    """A model of a mask and some numbers, and the same one of all of them in a row."""
    in_a_row = jnp.concatenate([MASK.astype(float), X[:, :3]], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # validity of an expansion of so narrow a network
        found = CALLING[name](net(masked), TREES[tree], Y)
        expected = CALLING[name](net(dense), in_a_row, Y)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


class Shaped(Net):
    """Its outputs in another shape."""

    shape: Any = eqx.field(static=True, default=())

    def __call__(self, x):
        return super().__call__(x).reshape(self.shape)


@pytest.mark.parametrize("shape", [(), pytest.param((1, 2, 1), marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in ("ntk", "o3", "train") else pytest.mark.long)
        for n in CALLING
    ],
)
def test_outputs_of_any_shape_are_a_vector(name, shape):
    """A number is one output; of more axes the outputs are those in a row, and so are targets."""
    k = 2 if shape else 1
    head = eqx.nn.Linear(4, k, key=jr.key(1))
    like = eqx.tree_at(lambda m: m.head, net(dense), head)
    model = Shaped(like.w, head, dense, jnp.tanh, shape)
    y = Y[:, :k]
    takes_targets = name not in ("linearized_model", "kernel_rates", "NTKOperator")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = CALLING[name](model, X, y.reshape(3, *shape) if takes_targets else y)
        expected = CALLING[name](like, X, y)
    shown = found.reshape(expected.shape) if name in ("taylorize", "linearized_model") else found
    np.testing.assert_allclose(shown, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (
            {"mask": MASK, "rest": X[:2]},
            r"`x1` has 3 rows in `x1\['mask'\]` and 2 in `x1\['rest'\]`",
        ),
        ({"mask": MASK, "rest": "numbers"}, r"`x1\['rest'\]` is not an array: got str"),
        (
            {"mask": MASK, "rest": X.at[1, 0].set(jnp.nan)},
            r"`x1\['rest'\]` has 1 entries out of 15",
        ),
        (
            (MASK,),
            r"does not take an example of `x1`, which has shape \(2,\) and dtype bool at `\[0\]`",
        ),
        ({"mask": MASK}, r"does not take an example of `x1`.* KeyError: 'rest'"),
        ({}, "`x1` is not an array: got dict"),
    ],
)
def test_trees_that_are_no_examples_are_refused(x, says, unchecked):
    with pytest.raises((TypeError, ValueError), match=says):
        corrections.ntk(net(masked), x)


def test_test_examples_are_like_those_of_training(unchecked):
    narrow = {"mask": MASK[:, :1], "rest": (X[:, :4],)}
    with pytest.raises(ValueError, match=r"`x_test` holds examples of shape \(1,\) .*, expected"):
        solvers.parameter_flow(net(masked), TREES["dictionary"], Y, TS, loss=LOSS, x_test=narrow)
