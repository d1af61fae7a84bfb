r"""Fully connected networks.

    f(x) = readout(phi(layer_L(... phi(layer_1(x)) ...))),     each layer z = m W a (+ m_b b)

with L hidden layers; the multipliers m and the initial scales are the parameterization's.
"""

import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from zoo import checks
from zoo.activations import activation_function
from zoo.layers import Dense
from zoo.parameterization import NTK, Parameterization


class MLP(eqx.Module):
    """A multilayer perceptron: one example in, a vector of `out_size` outputs out."""

    layers: tuple[Dense, ...]
    activation: Callable[[Array], Array] = eqx.field(static=True)

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
        - `activation`: a name of `zoo.ACTIVATIONS` or a pointwise function.
        - `parameterization`: `NTK`, `STANDARD` or a user's own.
        - `weight_std`, `bias_std`: sigma_w and sigma_b of every layer; `bias_std=None` means that
          there are no bias parameters at all.
        - `readout_std`: sigma_w of the readout (default: `weight_std`).
        - `key`: for the initial parameters, which are made in JAX's default float type.

        **Raises:** `ValueError` for sizes or widths that are not positive integers, a `depth` that
        is negative or contradicts `width`, a std that is not a finite number >= 0, an unknown
        activation; `TypeError` for a parameterization that is none.
        """
        if not isinstance(parameterization, Parameterization):
            raise TypeError(
                f"`parameterization` is {parameterization!r}, expected a `zoo.Parameterization` "
                "such as `zoo.NTK` (by name: `zoo.PARAMETERIZATIONS`)."
            )
        if readout_std is not None:
            checks.nonnegative_number("readout_std", readout_std)
        widths = _hidden_widths(width, depth)
        self.activation = activation_function(activation)
        sizes = (in_size, *widths, out_size)
        keys = jr.split(key, len(sizes) - 1)
        layers = []
        for i, layer_key in enumerate(keys):
            is_readout = i == len(widths)
            layers.append(
                Dense(
                    sizes[i],
                    sizes[i + 1],
                    role="readout" if is_readout else "input" if i == 0 else "hidden",
                    parameterization=parameterization,
                    weight_std=(
                        readout_std if is_readout and readout_std is not None else weight_std
                    ),
                    bias_std=bias_std,
                    key=layer_key,
                )
            )
        self.layers = tuple(layers)

    @property
    def in_size(self) -> int:
        """Number of entries of one example."""
        return self.layers[0].weight.shape[-1]

    @property
    def out_size(self) -> int:
        """Number of outputs k."""
        return self.layers[-1].weight.shape[-2]

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, " k"]:
        """The outputs for one example; use `jax.vmap(model)` for a batch."""
        if x.size != self.in_size:
            raise ValueError(
                f"`x` has shape {x.shape}, that is {x.size} entries, expected one example of "
                f"{self.in_size} entries. For a batch use `jax.vmap(model)(xs)`."
            )
        a = jnp.ravel(x)
        for layer in self.layers[:-1]:
            a = self.activation(layer(a))
        return self.layers[-1](a)


def _hidden_widths(width: int | Sequence[int], depth: int | None) -> tuple[int, ...]:
    if isinstance(width, Sequence):
        for i, w in enumerate(width):
            checks.integer(f"width[{i}]", w)
        if depth is not None and depth != len(width):
            raise ValueError(
                f"`depth` is {depth} but `width` lists {len(width)} hidden layers, expected the "
                "same number (or leave `depth` out)."
            )
        return tuple(width)
    checks.integer("width", width)
    if depth is None:
        raise ValueError(
            f"`depth` is missing: `width={width}` is one number for all hidden layers, expected "
            "`depth` to say how many there are (or a sequence of widths)."
        )
    checks.integer("depth", depth, least=0)
    return (width,) * depth
