r"""Convolutional networks.

    f(x) = readout(pool(phi(conv_L(... phi(conv_1(x)) ...))))

with L convolutions; `pool` flattens, or takes the mean over positions.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, get_args, Literal

import equinox as eqx
import jax.random as jr
from jaxtyping import Array, PRNGKeyArray

from zoo.common import checks
from zoo.convolution import output_space, Padding, PADDINGS, per_axis
from zoo.layers.activations import activation_function
from zoo.layers.affine import Conv, Dense
from zoo.layers.structure import Flatten, GlobalAveragePool, Sequential
from zoo.networks.network import image_shape, layer_sizes, Network, role_of_layer
from zoo.parameterization import NTK, Parameterization

Readout = Literal["flatten", "mean"]


class CNN(Network):
    """A convolutional network: one channel-first image in, a vector of `out_size` outputs out."""

    body: Sequential
    in_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        in_shape: Sequence[int],
        out_size: int,
        *,
        channels: int | Sequence[int],
        depth: int | None = None,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding: Padding = "SAME",
        readout: Readout = "flatten",
        activation: str | Callable[[Array], Array] = "relu",
        parameterization: Parameterization = NTK,
        weight_std: float = math.sqrt(2.0),
        bias_std: float | None = None,
        readout_std: float | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_shape`: of one example, (channels, height, width); any number of spatial axes.
        - `out_size`: number of outputs k.
        - `channels`: of every convolution, or of each.
        - `depth`: number of convolutions; may be left out where `channels` is a sequence.
        - `kernel_size`, `stride`: of every convolution; one number, or one for each spatial axis.
        - `padding`: "SAME" (XLA's: zeros, output length ceil(n / stride)), "VALID" or "CIRCULAR"
          (as much padding, periodic).
        - `readout`: what the readout sees: "flatten", every channel at every position, or "mean",
          the mean of each channel over positions.
        - `activation`, `parameterization`, `weight_std`, `bias_std`, `readout_std`, `key`: as in
          `MLP`; the fan-in of a convolution is its channels times the positions of its kernel.

        **Raises:** `ValueError` for shapes and sizes that are not positive integers, a `depth` that
        is negative or contradicts `channels`, a "VALID" kernel longer than the image it meets, a
        std that is not a finite number >= 0, an unknown padding, readout or activation; `TypeError`
        for a parameterization or an activation that is none.
        """
        checks.choice("readout", readout, get_args(Readout))
        checks.choice("padding", padding, PADDINGS)
        out_size = checks.size("out_size", out_size)
        if readout_std is not None:
            checks.nonnegative_number("readout_std", readout_std)
        self.in_shape = image_shape("in_shape", in_shape)
        channels_in, *space = self.in_shape
        kernel = per_axis("kernel_size", kernel_size, len(space))
        strides = per_axis("stride", stride, len(space))
        sizes = layer_sizes("channels", channels, depth)
        phi = activation_function(activation)
        shared = {"parameterization": parameterization, "bias_std": bias_std}

        checks.key("key", key)
        *keys, readout_key = jr.split(key, len(sizes) + 1)
        layers: list[Any] = []
        for i, layer_key in enumerate(keys):
            space = output_space(space, kernel=kernel, stride=strides, padding=padding)
            layers += [
                Conv(
                    channels_in,
                    sizes[i],
                    kernel_size=kernel,
                    stride=strides,
                    padding=padding,
                    role=role_of_layer(i, len(sizes)),
                    weight_std=weight_std,
                    key=layer_key,
                    **shared,
                ),
                phi,
            ]
            channels_in = sizes[i]
        pooled = readout == "mean"
        layers += [
            GlobalAveragePool() if pooled else Flatten(),
            Dense(
                channels_in * (1 if pooled else math.prod(space)),
                out_size,
                role="readout",
                weight_std=weight_std if readout_std is None else readout_std,
                key=readout_key,
                **shared,
            ),
        ]
        self.body = Sequential(layers)

    def _example(self, x: Any) -> Array:
        """`x` as one example; raises where it has another shape."""
        return checks.example(x, self.in_shape)
