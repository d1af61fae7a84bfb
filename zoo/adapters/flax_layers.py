r"""The layers inside a Flax network, as nodes of a model.

Kernels are contracted by the layers of a model, which are nodes of its tree; a Flax network is a
tree of arrays under names, and a program. Here the arrays of each layer that has a rule become a
node, and its calls become that node's: of linen by `flax.linen.intercept_methods`, of NNX by
modules of a subclass of the layer's own type.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from zoo.contraction_rule import ContractionRule, registered_rule

Path = tuple[Any, ...]
"""Names from the top of a network to a layer, where its arrays are among the parameters."""
BIAS = "bias"


@dataclass(frozen=True)
class LinenKind:
    """A linen layer without its arrays.

    - `module`: unbound.
    - `weight`: the name of its weight.
    """

    module: Any
    weight: str

    @property
    def of(self) -> type:
        """Its class."""
        return type(self.module)

    def built(self, arrays: dict[str, Any]) -> Callable[..., Any]:
        """The layer with arrays under their names."""
        return lambda *args, **options: self.module.apply({"params": arrays}, *args, **options)

    def described(self, arrays: dict[str, Any]) -> Any:
        """A module with the options of the layer."""
        del arrays
        return self.module


@dataclass(frozen=True)
class NNXKind:
    """The same of an NNX layer."""

    graph: Any = field(repr=False)
    of: type
    weight: str

    def built(self, arrays: dict[str, Any]) -> Callable[..., Any]:
        """As `LinenKind.built`."""
        from flax import nnx

        return nnx.merge(self.graph, arrays)

    def described(self, arrays: dict[str, Any]) -> Any:
        """As `LinenKind.described`."""
        return self.built(arrays)


class FlaxLayer(eqx.Module):
    """A layer of a Flax network by itself.

    Rules that are registered for Flax classes are given it: it has a `weight` and a `bias` (or
    None), and its options are those of `module`.
    """

    weight: Any
    bias: Any
    kind: LinenKind | NNXKind = eqx.field(static=True)

    @property
    def module(self) -> Any:
        """A module of Flax that has the layer's options."""
        return self.kind.described(self.arrays)

    @property
    def arrays(self) -> dict[str, Any]:
        """The parameters, as Flax names them."""
        named = {self.kind.weight: self.weight}
        return named if self.bias is None else named | {BIAS: self.bias}

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What Flax's layer gives."""
        return self.kind.built(self.arrays)(*args, **options)

    def contraction_rule(self) -> ContractionRule:
        """That of the layer's class."""
        rule = registered_rule(self.kind.of)
        assert rule is not None  # others are no nodes
        return rule


def class_name(layer: Any) -> str:
    """What the class of a layer is called, in Flax where it is of Flax."""
    return (layer.kind.of if isinstance(layer, FlaxLayer) else type(layer)).__name__


def is_hashable(value: Any) -> bool:
    """Whether JAX can hold a value static."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


Layers = Mapping[str, FlaxLayer]
"""By their paths, written as `named` writes them."""


def named(path: Path) -> str:
    """A path in words."""
    return "/".join(map(str, path))


def weight_of(arrays: Any) -> str | None:
    """The name of the one parameter of a layer beside its bias, None where there are others."""
    if not isinstance(arrays, Mapping) or any(isinstance(a, Mapping) for a in arrays.values()):
        return None
    names = [name for name in arrays if name != BIAS]
    return names[0] if len(names) == 1 else None


def taken_out(params: PyTree, kinds: Mapping[Path, Any]) -> tuple[dict[str, FlaxLayer], PyTree]:
    """The layers at these paths, and the parameters without theirs.

    `params` is the tree of the parameters, of arrays or of what there is for each.
    """
    layers, rest = {}, params
    for path, kind in kinds.items():
        arrays = _at(params, path)
        layers[named(path)] = FlaxLayer(arrays[kind.weight], arrays.get(BIAS), kind)
        rest = _with(rest, path, dict.fromkeys(arrays))
    return layers, rest


def put_back(layers: Layers, rest: PyTree, kinds: Mapping[Path, Any]) -> PyTree:
    """The inverse of `taken_out`."""
    for path in kinds:
        rest = _with(rest, path, layers[named(path)].arrays)
    return rest


def _at(params: Any, path: Path) -> Any:
    for name in path:
        params = params[name]
    return params


def _with(params: Any, path: Path, arrays: Any) -> Any:
    if not path:
        return arrays
    return {**params, path[0]: _with(params[path[0]], path[1:], arrays)}


def linen_kinds(found: dict[Path, Any], params: PyTree) -> dict[Path, LinenKind]:
    """The layers of a linen network that have a rule, of the modules `found` at their calls."""
    kinds = {}
    for path, (module, shapes) in found.items():
        try:
            arrays = _at(params, path)
        except (KeyError, TypeError):  # parameters that a lifted transformation has made
            continue
        weight = weight_of(arrays)
        if weight is None or not is_hashable(module):
            continue
        if {name: jnp.shape(a) for name, a in arrays.items()} == shapes:
            kinds[path] = LinenKind(module, weight)
    return dict(sorted(kinds.items(), key=lambda item: named(item[0])))


def watching(found: dict[Path, Any]) -> Callable[..., Any]:
    """An interceptor of linen that writes down the modules that have a rule, and the shapes of
    their parameters as they are called.
    """

    def interceptor(call: Any, args: Any, options: Any, context: Any) -> Any:
        module = context.module
        if context.method_name == "__call__" and registered_rule(type(module)) is not None:
            params = module.variables.get("params", {})
            shapes = {name: jnp.shape(a) for name, a in params.items()}
            found[module.path] = module.clone(parent=None), shapes
        return call(*args, **options)

    return interceptor


def replacing(layers: Layers) -> Callable[..., Any]:
    """An interceptor of linen that hands the calls of layers to stand-ins, where there are any."""

    def interceptor(call: Any, args: Any, options: Any, context: Any) -> Any:
        layer = layers.get(named(context.module.path))
        if context.method_name != "__call__" or layer is None or type(layer) is FlaxLayer:
            return call(*args, **options)
        return layer(*args, **options)

    return interceptor


def _modules(module: Any) -> Iterable[tuple[Path, Any]]:
    """The modules of an NNX network and their paths, each once."""
    from flax import nnx

    iter_modules = getattr(nnx, "iter_modules", None)
    return module.iter_modules() if iter_modules is None else iter_modules(module)


def nnx_kinds(module: Any) -> dict[Path, NNXKind]:
    """The layers of an NNX network that have a rule."""
    from flax import nnx

    kinds = {}
    for path, node in _modules(module):
        if registered_rule(type(node)) is None:
            continue
        graph, params, others = nnx.split(node, nnx.Param, ...)
        arrays = nnx.to_pure_dict(params)
        weight = weight_of(arrays)
        if weight is not None and not jax.tree.leaves(others) and is_hashable(graph):
            kinds[path] = NNXKind(graph, type(node), weight)
    return dict(sorted(kinds.items(), key=lambda item: named(item[0])))


def replace_in(module: Any, layers: Layers) -> None:
    """Makes layers of an NNX network call their stand-ins, where there are any."""
    stand_ins = {path: layer for path, layer in layers.items() if type(layer) is not FlaxLayer}
    if not stand_ins:
        return
    for path, node in list(_modules(module)):
        layer = stand_ins.get(named(path))
        if layer is not None:
            calls = {"__call__": lambda _, *args, layer=layer, **options: layer(*args, **options)}
            node.__class__ = type(type(node).__name__, (type(node),), calls)
