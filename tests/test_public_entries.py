"""Every public function that takes a model: which parameters, examples and derivatives it takes.

One table of calls, checked to be complete, so that a function that is added is asked as well.
"""

import functools
import inspect
import re
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import corrections
import solvers
from corrections.forward_mode import ForwardModeError
from corrections.operators.loss_hessian import LossHessian
from solvers import MeanSquaredError, TrainingState
from tests.models import tanh_mlp
from zoo import astype, CNN, limit, MLP, parameters, with_output
from zoo.common.examples import rows_of

LOSS = MeanSquaredError()
SGD = optax.sgd(0.1)
TS = jnp.array([0.1])


def _step(model):
    return jax.tree.map(lambda p: 0.1 * jnp.cos(p), parameters(model))


def _moved(model):
    return eqx.apply_updates(model, _step(model))


def _state(model):
    return TrainingState(model, SGD.init(parameters(model)), jnp.zeros((), jnp.int32))


ANY = {  # what needs no derivatives, or those of reverse mode alone
    "activation_distance": lambda m, x, y: corrections.activation_distance(
        m, _moved(m), x, preactivations=lambda m, x: m(x)
    ),
    "contraction_summary": lambda m, x, y: np.array(
        [row.parameters for row in corrections.contraction_summary(m, x).rows]
    ),
    "error_barrier": lambda m, x, y: (
        corrections.error_barrier(m, _moved(m), x, y, risk=LOSS, points=2).risks
    ),
    "function_distance": lambda m, x, y: corrections.function_distance(m, _moved(m), x),
    "nngp": lambda m, x, y: corrections.nngp(m, x),
    "ntk": lambda m, x, y: corrections.ntk(m, x),
    "monte_carlo_kernels": lambda m, x, y: (
        corrections.monte_carlo_kernels(lambda key: m, x, n_samples=2, key=jr.key(0)).ntk
    ),
    "smallest_ntk_eigenvalue": lambda m, x, y: corrections.smallest_ntk_eigenvalue([m], x),
    "kernel_regression": lambda m, x, y: solvers.kernel_regression(m, x, y, ridge=0.1).train,
    "linearized_model": lambda m, x, y: jax.vmap(solvers.linearized_model(m, x, y))(x),
    "parameter_flow": lambda m, x, y: solvers.parameter_flow(m, x, y, TS, loss=LOSS).train,
    "spawn": lambda m, x, y: (
        solvers.spawn(
            _state(m), x, y, loss=LOSS, optimizer=SGD, steps=2, batch_size=2, keys=[jr.key(0)]
        )[0].history.train_loss
    ),
    "train_ensemble": lambda m, x, y: solvers.train_ensemble(
        jax.tree.map(lambda a: a[None] if eqx.is_array(a) else a, m),
        x,
        y,
        loss=LOSS,
        optimizer=SGD,
        steps=2,
    ).history.train_loss[0],
    "train": lambda m, x, y: (
        solvers.train(m, x, y, loss=LOSS, optimizer=SGD, steps=2).history.train_loss
    ),
}
FORWARD = {  # what takes derivatives along directions of the parameters, or second ones
    "ddntk": lambda m, x, y: corrections.ddntk(m, x, kind="II"),
    "dntk": lambda m, x, y: corrections.dntk(m, x),
    "hessian_norm": lambda m, x, y: corrections.hessian_norm(m, x, rtol=1e-6).value,
    "jacobian_norm": lambda m, x, y: corrections.jacobian_norm(m, x, rtol=1e-8).value,
    "kappa": lambda m, x, y: corrections.kappa(m, x, y, starts=1).distance,
    "kernel_rates": lambda m, x, y: corrections.kernel_rates(m, x, y).first,
    "linearity_bound": lambda m, x, y: (
        corrections.linearity_bound(m, x, _step(m), samples=2).deviation
    ),
    "LossHessian": lambda m, x, y: jax.tree.leaves(
        LossHessian(m, x, y, loss=LOSS, part="full").mv(_step(m))
    )[0],
    "NTKOperator": lambda m, x, y: corrections.NTKOperator(m, x).mv(y),
    "o3": lambda m, x, y: corrections.o3(m, x),
    "o4": lambda m, x, y: corrections.o4(m, rows_of(x, slice(1))),
    "row_space_fraction": lambda m, x, y: corrections.row_space_fraction(m, x, _step(m)),
    "taylor_terms": lambda m, x, y: corrections.taylor_terms(m, x, _step(m), 2),
    "taylorize": lambda m, x, y: jax.vmap(_moved(corrections.taylorize(m, 1)))(x),
    "compare_predictions": lambda m, x, y: (
        solvers.compare_predictions(m, x, y, TS, loss=LOSS, predictions=["order 2"])
        .predictions["order 2"]
        .train
    ),
    "hierarchy_flow": lambda m, x, y: solvers.hierarchy_flow(m, x, y, TS, loss=LOSS, order=2).train,
    "width_expansion": lambda m, x, y: solvers.width_expansion(m, x, y, TS).train,
    "width_expansion_descent": lambda m, x, y: (
        solvers.width_expansion_descent(m, x, y, [1], learning_rate=0.1).train
    ),
}
OF_PARAMETERS = {  # what never calls the model
    "initial_state": lambda m, x, y: solvers.initial_state(m, SGD).parameters.w,
    "interpolate": lambda m, x, y: corrections.interpolate(m, _moved(m), 0.3).w,
    "relative_change": lambda m, x, y: corrections.relative_change(m, _moved(m)),
    "weight_path": lambda m, x, y: (
        corrections.weight_path([m, _moved(m), _moved(_moved(m))]).explained
    ),
}
CALLING = ANY | FORWARD
ENTRIES = CALLING | OF_PARAMETERS
LONG = {
    "compare_predictions",
    "kappa",
    "hessian_norm",
    "linearity_bound",
    "width_expansion",
    "width_expansion_descent",
}
CALLED = {  # what the argument is called where it is not `model`
    "activation_distance": "first",
    "error_barrier": "first",
    "function_distance": "first",
    "interpolate": "first",
    "monte_carlo_kernels": "model_fn(key)",
    "relative_change": "before",
    "smallest_ntk_eigenvalue": "models[0]",
    "train_ensemble": "models",
    "weight_path": "models[0]",
}
NAMES = {"model", "models", "model_fn", "first", "before", "parent"}
OTHERS = {"kernel_distance", "TaylorModel", "TrainingState"}  # of kernels, and what is made of them


def test_the_table_holds_every_public_function_that_takes_a_model():
    found = set()
    for name, value in [*vars(corrections).items(), *vars(solvers).items()]:
        is_module = isinstance(value, type) and issubclass(value, eqx.Module)
        takes = inspect.isfunction(value) or is_module
        if takes and NAMES & set(inspect.signature(value).parameters):
            found.add(name)
    assert found - OTHERS == set(ENTRIES)


class Net(eqx.Module):
    """Tanh units with a dense readout; what makes features of an example differs."""

    w: Any
    head: eqx.nn.Linear
    features: Any = eqx.field(static=True)
    tanh: Any = eqx.field(static=True, default=jnp.tanh)

    def __call__(self, x):
        return self.head(self.tanh(self.features(self.w, x)))


def net(features, tanh=jnp.tanh, dtype=float):
    keys = jr.split(jr.key(0), 3)
    w = jr.normal(keys[0], (4, 5), dtype)
    return Net(w, eqx.nn.Linear(4, 2, key=keys[1]), features, tanh)


def dense(w, x):
    return w @ x


def embedded(w, tokens):
    return jnp.sum(w[:, tokens], axis=1)


X = jr.normal(jr.key(5), (3, 5))
Y = jr.normal(jr.key(6), (3, 2))
TOKENS = jnp.array([[0, 1], [2, 3], [4, 4]])
COUNTS = jnp.sum(jax.nn.one_hot(TOKENS, 5, dtype=float), axis=1)


@pytest.mark.parametrize("name", ENTRIES)
def test_complex_parameters_are_refused_by_name(name):
    model = net(lambda w, x: jnp.real(w @ x), dtype=complex)
    argument = CALLED.get(name, "model")
    with pytest.raises(TypeError) as raised:
        ENTRIES[name](model, X, Y)
    assert f"`{argument}` has the complex parameter `{argument}.w` (complex128)" in str(
        raised.value
    )


HAVE_PARAMETERS = (CALLING.keys() - {"taylorize"}) | {"initial_state"}


@pytest.mark.parametrize("takes", ["partial", "closure"])
@pytest.mark.parametrize("name", sorted(HAVE_PARAMETERS))
def test_functions_that_take_arrays_along_are_told_what_holds_parameters(name, takes):
    w = jnp.ones((2, 5))
    model = functools.partial(dense, w) if takes == "partial" else lambda x: dense(w, x)
    with pytest.raises(ValueError, match="has no parameters") as raised:
        ENTRIES[name](model, X, Y)
    assert str(raised.value).startswith(f"`{CALLED.get(name, 'model')}` has no")
    assert "`jax.tree_util.Partial(apply, params)` or an `eqx.Module`" in str(raised.value)


def test_a_partial_of_jax_is_a_model():
    w = jr.normal(jr.key(0), (2, 5))
    found = corrections.ntk(jax.tree_util.Partial(dense, w), X)
    expected = jnp.einsum("ij,kl->ikjl", X @ X.T, jnp.eye(2))
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ENTRIES)
def test_half_precision_is_refused_by_name(name, dtype):
    model = astype(net(dense), dtype)
    argument = CALLED.get(name, "model")
    with pytest.raises(TypeError) as raised:
        ENTRIES[name](model, X, Y)
    assert f"`{argument}.w` has dtype {dtype}" in str(raised.value)
    assert f'`zoo.astype({argument}, "float32")`' in str(raised.value)


@pytest.mark.parametrize("name", sorted(CALLING.keys() - {"taylorize", "nngp"}))
def test_outputs_of_half_precision_are_refused(name):
    model = net(lambda w, x: w @ x, tanh=lambda a: a)
    rounded = with_output(model, lambda y: y.astype("bfloat16"))
    with pytest.raises(TypeError, match=r"`model\(x\)` has dtype bfloat16, .* expected float32"):
        CALLING[name](rounded, X, Y)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long if n in LONG else ()) for n in CALLING]
)
def test_examples_of_less_precision_are_what_they_are(name, dtype):
    """Computed in the precision of the model: what enters its first layer is in its kernels."""
    x = X.astype(dtype)
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"):
        warnings.simplefilter("ignore")  # validity of an expansion of so narrow a network
        found = CALLING[name](tanh_mlp(in_size=5), x, Y)
        expected = CALLING[name](tanh_mlp(in_size=5), x.astype(float), Y)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-13)


@pytest.mark.long
@pytest.mark.parametrize("name", CALLING)
def test_examples_of_more_precision(name):
    model = astype(tanh_mlp(in_size=5), "float32")
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"):
        warnings.simplefilter("ignore")
        found = CALLING[name](model, X, Y)
        expected = CALLING[name](astype(model, float), X, Y)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", sorted(CALLING.keys() - {"taylorize"}))
def test_complex_outputs_are_refused_by_name(name):
    keys = jr.split(jr.key(0))
    model = Sum(jr.normal(keys[0], (2, 5)), jr.normal(keys[1], (2, 5)))
    expected = re.escape(f"`{CALLED.get(name, 'model')}` gives outputs of dtype complex128")
    with pytest.raises(TypeError, match=expected):
        CALLING[name](model, X, Y)


class Sum(eqx.Module):
    w: Any
    v: Any

    def __call__(self, x):
        return jax.lax.complex(self.w @ x, self.v @ x)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long if n in LONG else ()) for n in CALLING]
)
def test_tokens_are_what_their_counts_are(name):
    """The sum of columns of W is W times the counts of the tokens, whatever is computed of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # validity of an expansion of so narrow a network
        found = CALLING[name](net(embedded), TOKENS, Y)
        expected = CALLING[name](net(dense), COUNTS, Y)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


class Stateful(Net):
    """Its features are shifted by running statistics, and by what an index of them starts from."""

    index: Any
    state: Any

    def __init__(self, like):
        self.w, self.head, self.features, self.tanh = like.w, like.head, like.features, like.tanh
        self.index = eqx.nn.StateIndex(SHIFT)
        self.state = eqx.nn.State(self.index)

    def __call__(self, x):
        shift = self.state.get(self.index) + self.index.init
        return self.head(self.tanh(self.features(self.w, x) + shift))


SHIFT = jnp.array([0.1, -0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.long if n in LONG else ()) for n in ENTRIES],
)
def test_state_is_a_constant(name):
    """Of a model that holds an `equinox.nn.State`: as of one whose shift is written in its code."""
    found = ENTRIES[name](Stateful(net(dense)), X, Y)
    expected = ENTRIES[name](net(lambda w, x: w @ x + 2 * SHIFT), X, Y)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


@jax.custom_vjp
def tanh_in_reverse(z):
    return jnp.tanh(z)


tanh_in_reverse.defvjp(
    lambda z: (jnp.tanh(z),) * 2, lambda value, cotangent: (cotangent * (1 - value**2),)
)


@pytest.mark.parametrize("name", FORWARD)
def test_rules_for_reverse_mode_alone_are_refused_where_forward_mode_is_needed(name):
    with pytest.raises(ForwardModeError, match=r"`model` has a rule for reverse-mode .*only"):
        FORWARD[name](net(dense, tanh_in_reverse), X, Y)


@pytest.mark.parametrize("name", ANY)
def test_rules_for_reverse_mode_alone_are_enough_elsewhere(name):
    found = ANY[name](net(dense, tanh_in_reverse), X, Y)
    np.testing.assert_allclose(found, ANY[name](net(dense), X, Y), rtol=1e-6, atol=1e-12)


def test_booleans_are_examples():
    masks = X > 0

    def chosen(w, x):
        return w @ jnp.where(x, 1.0, 0.0)

    found = corrections.ntk(net(chosen), masks)
    np.testing.assert_allclose(found, corrections.ntk(net(dense), masks.astype(float)), rtol=1e-12)


@pytest.mark.parametrize("x", [jnp.ones((3, 5), complex), np.array(["a", "b"])])
def test_other_examples_are_refused(x, unchecked):
    with pytest.raises(TypeError, match="`x1`"):
        corrections.ntk(net(dense), x)


@pytest.mark.parametrize(
    "model", [tanh_mlp(in_size=4), CNN((1, 2, 2), 2, channels=2, depth=1, key=jr.key(0))]
)
def test_networks_of_floats_say_so(model, unchecked):
    shape = (3, 4) if isinstance(model, MLP) else (3, 1, 2, 2)
    with pytest.raises(ValueError, match=r"`model` does not take .*real floating-point numbers"):
        corrections.ntk(model, jnp.ones(shape, int))
    with pytest.raises(TypeError, match="`x1` has dtype int64, expected real floating-point"):
        limit(model).ntk(jnp.ones(shape, int))


def test_path_primitive_refuses_complex_numbers():
    theta = {"w": jnp.ones(2, complex)}
    with pytest.raises(TypeError, match=r"`theta` has the complex parameter `theta\['w'\]`"):
        corrections.taylor_coefficients(lambda p: p["w"], theta, [theta], 1)


def test_taylor_models_without_forward_mode_are_refused_where_they_train():
    taylor = corrections.taylorize(net(dense, tanh_in_reverse), 1)
    with pytest.raises(ForwardModeError, match="`model` has a rule for reverse-mode"):
        solvers.train(taylor, X, Y, loss=LOSS, optimizer=SGD, steps=1)


@pytest.mark.long
def test_stored_kernels_of_order_2_do_without_forward_mode():
    options = {"loss": LOSS, "order": 2, "method": "dense"}
    found, expected = (
        solvers.hierarchy_flow(net(dense, tanh), X, Y, TS, **options).train
        for tanh in (tanh_in_reverse, jnp.tanh)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-10)
