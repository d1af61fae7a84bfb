r"""Networks written in Flax as models of this library.

    f(x; theta) = module.apply({"params": theta, **others}, x[None])[0]     flax.linen
    f(x; theta) = nnx.merge(graph, theta, others)(x[None])[0]               flax.nnx

The parameters theta are what Flax calls so; all other variables, such as the statistics of batch
normalization, are frozen.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from zoo.adapters.flax_layers import (
    FlaxLayer,
    is_hashable,
    Layers,
    linen_kinds,
    nnx_kinds,
    Path,
    put_back,
    replace_in,
    replacing,
    taken_out,
    watching,
)
from zoo.common.examples import described
from zoo.layers.frozen import Frozen
from zoo.limits.rule import LimitRule
from zoo.limits.widths import LimitWidths, NoLimitError

_Options = tuple[tuple[str, Any], ...]


class FlaxModel(eqx.Module):
    """A Flax network as a model: one example in, k outputs out; see `from_flax`.

    Examples are in the layout that the module expects, without the batch axis: images of Flax are
    channel-last, (height, width, channels), where those of this library's networks are
    channel-first.
    """

    params: dict[Any, Any]
    """The parameters, in nested dictionaries under Flax's names."""
    _state: Frozen[Any]
    _network: Any = eqx.field(static=True)
    _batched: bool = eqx.field(static=True)

    def __call__(
        self, x: PyTree[Shaped[Array, "..."]], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "..."]:
        """The outputs for one example; `key` is not used.

        **Raises:** `ValueError` for a module that draws random numbers or updates its variables in
        the call, and where its outputs have no batch axis though `batched=True`.
        """
        del key
        return self.outputs(self.params, x, {})

    def outputs(self, params: PyTree, x: PyTree, layers: Layers) -> Float[Array, "..."]:
        """Those of an example with these parameters, stand-ins among the `layers` being called in
        the place of Flax's layers.
        """
        state = _with_keys(self._state.value)
        if not self._batched:
            return self._network(params, state, x, layers)
        outputs = self._network(params, state, jax.tree.map(lambda leaf: leaf[None], x), layers)
        if not isinstance(outputs, jax.Array) or outputs.shape[:1] != (1,):
            raise ValueError(
                f"`module(x[None])` is {_described(outputs)}, expected an array of shape (1, k), "
                "the outputs of a batch of one example. For a module that takes examples without a "
                "batch axis use `from_flax(..., batched=False)`."
            )
        return outputs[0]

    def limit_rule(self, widths: LimitWidths) -> LimitRule:
        """**Raises:** `NoLimitError`: nothing is known of how Flax's layers scale with width."""
        raise NoLimitError(
            f"`model{widths.path}` is a network of Flax, whose layers have no rule for infinite "
            "width, expected its counterpart in the zoo: `MLP`, `CNN`, `WideResNet`, or "
            "`Sequential` and `Residual` of `Dense`, `Conv` and activations, with "
            "`parameterization=STANDARD` for Flax's."
        )

    def layers(self, x: PyTree) -> dict[Path, Any]:
        """The layers that have a rule, by their paths among the parameters."""
        from zoo.adapters import flax_rules as flax_rules  # which tells of Flax's own layers

        return self._network.layers(self, x)

    def exposed(self, layers: dict[Path, Any]) -> "ExposedFlaxModel":
        """The same with layers as nodes."""
        nodes, rest = taken_out(self.params, layers)
        model = eqx.tree_at(lambda m: m.params, self, rest, is_leaf=lambda node: node is None)
        return ExposedFlaxModel(nodes, model, tuple(layers.items()))


class ExposedFlaxModel(eqx.Module):
    """A `FlaxModel` whose layers are nodes: parameters have other places, and what is computed is
    the same.
    """

    layers: dict[str, FlaxLayer]
    _model: FlaxModel
    _kinds: tuple[tuple[Path, Any], ...] = eqx.field(static=True)

    def __call__(self, x: PyTree) -> Float[Array, "..."]:
        """The outputs for one example."""
        params = put_back(self.layers, self._model.params, dict(self._kinds))
        return self._model.outputs(params, x, self.layers)


def exposing(model: PyTree, x: PyTree) -> Callable[[PyTree], PyTree]:
    """A map of trees like `model`, of its arrays or of what there is for each, to ones in which the
    layers of Flax networks are nodes.

    **Arguments:**

    - `x`: an example, by its shapes and dtypes.
    """
    found: dict[Any, dict[Path, Any]] = {}

    def exposed(node: Any) -> Any:
        return node.exposed(found.get(node._network, {})) if _is_flax(node) else node

    def watched(node: Any) -> Any:
        return _Watched(node, _Found(found)) if _is_flax(node) else node

    if not any(_is_flax(node) for node in jax.tree.leaves(model, is_leaf=_is_end)):
        return lambda tree: tree

    def expose(tree: PyTree) -> PyTree:
        return jax.tree.map(exposed, tree, is_leaf=_is_end)

    try:
        eqx.filter_eval_shape(jax.tree.map(watched, model, is_leaf=_is_end), x)
        eqx.filter_eval_shape(expose(model), x)
    except Exception:  # a model that counts on the tree of its parameters, as a Taylor model does
        return lambda tree: tree
    return expose


def _is_flax(node: Any) -> bool:
    return isinstance(node, FlaxModel)


def _is_end(node: Any) -> bool:
    return isinstance(node, FlaxModel | Frozen)


class _Found:
    """Layers, by the network that they are of; hashed as the object that it is."""

    def __init__(self, layers: dict[Any, dict[Path, Any]]):
        self.layers = layers


class _Watched(eqx.Module):
    """A `FlaxModel` that writes down its layers as it is called."""

    model: FlaxModel
    found: _Found = eqx.field(static=True)

    def __call__(self, x: PyTree) -> Float[Array, "..."]:
        layers = self.found.layers.setdefault(self.model._network, {})
        layers.update(self.model.layers(x))
        return self.model(x)


def from_flax(
    module: Any, variables: Any = None, *, batched: bool = True, **call_options: Any
) -> FlaxModel:
    """A Flax network, linen or NNX, as a model that kernels, corrections and solvers take.

    The model has copies of the network's variables: training the one does not touch the other.
    It is the network in inference mode. Its batch normalization takes the statistics gathered so
    far, which are no parameters and stay as they are, in `zoo.forward_train` too.

    **Arguments:**

    - `module`: a `flax.linen.Module`, or a `flax.nnx.Module`, of which a copy is put in inference
      mode by its `eval()`.
    - `variables`: for linen what `module.init` gives, a dictionary of collections. "params" are
      the parameters, the other collections are frozen. For NNX an `nnx.State` in the place of
      `nnx.state(module)`, or None. The variables of type `nnx.Param` are the parameters.
    - `batched`: whether the module takes a batch, as most do. The model gives it `x[None]` and
      takes `[0]` of what comes; with False it gives it `x`.
    - `call_options`: keyword arguments of every call, such as `train=False`. They are static.

    **Returns:** a `FlaxModel`. Its examples are in the layout of the module: Flax images are
    channel-last.

    **Raises:** `ImportError` where Flax is missing; `TypeError` for a `module` or `variables` of
    another type, and for a module or an option that is not hashable; `ValueError` for variables
    without "params" or unlike the module's own, and for an option that asks NNX for training mode.
    """
    try:
        from flax import linen, nnx
    except ImportError as error:
        raise ImportError(
            "`from_flax` needs Flax, which cannot be imported, expected "
            "`pip install 'finite-width[flax]'`."
        ) from error
    _check_hashable(call_options)
    options = tuple(sorted(call_options.items()))
    if isinstance(module, linen.Module):
        params, state = _split_linen(variables)
        network = _Linen(_static(module, module), options)
    elif isinstance(module, nnx.Module):
        _check_inference(call_options)
        graph, params, state = _split_nnx(module, variables)
        network = _NNX(_static(graph, module), options)
    else:
        raise TypeError(
            f"`module` is of type {type(module).__name__}, expected an instance of "
            "`flax.linen.Module` or `flax.nnx.Module`."
        )
    return FlaxModel(
        params=_copied(params),
        _state=Frozen(_without_keys(_copied(state))),
        _network=network,
        _batched=batched,
    )


@dataclass(frozen=True)
class _Linen:
    """Calls a linen module."""

    module: Any
    options: _Options

    def layers(self, model: FlaxModel, x: PyTree) -> dict[Path, Any]:
        """Those that have a rule: its modules are seen in a call."""
        from flax import linen

        found: dict[Path, Any] = {}
        with linen.intercept_methods(watching(found)):
            eqx.filter_eval_shape(lambda: model(x))
        return linen_kinds(found, model.params)

    def __call__(self, params: PyTree, state: PyTree, x: PyTree, layers: Layers) -> Any:
        from flax import errors, linen

        try:
            with linen.intercept_methods(replacing(layers)):
                return self.module.apply({"params": params, **state}, x, **dict(self.options))
        except errors.ModifyScopeVariableError as error:
            raise ValueError(
                "`module` updates its variables in a call, expected inference mode: the option "
                "that the module has for it, such as `from_flax(..., train=False)` or "
                "`from_flax(..., use_running_average=True)`."
            ) from error
        except errors.InvalidRngError as error:
            raise ValueError(
                "`module` draws random numbers in a call, as dropout does, expected inference "
                "mode: the option that the module has for it, such as "
                "`from_flax(..., deterministic=True)` or `from_flax(..., train=False)`."
            ) from error
        except errors.ScopeParamShapeError as error:
            raise ValueError(
                f"`module` was given a batch of {described(x)}, which does not fit its "
                "parameters, expected this module's variables and examples in its layout (Flax "
                f"images are channel-last): {error}"
            ) from error


@dataclass(frozen=True)
class _NNX:
    """Calls an NNX module, on a fresh one each time: what the call changes is thrown away."""

    graph: Any = field(repr=False)  # hundreds of lines
    options: _Options

    def layers(self, model: FlaxModel, x: PyTree) -> dict[Path, Any]:
        """Those that have a rule."""
        from flax import nnx

        del x
        return nnx_kinds(nnx.merge(self.graph, model.params, _with_keys(model._state.value)))

    def __call__(self, params: PyTree, state: PyTree, x: PyTree, layers: Layers) -> Any:
        from flax import nnx

        module = nnx.merge(self.graph, params, state)
        replace_in(module, layers)
        return module(x, **dict(self.options))


def _split_linen(variables: Any) -> tuple[PyTree, PyTree]:
    """The parameters and the other collections, as plain dictionaries."""
    from flax import core, linen

    if not isinstance(variables, Mapping):
        raise TypeError(
            f"`variables` is of type {type(variables).__name__}, expected the dictionary of "
            'collections that `module.init` gives, with "params" among them.'
        )
    if "params" not in variables:
        raise ValueError(
            f'`variables` has the collections {list(variables)}, expected "params" among them: '
            "the dictionary that `module.init` gives."
        )
    state = core.unfreeze(linen.meta.unbox(dict(variables)))
    return state.pop("params"), state


def _split_nnx(module: Any, variables: Any) -> tuple[Any, PyTree, PyTree]:
    """The graph of a copy of `module` in inference mode, its parameters and its other variables."""
    from flax import nnx

    module = nnx.clone(module)
    module.eval()
    if variables is not None:
        if not isinstance(variables, nnx.State):
            raise TypeError(
                f"`variables` is of type {type(variables).__name__}, expected an `nnx.State` like "
                "`nnx.state(module)`, or None."
            )
        _check_alike(nnx.to_pure_dict(variables), nnx.to_pure_dict(nnx.state(module)))
        nnx.update(module, variables)
    graph, params, state = nnx.split(module, nnx.Param, ...)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(state)


def _check_alike(variables: PyTree, expected: PyTree) -> None:
    """**Raises:** `ValueError` where paths or shapes differ, which `nnx.update` lets pass."""
    got, want = _shapes(variables), _shapes(expected)
    for path in want | got:
        if got.get(path) != want.get(path):
            raise ValueError(
                f"`variables{path}` has shape {got.get(path)}, expected {want.get(path)} as in "
                "`nnx.state(module)` (None: there is no such variable)."
            )


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in leaves}


def _check_inference(call_options: dict[str, Any]) -> None:
    """NNX, unlike linen, would take the statistics of the one example, or one frozen mask."""
    for name in ("deterministic", "use_running_average"):
        if not call_options.get(name, True):
            raise ValueError(
                f"`{name}` is {call_options[name]!r}, expected True: a model is the network in "
                "inference mode."
            )


def _check_hashable(call_options: dict[str, Any]) -> None:
    for name, value in call_options.items():
        if not is_hashable(value):
            raise TypeError(
                f"`{name}` is of type {type(value).__name__}, which is not hashable, expected an "
                "option that is: it is static under `jax.jit`."
            )


def _static(part: Any, module: Any) -> Any:
    """`part` of `module`, which `jax.jit` has to hash."""
    if not is_hashable(part):
        raise TypeError(
            f"`module` is a {type(module).__name__} that is not hashable, expected an unbound "
            "module whose attributes are: tuples in the place of lists, dictionaries and arrays. "
            "It is static under `jax.jit`."
        )
    return part


def _described(outputs: Any) -> str:
    if isinstance(outputs, jax.Array):
        return f"an array of shape {outputs.shape}"
    return f"of type {type(outputs).__name__}"


def _copied(tree: PyTree) -> PyTree:
    """`tree` with arrays of its own: a user's training may donate or overwrite its buffers."""
    return jax.tree.map(lambda leaf: jnp.array(leaf) if eqx.is_array(leaf) else leaf, tree)


class _Key(eqx.Module):
    """A PRNG key as integers, which `eqx.tree_serialise_leaves` can write."""

    data: Array
    impl: Hashable = eqx.field(static=True)


def _without_keys(tree: PyTree) -> PyTree:
    def hidden(leaf: Any) -> Any:
        if eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return _Key(jax.random.key_data(leaf), jax.random.key_impl(leaf))
        return leaf

    return jax.tree.map(hidden, tree)


def _with_keys(tree: PyTree) -> PyTree:
    def shown(node: Any) -> Any:
        if isinstance(node, _Key):
            return jax.random.wrap_key_data(node.data, impl=node.impl)
        return node

    return jax.tree.map(shown, tree, is_leaf=lambda node: isinstance(node, _Key))
