"""Rules made of rules: one after the other, side by side, and what transforms the outputs."""

import equinox as eqx
import jax.numpy as jnp

from zoo.limits.kernels import LayerKernels, LimitNeeds, LimitSide
from zoo.limits.rule import LimitRule
from zoo.limits.widths import NoLimitError


class SequentialRule(LimitRule):
    """One after the other."""

    rules: tuple[LimitRule, ...]

    def needs(self, after: LimitNeeds) -> LimitNeeds:
        """From the last to the first."""
        for rule in reversed(self.rules):
            after = rule.needs(after)
        return after

    def __call__(self, kernels: LayerKernels) -> LayerKernels:
        """From the first to the last."""
        for rule in self.rules:
            kernels = rule(kernels)
        return kernels


class ResidualRule(LimitRule):
    """branch(a) + shortcut(a): kernels add where one of them ends in weights of its own.

    `shortcut=None` is the identity.
    """

    branch: LimitRule
    shortcut: LimitRule | None
    path: str = eqx.field(static=True)

    def needs(self, after: LimitNeeds) -> LimitNeeds:
        """What either needs."""
        passed = after if self.shortcut is None else self.shortcut.needs(after)
        return self.branch.needs(after).at_least(*passed)

    def __call__(self, kernels: LayerKernels) -> LayerKernels:
        """The sum."""
        enters = kernels.replaced(fresh=False)
        branch = self.branch(enters)
        shortcut = enters if self.shortcut is None else self.shortcut(enters)
        if branch.space != shortcut.space:
            raise NoLimitError(
                f"`model{self.path}` adds images of {branch.space} and {shortcut.space} positions."
            )
        if branch.of_scale is not None or shortcut.of_scale is not None:
            raise NoLimitError(
                f"`model{self.path}` adds what comes out of a normalization, expected an "
                "activation or a layer with weights in between: else channels differ in their "
                "tangent kernels."
            )
        if not (branch.fresh or shortcut.fresh):
            raise NoLimitError(
                f"`model{self.path}` adds a branch and a shortcut of which neither ends in a layer "
                "with weights, expected one that does: only then their covariances add."
            )
        tangents = [part.ntk for part in (branch, shortcut) if part.ntk is not None]
        sides = tuple(
            LimitSide(
                None if one.own is None or other.own is None else one.own + other.own, one.layout
            )
            for one, other in zip(branch.sides, shortcut.sides, strict=True)
        )
        return branch.replaced(
            nngp=branch.nngp + shortcut.nngp,
            ntk=sum(tangents[1:], tangents[0]) if tangents else None,
            sides=sides,
            error=jnp.maximum(branch.error, shortcut.error),
            gaussian=branch.gaussian and shortcut.gaussian,
            fresh=branch.fresh and shortcut.fresh,
        )


class ScaledRule(LimitRule):
    """alpha f: both kernels take alpha^2."""

    rule: LimitRule
    alpha: float = eqx.field(static=True)

    def needs(self, after: LimitNeeds) -> LimitNeeds:
        """As the model."""
        return self.rule.needs(after)

    def __call__(self, kernels: LayerKernels) -> LayerKernels:
        """Kernels times alpha^2."""
        return self.rule(kernels).mapped(lambda kernel, _: self.alpha**2 * kernel)


class CenteredRule(LimitRule):
    """f - f_0: zero at the start, with the tangent kernel of f."""

    rule: LimitRule

    def needs(self, after: LimitNeeds) -> LimitNeeds:
        """As the model."""
        return self.rule.needs(after)

    def __call__(self, kernels: LayerKernels) -> LayerKernels:
        """No covariance, and the tangent kernel as it is."""
        after = self.rule(kernels).averaged()
        zero = after.mapped(lambda kernel, _: jnp.zeros_like(kernel))
        return zero.replaced(ntk=after.ntk)
