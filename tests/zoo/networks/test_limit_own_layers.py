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
    ParameterizedTensor,
    register_limit_rule,
    Sequential,
    STANDARD,
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
        return {"matrix": ParameterizedTensor("weight", 1.0)}

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


class Tripled(Ruled):
    """A subclass that computes something else, and has not said so."""

    def __call__(self, a):
        return 3 * super().__call__(a)


def test_a_rule_of_a_base_class_with_another_call_does_not_count():
    with pytest.raises(NoLimitError, match=r"`model.layers\[0\]` is Tripled, which has no rule"):
        limit(network(64, NTK, own(Tripled)))


class TripledDense(Dense):
    """The same of a layer of the zoo."""

    def __call__(self, a):
        return 3 * super().__call__(a)


def test_nor_does_that_of_a_layer_of_the_zoo():
    model = network(8, NTK, lambda shape, role, _: TripledDense(3, 8, role=role, key=jr.key(0)))
    with pytest.raises(NoLimitError, match=r"`model.layers\[0\]` is TripledDense, which has no"):
        limit(model)


class Foreign(eqx.Module):
    """A layer of another library."""

    def __call__(self, a):
        return 3 * a


class Ninefold(LimitRule):
    def __call__(self, kernels):
        return kernels.mapped(lambda kernel, layout: 9 * kernel)


def with_foreign(kind):
    plain = network(8, NTK, zoo_layer)
    return plain, Sequential([*plain.layers[:2], kind(), plain.layers[2]])


def test_a_layer_of_another_library_is_registered():
    plain, model = with_foreign(Foreign)
    with pytest.raises(NoLimitError, match=r"`model.layers\[2\]` is Foreign, which has no rule"):
        limit(model)
    register_limit_rule(Foreign, lambda layer, widths: Ninefold())
    for found, expected in zip(limit(model).kernels(X), limit(plain).kernels(X), strict=True):
        np.testing.assert_allclose(found, 9 * expected, rtol=1e-12)


def test_a_sequential_of_equinox_has_a_rule():
    plain = network(8, NTK, zoo_layer)
    found = limit(eqx.nn.Sequential(plain.layers)).kernels(X)
    for kernel, expected in zip(found, limit(plain).kernels(X), strict=True):
        np.testing.assert_array_equal(kernel, expected)


class StatesNothing(Foreign):
    """Its rule is none."""

    def limit_rule(self, widths):
        return 9.0


class Unmade(Foreign):
    """Is registered with what makes no rule."""


def test_bad_rules_are_refused(unchecked):
    with pytest.raises(TypeError, match=r"`layer_type` is Foreign\(\), expected a class"):
        register_limit_rule(Foreign(), lambda layer, widths: Ninefold())
    with pytest.raises(TypeError, match=r"`make_rule` is 9.0, expected a function of a layer and"):
        register_limit_rule(Unmade, 9.0)
    expected = "is 9.0, expected a `zoo.LimitRule`"
    with pytest.raises(TypeError, match=rf"`StatesNothing.limit_rule\(widths\)` {expected}"):
        limit(with_foreign(StatesNothing)[1])
    register_limit_rule(Unmade, lambda layer, widths: 9.0)
    with pytest.raises(TypeError, match=rf"`make_rule\(Unmade, widths\)` {expected}"):
        limit(with_foreign(Unmade)[1])
