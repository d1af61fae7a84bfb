r"""Normalization of channel-first images.

    z = scale (a - mean) / sqrt(variance + epsilon) + shift,       scale and shift one a channel

with mean and variance over groups of channels and all positions of one example (`GroupNorm`; one
group is layer normalization: Ba, Kiros & Hinton 2016; Wu & He 2018), or over a batch (`BatchNorm`:
Ioffe & Szegedy 2015).

Scale and shift start at 1 and 0. They are vectors over channels, as biases are, and so a
parameterization gives them the learning rates of a bias.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from zoo.common import checks
from zoo.layers.frozen import Frozen
from zoo.limits.layers import NormRule
from zoo.limits.widths import LimitWidths, NoLimitError
from zoo.parameterization import check_parameterization, NTK, Parameterization, Role
from zoo.parameterized_layer import ParameterizedLayer, ParameterizedTensor

_TENSORS = {
    "scale": ParameterizedTensor("bias", std=1.0, start=1.0),
    "shift": ParameterizedTensor("bias", std=1.0, start=0.0),
}


class _ChannelNorm(ParameterizedLayer):
    """What normalizations share: a scale and a shift for each channel."""

    scale: eqx.AbstractVar[Float[Array, " channels"]]
    shift: eqx.AbstractVar[Float[Array, " channels"]]

    @property
    def fans(self) -> dict[str, int]:
        """Channels in and out."""
        return _fans(self.scale.shape[0])

    @property
    def tensors(self) -> dict[str, ParameterizedTensor]:
        """`scale` and `shift`."""
        return _TENSORS

    def _check_channels(self, shape: tuple[int, ...]) -> None:
        """**Raises:** `ValueError` for an example that has not the layer's channels in front."""
        channels = self.scale.shape[0]
        if len(shape) < 1 or shape[0] != channels:
            raise ValueError(
                f"`a` has shape {shape}, expected ({channels}, ...): {channels} channels in front."
            )

    def _scaled_and_shifted(self, normalized: Array) -> Array:
        scale, shift = (
            self.multiplier(name) * _over_channels(getattr(self, name), normalized.ndim)
            for name in _TENSORS
        )
        return scale * normalized + shift


class GroupNorm(_ChannelNorm):
    """Normalizes each group of channels, over its channels and all positions of one example."""

    scale: Float[Array, " channels"]
    shift: Float[Array, " channels"]
    groups: int = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)
    role: Role = eqx.field(static=True)
    parameterization: Parameterization = eqx.field(static=True)

    def __init__(
        self,
        channels: int,
        *,
        groups: int = 1,
        epsilon: float = 1e-5,
        role: Role = "hidden",
        parameterization: Parameterization = NTK,
    ):
        """**Arguments:**

        - `channels`: of the image.
        - `groups`: a divisor of `channels`; 1 is layer normalization.
        - `epsilon`: added to the variance.
        - `role`, `parameterization`: the learning rates of scale and shift are those of a bias.

        **Raises:** `ValueError` for sizes below 1, groups that do not divide the channels.
        """
        channels = checks.size("channels", channels)
        groups = checks.integer("groups", groups)
        if channels % groups:
            raise ValueError(f"`groups` is {groups}, expected a divisor of `channels` {channels}.")
        checks.nonnegative_number("epsilon", epsilon)
        self.groups, self.epsilon = groups, float(epsilon)
        self.role = role
        self.parameterization = check_parameterization("parameterization", parameterization)
        self.scale, self.shift = _initial(self, channels)

    def like(self, parameterization: Parameterization) -> "GroupNorm":
        """The same layer in another parameterization, with shapes in the place of arrays."""
        return eqx.filter_eval_shape(
            type(self),
            self.scale.shape[0],
            groups=self.groups,
            epsilon=self.epsilon,
            role=self.role,
            parameterization=parameterization,
        )

    def limit_rule(self, widths: LimitWidths) -> NormRule:
        """What it does to the kernels of infinite width: a fixed number of groups does as one.

        Means over infinitely many channels vanish, and variances become those of the kernel.
        """
        return NormRule(
            epsilon=self.epsilon,
            scale=widths.tensor(self, "scale"),
            shift=widths.tensor(self, "shift"),
            path=widths.path,
        )

    def __call__(
        self, a: Float[Array, "channels *space"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "channels *space"]:
        """z of one image; `key` is not used."""
        del key
        self._check_channels(a.shape)
        grouped = a.reshape(self.groups, -1)
        mean = jnp.mean(grouped, axis=1, keepdims=True)
        variance = jnp.mean((grouped - mean) ** 2, axis=1, keepdims=True)
        normalized = (grouped - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return self._scaled_and_shifted(normalized.reshape(a.shape))


class BatchNorm(_ChannelNorm):
    """Normalizes each channel by statistics of past batches, which are frozen.

    `layer(a)` takes one example and the statistics as they are. `forward_train` takes a batch,
    normalizes by its own mean and (biased) variance, and moves the statistics towards those:
    new = momentum old + (1 - momentum) batch.
    """

    scale: Float[Array, " channels"]
    shift: Float[Array, " channels"]
    _statistics: Frozen[tuple[Array, Array]]
    momentum: float = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)
    role: Role = eqx.field(static=True)
    parameterization: Parameterization = eqx.field(static=True)

    def __init__(
        self,
        channels: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        role: Role = "hidden",
        parameterization: Parameterization = NTK,
    ):
        """**Arguments:**

        - `channels`: of the image.
        - `momentum`: the weight of the old statistics in an update, in [0, 1].
        - `epsilon`: added to the variance.
        - `role`, `parameterization`: the learning rates of scale and shift are those of a bias.

        **Raises:** `ValueError` for sizes below 1, a momentum outside [0, 1].
        """
        channels = checks.size("channels", channels)
        checks.nonnegative_number("momentum", momentum)
        if momentum > 1:
            raise ValueError(f"`momentum` is {momentum}, expected a number from 0 to 1.")
        checks.nonnegative_number("epsilon", epsilon)
        self.momentum, self.epsilon = float(momentum), float(epsilon)
        self.role = role
        self.parameterization = check_parameterization("parameterization", parameterization)
        self.scale, self.shift = _initial(self, channels)
        self._statistics = Frozen((jnp.zeros(channels), jnp.ones(channels)))

    @property
    def mean(self) -> Float[Array, " channels"]:
        """The running mean."""
        return self._statistics.value[0]

    @property
    def variance(self) -> Float[Array, " channels"]:
        """The running variance."""
        return self._statistics.value[1]

    def like(self, parameterization: Parameterization) -> "BatchNorm":
        """The same layer in another parameterization, with shapes in the place of parameters."""
        shapes = eqx.filter_eval_shape(
            type(self),
            self.scale.shape[0],
            momentum=self.momentum,
            epsilon=self.epsilon,
            role=self.role,
            parameterization=parameterization,
        )
        return eqx.tree_at(lambda layer: layer._statistics, shapes, self._statistics)

    def limit_rule(self, widths: LimitWidths) -> NormRule:
        """**Raises:** `NoLimitError`."""
        raise NoLimitError(
            f"`model{widths.path}` is a BatchNorm, which couples the examples of a batch: there is "
            'no kernel of two examples. Expected `norm="layer"` or `norm=None`.'
        )

    def __call__(
        self, a: Float[Array, "channels *space"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "channels *space"]:
        """z of one image; `key` is not used."""
        del key
        self._check_channels(a.shape)
        return self._scaled_and_shifted(self._normalized(a, self.mean, self.variance))

    def forward_train(
        self, batch: Float[Array, "n channels *space"]
    ) -> tuple[Float[Array, "n channels *space"], "BatchNorm"]:
        """The batch normalized by its own statistics, and the layer with its statistics moved."""
        self._check_channels(batch.shape[1:])
        axes = (0, *range(2, batch.ndim))
        mean, variance = jnp.mean(batch, axis=axes), jnp.var(batch, axis=axes)
        outputs = jax.vmap(lambda a: self._scaled_and_shifted(self._normalized(a, mean, variance)))(
            batch
        )

        def moved(old: Array, new: Array) -> Array:
            return self.momentum * old + (1 - self.momentum) * new.astype(old.dtype)

        statistics = moved(self.mean, mean), moved(self.variance, variance)
        frozen = Frozen(jax.lax.stop_gradient(statistics))
        return outputs, eqx.tree_at(lambda layer: layer._statistics, self, frozen)

    def _normalized(self, a: Array, mean: Array, variance: Array) -> Array:
        factor = jax.lax.rsqrt(variance + self.epsilon)
        return (a - _over_channels(mean, a.ndim)) * _over_channels(factor, a.ndim)


def _initial(layer: ParameterizedLayer, channels: int) -> tuple[Array, Array]:
    """A scale of effectively 1 and a shift of 0, in any parameterization."""
    place = _TENSORS["scale"]
    multiplier = layer.tensor_scaling("scale").multiplier(std=place.std, **_fans(channels))
    return jnp.full(channels, 1.0 / multiplier), jnp.zeros(channels)


def _fans(channels: int) -> dict[str, int]:
    return {"fan_in": channels, "fan_out": channels}


def _over_channels(vector: Array, ndim: int) -> Array:
    """One number a channel, in the shape that multiplies a channel-first image."""
    return vector.reshape(-1, *(1,) * (ndim - 1))
