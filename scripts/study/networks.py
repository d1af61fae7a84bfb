"""The networks of a study: how each is made."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from corrections.parameters import check_outputs
from scripts import runtime
from scripts.study.cells import Cell, families
from scripts.study.config import StudyConfig
from scripts.study.examples import Examples
from zoo import (
    astype,
    learning_rates,
    NTK,
    Parameterization,
    PARAMETERIZATIONS,
    ParameterizedLayer,
    parameters,
    reparameterize,
)


class Network(NamedTuple):
    """A network at its start.

    - `model`: written in NTK parameterization, whatever its own is: all parameterizations share
      their compiled programs then.
    - `metric`: the learning rates under which it trains as in its own parameterization.
    """

    model: Any
    metric: Any


def draw(config: StudyConfig, examples: Examples, cell: Cell) -> Network:
    """Makes the network of a cell: drawn in float32, so that it is the same in both precisions."""
    dtype = jnp.result_type(float)
    with runtime.single_precision():
        drawn = _module(config, examples, cell)
    model = reparameterize(astype(drawn, dtype), NTK)
    rates = _rates(model, PARAMETERIZATIONS[cell.parameterization])
    return Network(model, jax.tree.map(lambda rate: jnp.asarray(rate, dtype), rates))


def prototype(config: StudyConfig, examples: Examples, cell: Cell) -> Any:
    """The network in its own parameterization, of shapes without numbers: what `limit` asks."""
    return eqx.filter_eval_shape(lambda: _module(config, examples, cell))


def check_own(config: StudyConfig, examples: Examples) -> None:
    """Builds the smallest networks of a user's architectures, without numbers.

    **Raises:** `ValueError` that names `architectures` where one cannot be built or trained, or
    does not give the outputs of the data set.
    """
    batch = jax.ShapeDtypeStruct((1, *examples.shape), jnp.result_type(float))
    expected = (examples.outputs,)
    for family in families(config):
        own = config.network(family.architecture).reference
        width = config.widths_of(family.architecture)[0]
        for parameterization in config.parameterizations if own else ():
            cell = Cell(family, config.losses[0], parameterization, width, config.seeds[0])
            try:
                shape = eqx.filter_eval_shape(_outputs_of, config, examples, cell, batch)
            except Exception as error:  # whatever the function does
                raise ValueError(
                    f"`architectures` has {own}, which makes no network that can be studied "
                    f"({cell}: {type(error).__name__}: {error}), expected a model with outputs "
                    f"{expected} for an example {examples.shape}."
                ) from error
            if shape != expected:
                raise ValueError(
                    f"`architectures` has {own}, whose model gives outputs {shape} for an example "
                    f"{examples.shape} ({cell}), expected {expected}."
                )


def _outputs_of(config: StudyConfig, examples: Examples, cell: Cell, x: Array) -> tuple[int, ...]:
    """The shape of an example's outputs, for a network that can be differentiated as flows do."""
    model = _module(config, examples, cell)
    _rates(model, PARAMETERIZATIONS[cell.parameterization])
    return check_outputs(model, "x_train", x, forward_mode=True).shape


def _rates(model: Any, own: Parameterization) -> Any:
    """The learning rates in its own parameterization: 1 where no layer of the model has one."""
    nodes = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, ParameterizedLayer))
    if any(isinstance(node, ParameterizedLayer) for node in nodes):
        return learning_rates(model, equivalent_to=own)
    return jax.tree.map(lambda _: 1.0, parameters(model))


def _module(config: StudyConfig, examples: Examples, cell: Cell) -> Any:
    architecture = config.network(cell.family.architecture)
    values = {name: getattr(config, field) for field, name in architecture.options}
    return architecture.make(
        examples.shape,
        examples.outputs,
        width=cell.width,
        depth=cell.family.depth,
        activation=cell.family.activation,
        parameterization=PARAMETERIZATIONS[cell.parameterization],
        key=jr.fold_in(jr.key(cell.seed), cell.width),
        # What a config leaves out has a word, or the number 0, there.
        **{name: None if value in ("none", 0.0) else value for name, value in values.items()},
    )
