r"""What grows with the width in a network, tensor by tensor.

A tensor enters as multiplier x parameter, starts with standard deviation init and learns at the
rate sgd, each a power law in fan-in and fan-out (`zoo.parameterization`). With N the fan-in over
which it sums (1 for a bias), it gives

    forward  = multiplier^2 init^2 N       to the covariance of preactivations, and, for a weight,
    backward = the same                    to the tangent kernel that comes in,
    gradient = multiplier^2 sgd N          to the tangent kernel, times the covariance that comes in

in units of its std to some power. Each is a power of the width times a number, and only powers of
0 have a kernel in the limit. Where the outputs of the readout vanish (mean field, muP), the
gradients of all layers before it take its missing power: only the product has to be finite.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jaxtyping import Array

from zoo.parameterization import Parameterization, PowerLaw

if TYPE_CHECKING:
    from zoo.parameterized_layer import ParameterizedLayer


class NoLimitError(ValueError):
    """A network, or a layer of it, has no kernel in the limit of infinite width."""


@dataclass(frozen=True)
class StdPower:
    """factor x std^power."""

    factor: float
    power: float

    def __call__(self, std: Array) -> Array:
        power = int(self.power) if float(self.power).is_integer() else self.power
        return self.factor * std**power


@dataclass(frozen=True)
class TensorLimit:
    """What a tensor contributes, as powers of its std.

    `no_gradient` says why there is no `gradient`, where there is none.
    """

    forward: StdPower
    backward: StdPower
    gradient: StdPower
    no_gradient: str | None = None


@dataclass(frozen=True)
class LimitWidths:
    """Which tensors of a model have a limit: see the module's docstring.

    - `equivalent_to`: learning rates are those of `learning_rates(model, equivalent_to=...)`.
    - `rate_power`: they are multiplied by this power of the readout's fan-in.
    - `path`: where in the model it looks.
    - `has_hidden`: whether there is a layer before the readout.
    - `readout_power`, `readout_fan_in`: the outputs of the readout go like fan_in^-power.
    - `is_frozen`: whether what it looks at is frozen: no tensor in it has a gradient.
    """

    equivalent_to: Parameterization | None
    rate_power: float
    path: str
    has_hidden: bool
    readout_power: float
    readout_fan_in: int
    is_frozen: bool = False

    def at(self, path: str) -> "LimitWidths":
        """The same, further inside the model."""
        return replace(self, path=self.path + path)

    def frozen(self) -> "LimitWidths":
        """The same, where nothing is trained."""
        return replace(self, is_frozen=True)

    def tensor(self, layer: "ParameterizedLayer", name: str) -> TensorLimit:
        """What a tensor of a layer contributes.

        **Raises:** `NoLimitError` where preactivations grow or shrink with the width.
        """
        scaling, kind = layer.tensor_scaling(name), layer.tensors[name].kind
        wide = Wide(layer.role, kind, self.has_hidden)
        multiplier, init, sgd = scaling.multiplier, scaling.init, scaling.sgd
        forward = product_of(multiplier, multiplier, init, init)
        grows = wide.power(forward)
        label = f"`{name}` of `model{self.path}` ({layer.parameterization.name}, {layer.role})"
        if grows > 0 or (grows < 0 and layer.role != "readout"):
            raise NoLimitError(
                f"{label} gives preactivations a variance that goes like width^{grows:g}, expected "
                "one that stays: there is no limit of infinite width."
            )
        backward = forward
        if self.equivalent_to is not None:
            other = layer.tensor_scaling(name, self.equivalent_to)
            multiplier, sgd = other.multiplier, other.sgd
        gradient = product_of(multiplier, multiplier, sgd)
        excess = wide.power(gradient) + self.rate_power * self.has_hidden
        if layer.role != "readout":
            excess -= self.readout_power
        fans = layer.fans
        positions = fans["fan_in"] if kind == "weight" else 1
        units = {"std": 1.0, **fans}
        missing = self.readout_fan_in**self.readout_power
        rate = self.readout_fan_in**self.rate_power
        is_readout = layer.role == "readout"
        found = rate * gradient(**units) * positions / (1 if is_readout else missing)
        back = backward(**units) * positions * (missing if is_readout else 1)
        moves = excess >= 0 and not self.is_frozen
        return TensorLimit(
            forward=StdPower(0.0 if grows < 0 else forward(**units) * positions, forward.std),
            backward=StdPower(back, backward.std),
            gradient=StdPower(found if moves else 0.0, gradient.std),
            no_gradient=self._why(label, excess) if moves and excess > 0 else None,
        )

    def _why(self, label: str, excess: float) -> str:
        rates = "its learning rates" if self.equivalent_to is None else "these learning rates"
        same = "" if self.equivalent_to is None else f", equivalent_to={self.equivalent_to.name}"
        power = self.rate_power - excess
        return (
            f"the tangent kernel has no limit: under {rates}, {label} makes it go like "
            f"width^{excess:g}. Expected learning rates that fall with the width, those of "
            "`learning_rates(model, equivalent_to=NTK)` say: `limit(model, equivalent_to=NTK)`; or "
            f"these times a power of the width: `limit(model{same}, rate_power={power:g})`, or a "
            "smaller one where another tensor asks for it."
        )


@dataclass(frozen=True)
class Wide:
    """Which fans of a tensor grow with the width."""

    role: str
    kind: str
    has_hidden: bool

    def power(self, law: PowerLaw) -> float:
        """Of the width, in a law times the sum over what comes in."""
        fan_in = self.has_hidden and self.role != "input"
        fan_out = self.role != "readout"
        return fan_in * (law.fan_in + (self.kind == "weight")) + fan_out * law.fan_out


def product_of(*laws: PowerLaw) -> PowerLaw:
    """The product of power laws."""
    return PowerLaw(
        math.fsum(law.std for law in laws),
        math.fsum(law.fan_in for law in laws),
        math.fsum(law.fan_out for law in laws),
    )
