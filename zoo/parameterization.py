r"""How a layer's size enters its function and its initialisation.

A layer computes

    z = multiplier W a + bias_multiplier b,      W ~ N(0, init^2),  b ~ N(0, bias_init^2)

and a parameterization is the choice of the multipliers and initial scales, each a power law
std^p fan_in^q fan_out^r, one for each role that a layer can have in a network: the input layer,
a hidden layer, the readout. `fan_in` and `fan_out` are the layer's inputs and outputs per output
position (a convolution counts its kernel's positions too).

The form follows the abc-parameterizations of Yang & Hu (2021, arXiv:2011.14522).
"""

from dataclasses import dataclass
from typing import Literal

from zoo import checks

Role = Literal["input", "hidden", "readout"]


@dataclass(frozen=True)
class PowerLaw:
    """`std**self.std * fan_in**self.fan_in * fan_out**self.fan_out`: a scale by its exponents."""

    std: float = 0.0
    fan_in: float = 0.0
    fan_out: float = 0.0

    def __call__(self, *, std: float, fan_in: int, fan_out: int) -> float:
        return float(std) ** self.std * fan_in**self.fan_in * fan_out**self.fan_out


@dataclass(frozen=True)
class TensorScaling:
    """The multiplier of one tensor in the forward pass, and its standard deviation at the start."""

    multiplier: PowerLaw
    init: PowerLaw


@dataclass(frozen=True)
class LayerScaling:
    """The scaling of a layer's weight and of its bias."""

    weight: TensorScaling
    bias: TensorScaling


@dataclass(frozen=True)
class Parameterization:
    """One value that says, for each layer role, where a layer's size enters.

    `NTK` and `STANDARD` are two of them; a user writes another by giving other exponents.
    It is hashable and compares by value, so a model can hold it as static data.

    **Arguments:**

    - `name`: what reports print.
    - `input`, `hidden`, `readout`: the `LayerScaling` of each role.
    """

    name: str
    input: LayerScaling
    hidden: LayerScaling
    readout: LayerScaling

    def scaling(self, role: Role) -> LayerScaling:
        """The scaling of a layer with this role."""
        checks.choice("role", role, ("input", "hidden", "readout"))
        return getattr(self, role)


_ONE = PowerLaw()
_STD = PowerLaw(std=1.0)
_STD_BY_ROOT_FAN_IN = PowerLaw(std=1.0, fan_in=-0.5)

_NTK_LAYER = LayerScaling(
    weight=TensorScaling(multiplier=_STD_BY_ROOT_FAN_IN, init=_ONE),
    bias=TensorScaling(multiplier=_STD, init=_ONE),
)
_STANDARD_LAYER = LayerScaling(
    weight=TensorScaling(multiplier=_ONE, init=_STD_BY_ROOT_FAN_IN),
    bias=TensorScaling(multiplier=_ONE, init=_STD),
)

NTK = Parameterization("NTK", _NTK_LAYER, _NTK_LAYER, _NTK_LAYER)
"""z = weight_std / sqrt(fan_in) W a + bias_std b, all parameters N(0, 1) (Jacot et al. 2018)."""

STANDARD = Parameterization("STANDARD", _STANDARD_LAYER, _STANDARD_LAYER, _STANDARD_LAYER)
"""z = W a + b, W ~ N(0, weight_std^2 / fan_in), b ~ N(0, bias_std^2)."""

PARAMETERIZATIONS: dict[str, Parameterization] = {p.name: p for p in (NTK, STANDARD)}
"""The parameterizations by name, for configs and command lines."""
