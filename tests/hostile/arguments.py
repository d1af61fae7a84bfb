"""Every argument of a public function: its kind, and a valid value of it.

One table. An argument is looked up as `function.argument`, then by its name alone.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optax

import corrections
import solvers
import zoo
from tests.models import tanh_mlp
from zoo import MLP, NTK, parameters, STANDARD

X = np.array([[1.0, -2.0], [0.5, 1.0], [-1.0, 3.0]])
X_TEST = np.array([[2.0, 1.0], [0.0, -1.0]])
Y = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
Y_TEST = np.array([[0.0, 1.0], [1.0, 0.0]])
F = np.array([[0.5, -1.0], [2.0, 0.25], [-0.5, 1.0]])
F_TEST = np.array([[0.5, 1.0], [-1.0, 0.25]])
KERNEL = np.array([[4.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 2.0]])
KERNEL_TEST = np.array([[1.0, 0.5, 0.25], [0.5, 1.0, -1.0]])
KERNEL_TEST_TEST = np.array([[3.0, 0.5], [0.5, 4.0]])
ANOTHER_KERNEL = np.array([[3.0, 0.5, 1.0], [0.5, 2.0, 0.0], [1.0, 0.0, 4.0]])
TS = np.array([0.5, 2.0])
LOSS = solvers.MeanSquaredError()
SGD = optax.sgd(0.125)


@functools.cache
def model(seed: int = 0) -> MLP:
    """The network that is asked: tanh units, width 4."""
    return tanh_mlp(seed, in_size=2, out_size=2, width=4, depth=1)


@functools.cache
def _stacked() -> MLP:
    """Two networks like it, stacked."""
    return eqx.filter_vmap(
        lambda key: MLP(2, 2, width=4, depth=1, activation="tanh", bias_std=0.5, key=key)
    )(jr.split(jr.key(0), 2))


def _state_of_two() -> solvers.TrainingState:
    return eqx.filter_vmap(solvers.initial_state, in_axes=(0, None))(_stacked(), SGD)


def direction(seed: int = 0) -> Any:
    """A displacement of its parameters."""
    return jax.tree.map(lambda p: 0.25 * jnp.cos(p), parameters(model(seed)))


def operator(matrix: np.ndarray = KERNEL) -> lx.MatrixLinearOperator:
    """A kernel as an operator on the outputs of one unit."""
    return lx.MatrixLinearOperator(jnp.asarray(matrix), lx.symmetric_tag)


def covariance(x1: Any, x2: Any = None) -> Any:
    """The kernel of a polynomial of second degree."""
    return (x1 @ (x1 if x2 is None else x2).T + 1) ** 2


def zero_one(f: Any, y: Any) -> Any:
    """A loss without derivatives."""
    return jnp.sum(jnp.abs(f - y))


OF_KERNELS = (
    "ensemble",
    "gradient_descent",
    "gradient_flow",
    "kernel_target_alignment",
    "mse_descent",
    "mse_flow",
    "mse_flow_operator",
    "posterior",
    "spectrum",
)
"""Functions of a kernel that is the same for any number of outputs."""

ARGUMENTS: dict[str, tuple[str, Callable[[], Any]]] = {
    # arrays
    "kernel": ("kernel", lambda: KERNEL),
    "kernel_distance.first": ("rows", lambda: KERNEL),
    "kernel_distance.second": ("rows", lambda: ANOTHER_KERNEL),
    "kernel_test": ("examples", lambda: KERNEL_TEST),
    "kernel_test_test": ("kernel", lambda: KERNEL_TEST_TEST),
    "kernels": ("kernels", lambda: [KERNEL, ANOTHER_KERNEL, KERNEL_TEST.T @ KERNEL_TEST]),
    "relative_change.before": ("rows", lambda: KERNEL),
    "relative_change.after": ("rows", lambda: ANOTHER_KERNEL),
    "mse_flow_operator.kernel": ("operator", operator),
    "mse_flow_operator.kernel_test": ("other", lambda: lx.MatrixLinearOperator(KERNEL_TEST)),
    "operator": ("operator", operator),
    "x": ("examples", lambda: X),
    "ensemble.x": ("floats", lambda: X),
    "KernelBlocks.x1": ("floats", lambda: X),
    "x1": ("examples", lambda: X),
    "x2": ("examples", lambda: X_TEST),
    "x3": ("examples", lambda: X_TEST),
    "x4": ("examples", lambda: X_TEST),
    "x_test": ("examples", lambda: X_TEST),
    "xs": ("examples", lambda: X),
    "record.x": ("columns", lambda: X[0]),
    "step.x": ("array", lambda: X),
    "y": ("rows", lambda: Y),
    **{f"{function}.y": ("columns", lambda: Y) for function in OF_KERNELS},
    "y_test": ("rows", lambda: Y_TEST),
    "f0": ("rows", lambda: F),
    "f0_test": ("rows", lambda: F_TEST),
    "g": ("rows", lambda: F),
    "coefficients": ("rows", lambda: F),
    "weights": ("columns", lambda: np.array([1.0, 2.0, 1.0])),
    "losses": ("floats", lambda: np.array([1.0, 1.5, 0.5, 0.25])),
    "kernel_pairs": ("pairs", lambda: (X_TEST, X)),
    # times and counts
    "ts": ("times", lambda: TS),
    "kernel_velocity.ts": ("moments", lambda: np.array([0.5, 1.0, 2.0])),
    "mse_descent.steps": ("step counts", lambda: [1, 4]),
    "gradient_descent.steps": ("step counts", lambda: [1, 4]),
    "width_expansion_descent.steps": ("step counts", lambda: [1, 4]),
    "record_at": ("step counts", lambda: [1, 4]),
    "batches": ("indices", lambda: np.array([[0, 1], [2, 0]])),
    "steps": ("count", lambda: 4),
    "max_steps": ("count", lambda: 10_000),
    "max_iterations": ("count", lambda: 50),
    "matvecs": ("count", lambda: 20),
    "iterations": ("count", lambda: 20),
    "samples": ("count", lambda: 4),
    "n_samples": ("count", lambda: 4),
    "starts": ("count", lambda: 2),
    "points": ("count", lambda: 3),
    "count": ("count", lambda: 2),
    "terms": ("count", lambda: 64),
    "per_decade": ("count", lambda: 3),
    "n": ("count", lambda: 3),
    "max_stages": ("count", lambda: 64),
    "batch_size": ("chunk", lambda: 2),
    "train.batch_size": ("count", lambda: 2),
    "train_ensemble.batch_size": ("count", lambda: 2),
    "spawn.batch_size": ("count", lambda: 2),
    "preconditioner_rank": ("order", lambda: 2),
    "order": ("order", lambda: 2),
    "degree": ("order", lambda: 3),
    "seed": ("order", lambda: 1),
    "n_train": ("count", lambda: 3),
    "n_test": ("count", lambda: 1),
    "outputs": ("choice", lambda: "mean"),
    # sizes of networks
    "in_size": ("count", lambda: 2),
    "out_size": ("count", lambda: 2),
    "width": ("count", lambda: 4),
    "depth": ("order", lambda: 1),
    "WideResNet.depth": ("count", lambda: 10),
    "widen": ("count", lambda: 1),
    "base_channels": ("count", lambda: 2),
    "channels": ("count", lambda: 2),
    "load.channels": ("choice", lambda: "last"),
    "from_hugging_face.channels": ("choice", lambda: "last"),
    "in_channels": ("count", lambda: 1),
    "out_channels": ("count", lambda: 2),
    "groups": ("count", lambda: 2),
    "kernel_size": ("shape", lambda: (3, 3)),
    "stride": ("shape", lambda: (1, 1)),
    "in_shape": ("shape", lambda: (1, 4, 4)),
    "summary.in_shape": ("shape", lambda: (2,)),
    "channel_axis": ("axis", lambda: 0),
    # numbers
    "learning_rate": ("positive", lambda: 0.125),
    "width_expansion.learning_rate": ("nonnegative", lambda: 0.125),
    "momentum": ("share", lambda: 0.5),
    "BatchNorm.momentum": ("part", lambda: 0.5),
    "diag_reg": ("nonnegative", lambda: 0.5),
    "ridge": ("nonnegative", lambda: 0.5),
    "noise": ("nonnegative", lambda: 0.5),
    "friction": ("nonnegative", lambda: 2.0),
    "distance": ("positive", lambda: 0.0625),
    "alpha": ("positive", lambda: 2.0),
    "epsilon": ("nonnegative", lambda: 0.5),
    "weight_std": ("nonnegative", lambda: 1.5),
    "bias_std": ("nonnegative", lambda: 0.5),
    "readout_std": ("nonnegative", lambda: 0.5),
    "fraction": ("real", lambda: 0.25),
    "rate_power": ("real", lambda: 0.5),
    "label_smoothing": ("share", lambda: 0.125),
    "AtLoss.value": ("nonnegative", lambda: 0.125),
    "AtAccuracy.value": ("part", lambda: 0.5),
    "catapult_map.f": ("real", lambda: 1.0),
    "catapult_map.kernel": ("positive", lambda: 2.0),
    "rtol": ("tolerance", lambda: 1e-4),
    "atol": ("tolerance", lambda: 1e-6),
    # choices and flags
    "which": ("choice", lambda: "smallest"),
    "kind": ("choice", lambda: "II"),
    "method": ("choice", lambda: "auto"),
    "hierarchy_flow.method": ("choice", lambda: "dense"),
    "width_expansion.method": ("choice", lambda: "dense"),
    "width_expansion_descent.method": ("choice", lambda: "dense"),
    "compare_predictions.method": ("choice", lambda: "dense"),
    "posterior.method": ("choice", lambda: "iterative"),
    "diag_reg_scale": ("choice", lambda: "relative"),
    "match": ("choice", lambda: "time"),
    "offset": ("choice", lambda: "zero"),
    "space": ("choice", lambda: "probabilities"),
    "part": ("choice", lambda: "gauss_newton"),
    "padding": ("choice", lambda: "VALID"),
    "readout": ("choice", lambda: "mean"),
    "role": ("choice", lambda: "readout"),
    "norm": ("choice", lambda: "layer"),
    "normalize": ("choice", lambda: "sphere"),
    "learning_rates.optimizer": ("choice", lambda: "sgd"),
    "predictions": ("choices", lambda: ["order 2"]),
    "dtype": ("choice", lambda: "float32"),
    "with_output.output": ("name", lambda: "tanh"),
    "activation": ("name", lambda: "tanh"),
    "load.name": ("name", lambda: "digits"),
    "root": ("other", lambda: "."),
    "memory_limit.size": ("count", lambda: 2**30),
    "image": ("name", lambda: "image"),
    "label": ("name", lambda: "label"),
    "classes": ("labels", lambda: [0, 1]),
    "throw": ("flag", lambda: True),
    "nesterov": ("flag", lambda: True),
    "record_outputs": ("flag", lambda: True),
    "batched": ("flag", lambda: True),
    # networks and trees like them
    "model": ("model", model),
    "models": ("models", lambda: [model(0), model(1)]),
    "train_ensemble.models": ("model", _stacked),
    "train_ensemble.state": ("other", _state_of_two),
    "weight_path.models": ("models", lambda: [model(0), model(1), model(2)]),
    "first": ("model", model),
    "second": ("model", lambda: model(1)),
    "at": ("model", lambda: model(1)),
    "astype.model": ("anything", model),
    "parameters.model": ("anything", model),
    "learning_rates.model": ("anything", model),
    "displacement": ("direction", direction),
    "theta": ("direction", direction),
    "NTKCoefficient.kernel": ("other", lambda: corrections.NTKOperator(model(), X)),
    "path": ("directions", lambda: [direction(1), direction(2)]),
    "metric": ("metric", lambda: 2.0),
    "parameterization": ("other", lambda: NTK),
    "reparameterize.parameterization": ("other", lambda: STANDARD),
    "equivalent_to": ("other", lambda: NTK),
    "Frozen.tree": ("anything", model),
    "layers": ("others", lambda: [jnp.tanh, jnp.cos]),
    # functions
    "loss": ("loss", lambda: LOSS),
    "risk": ("loss", lambda: zero_one),
    "kernel_fn": ("function", lambda: covariance),
    "nngp": ("function", lambda: covariance),
    "ensemble.ntk": ("function", lambda: covariance),
    "model_fn": ("function", lambda: lambda key: model()),
    "metric_fn": ("function", lambda: lambda net: 2.0),
    "fn": ("traced", lambda: lambda p: jax.vmap(_with(p))(jnp.asarray(X))),
    "preactivations": ("called back", lambda: lambda net, x: net(x)),
    "function": ("called back", lambda: jnp.tanh),
    "started": ("other", lambda: lambda name: None),
    "patches": ("other", lambda: lambda layer, a: a[None]),
    "multipliers": ("other", lambda: lambda layer: (1.0, 1.0)),
    "applies": ("other", lambda: lambda layer: True),
    "rows": ("other", lambda: lambda layer: 3),
    "matrix": ("other", lambda: lambda layer, matrix: matrix),
    "transposed": ("other", lambda: _transposed()),
    "rule": ("other", lambda: zoo.ContractionRule(lambda layer, a: a[None])),
    "make_rule": ("other", lambda: lambda layer, widths: None),
    # objects
    "key": ("key", lambda: jr.key(0)),
    "keys": ("keys", lambda: [jr.key(0), jr.key(1)]),
    "optimizer": ("other", lambda: SGD),
    "progress": ("other", diffrax.NoProgressMeter),
    "solver": ("other", diffrax.Tsit5),
    "stop": ("other", lambda: solvers.AtLoss(0.125)),
    "callbacks": ("other", lambda: {"size": lambda state: 1.0}),
    "state": ("other", lambda: solvers.initial_state(model(), SGD)),
    "parent": ("other", lambda: solvers.initial_state(model(), SGD)),
    "gradient_flow.start": ("other", lambda: (F,)),
    "gradient_descent.start": ("other", lambda: (F, 0 * F, np.zeros((), np.int32))),
    "hierarchy_flow.start": ("other", lambda: None),
    "layer_type": ("other", lambda: _Layer),
    "dataset": ("other", lambda: _dataset()),
    "module": ("other", lambda: _flax()[0]),
    "variables": ("other", lambda: _flax()[1]),
    "call_options": ("anything", lambda: None),
    "max_learning_rate.n": ("count", lambda: 3),
}
"""Argument -> its kind (`values.KINDS`), and what gives a valid value."""

NEEDS = {
    "f0_test": ["kernel_test"],
    "kernel_test_test": ["kernel_test"],
    "y_test": ["x_test"],
    "x_test": ["y_test"],
    "batch_size": ["key"],
    "distance": ["match"],
    "diag_reg_scale": ["diag_reg"],
    "x3": ["x2"],
    "x4": ["x2", "x3"],
    "nesterov": ["momentum"],
    "momentum": ["learning_rate"],
    "module": ["variables"],
    "variables": ["module"],
}
"""Arguments that are given with another one, where the function has them."""


def _transposed() -> zoo.Transposed:
    return zoo.Transposed(lambda layer, delta: delta[None], lambda layer, matrix: matrix)


class _Layer:
    """A layer to be registered."""


def _with(params: Any) -> Any:
    return eqx.combine(params, model())


@functools.cache
def _dataset() -> Any:
    import datasets

    images = np.arange(5 * 16).reshape(5, 4, 4) % 7 / 7
    return datasets.Dataset.from_dict({"image": images.tolist(), "label": [0, 1, 0, 1, 1]})


@functools.cache
def _flax() -> tuple[Any, Any]:
    from flax import linen

    module = linen.Dense(2)
    return module, module.init(jr.key(0), jnp.ones((1, 2)))


def kind_and_value(function: str, argument: str) -> tuple[str, Callable[[], Any]]:
    """**Raises:** `KeyError` where the argument is not in the table."""
    found = ARGUMENTS.get(f"{function}.{argument}") or ARGUMENTS.get(argument)
    if found is None:
        raise KeyError(f"`{argument}` of `{function}` has no kind: add it to `ARGUMENTS`.")
    return found


def required(fn: Callable[..., Any]) -> list[str]:
    """The arguments without a default."""
    given = inspect.signature(fn).parameters.values()
    empty = inspect.Parameter.empty
    return [p.name for p in given if p.default is empty and p.kind is not p.VAR_KEYWORD]
