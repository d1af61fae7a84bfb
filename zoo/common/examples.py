"""Batches of examples: an array (n, ...), or a PyTree of them with a row for each example.

A model is called with one example, which has the structure of the batch: of a dictionary with an
image and a mask it is handed a dictionary with one image and one mask.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree


def count(xs: PyTree) -> int:
    """How many examples a batch holds."""
    return len(jax.tree.leaves(xs)[0])


def one_of(xs: PyTree) -> PyTree:
    """The shapes and dtypes of an example of a batch."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)


def rows_of(xs: PyTree, at: slice | Int[Array, " rows"]) -> PyTree:
    """Some examples of a batch."""
    return jax.tree.map(lambda a: a[at], xs)


def joined(first: PyTree, second: PyTree) -> PyTree:
    """Two batches as one. Floating-point numbers are those of the first in their type."""

    def both(a: Array, b: Array) -> Array:
        floating = jnp.issubdtype(a.dtype, jnp.floating)
        dtype = a.dtype if floating else jnp.promote_types(a.dtype, b.dtype)
        return jnp.concatenate([a.astype(dtype), b.astype(dtype)])

    return jax.tree.map(both, first, second)


def described(xs: PyTree) -> str:
    """Shape and dtype of an array, in words; of a PyTree those of each leaf."""

    def in_words(path: Any, leaf: Array) -> str:
        where = f" at `{jax.tree_util.keystr(path)}`" if path else ""
        return f"shape {leaf.shape} and dtype {leaf.dtype}{where}"

    return ", ".join(in_words(*leaf) for leaf in jax.tree_util.tree_leaves_with_path(xs))
