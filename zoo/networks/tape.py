"""What goes into each layer of a network, and what comes out.

Every layer that the library knows inside a model is replaced by a stand-in (`zoo.tracing.stand_in`)
that writes on a tape, which lives inside one trace. Any model that calls such layers can be
recorded, whatever holds them together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Float, PyTree, Shaped

from zoo.adapters.flax import exposing
from zoo.common import checks
from zoo.common.examples import example_arrays
from zoo.contraction_rule import has_contraction_rule
from zoo.layers.activations import Activation
from zoo.layers.frozen import Frozen
from zoo.layers.structure import Flatten, GlobalAveragePool
from zoo.parameterized_layer import ParameterizedLayer
from zoo.tracing.programs import same_program
from zoo.tracing.stand_in import stand_in

ZOO_LAYERS = ParameterizedLayer | Activation | Flatten | GlobalAveragePool


@dataclass(frozen=True)
class LayerCall:
    """One layer at work: where it sits in the model, what came in, what went out."""

    path: str
    layer: Any
    input: Float[Array, "..."]
    output: Float[Array, "..."]


def record(
    model: Callable[[Any], Array], x: PyTree[Shaped[Array, "..."]]
) -> tuple[Float[Array, "..."], list[LayerCall]]:
    """The outputs of `model` for one example, and its calls of layers in their order.

    Layers are those of the zoo, and those with a `ContractionRule`: of Equinox (`Linear`, `Conv`,
    `Embedding`), of Flax networks (whose `layer` is called as Flax's, with the batch axis that the
    network is given; its `module` has the options) and your own.

    The arrays of a call are values of the same trace: return them from the function that is
    transformed, as in `jax.vmap(lambda x: [call.output for call in record(model, x)[1]])(xs)`.
    What a `Frozen` copy inside the model computes is not recorded. Of a layer that the model calls
    inside a transformation of its own (`jax.vmap`, `jax.lax.scan`) only the shapes mean something
    outside of it.

    **Raises:** `ValueError` where the model is another program with stand-ins for its layers, which
    are of subclasses of the layers' types.
    """
    checks.function("model", model, "a callable PyTree")
    x = example_arrays("x", x)
    model = exposing(model, x)(model)
    arrays, static = eqx.partition(model, eqx.is_array)

    def program(tape: list[LayerCall] | None) -> ClosedJaxpr:
        def outputs(arrays: Any, x: Any) -> Array:
            model = eqx.combine(arrays, static)
            return (model if tape is None else _recording(model, tape))(x)

        return jax.make_jaxpr(outputs)(arrays, x)

    plain = program(None)
    try:
        same = same_program(plain, program([]))
    except Exception as error:
        raise ValueError(_ANOTHER) from error
    if not same:
        raise ValueError(_ANOTHER)
    tape: list[LayerCall] = []
    return _recording(model, tape)(x), tape


_ANOTHER = (
    "`model` computes something else where its layers are recorded, by stand-ins of subclasses of "
    "their types; expected a model that asks `isinstance(layer, ...)`, not for `type(layer)`."
)


def _is_layer(node: Any) -> bool:
    return isinstance(node, ZOO_LAYERS) or has_contraction_rule(node)


def _recording(model: Any, tape: list[LayerCall]) -> Any:
    """The model with stand-ins for its layers, which write on `tape`."""

    def is_end(node: Any) -> bool:
        return _is_layer(node) or isinstance(node, Frozen)

    def recorded(path: Any, node: Any) -> Any:
        if not _is_layer(node):
            return node

        def on_call(layer: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            z = layer(*args, **options)
            tape.append(LayerCall(jax.tree_util.keystr(path), layer, args[0], z))
            return z

        return stand_in(node, on_call)

    return jax.tree_util.tree_map_with_path(recorded, model, is_leaf=is_end)
