r"""How a layer's size enters its function and its initialisation.

A layer computes

    z = multiplier W a + bias_multiplier b,      W ~ N(0, init^2),  b ~ N(0, bias_init^2)

and a parameterization is the choice of the multipliers, the initial scales and the learning rates
of SGD and Adam, each a power law std^p fan_in^q fan_out^r, one for each role that a layer can have
in a network: the input layer, a hidden layer, the readout. `fan_in` and `fan_out` are the layer's
inputs and outputs per output position (a convolution counts its kernel's positions too).

The form follows the abc-parameterizations of Yang & Hu (2021, arXiv:2011.14522). The table of
exponents is section 9 of docs/theory.md.
"""

from dataclasses import dataclass
from typing import Any, Literal

from zoo.common import checks

Role = Literal["input", "hidden", "readout"]


@dataclass(frozen=True)
class PowerLaw:
    """`std**self.std * fan_in**self.fan_in * fan_out**self.fan_out`: a scale by its exponents."""

    std: float = 0.0
    fan_in: float = 0.0
    fan_out: float = 0.0

    def __call__(self, *, std: float, fan_in: int, fan_out: int) -> float:
        return float(std) ** self.std * fan_in**self.fan_in * fan_out**self.fan_out


_ONE = PowerLaw()
_STD = PowerLaw(std=1.0)
_STD_BY_ROOT_FAN_IN = PowerLaw(std=1.0, fan_in=-0.5)
_STD_BY_FAN_IN = PowerLaw(std=1.0, fan_in=-1.0)
_FAN_IN = PowerLaw(fan_in=1.0)
_BY_FAN_IN = PowerLaw(fan_in=-1.0)
_FAN_OUT = PowerLaw(fan_out=1.0)


@dataclass(frozen=True)
class TensorScaling:
    """How one tensor enters, starts and moves.

    The multiplier in the forward pass, the standard deviation at the start, and the multipliers of
    the learning rate under SGD (or gradient flow) and under Adam.

    `adam=None` means that the parameterization does not say.
    """

    multiplier: PowerLaw
    init: PowerLaw
    sgd: PowerLaw = _ONE
    adam: PowerLaw | None = None


@dataclass(frozen=True)
class LayerScaling:
    """The scaling of a layer's weight and of its bias."""

    weight: TensorScaling
    bias: TensorScaling


@dataclass(frozen=True, repr=False)
class Parameterization:
    """One value that says, for each layer role, where a layer's size enters.

    `NTK`, `STANDARD`, `MEAN_FIELD` and `MUP` are four of them; a user writes another by giving
    other exponents.
    It is hashable and compares by value, so a model can hold it as static data.

    **Arguments:**

    - `name`: what reports print, and what it prints as.
    - `input`, `hidden`, `readout`: the `LayerScaling` of each role.
    """

    name: str
    input: LayerScaling
    hidden: LayerScaling
    readout: LayerScaling

    def __repr__(self) -> str:
        return self.name

    def __pdoc__(self, **options: Any) -> Any:
        """How it prints inside a module of Equinox."""
        from wadler_lindig import TextDoc  # whose printer has called this

        del options
        return TextDoc(self.name)

    def scaling(self, role: Role) -> LayerScaling:
        """The scaling of a layer with this role."""
        checks.choice("role", role, ("input", "hidden", "readout"))
        return getattr(self, role)


def check_parameterization(name: str, value: Any) -> Parameterization:
    """`value` itself.

    **Raises:** `TypeError` where it is no `Parameterization`.
    """
    expected = "a `zoo.Parameterization` such as `zoo.NTK` (by name: `zoo.PARAMETERIZATIONS`)"
    checks.instance(name, value, Parameterization, expected)
    return value


_NTK_LAYER = LayerScaling(
    weight=TensorScaling(multiplier=_STD_BY_ROOT_FAN_IN, init=_ONE),
    bias=TensorScaling(multiplier=_STD, init=_ONE),
)
NTK = Parameterization("NTK", _NTK_LAYER, _NTK_LAYER, _NTK_LAYER)
"""z = weight_std / sqrt(fan_in) W a + bias_std b, all parameters N(0, 1) (Jacot et al. 2018)."""

_STANDARD_LAYER = LayerScaling(
    weight=TensorScaling(multiplier=_ONE, init=_STD_BY_ROOT_FAN_IN, adam=_ONE),
    bias=TensorScaling(multiplier=_ONE, init=_STD, adam=_ONE),
)
STANDARD = Parameterization("STANDARD", _STANDARD_LAYER, _STANDARD_LAYER, _STANDARD_LAYER)
"""z = W a + b, W ~ N(0, weight_std^2 / fan_in), b ~ N(0, bias_std^2)."""

_MEAN_FIELD_LAYER = LayerScaling(
    weight=TensorScaling(multiplier=_STD_BY_ROOT_FAN_IN, init=_ONE, sgd=_FAN_OUT),
    bias=TensorScaling(multiplier=_STD, init=_ONE, sgd=_FAN_OUT),
)
MEAN_FIELD = Parameterization(
    "MEAN_FIELD",
    _MEAN_FIELD_LAYER,
    _MEAN_FIELD_LAYER,
    LayerScaling(
        weight=TensorScaling(multiplier=_STD_BY_FAN_IN, init=_ONE, sgd=_FAN_IN),
        # The readout's bias enters f with weight 1: at a rate that grows with the width it alone
        # would make the tangent kernel grow like the width.
        bias=TensorScaling(multiplier=_STD, init=_ONE),
    ),
)
"""As NTK with the readout divided by its fan-in and not its root, and learning rates that grow with
the width (Mei et al. 2018; deep networks: Yang & Hu 2021)."""

_MUP_BIAS = TensorScaling(multiplier=_ONE, init=_STD, sgd=_FAN_OUT, adam=_ONE)
MUP = Parameterization(
    "MUP",
    LayerScaling(
        weight=TensorScaling(multiplier=_ONE, init=_STD_BY_ROOT_FAN_IN, sgd=_FAN_OUT, adam=_ONE),
        bias=_MUP_BIAS,
    ),
    LayerScaling(
        weight=TensorScaling(multiplier=_ONE, init=_STD_BY_ROOT_FAN_IN, adam=_BY_FAN_IN),
        bias=_MUP_BIAS,
    ),
    LayerScaling(
        weight=TensorScaling(multiplier=_ONE, init=_STD_BY_FAN_IN, sgd=_BY_FAN_IN, adam=_BY_FAN_IN),
        bias=_MUP_BIAS,
    ),
)
"""The maximal-update parameterization (Yang et al. 2022, table 3)."""

PARAMETERIZATIONS: dict[str, Parameterization] = {
    p.name: p for p in (NTK, STANDARD, MEAN_FIELD, MUP)
}
"""The parameterizations by name, for configs and command lines."""
