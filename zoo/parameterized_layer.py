"""Layers whose parameters a parameterization scales, whatever the layer computes.

The multipliers, the initial scales and the learning rates follow from the parameterization, the
layer's role and its shape (`zoo.parameterization`); they are derived, never stored.
"""

import abc
from dataclasses import dataclass
from typing import Literal

import equinox as eqx

from zoo.parameterization import LayerScaling, Parameterization, Role, TensorScaling


@dataclass(frozen=True)
class ParameterizedTensor:
    """What a parameterization has to know of a layer's tensor.

    - `kind`: whether it scales as a "weight" or as a "bias".
    - `std`: its sigma.
    - `start`: the number that all of multiplier x tensor starts at, where that is not random.
    """

    kind: Literal["weight", "bias"]
    std: float
    start: float | None = None


class ParameterizedLayer(eqx.Module):
    """A layer whose parameters are scaled by a parameterization.

    A layer of your own that states its `role`, `parameterization`, `fans` and `tensors` takes part
    in `learning_rates`, `reparameterize` and `summary`.
    """

    role: eqx.AbstractVar[Role]
    parameterization: eqx.AbstractVar[Parameterization]

    @property
    @abc.abstractmethod
    def fans(self) -> dict[str, int]:
        """`fan_in` and `fan_out`: inputs and outputs of one output position."""

    @property
    @abc.abstractmethod
    def tensors(self) -> dict[str, ParameterizedTensor]:
        """The place of each parameter of the layer, by the name of its attribute."""

    @abc.abstractmethod
    def like(self, parameterization: Parameterization) -> "ParameterizedLayer":
        """The same layer in another parameterization, with shapes in the place of arrays."""

    @property
    def scaling(self) -> LayerScaling:
        """This role's scaling in this parameterization."""
        return self.parameterization.scaling(self.role)

    def tensor_scaling(
        self, name: str, parameterization: Parameterization | None = None
    ) -> TensorScaling:
        """The scaling of the tensor `name` (in another parameterization, if given)."""
        parameterization = self.parameterization if parameterization is None else parameterization
        return getattr(parameterization.scaling(self.role), self.tensors[name].kind)

    def multiplier(self, name: str, parameterization: Parameterization | None = None) -> float:
        """The factor of the tensor `name` in the forward pass."""
        law = self.tensor_scaling(name, parameterization).multiplier
        return law(std=self.tensors[name].std, **self.fans)

    def init_std(self, name: str) -> float:
        """The standard deviation of the tensor `name` at the start (0 where it is not random)."""
        if self.tensors[name].start is not None:
            return 0.0
        return self.tensor_scaling(name).init(std=self.tensors[name].std, **self.fans)

    def learning_rate(
        self,
        name: str,
        optimizer: Literal["sgd", "adam"] = "sgd",
        parameterization: Parameterization | None = None,
    ) -> float:
        """The learning-rate multiplier of the tensor `name`.

        **Raises:** `ValueError` where the parameterization does not say what Adam's is.
        """
        parameterization = self.parameterization if parameterization is None else parameterization
        law = getattr(self.tensor_scaling(name, parameterization), optimizer)
        if law is None:
            raise ValueError(
                f"{parameterization.name} does not say what Adam's learning rates are, "
                'expected `optimizer="sgd"` or a parameterization that does, such as MUP.'
            )
        return law(std=self.tensors[name].std, **self.fans)
