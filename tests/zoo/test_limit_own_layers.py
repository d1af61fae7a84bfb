"""Layers of a user's own in infinitely wide networks: their widths count as those of the zoo do."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from zoo import (
    ACTIVATIONS,
    Dense,
    limit,
    LimitRule,
    NoLimitError,
    NTK,
    ParameterizedLayer,
    Sequential,
    STANDARD,
    TensorPlace,
)

X = jr.normal(jr.key(1), (4, 3))


class Unruled(ParameterizedLayer):
    """A dense layer that calls its weight `matrix`."""

    matrix: Any
    role: Any = eqx.field(static=True)
    parameterization: Any = eqx.field(static=True)

    @property
    def fans(self):
        return {"fan_in": self.matrix.shape[1], "fan_out": self.matrix.shape[0]}

    @property
    def tensors(self):
        return {"matrix": TensorPlace("weight", 1.0)}

    def like(self, parameterization):
        return type(self)(self.matrix, self.role, parameterization)

    def __call__(self, a):
        return self.multiplier("matrix") * self.matrix @ a


class Ruled(Unruled):
    """The same with the rule of a dense layer."""

    def limit_rule(self, widths):
        of_tensor = widths.tensor(self, "matrix")
        return MatrixRule(of_tensor.forward.factor, of_tensor.gradient.factor, of_tensor)


class MatrixRule(LimitRule):
    forward: float = eqx.field(static=True)
    gradient: float = eqx.field(static=True)
    tensor: Any = eqx.field(static=True)

    def __call__(self, kernels):
        if kernels.tangent and self.tensor.no_gradient is not None:
            raise NoLimitError(self.tensor.no_gradient)
        after = kernels.mapped(lambda kernel, layout: self.forward * kernel)
        ntk = None
        if kernels.tangent:
            ntk = self.gradient * kernels.nngp
            ntk = ntk if kernels.ntk is None else ntk + self.tensor.backward.factor * kernels.ntk
        return after.replaced(ntk=ntk, channels=None, gaussian=True, fresh=True)


class Plain(eqx.Module):
    """Weights in a module that says nothing of a parameterization, at NTK scale."""

    matrix: Any

    def __call__(self, a):
        return self.matrix @ a / jnp.sqrt(len(a))

    def limit_rule(self, widths):
        return Ruled(self.matrix, "input", NTK).limit_rule(widths)


def zoo_layer(shape, role, parameterization):
    return Dense(*shape[::-1], role=role, parameterization=parameterization, key=jr.key(0))


def own(kind):
    def layer(shape, role, parameterization):
        return kind(jr.normal(jr.key(0), shape), role, parameterization)

    return layer


def network(width, parameterization, hidden, readout=zoo_layer):
    layers = [
        hidden((width, 3), "input", parameterization),
        ACTIVATIONS["relu"],
        readout((1, width), "readout", parameterization),
    ]
    return Sequential(layers)


@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize("own_readout", [False, True])
def test_kernels_are_those_of_the_layer_of_the_zoo(width, own_readout):
    readout = own(Ruled) if own_readout else zoo_layer
    for parameterization, options in ((NTK, {}), (STANDARD, {"equivalent_to": NTK})):
        found = limit(network(width, parameterization, own(Ruled), readout), **options).kernels(X)
        expected = limit(network(8, parameterization, zoo_layer), **options).kernels(X)
        np.testing.assert_allclose(found.nngp, expected.nngp, rtol=1e-12)
        np.testing.assert_allclose(found.ntk, expected.ntk, rtol=1e-12)


@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize(
    "hidden", [zoo_layer, own(Ruled), lambda shape, role, _: Plain(jnp.ones(shape))]
)
def test_tangent_kernels_that_grow_with_the_width_are_refused(width, hidden):
    """In standard parameterization under its own rates the readout's part goes like the width."""
    model = Sequential(
        [
            hidden((width, 3), "input", STANDARD),
            ACTIVATIONS["relu"],
            zoo_layer((1, width), "readout", STANDARD),
        ]
    )
    assert limit(model).nngp(X).shape == (4, 4)
    with pytest.raises(NoLimitError, match=r"`weight` of `model.layers\[2\]`.*like width\^1"):
        limit(model).ntk(X)


def test_layers_without_a_rule_are_named():
    with pytest.raises(NoLimitError, match=r"`model.layers\[0\]` is Unruled, which has no rule"):
        limit(network(64, NTK, own(Unruled)))
