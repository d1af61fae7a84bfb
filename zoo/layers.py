"""Layers that know their place in the network and their parameterization."""

import equinox as eqx
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from zoo import checks
from zoo.parameterization import LayerScaling, NTK, Parameterization, Role


class Dense(eqx.Module):
    """A fully connected layer, z = weight_multiplier W a + bias_multiplier b.

    The multipliers and the initial scales follow from the parameterization, the layer's role and
    its shape (see `zoo.parameterization`); they are derived, never stored.
    """

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
        - `parameterization`: `NTK`, `STANDARD` or a user's own.
        - `weight_std`, `bias_std`: sigma_w and sigma_b; `bias_std=None` means no bias parameters.
        - `key`: for the initial parameters, in the default float type.

        **Raises:** `ValueError` for sizes below 1, a negative or non-finite std, an unknown role.
        """
        checks.integer("in_size", in_size)
        checks.integer("out_size", out_size)
        checks.nonnegative_number("weight_std", weight_std)
        if bias_std is not None:
            checks.nonnegative_number("bias_std", bias_std)
        self.role = role
        self.parameterization = parameterization
        self.weight_std = float(weight_std)
        self.bias_std = None if bias_std is None else float(bias_std)

        scaling = parameterization.scaling(role)
        fans = {"fan_in": in_size, "fan_out": out_size}
        weight_key, bias_key = jr.split(key)
        init = scaling.weight.init(std=self.weight_std, **fans)
        self.weight = init * jr.normal(weight_key, (out_size, in_size))
        if self.bias_std is None:
            self.bias = None
        else:
            init = scaling.bias.init(std=self.bias_std, **fans)
            self.bias = init * jr.normal(bias_key, (out_size,))

    @property
    def scaling(self) -> LayerScaling:
        """This role's scaling in this parameterization."""
        return self.parameterization.scaling(self.role)

    @property
    def fans(self) -> dict[str, int]:
        """`fan_in` and `fan_out`."""
        return {"fan_in": self.weight.shape[-1], "fan_out": self.weight.shape[-2]}

    @property
    def weight_multiplier(self) -> float:
        """The factor of W in the forward pass."""
        return self.scaling.weight.multiplier(std=self.weight_std, **self.fans)

    @property
    def bias_multiplier(self) -> float:
        """The factor of b in the forward pass (0 where the layer has no bias)."""
        if self.bias_std is None:
            return 0.0
        return self.scaling.bias.multiplier(std=self.bias_std, **self.fans)

    def __call__(self, a: Float[Array, " in"]) -> Float[Array, " out"]:
        z = self.weight_multiplier * (self.weight @ a)
        return z if self.bias is None else z + self.bias_multiplier * self.bias
