r"""Wide residual networks (Zagoruyko & Komodakis 2016, "Wide residual networks", table 1).

A first convolution, three groups of n pre-activation blocks (He et al. 2016), depth 6 n + 4:

    block:   h = phi(norm(a));    a + branch(a),    branch(a) = conv(phi(norm(conv(h))))

with a 1x1 projection of the activated input h in the place of a where channels or stride change;
then norm, phi, the mean over positions and a dense readout.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args, Literal

import equinox as eqx
import jax.random as jr
from jaxtyping import Array, PRNGKeyArray

from zoo.common import checks
from zoo.layers.activations import Activation, activation_function
from zoo.layers.affine import Conv, Dense
from zoo.layers.normalization import BatchNorm, GroupNorm
from zoo.layers.structure import GlobalAveragePool, Residual, Sequential
from zoo.networks.network import image_shape, Network
from zoo.parameterization import NTK, Parameterization

Norm = Literal["layer", "group", "batch"]

MOST_GROUPS, FEWEST_CHANNELS = 32, 4
"""`norm="group"` has as many groups as divide the channels, up to 32 (Wu & He 2018) and with at
least 4 channels each."""


class WideResNet(Network):
    """A wide residual network: one channel-first image in, a vector of `out_size` outputs out."""

    body: Sequential
    in_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        in_shape: Sequence[int],
        out_size: int,
        *,
        depth: int = 10,
        widen: int = 1,
        base_channels: int = 16,
        norm: Norm | None = None,
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
        - `depth`: 6 n + 4 layers: n = 1 block in each of the three groups at depth 10.
        - `widen`: the groups have `base_channels * widen` channels times 1, 2 and 4, and strides 1,
          2 and 2.
        - `base_channels`: channels of the first convolution.
        - `norm`: before every activation. None: nothing; "layer": all channels and positions of an
          example; "group": groups of channels (`MOST_GROUPS`); "batch": `BatchNorm`, whose
          statistics `model(x)` leaves as they are and `zoo.forward_train` moves.
        - `activation`, `parameterization`, `weight_std`, `bias_std`, `readout_std`, `key`: as in
          `MLP`; without a norm every block adds its variance to what comes in.

        **Raises:** `ValueError` for a depth that is not 6 n + 4 with n >= 1, shapes and sizes that
        are not positive integers, a std that is not a finite number >= 0, an unknown norm or
        activation; `TypeError` for a parameterization or an activation that is none.
        """
        depth = checks.integer("depth", depth)
        if depth < 10 or depth % 6 != 4:
            raise ValueError(
                f"`depth` is {depth}, expected 6 n + 4 with n blocks a group: 10, 16, 22, 28, ..."
            )
        out_size = checks.size("out_size", out_size)
        widen = checks.size("widen", widen)
        base_channels = checks.size("base_channels", base_channels)
        checks.choice("norm", norm, (None, *get_args(Norm)))
        if readout_std is not None:
            checks.nonnegative_number("readout_std", readout_std)
        self.in_shape = image_shape("in_shape", in_shape)
        channels_in, *space = self.in_shape
        blocks = (depth - 4) // 6
        checks.key("key", key)
        first_key, readout_key, *block_keys = jr.split(key, 2 + 3 * blocks)
        layers = _Layers(
            axes=len(space),
            norm=norm,
            activation=activation_function(activation),
            parameterization=parameterization,
            weight_std=weight_std,
            bias_std=bias_std,
        )
        body: list[Any] = [layers.conv(channels_in, base_channels, role="input", key=first_key)]
        channels = base_channels
        for i, block_key in enumerate(block_keys):
            group, position = divmod(i, blocks)
            wanted = base_channels * widen * 2**group
            stride = 2 if group > 0 and position == 0 else 1
            body += layers.block(channels, wanted, stride, key=block_key)
            channels = wanted
        body += [
            *layers.normed_activation(channels),
            GlobalAveragePool(),
            Dense(
                channels,
                out_size,
                role="readout",
                parameterization=parameterization,
                weight_std=weight_std if readout_std is None else readout_std,
                bias_std=bias_std,
                key=readout_key,
            ),
        ]
        self.body = Sequential(body)

    def _example(self, x: Any) -> Array:
        """`x` as one example; raises where it has another shape."""
        return checks.example(x, self.in_shape)


@dataclass(frozen=True)
class _Layers:
    """Makes the layers of one network, which share their options."""

    axes: int
    norm: Norm | None
    activation: Activation
    parameterization: Parameterization
    weight_std: float
    bias_std: float | None

    def conv(
        self, channels_in: int, channels: int, *, size: int = 3, key: PRNGKeyArray, **options: Any
    ) -> Conv:
        return Conv(
            channels_in,
            channels,
            kernel_size=(size,) * self.axes,
            parameterization=self.parameterization,
            weight_std=self.weight_std,
            bias_std=self.bias_std,
            key=key,
            **options,
        )

    def normed_activation(self, channels: int) -> list[Any]:
        if self.norm is None:
            return [self.activation]
        if self.norm == "batch":
            normed: Any = BatchNorm(channels, parameterization=self.parameterization)
        else:
            groups = 1 if self.norm == "layer" else _groups(channels)
            normed = GroupNorm(channels, groups=groups, parameterization=self.parameterization)
        return [normed, self.activation]

    def block(
        self, channels_in: int, channels: int, stride: int, *, key: PRNGKeyArray
    ) -> list[Any]:
        keys = jr.split(key, 3)
        before = self.normed_activation(channels_in)
        branch = [
            self.conv(channels_in, channels, stride=stride, key=keys[0]),
            *self.normed_activation(channels),
            self.conv(channels, channels, key=keys[1]),
        ]
        if stride == 1 and channels_in == channels:
            return [Residual(Sequential([*before, *branch]))]
        shortcut = self.conv(channels_in, channels, size=1, stride=stride, key=keys[2])
        return [*before, Residual(Sequential(branch), shortcut)]


def _groups(channels: int) -> int:
    most = max(1, min(MOST_GROUPS, channels // FEWEST_CHANNELS))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)
