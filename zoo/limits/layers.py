r"""The rules of layers without weights, and of normalization.

- Activation: K' = E phi phi and Theta' = E phi' phi' Theta, by the dual of phi.
- Flatten: the mean over equal positions. Average pool: that over all pairs of positions.
- Normalization: K' = K / (r1 r2) with r^2 = mean_p K(p, p) + epsilon, and Theta likewise.

The scale of a normalization is one number for each channel, whose gradient is the channel itself:
after an activation it adds E u phi'(u) v phi'(v) to the tangent kernel, not E phi' phi' E u v.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from zoo.limits.duals import Dual, gaussian_pair, GaussianPair, identical_pair, MonomialDual
from zoo.limits.kernels import LayerKernels, LimitLayout, LimitNeeds, LimitSide, own_pairs
from zoo.limits.rule import LimitRule
from zoo.limits.widths import NoLimitError, TensorLimit


class ActivationRule(LimitRule):
    """A pointwise nonlinearity, by its dual."""

    dual: Dual = eqx.field(static=True)
    name: str = eqx.field(static=True)
    path: str = eqx.field(static=True)

    @property
    def _is_identity(self) -> bool:
        return self.dual == MonomialDual(1)

    def needs(self, after: LimitNeeds) -> LimitNeeds:
        """Each position, and its variance."""
        if self._is_identity:
            return after
        return after.at_least(LimitLayout.DIAGONAL, LimitLayout.DIAGONAL)

    def __call__(self, kernels: LayerKernels) -> LayerKernels:
        """The kernels of phi(z)."""
        if self._is_identity:
            return kernels
        if not kernels.gaussian:
            raise NoLimitError(
                f"the activation {self.name} of `model{self.path}` does not come after a layer "
                "with weights, expected preactivations that are Gaussian in the limit."
            )
        axes = len(kernels.space)
        first, second = (side.variances(axes) for side in kernels.sides)
        k11, k22 = kernels.between_sides(first, second)
        pair = gaussian_pair(k11, kernels.nngp, k22)
        try:
            ntk = self._tangent(kernels, pair)
        except NoLimitError as error:
            raise NoLimitError(f"`model{self.path}`, {self.name}: {error}") from None
        errors = [jnp.max(self.dual.error(variances)) for variances in (first, second)]
        return kernels.replaced(
            nngp=self.dual.values(pair),
            ntk=ntk,
            of_scale=None,
            sides=tuple(self._side(side, axes) for side in kernels.sides),
            error=jnp.maximum(kernels.error, jax.lax.stop_gradient(jnp.maximum(*errors))),
            gaussian=False,
            fresh=False,
        )

    def _tangent(self, kernels: LayerKernels, pair: GaussianPair) -> Array | None:
        ntk = None if kernels.ntk is None else self.dual.slopes(pair) * kernels.ntk
        if kernels.of_scale is None:
            return ntk
        of_scale = kernels.of_scale * self.dual.weighted_slopes(pair)
        return of_scale if ntk is None else ntk + of_scale

    def _side(self, side: LimitSide, axes: int) -> LimitSide:
        assert side.own is not None
        if side.layout == LimitLayout.FULL and axes:
            first, second = own_pairs(side, axes)
            return LimitSide(self.dual.values(gaussian_pair(first, side.own, second)), side.layout)
        return LimitSide(self.dual.values(identical_pair(side.own)), side.layout)


class FlattenRule(LimitRule):
    """All positions and channels as one vector."""

    def needs(self, after: LimitNeeds) -> LimitNeeds:
        """The mean over equal positions."""
        own = LimitLayout.NONE if after.own == LimitLayout.NONE else LimitLayout.FLAT
        return LimitNeeds(LimitLayout.FLAT, own)

    def __call__(self, kernels: LayerKernels) -> LayerKernels:
        """The mean over equal positions."""
        axes, size = len(kernels.space), math.prod(kernels.space)

        def mean(kernel: Array, layout: LimitLayout) -> Array:
            if layout == LimitLayout.FLAT or axes == 0:
                return kernel
            if layout == LimitLayout.FULL:
                lead = kernel.shape[: kernel.ndim - 2 * axes]
                square = kernel.reshape(*lead, size, size)
                return jnp.trace(square, axis1=-2, axis2=-1) / size
            return jnp.mean(kernel, axis=tuple(range(kernel.ndim - axes, kernel.ndim)))

        channels = None if kernels.channels is None else kernels.channels * size
        same = size == 1 and kernels.gaussian
        return kernels.mapped(mean, space=(), channels=channels, gaussian=same)


class PoolRule(LimitRule):
    """The mean over all positions, one number for each channel."""

    def needs(self, after: LimitNeeds) -> LimitNeeds:
        """All pairs of positions."""
        own = LimitLayout.NONE if after.own == LimitLayout.NONE else LimitLayout.FULL
        return LimitNeeds(LimitLayout.FULL, own)

    def __call__(self, kernels: LayerKernels) -> LayerKernels:
        """The mean over all pairs of positions."""
        axes = len(kernels.space)

        def mean(kernel: Array) -> Array:
            return jnp.mean(kernel, axis=tuple(range(kernel.ndim - 2 * axes, kernel.ndim)))

        if axes == 0:
            return kernels
        # Of an example with itself all pairs are known where they are needed.
        sides = tuple(
            LimitSide(mean(side.own), side.layout)
            if side.own is not None and side.layout == LimitLayout.FULL
            else LimitSide(None, LimitLayout.NONE)
            for side in kernels.sides
        )
        ntk = None if kernels.ntk is None else mean(kernels.ntk)
        return kernels.replaced(nngp=mean(kernels.nngp), ntk=ntk, sides=sides, space=())


class NormRule(LimitRule):
    """Normalization over channels and positions of an example, then a scale and a shift."""

    epsilon: float = eqx.field(static=True)
    scale: TensorLimit = eqx.field(static=True)
    shift: TensorLimit = eqx.field(static=True)
    path: str = eqx.field(static=True)

    def needs(self, after: LimitNeeds) -> LimitNeeds:
        """The variance of each position."""
        return after.at_least(LimitLayout.DIAGONAL, LimitLayout.DIAGONAL)

    def __call__(self, kernels: LayerKernels) -> LayerKernels:
        """The kernels of the normalized channels."""
        if not kernels.gaussian:
            raise NoLimitError(
                f"the normalization of `model{self.path}` does not come after a layer with "
                "weights, expected preactivations: only their statistics are exact in the limit."
            )
        if kernels.tangent:
            for tensor in (self.scale, self.shift):
                if tensor.no_gradient is not None:
                    raise NoLimitError(tensor.no_gradient)
        axes = len(kernels.space)
        factors = [self._factor(side, axes) for side in kernels.sides]
        first, second = kernels.between_sides(*factors)
        nngp = kernels.nngp * first * second
        ntk = of_scale = None
        if kernels.tangent:
            one = jnp.ones((), nngp.dtype)  # both tensors have the std 1
            of_scale, of_shift = self.scale.gradient(one), self.shift.gradient(one)
            if kernels.of_scale is not None:
                of_scale = of_scale + kernels.of_scale
            ntk = jnp.full_like(nngp, of_shift)
            if kernels.ntk is not None:
                ntk = ntk + kernels.ntk * first * second
        sides = tuple(
            LimitSide(_scaled(side.own, factor**2), side.layout)
            for side, factor in zip(kernels.sides, factors, strict=True)
        )
        return kernels.replaced(nngp=nngp, ntk=ntk, of_scale=of_scale, sides=sides)

    def _factor(self, side: LimitSide, axes: int) -> Array:
        variances = side.variances(axes)
        power = jnp.mean(variances, axis=tuple(range(1, 1 + axes))) if axes else variances
        return jax.lax.rsqrt(power + self.epsilon)


def _scaled(own: Array | None, factor: Array) -> Array | None:
    return None if own is None else own * factor.reshape(-1, *(1,) * (own.ndim - 1))
