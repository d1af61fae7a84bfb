"""A model in another floating-point type."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from zoo.layers.frozen import Frozen

_Model = TypeVar("_Model")


def astype(model: _Model, dtype: Any) -> _Model:
    """`model` with its parameters, and what is frozen inside it, in another floating-point type.

    **Arguments:**

    - `model`: any PyTree.
    - `dtype`: a real floating-point type: "float32", `jnp.float64`, `jnp.bfloat16`.

    **Raises:** `TypeError` for another type; `ValueError` for float64 where JAX has it switched
    off.
    """
    try:
        wanted = jnp.dtype(dtype)
    except TypeError as error:
        raise TypeError(_expected(dtype)) from error
    if not jnp.issubdtype(wanted, jnp.floating):
        raise TypeError(_expected(dtype))
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise ValueError(
            f"`dtype` is {wanted} while JAX works in 32 bits, expected "
            '`jax.config.update("jax_enable_x64", True)` before.'
        )

    def is_frozen(node: Any) -> bool:
        return isinstance(node, Frozen)

    def cast(node: Any) -> Any:
        if is_frozen(node):
            return Frozen(astype(node.value, wanted))
        if eqx.is_inexact_array(node) and not jnp.iscomplexobj(node):
            return jnp.asarray(node).astype(wanted)
        return node

    return jax.tree.map(cast, model, is_leaf=is_frozen)


def _expected(dtype: Any) -> str:
    return f"`dtype` is {dtype!r}, expected a real floating-point type such as jnp.float32."
