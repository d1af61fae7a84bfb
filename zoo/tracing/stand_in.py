"""Stand-ins for layers: a model calls them as it calls the layers, and somebody else is told.

A stand-in is of a subclass of its layer's own type and has its fields, so that `isinstance`,
attributes and maps over its arrays give what they give for the layer. A model can still tell it
apart (`type(layer) is Dense`): whether it computes the same, its program says
(`zoo.tracing.programs`).
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx

OnCall = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

_ON_CALL = "_on_call"


def stand_in(layer: Any, on_call: OnCall) -> Any:
    """A copy of `layer` whose calls are those of `on_call`.

    **Arguments:**

    - `layer`: an object with a `__call__` and a `__dict__`, such as an `equinox.Module`.
    - `on_call`: called as `on_call(layer, args, options)`, gives what the call gives. It is handed
      a layer of the layer's own type that has the arrays the model has given the stand-in by then.

    **Raises:** `TypeError` where the layer's type allows no subclass, or its objects no copy.
    """
    return _copy(_standing_in_for(type(layer)), vars(layer) | {_ON_CALL: on_call})


def _call(self: Any, *args: Any, **options: Any) -> Any:
    fields = {name: value for name, value in vars(self).items() if name != _ON_CALL}
    layer = _copy(type(self).__base__, fields)
    return getattr(self, _ON_CALL)(layer, args, options)


def _copy(of_type: Any, fields: dict[str, Any]) -> Any:
    copied = object.__new__(of_type)
    for name, value in fields.items():
        object.__setattr__(copied, name, value)
    return copied


# One for each type of layer: JAX never forgets the classes that it is told of.
@functools.cache
def _standing_in_for(layer_type: type) -> type:
    of_class = {
        name: getattr(layer_type, name) for name in ("__module__", "__qualname__", "__doc__")
    }
    own: dict[str, Any] = {"__call__": _call}
    if issubclass(layer_type, eqx.Module):
        # A static field goes with the module through maps and transformations.
        own["__annotations__"] = {_ON_CALL: Any}
        own[_ON_CALL] = eqx.field(static=True, repr=False, default=None)
    metaclass: Any = type(layer_type)
    return metaclass(layer_type.__name__, (layer_type,), of_class | own)
