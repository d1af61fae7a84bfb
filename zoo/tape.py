"""What goes into each layer of a network, and what comes out.

Every layer of the zoo inside a model is replaced by one that writes on a tape that lives inside one
trace. Any model that calls zoo layers can be recorded, whatever holds them together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float

from zoo.activations import Activation
from zoo.frozen import Frozen
from zoo.layers import ParameterizedLayer
from zoo.structure import Flatten, GlobalAveragePool

_LAYERS = ParameterizedLayer | Activation | Flatten | GlobalAveragePool


@dataclass(frozen=True)
class LayerCall:
    """One layer at work: where it sits in the model, what came in, what went out."""

    path: str
    layer: Any
    input: Float[Array, "..."]
    output: Float[Array, "..."]


def record(
    model: Callable[[Array], Array], x: Float[Array, "..."]
) -> tuple[Float[Array, " k"], list[LayerCall]]:
    """The outputs of `model` for one example, and its calls of zoo layers in their order.

    The arrays of a call are values of the same trace: return them from the function that is
    transformed, as in `jax.vmap(lambda x: [call.output for call in record(model, x)[1]])(xs)`.
    What a `Frozen` copy inside the model computes is not recorded. Of a layer that the model calls
    inside a transformation of its own (`jax.vmap`, `jax.lax.scan`) only the shapes mean something
    outside of it.
    """
    tape: list[LayerCall] = []

    def is_end(node: Any) -> bool:
        return isinstance(node, _LAYERS | Frozen)

    def recorded(path: Any, node: Any) -> Any:
        if not isinstance(node, _LAYERS):
            return node
        return _Recorder(node, jax.tree_util.keystr(path), tape)

    recording: Any = jax.tree_util.tree_map_with_path(recorded, model, is_leaf=is_end)
    return recording(x), tape


class _Recorder(eqx.Module):
    layer: Any
    path: str = eqx.field(static=True)
    tape: list[LayerCall] = eqx.field(static=True)

    def __call__(self, a: Array) -> Array:
        z = self.layer(a)
        self.tape.append(LayerCall(self.path, self.layer, a, z))
        return z
