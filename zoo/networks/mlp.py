r"""Fully connected networks.

    f(x) = readout(phi(layer_L(... phi(layer_1(x)) ...))),     each layer z = m W a (+ m_b b)

with L hidden layers; the multipliers m and the initial scales are the parameterization's.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.random as jr
from jaxtyping import Array, PRNGKeyArray

from zoo.common import checks
from zoo.layers.activations import activation_function
from zoo.layers.affine import Dense
from zoo.layers.structure import Flatten, Sequential
from zoo.networks.network import layer_sizes, Network, role_of_layer
from zoo.parameterization import NTK, Parameterization


class MLP(Network):
    """A multilayer perceptron: one example in, a vector of `out_size` outputs out.

    `model.layers` are its dense layers, the readout last; `model.body` has the activations too.
    """

    body: Sequential
    in_size: int = eqx.field(static=True)
    out_size: int = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        width: int | Sequence[int],
        depth: int | None = None,
        activation: str | Callable[[Array], Array] = "relu",
        parameterization: Parameterization = NTK,
        weight_std: float = math.sqrt(2.0),
        bias_std: float | None = None,
        readout_std: float | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_size`: number of entries of one example, whatever its shape (it is flattened).
        - `out_size`: number of outputs k.
        - `width`: of every hidden layer, or of each: `[512, 1, 512]` has a bottleneck.
        - `depth`: number of hidden layers; may be left out where `width` is a sequence.
        - `activation`: a name of `zoo.ACTIVATIONS`, an `Activation` or a pointwise function.
        - `parameterization`: `NTK`, `STANDARD`, `MEAN_FIELD`, `MUP` or a user's own.
        - `weight_std`, `bias_std`: sigma_w and sigma_b of every layer; `bias_std=None` means that
          there are no bias parameters at all.
        - `readout_std`: sigma_w of the readout (default: `weight_std`).
        - `key`: for the initial parameters, which are made in JAX's default float type.

        **Raises:** `ValueError` for sizes or widths that are not positive integers, a `depth` that
        is negative or contradicts `width`, a std that is not a finite number >= 0, an unknown
        activation; `TypeError` for a parameterization or an activation that is none.
        """
        if readout_std is not None:
            checks.nonnegative_number("readout_std", readout_std)
        widths = layer_sizes("width", width, depth)
        phi = activation_function(activation)
        sizes = (in_size, *widths, out_size)
        checks.key("key", key)
        keys = jr.split(key, len(sizes) - 1)
        layers: list[Any] = [Flatten()]
        for i, layer_key in enumerate(keys):
            role = role_of_layer(i, len(widths))
            is_readout = role == "readout"
            layers.append(
                Dense(
                    sizes[i],
                    sizes[i + 1],
                    role=role,
                    parameterization=parameterization,
                    weight_std=(
                        readout_std if is_readout and readout_std is not None else weight_std
                    ),
                    bias_std=bias_std,
                    key=layer_key,
                )
            )
            if not is_readout:
                layers.append(phi)
        self.body = Sequential(layers)
        self.in_size, self.out_size = in_size, out_size

    @property
    def layers(self) -> tuple[Dense, ...]:
        """The dense layers, the readout last."""
        return tuple(layer for layer in self.body.layers if isinstance(layer, Dense))

    def _example(self, x: Any) -> Array:
        """`x` as one example; raises where it has another number of entries."""
        x = checks.real_array(
            "x", x, expected=f"one example of {self.in_size} entries", half="kept"
        )
        if x.size != self.in_size:
            raise ValueError(
                f"`x` has shape {x.shape}, that is {x.size} entries, expected one example of "
                f"{self.in_size} entries. For a batch use `jax.vmap(model)(xs)`."
            )
        return x
