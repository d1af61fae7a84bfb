r"""Layers that know their place in the network and their parameterization.

    z = multiplier W a + bias_multiplier b

for dense layers and convolutions. The multipliers, the initial scales and the learning rates follow
from the parameterization, the layer's role and its shape (`zoo.parameterization`); they are
derived, never stored.
"""

import math
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from zoo.common import checks
from zoo.contraction_rule import ContractionRule, Transposed
from zoo.convolution import (
    convolve,
    cotangent_matrix,
    cotangent_patches,
    Padding,
    PADDINGS,
    patches,
    per_axis,
)
from zoo.limits.affine import AffineLimitRule, Window
from zoo.limits.widths import LimitWidths
from zoo.parameterization import (
    check_parameterization,
    NTK,
    Parameterization,
    Role,
)
from zoo.parameterized_layer import ParameterizedLayer, ParameterizedTensor


class AffineLayer(ParameterizedLayer):
    """A layer z = weight_multiplier W a + bias_multiplier b: `Dense` and `Conv`.

    What a subclass of your own computes, and so its rules, is for it to say.
    """

    weight: eqx.AbstractVar[Float[Array, "..."]]
    bias: eqx.AbstractVar[Float[Array, " out"] | None]
    weight_std: eqx.AbstractVar[float]
    bias_std: eqx.AbstractVar[float | None]

    @property
    def fans(self) -> dict[str, int]:
        """`fan_in` (times the positions of a convolution's kernel) and `fan_out`."""
        out_size, *inputs = self.weight.shape
        return {"fan_in": math.prod(inputs), "fan_out": out_size}

    @property
    def tensors(self) -> dict[str, ParameterizedTensor]:
        """`weight`, and `bias` where there is one."""
        places = {"weight": ParameterizedTensor("weight", self.weight_std)}
        if self.bias_std is not None:
            places["bias"] = ParameterizedTensor("bias", self.bias_std)
        return places

    @property
    def weight_multiplier(self) -> float:
        """The factor of W in the forward pass."""
        return self.multiplier("weight")

    @property
    def bias_multiplier(self) -> float:
        """The factor of b in the forward pass (0 where the layer has no bias)."""
        return 0.0 if self.bias_std is None else self.multiplier("bias")


class Dense(AffineLayer):
    """A fully connected layer, z = weight_multiplier W a + bias_multiplier b."""

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"] | None
    role: Role = eqx.field(static=True)
    parameterization: Parameterization = eqx.field(static=True)
    weight_std: float = eqx.field(static=True)
    bias_std: float | None = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        role: Role = "hidden",
        parameterization: Parameterization = NTK,
        weight_std: float = 1.0,
        bias_std: float | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_size`, `out_size`: lengths of a and z.
        - `role`: "input", "hidden" or "readout".
        - `parameterization`: `NTK`, `STANDARD`, `MEAN_FIELD`, `MUP` or a user's own.
        - `weight_std`, `bias_std`: sigma_w and sigma_b; `bias_std=None` means no bias parameters.
        - `key`: for the initial parameters, in the default float type.

        **Raises:** `ValueError` for sizes below 1, a negative or non-finite std, an unknown role.
        """
        in_size = checks.size("in_size", in_size)
        out_size = checks.size("out_size", out_size)
        self.role = role
        self.parameterization = check_parameterization("parameterization", parameterization)
        self.weight_std, self.bias_std = _stds(weight_std, bias_std)
        self.weight, self.bias = _initial(self, (out_size, in_size), key)

    def like(self, parameterization: Parameterization) -> "Dense":
        """The same layer in another parameterization, with shapes in the place of arrays."""
        out_size, in_size = self.weight.shape
        return eqx.filter_eval_shape(
            type(self),
            in_size,
            out_size,
            role=self.role,
            parameterization=parameterization,
            weight_std=self.weight_std,
            bias_std=self.bias_std,
            key=jr.key(0),
        )

    def limit_rule(self, widths: LimitWidths) -> AffineLimitRule:
        """What it does to the kernels of infinite width; see `zoo.limits`."""
        return _limit_rule(self, widths, window=None)

    def contraction_rule(self) -> ContractionRule:
        """How it is affine in its weights: one position."""
        return ContractionRule(lambda _, a: a[None], _multipliers)

    def __call__(
        self, a: Float[Array, " in"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " out"]:
        """z of one example; `key` is not used."""
        del key
        z = self.weight_multiplier * (a @ self.weight.T)
        return z if self.bias is None else z + self.bias_multiplier * self.bias


class Conv(AffineLayer):
    """A convolution of channel-first images, z = weight_multiplier W * a + bias_multiplier b.

    Over any number of spatial axes; the bias is one number for each channel. See `zoo.convolution`.
    """

    weight: Float[Array, "out in *kernel"]
    bias: Float[Array, " out"] | None
    stride: tuple[int, ...] = eqx.field(static=True)
    padding: Padding = eqx.field(static=True)
    role: Role = eqx.field(static=True)
    parameterization: Parameterization = eqx.field(static=True)
    weight_std: float = eqx.field(static=True)
    bias_std: float | None = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: Padding = "SAME",
        role: Role = "hidden",
        parameterization: Parameterization = NTK,
        weight_std: float = 1.0,
        bias_std: float | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_channels`, `out_channels`: channels of a and z.
        - `kernel_size`: length of the kernel along each spatial axis; their number is that of the
          axes.
        - `stride`: one for all axes, or one an axis.
        - `padding`: "SAME" (XLA's: zeros, output length ceil(n / stride)), "VALID" or "CIRCULAR".
        - `role`, `parameterization`, `weight_std`, `bias_std`, `key`: as in `Dense`. The fan-in is
          in_channels times the positions of the kernel, the fan-out is out_channels.

        **Raises:** `ValueError` for sizes below 1, a stride of another length, an unknown padding
        or role, a negative or non-finite std.
        """
        in_channels = checks.size("in_channels", in_channels)
        out_channels = checks.size("out_channels", out_channels)
        checks.choice("padding", padding, PADDINGS)
        checks.sequence("kernel_size", kernel_size, "a length for each spatial axis")
        kernel = per_axis("kernel_size", kernel_size, len(kernel_size))
        self.stride = per_axis("stride", stride, len(kernel))
        self.padding = padding
        self.role = role
        self.parameterization = check_parameterization("parameterization", parameterization)
        self.weight_std, self.bias_std = _stds(weight_std, bias_std)
        self.weight, self.bias = _initial(self, (out_channels, in_channels, *kernel), key)

    def like(self, parameterization: Parameterization) -> "Conv":
        """The same layer in another parameterization, with shapes in the place of arrays."""
        out_channels, in_channels, *kernel = self.weight.shape
        return eqx.filter_eval_shape(
            type(self),
            in_channels,
            out_channels,
            kernel_size=tuple(kernel),
            stride=self.stride,
            padding=self.padding,
            role=self.role,
            parameterization=parameterization,
            weight_std=self.weight_std,
            bias_std=self.bias_std,
            key=jr.key(0),
        )

    def limit_rule(self, widths: LimitWidths) -> AffineLimitRule:
        """What it does to the kernels of infinite width; see `zoo.limits`."""
        window = Window(self.weight.shape[2:], self.stride, self.padding)
        return _limit_rule(self, widths, window=window)

    def contraction_rule(self) -> ContractionRule:
        """How it is affine in its weights, at the positions of its output."""
        transposed = Transposed(_cotangent_patches, _cotangent_matrix, applies=_has_stride_1)
        return ContractionRule(_patches, _multipliers, transposed=transposed)

    def __call__(
        self, a: Float[Array, "in *space"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "out *out_space"]:
        """z of one image; `key` is not used."""
        del key
        z = convolve(a, self.weight, stride=self.stride, padding=self.padding)
        z = self.weight_multiplier * z
        if self.bias is None:
            return z
        axes = (1,) * (z.ndim - 1)
        return z + self.bias_multiplier * self.bias.reshape(-1, *axes)


def _limit_rule(
    layer: AffineLayer, widths: LimitWidths, *, window: Window | None
) -> AffineLimitRule:
    has_bias = layer.bias_std is not None
    return AffineLimitRule(
        weight_std=jnp.asarray(layer.weight_std, float),
        bias_std=jnp.asarray(layer.bias_std, float) if has_bias else None,
        weight=widths.tensor(layer, "weight"),
        bias=widths.tensor(layer, "bias") if has_bias else None,
        in_size=layer.weight.shape[1],
        out_size=layer.weight.shape[0],
        window=window,
        role=layer.role,
        path=widths.path,
    )


def _multipliers(layer: AffineLayer) -> tuple[float, float]:
    return layer.weight_multiplier, layer.bias_multiplier


def _patches(layer: Conv, a: Array) -> Array:
    kernel = layer.weight.shape[2:]
    return patches(a, kernel=kernel, stride=layer.stride, padding=layer.padding)


def _has_stride_1(layer: Conv) -> bool:
    return set(layer.stride) == {1}


def _cotangent_patches(layer: Conv, cotangent: Array) -> Array:
    return cotangent_patches(cotangent, kernel=layer.weight.shape[2:], padding=layer.padding)


def _cotangent_matrix(layer: Conv, matrix: Array) -> Array:
    return cotangent_matrix(matrix, kernel=layer.weight.shape[2:])


def _stds(weight_std: float, bias_std: float | None) -> tuple[float, float | None]:
    checks.nonnegative_number("weight_std", weight_std)
    if bias_std is not None:
        checks.nonnegative_number("bias_std", bias_std)
    return float(weight_std), None if bias_std is None else float(bias_std)


def _initial(
    layer: AffineLayer, shape: tuple[int, ...], key: PRNGKeyArray
) -> tuple[Float[Array, "..."], Float[Array, " out"] | None]:
    """Normal draws of the layer's initial scales."""
    fans = {"fan_in": math.prod(shape[1:]), "fan_out": shape[0]}
    scaling = layer.scaling
    checks.key("key", key)
    weight_key, bias_key = jr.split(key)
    weight = scaling.weight.init(std=layer.weight_std, **fans) * jr.normal(weight_key, shape)
    if layer.bias_std is None:
        return weight, None
    return weight, scaling.bias.init(std=layer.bias_std, **fans) * jr.normal(bias_key, shape[:1])
