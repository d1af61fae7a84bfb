r"""The rule of dense layers and convolutions.

    K' = forward mean_q K(p + q, p' + q) + bias
    Theta' = mean_q (backward Theta + gradient K)(p + q, p' + q) + bias gradient

with the mean over the positions q of the kernel, those outside of the image counted as 0 (or
periodic); for a dense layer there is one position.
"""

import math
from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.convolution import output_space, Padding, pads_of
from zoo.limits.kernels import LayerKernels, LimitLayout, LimitNeeds
from zoo.limits.rule import LimitRule
from zoo.limits.widths import NoLimitError, TensorLimit
from zoo.parameterization import Role


@dataclass(frozen=True)
class Window:
    """The geometry of a convolution."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Padding

    def mean(self, kernel: Array, layout: LimitLayout) -> Array:
        """The mean over its positions, axis by axis: they separate."""
        axes = len(self.kernel)
        for i in range(axes):
            paired = (i - 2 * axes, i - axes) if layout == LimitLayout.FULL else (i - axes,)
            kernel = self._sum_along(kernel, i, tuple(kernel.ndim + axis for axis in paired))
        return kernel / math.prod(self.kernel)

    def _sum_along(self, array: Array, i: int, axes: tuple[int, ...]) -> Array:
        k, s, n = self.kernel[i], self.stride[i], array.shape[axes[0]]
        if k == 1 and s == 1:
            return array
        pads = pads_of(n, k, s, self.padding)
        if pads != (0, 0):
            mode = "wrap" if self.padding == "CIRCULAR" else "constant"
            widths = [pads if axis in axes else (0, 0) for axis in range(array.ndim)]
            array = jnp.pad(array, widths, mode=mode)
        (out,) = output_space((n,), kernel=(k,), stride=(s,), padding=self.padding)
        total = None
        for q in range(k):
            slices = [slice(None)] * array.ndim
            for axis in axes:
                slices[axis] = slice(q, q + (out - 1) * s + 1, s)
            part = array[tuple(slices)]
            total = part if total is None else total + part
        assert total is not None
        return total


class AffineLimitRule(LimitRule):
    """A layer z = W a + b with random weights; `window=None` for a dense layer.

    - `weight_std`, `bias_std`: sigma_w and sigma_b.
    - `in_size`, `out_size`: channels in the model that this is the limit of.
    """

    weight_std: Float[Array, ""]
    bias_std: Float[Array, ""] | None
    weight: TensorLimit = eqx.field(static=True)
    bias: TensorLimit | None = eqx.field(static=True)
    in_size: int = eqx.field(static=True)
    out_size: int = eqx.field(static=True)
    window: Window | None = eqx.field(static=True)
    role: Role = eqx.field(static=True)
    path: str = eqx.field(static=True)

    def needs(self, after: LimitNeeds) -> LimitNeeds:
        """Positions one by one, for a convolution."""
        return after if self.window is None else after.at_least(LimitLayout.DIAGONAL)

    def __call__(self, kernels: LayerKernels) -> LayerKernels:
        """The kernels of z."""
        self._check(kernels)
        kernels = kernels.averaged()
        space = kernels.space
        dtype = kernels.nngp.dtype
        weight_std = self.weight_std.astype(dtype)
        forward, backward, gradient = (
            law(weight_std)
            for law in (self.weight.forward, self.weight.backward, self.weight.gradient)
        )
        bias = bias_gradient = jnp.zeros((), dtype)
        if self.bias is not None:
            assert self.bias_std is not None
            bias_std = self.bias_std.astype(dtype)
            bias, bias_gradient = self.bias.forward(bias_std), self.bias.gradient(bias_std)

        def mean(kernel: Array, layout: LimitLayout) -> Array:
            return kernel if self.window is None else self.window.mean(kernel, layout)

        ntk = None
        if kernels.tangent:
            moved = gradient * kernels.nngp
            if kernels.ntk is not None:
                moved = moved + backward * kernels.ntk
            ntk = mean(moved, kernels.layout) + bias_gradient
        if self.window is not None:
            space = output_space(
                space,
                kernel=self.window.kernel,
                stride=self.window.stride,
                padding=self.window.padding,
            )
        after = kernels.mapped(lambda kernel, layout: forward * mean(kernel, layout) + bias)
        return after.replaced(
            ntk=ntk, space=space, channels=self.out_size, gaussian=True, fresh=True
        )

    def _check(self, kernels: LayerKernels) -> None:
        axes = 0 if self.window is None else len(self.window.kernel)
        if len(kernels.space) != axes:
            raise NoLimitError(
                f"`model{self.path}` takes {axes} spatial axes, but what comes in has "
                f"{len(kernels.space)}, {kernels.space}."
            )
        if kernels.channels is not None and kernels.channels != self.in_size:
            what = "entries" if self.window is None else "channels"
            raise ValueError(
                f"`x1` does not fit `model{self.path}`: {kernels.channels} {what} come to it, "
                f"expected {self.in_size}."
            )
        if not kernels.tangent:
            return
        for tensor in (self.weight, self.bias):
            if tensor is not None and tensor.no_gradient is not None:
                raise NoLimitError(tensor.no_gradient)
