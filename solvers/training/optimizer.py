"""What steps with: anything with the two functions of an optimiser of optax."""

import inspect
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import optax


@runtime_checkable
class Optimizer(Protocol):
    """An optimiser: a transformation of optax, or what has the same two functions.

    - `init`: of the parameters, the state of the optimiser.
    - `update`: of a gradient, that state and the parameters, the updates and the next state. One
      that takes `**extra_args` is given `value`, `grad` and `value_fn` as well.
    """

    @property
    def init(self) -> Callable[..., Any]:
        """params -> state."""
        ...

    @property
    def update(self) -> Callable[..., Any]:
        """(gradient, state, params) -> (updates, state)."""
        ...


def as_transformation(optimizer: Any) -> optax.GradientTransformation:
    """`optimizer` as a transformation of optax, the same one for the same optimiser, so that
    programs compile once for it.

    **Raises:** `TypeError` where it lacks `init` or `update`.
    """
    expected = "expected an optax transformation, `optax.sgd(0.1)` say, or what has its two methods"
    if isinstance(optimizer, type):
        raise TypeError(f"`optimizer` is the class {optimizer!r}, {expected}: make one of it.")
    for name in ("init", "update"):
        if not callable(getattr(optimizer, name, None)):
            raise TypeError(f"`optimizer` is {optimizer!r}, {expected}: it lacks `{name}`.")
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer
    given = inspect.signature(optimizer.update).parameters.values()
    takes_extra = any(parameter.kind is parameter.VAR_KEYWORD for parameter in given)
    kind = optax.GradientTransformationExtraArgs if takes_extra else optax.GradientTransformation
    return kind(optimizer.init, optimizer.update)
