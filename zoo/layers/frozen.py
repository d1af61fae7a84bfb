"""Arrays that a model carries and nobody trains."""

from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from zoo.common.pickling import PicklableFunctions
from zoo.layers import keys
from zoo.limits.rule import limit_rule_of, LimitRule
from zoo.limits.widths import LimitWidths

_Tree = TypeVar("_Tree")


class Frozen(PicklableFunctions, eqx.Module, Generic[_Tree]):
    """Holds a PyTree whose arrays are not parameters.

    The parameters of a model are its inexact arrays (`zoo.parameters`). `Frozen` keeps its inexact
    arrays bit-cast to unsigned integers: optimisers, parameter counts, weight decay and derivatives
    cannot see them, whatever library they are of.
    `Frozen(tree).value` gives the tree back, bit for bit.

    A layer of a model is frozen by wrapping it: `Frozen(layer)` is called as the layer is. And it
    is for batch-norm statistics, the copy of a network inside `f - f_0`, the base point of a Taylor
    model. It is a PyTree like any other: it passes through `jit`, `vmap` and
    `eqx.tree_serialise_leaves`.
    """

    _bits: PyTree
    _dtypes: tuple[str | None, ...] = eqx.field(static=True)

    def __init__(self, tree: _Tree):
        leaves, structure = jax.tree.flatten(tree, is_leaf=_is_none)
        dtypes = [
            str(jnp.asarray(leaf).dtype) if eqx.is_inexact_array(leaf) else None for leaf in leaves
        ]
        bits = [
            leaf if dtype is None else _to_bits(jnp.asarray(leaf))
            for leaf, dtype in zip(leaves, dtypes, strict=True)
        ]
        self._bits = jax.tree.unflatten(structure, bits)
        self._dtypes = tuple(dtypes)

    @property
    def value(self) -> _Tree:
        """The tree that was frozen, with None where the leaves of this one are None by now."""
        bits, structure = jax.tree.flatten(self._bits, is_leaf=_is_none)
        leaves = [
            leaf if dtype is None or leaf is None else _from_bits(leaf, dtype)
            for leaf, dtype in zip(bits, self._dtypes, strict=True)
        ]
        return jax.tree.unflatten(structure, leaves)

    def __call__(
        self, a: PyTree[Shaped[Array, "..."]], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "..."]:
        """What the frozen layer gives for `a`.

        **Raises:** `TypeError` where what is frozen cannot be called.
        """
        layer: Any = self.value
        if not callable(layer):
            raise TypeError(
                f"`Frozen` holds a {type(layer).__name__}, which cannot be called, expected a "
                "layer or a network."
            )
        return keys.called(layer, a, key)

    def limit_rule(self, widths: LimitWidths) -> LimitRule:
        """That of the frozen layer, whose weights add nothing to the tangent kernel."""
        return limit_rule_of(self.value, widths.frozen())


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _to_bits(array: Array) -> Array:
    if jnp.iscomplexobj(array):  # no integer is wide enough: the two parts, on a new last axis
        array = jnp.stack([array.real, array.imag], axis=-1)
    return jax.lax.bitcast_convert_type(array, _unsigned(array.dtype))


def _from_bits(bits: Array | jax.ShapeDtypeStruct, dtype: str) -> Any:
    if isinstance(bits, jax.ShapeDtypeStruct):  # of a model without numbers
        return jax.eval_shape(lambda bits: _from_bits(bits, dtype), bits)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        parts = jax.lax.bitcast_convert_type(bits, jnp.zeros(0, dtype).real.dtype)
        return jax.lax.complex(parts[..., 0], parts[..., 1])
    return jax.lax.bitcast_convert_type(bits, jnp.dtype(dtype))


def _unsigned(dtype: Any) -> np.dtype:
    return np.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")
