"""Every exception and warning travels between processes, with what it carries."""

import ast
import concurrent.futures
import copy
import importlib
import inspect
import multiprocessing
import pickle
import pkgutil

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import corrections
import scripts
import solvers
import zoo
from corrections import taylorize
from solvers import (
    ExpansionError,
    gradient_flow,
    MeanSquaredError,
    parameter_flow,
    posterior,
    PredictionError,
    RESULTS,
    SolverError,
    train,
    TrainingError,
    WidthExpansion,
)
from solvers.expansion.record import finish
from zoo import ACTIVATIONS, MLP
from zoo.common.pickling import PicklableException

X = np.linspace(-1.0, 1.0, 12).reshape(4, 3)
Y = np.stack([np.sin(X[:, 0]), X[:, 1] ** 2], axis=1)
SQUARED = MeanSquaredError()


def network(activation="relu"):
    return MLP(3, 2, width=4, depth=1, activation=activation, key=jr.key(0))


def solver_error():
    gradient_flow(jnp.eye(4), Y, [1e3], loss=SQUARED, max_steps=5)


def solver_error_of_parameters():
    parameter_flow(network(), X, Y, [1e3], loss=SQUARED, max_steps=5)


def training_error(model=None, loss=SQUARED, steps=20):
    """A callback fails after seven steps, with an optimiser whose state has many parts."""
    schedule = optax.exponential_decay(1e-2, 5, 0.5)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    model = network() if model is None else model
    calls = []

    def bias(model):
        calls.append(1)
        return [][0] if len(calls) == 3 else jax.tree.leaves(eqx.filter(model, eqx.is_array))[0]

    options = {"record_at": [0, 3, 7], "callbacks": {"bias": bias}}
    train(model, X, Y, loss=loss, optimizer=optimizer, steps=steps, **options)


def training_error_of_a_function_without_a_name():
    training_error(network(lambda a: jnp.tanh(2 * a)))


def expansion_error():
    rows = jnp.zeros((2, 4, 2))
    valid = jnp.array([True, False])
    kernel = jnp.eye(8).reshape(4, 2, 4, 2)
    ratio = jnp.array([0.1, 0.2])
    expansion = WidthExpansion(
        jnp.ones(2), rows, rows, None, None, kernel, None, ratio, valid, RESULTS.no_limit
    )
    finish(expansion, throw=True)


def prediction_error():
    posterior(-jnp.eye(4), Y)


class Unreadable:
    """Pickles, and cannot be read."""

    def __reduce__(self):
        return int, ("no number",)


class Plain(PicklableException, ValueError):
    """A new error with a constructor of its own."""

    def __init__(self, *, where, what):
        super().__init__(f"{what} at {where}")
        self.where, self.what = where, what


RAISED_BY = {
    SolverError: solver_error,
    TrainingError: training_error,
    ExpansionError: expansion_error,
    PredictionError: prediction_error,
}
"""How to get the exceptions whose constructors take more than a message."""


def modules():
    for package in (zoo, corrections, solvers, scripts):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            spec = found.module_finder.find_spec(found.name, None)
            assert spec is not None
            yield found.name, spec.origin


def exceptions_of_the_packages():
    """Every class of an exception or a warning that some module defines."""
    kinds = []
    for name, file in modules():
        with open(file) as source:
            defines = [n for n in ast.walk(ast.parse(source.read())) if isinstance(n, ast.ClassDef)]
        if not defines:  # commands set up their process as they are imported
            continue
        members = vars(importlib.import_module(name)).values()
        kinds += [
            member
            for member in members
            if inspect.isclass(member)
            and issubclass(member, BaseException)
            and member.__module__ == name
        ]
    return kinds


KINDS = exceptions_of_the_packages()


def raised(kind):
    if kind not in RAISED_BY:
        return kind("what went wrong")
    with pytest.raises(kind) as caught:
        RAISED_BY[kind]()
    return caught.value


def equal(a, b):
    """Whether two trees are the same, NaN where NaN is."""

    def known(leaf):
        return jnp.nan_to_num(leaf) if eqx.is_inexact_array(leaf) else leaf

    return bool(eqx.tree_equal(jax.tree.map(known, a), jax.tree.map(known, b)))


def assert_same(found, error):
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert found.args == error.args
    assert vars(found).keys() == vars(error).keys()
    for name, value in vars(error).items():
        assert equal(getattr(found, name), value), name


def test_the_walk_finds_what_is_there():
    names = {kind.__name__ for kind in KINDS}
    assert {kind.__name__ for kind in RAISED_BY} < names
    assert {"NoLimitError", "QuadratureWarning", "KinkWarning", "StudyError"} < names


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_exceptions_pickle_with_what_they_carry(kind):
    error = raised(kind)
    error.add_note("seen in a worker")
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert_same(pickle.loads(pickle.dumps(error, protocol)), error)
    assert_same(copy.copy(error), error)
    assert str(copy.deepcopy(error)) == str(error)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_networks_travel_in_errors(name):
    """Functions that JAX has wrapped do not pickle by themselves."""
    for model in (network(name), taylorize(network(name), 1)):
        found = pickle.loads(pickle.dumps(Plain(where=0, what=model))).what
        assert bool(eqx.tree_equal(found, model))
        np.testing.assert_array_equal(jax.vmap(found)(X), jax.vmap(model)(X))


def test_what_cannot_travel_is_none_and_a_note_says_why():
    with pytest.raises(TrainingError) as caught:
        training_error_of_a_function_without_a_name()
    error = caught.value
    found = pickle.loads(pickle.dumps(error))
    assert found.partial is None
    assert (str(found), found.before) == (str(error), [])
    assert found.__notes__[0].startswith("`.partial` is None here: it could not be pickled (")
    assert "<lambda>" in found.__notes__[0]
    assert str(pickle.loads(pickle.dumps(found))) == str(error)
    # A copy within the process keeps everything.
    assert copy.copy(error).partial is error.partial
    assert copy.deepcopy(error).partial.failure == error.partial.failure


def test_what_cannot_be_read_is_none_too():
    found = pickle.loads(pickle.dumps(Plain(where=3, what=Unreadable())))
    assert (found.where, found.what) == (3, None)
    assert "`.what` is None here: it could not be pickled (ValueError" in found.__notes__[0]


def in_64_bits(job):
    """As in this process; another one starts without."""
    jax.config.update("jax_enable_x64", True)
    job()


@pytest.mark.long
def test_errors_come_back_from_another_process():
    jobs = (
        solver_error,
        solver_error_of_parameters,
        training_error,
        training_error_of_a_function_without_a_name,
        expansion_error,
        prediction_error,
    )
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        futures = [pool.submit(in_64_bits, job) for job in jobs]
        found = [future.exception(300) for future in futures]
    for job, there in zip(jobs, found, strict=True):
        with pytest.raises(type(there)) as here:
            job()
        assert str(there) == str(here.value)
        if job is training_error_of_a_function_without_a_name:
            assert there.partial is None
            assert "<lambda>" in there.__notes__[0]
            continue
        assert_near(vars(there), vars(here.value))
    _, network_flow, training, *_ = found
    for model in (network_flow.partial.final, training.partial.model):
        assert jax.vmap(model)(X).shape == (4, 2)


def assert_near(found, expected):
    """The same trees, but for the rounding of other processes."""
    arrays, others = eqx.partition(found, eqx.is_array)
    expected_arrays, expected_others = eqx.partition(expected, eqx.is_array)
    assert bool(eqx.tree_equal(others, expected_others))
    for one, other in zip(*map(jax.tree.leaves, (arrays, expected_arrays)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
