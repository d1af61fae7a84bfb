r"""Models made from models.

    centered(f)      f(x; theta) - f(x; theta_0)         the network that starts at zero
    scaled(f, a)     a f(x)                              lazy training, a to oo (Chizat & Bach 2019)
    with_output(f)   sigma(f(x))                         a nonlinear output (Liu, Zhu & Belkin 2020)

Each is a model again, with the parameters of the model it was made from, and they compose.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from zoo.common import checks
from zoo.common.pickling import PicklableFunctions
from zoo.layers import keys
from zoo.layers.frozen import Frozen
from zoo.layers.training_pass import forward_train
from zoo.limits.composition import CenteredRule, ScaledRule
from zoo.limits.rule import limit_rule_of, LimitRule
from zoo.limits.widths import LimitWidths, NoLimitError

Model = Callable[[Any], Array]

OUTPUTS: dict[str, Callable[[Array], Array]] = {
    "softmax": jax.nn.softmax,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
}
"""The output functions that have a name: (k,) -> (k,)."""


class Centered(PicklableFunctions, eqx.Module):
    """f(x; theta) - f(x; theta_0); see `centered`."""

    model: Model
    _start: Frozen[Any]

    def __call__(
        self, x: PyTree[Shaped[Array, "..."]], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "..."]:
        """The change of the outputs for one example, both models given the same key."""
        return keys.called(self.model, x, key) - keys.called(self._start.value, x, key)

    def forward_train(
        self, xs: PyTree[Shaped[Array, "n ..."]]
    ) -> tuple[Float[Array, "n ..."], "Centered"]:
        """See `zoo.forward_train`; the copy keeps the statistics it was frozen with."""
        outputs, model = forward_train(self.model, xs)
        start = jax.vmap(self._start.value)(xs)
        return outputs - start, eqx.tree_at(lambda m: m.model, self, model)

    def limit_rule(self, widths: LimitWidths) -> CenteredRule:
        """What it does to the kernels of infinite width; see `zoo.limits`."""
        return CenteredRule(limit_rule_of(self.model, widths.at(".model")))


class Scaled(PicklableFunctions, eqx.Module):
    """alpha f(x); see `scaled`."""

    model: Model
    alpha: float = eqx.field(static=True)

    def __call__(
        self, x: PyTree[Shaped[Array, "..."]], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "..."]:
        """The scaled outputs for one example."""
        return self.alpha * keys.called(self.model, x, key)

    def forward_train(
        self, xs: PyTree[Shaped[Array, "n ..."]]
    ) -> tuple[Float[Array, "n ..."], "Scaled"]:
        """See `zoo.forward_train`."""
        outputs, model = forward_train(self.model, xs)
        return self.alpha * outputs, eqx.tree_at(lambda m: m.model, self, model)

    def limit_rule(self, widths: LimitWidths) -> ScaledRule:
        """What it does to the kernels of infinite width; see `zoo.limits`."""
        return ScaledRule(limit_rule_of(self.model, widths.at(".model")), self.alpha)


class WithOutput(PicklableFunctions, eqx.Module):
    """output(f(x)); see `with_output`."""

    model: Model
    output: Callable[[Array], Array] = eqx.field(static=True)

    def __call__(
        self, x: PyTree[Shaped[Array, "..."]], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "..."]:
        """The transformed outputs for one example."""
        return self.output(keys.called(self.model, x, key))

    def forward_train(
        self, xs: PyTree[Shaped[Array, "n ..."]]
    ) -> tuple[Float[Array, "n ..."], "WithOutput"]:
        """See `zoo.forward_train`."""
        outputs, model = forward_train(self.model, xs)
        return jax.vmap(self.output)(outputs), eqx.tree_at(lambda m: m.model, self, model)

    def limit_rule(self, widths: LimitWidths) -> LimitRule:
        """**Raises:** `NoLimitError`."""
        raise NoLimitError(
            f"`model{widths.path}` applies a function to the outputs, under which the tangent "
            "kernel moves at any width (Liu, Zhu & Belkin 2020): there is no kernel limit. "
            "Expected the model without it (its function belongs into the loss)."
        )


def centered(model: Model) -> Centered:
    """`model` minus a frozen copy of itself: f(x; theta) - f(x; theta_0), zero at the start.

    Its tangent kernel is that of `model`. Only `model` is trained.
    """
    return Centered(model=_callable(model), _start=Frozen(model))


def scaled(model: Model, alpha: float) -> Scaled:
    """alpha f(x): outputs scaled by alpha, the tangent kernel by alpha^2.

    Training follows the linearised network as alpha grows, for a centered model (Chizat & Bach
    2019); with the loss divided by alpha^2 the time scale stays.

    **Raises:** `ValueError` for an alpha that is not a finite number > 0.
    """
    checks.nonnegative_number("alpha", alpha, strictly=True)
    return Scaled(model=_callable(model), alpha=float(alpha))


def with_output(model: Model, output: str | Callable[[Array], Array]) -> WithOutput:
    """output(f(x)): a function of all k outputs after the readout.

    **Arguments:**

    - `model`: any model.
    - `output`: "softmax", "sigmoid", "tanh", or a function (k,) -> (k',).

    **Raises:** `ValueError` for an unknown name.
    """
    if not callable(output):
        checks.choice("output", output, OUTPUTS)
        output = OUTPUTS[output]
    return WithOutput(model=_callable(model), output=output)


def without_transforms(model: Any) -> tuple[Any, float]:
    """The model inside of transforms, and what `scaled` and `centered` multiply the covariance of
    its outputs over initialisations by. Functions of the outputs (`with_output`) do not enter.
    """
    factor = 1.0
    while isinstance(model, Centered | Scaled | WithOutput):
        if not isinstance(model, WithOutput):
            factor *= model.alpha**2 if isinstance(model, Scaled) else 0.0
        model = model.model
    return model, factor


def _callable(model: Any) -> Any:
    if not callable(model):
        raise TypeError(f"`model` is {model!r}, expected a callable PyTree.")
    return model
