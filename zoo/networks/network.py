"""What the architectures share: a body, run on examples of one shape."""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from zoo.common import checks
from zoo.layers.structure import Sequential
from zoo.limits.rule import limit_rule_of, LimitRule
from zoo.limits.widths import LimitWidths
from zoo.parameterization import Role


class Network(eqx.Module):
    """An architecture of the zoo: `MLP`, `CNN`, `WideResNet`.

    `body` is the whole network, layer by layer.
    """

    body: eqx.AbstractVar[Sequential]

    @abc.abstractmethod
    def _example(self, x: Any) -> Array:
        """`x` as the one example that the body takes; raises where it is none."""

    def __call__(
        self, x: Float[Array, "..."], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " k"]:
        """The outputs for one example; use `jax.vmap(model)` for a batch."""
        return self.body(self._example(x), key=key)

    def limit_rule(self, widths: LimitWidths) -> LimitRule:
        """What it does to the kernels of infinite width; see `zoo.limits`."""
        return limit_rule_of(self.body, widths.at(".body"))

    def forward_train(self, xs: Float[Array, "n ..."]) -> tuple[Float[Array, "n k"], "Network"]:
        """See `zoo.forward_train`."""
        outputs, body = self.body.forward_train(jax.vmap(self._example)(xs))
        return outputs, eqx.tree_at(lambda network: network.body, self, body)


def layer_sizes(name: str, size: int | Sequence[int], depth: int | None) -> tuple[int, ...]:
    """The size of each hidden layer, from one number or from all of them.

    **Raises:** `ValueError` for sizes that are no positive integers, a depth that is missing,
    negative, or contradicts the number of sizes.
    """
    if isinstance(size, Sequence):
        for i, entry in enumerate(size):
            checks.size(f"{name}[{i}]", entry)
        if depth is not None and depth != len(size):
            raise ValueError(
                f"`depth` is {depth} but `{name}` lists {len(size)} hidden layers, expected the "
                "same number (or leave `depth` out)."
            )
        return tuple(size)
    checks.size(name, size)
    if depth is None:
        raise ValueError(
            f"`depth` is missing: `{name}={size}` is one number for all hidden layers, expected "
            "`depth` to say how many there are (or a sequence, one number for each layer)."
        )
    depth = checks.integer("depth", depth, least=0)
    return (size,) * depth


def role_of_layer(index: int, depth: int) -> Role:
    """The role of layer `index` in a network of `depth` hidden layers and a readout."""
    return "readout" if index == depth else "input" if index == 0 else "hidden"


def image_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """A channel-first image shape: channels, then at least one spatial axis.

    **Raises:** `ValueError` for anything else.
    """
    if not isinstance(shape, Sequence) or len(shape) < 2:
        raise ValueError(
            f"`{name}` is {shape!r}, expected the shape of a channel-first image, such as "
            "(3, 32, 32)."
        )
    for i, entry in enumerate(shape):
        checks.size(f"{name}[{i}]", entry)
    return tuple(int(entry) for entry in shape)
