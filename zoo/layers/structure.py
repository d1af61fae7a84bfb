"""How layers are put together: one after the other, or side by side and added.

The body of every architecture is built of these, so what runs through a network layer by layer (a
summary, the infinite-width limit) is a fold over one structure.
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from zoo.common import checks
from zoo.common.pickling import PicklableFunctions
from zoo.layers import keys
from zoo.layers.training_pass import forward_train
from zoo.limits.composition import ResidualRule, SequentialRule
from zoo.limits.layers import FlattenRule, PoolRule
from zoo.limits.rule import limit_rule_of, register_limit_rule
from zoo.limits.widths import LimitWidths

Layer = Callable[[Array], Array]


class Sequential(PicklableFunctions, eqx.Module):
    """Layers one after the other: layers[-1](... layers[1](layers[0](a)))."""

    layers: tuple[Layer, ...]

    def __init__(self, layers: Sequence[Layer]):
        """**Arguments:**

        - `layers`: callables of one array, in the order they are applied.

        **Raises:** `TypeError` for what is no sequence, or a layer that cannot be called.
        """
        checks.sequence("layers", layers, "a sequence of layers")
        for i, layer in enumerate(layers):
            checks.function(f"layers[{i}]", layer, "a callable of one array")
        self.layers = tuple(layers)

    def __call__(
        self, a: Shaped[Array, "..."], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "..."]:
        """The output of the last layer; each layer that takes a key gets one of its own."""
        for layer, own in zip(self.layers, keys.for_each(key, len(self.layers)), strict=True):
            a = keys.called(layer, a, own)
        return a

    def forward_train(
        self, batch: Shaped[Array, "n ..."]
    ) -> tuple[Float[Array, "n ..."], "Sequential"]:
        """See `zoo.forward_train`."""
        trained = []
        for layer in self.layers:
            batch, layer = forward_train(layer, batch)
            trained.append(layer)
        return batch, type(self)(trained)

    def limit_rule(self, widths: LimitWidths) -> SequentialRule:
        """What it does to the kernels of infinite width; see `zoo.limits`."""
        return _one_after_the_other(self, widths)


def _one_after_the_other(
    sequential: Sequential | eqx.nn.Sequential, widths: LimitWidths
) -> SequentialRule:
    rules = (
        limit_rule_of(layer, widths.at(f".layers[{i}]"))
        for i, layer in enumerate(sequential.layers)
    )
    return SequentialRule(tuple(rules))


register_limit_rule(eqx.nn.Sequential, _one_after_the_other)


class Residual(PicklableFunctions, eqx.Module):
    """A branch and a shortcut around it: branch(a) + shortcut(a).

    `shortcut=None` is the identity.
    """

    branch: Layer
    shortcut: Layer | None = None

    def __call__(
        self, a: Shaped[Array, "..."], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "..."]:
        """The sum; branch and shortcut get keys of their own."""
        first, second = keys.for_each(key, 2)
        added = keys.called(self.branch, a, first)
        return added + (a if self.shortcut is None else keys.called(self.shortcut, a, second))

    def forward_train(
        self, batch: Shaped[Array, "n ..."]
    ) -> tuple[Float[Array, "n ..."], "Residual"]:
        """See `zoo.forward_train`."""
        added, branch = forward_train(self.branch, batch)
        if self.shortcut is None:
            return added + batch, type(self)(branch)
        passed, shortcut = forward_train(self.shortcut, batch)
        return added + passed, type(self)(branch, shortcut)

    def limit_rule(self, widths: LimitWidths) -> ResidualRule:
        """What it does to the kernels of infinite width; see `zoo.limits`."""
        branch = limit_rule_of(self.branch, widths.at(".branch"))
        if self.shortcut is None:
            return ResidualRule(branch, None, widths.path)
        return ResidualRule(
            branch, limit_rule_of(self.shortcut, widths.at(".shortcut")), widths.path
        )


class Flatten(eqx.Module):
    """All entries of an example in one vector, in row-major order."""

    def __call__(
        self, a: Shaped[Array, "..."], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " size"]:
        """The entries of `a`; `key` is not used."""
        del key
        return jnp.ravel(a)

    def limit_rule(self, widths: LimitWidths) -> FlattenRule:
        """What it does to the kernels of infinite width; see `zoo.limits`."""
        del widths
        return FlattenRule()


class GlobalAveragePool(eqx.Module):
    """The mean over all positions, one number for each channel."""

    def __call__(
        self, a: Float[Array, "channels *space"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " channels"]:
        """The means; `key` is not used."""
        del key
        return jnp.mean(a, axis=tuple(range(1, a.ndim)))

    def limit_rule(self, widths: LimitWidths) -> PoolRule:
        """What it does to the kernels of infinite width; see `zoo.limits`."""
        del widths
        return PoolRule()
