"""Batches of examples: an array (n, ...), or a PyTree of them with a row for each example.

A model is called with one example, which has the structure of the batch: of a dictionary with an
image and a mask it is handed a dictionary with one image and one mask.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from zoo.common import checks


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


def checked_examples(name: str, x: Any, *, half: checks.Half = "float32") -> PyTree[jax.Array]:
    """`x` as a batch of examples, whatever their values: an array (n, ...), or a dictionary, tuple
    or other PyTree of such arrays with as many rows each. A list is an array, as NumPy reads it.

    Only parameters are differentiated: integers (tokens, say) and booleans stay what they are, and
    a model that cannot take them says so.

    **Raises:** `TypeError` where it holds no real numbers; `ValueError` where it is empty, has no
    batch axis, or leaves of different lengths.
    """
    xs = _of_leaves(name, x, lambda leaf, value: _examples_array(leaf, value, half))
    (first, like), *others = jax.tree_util.tree_leaves_with_path(xs)
    for path, array in others:
        if len(array) != len(like):
            raise ValueError(
                f"`{name}` has {len(like)} rows in `{name}{jax.tree_util.keystr(first)}` and "
                f"{len(array)} in `{name}{jax.tree_util.keystr(path)}`, expected a row for each "
                "example in every leaf."
            )
    return xs


def example_arrays(name: str, x: Any) -> PyTree[jax.Array]:
    """`x` as one example of any model, an array or a PyTree of arrays.

    **Raises:** `TypeError` where it is none.
    """
    return _of_leaves(name, x, lambda leaf, value: checks.as_array(leaf, value, "one example"))


def _of_leaves(name: str, x: Any, check: Callable[[str, Any], jax.Array]) -> PyTree[jax.Array]:
    """`check` of an array, or of each array of a PyTree by its own name."""
    if not _is_tree(x):
        return check(name, x)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: check(f"{name}{jax.tree_util.keystr(path)}", leaf),
        x,
        is_leaf=_is_numbers,
    )


def _is_numbers(node: Any) -> bool:
    """Whether a node is an array written in numbers: `[[0.5, 1.0], [2.0, 0.0]]`."""
    return isinstance(node, list) and all(
        isinstance(leaf, int | float) for leaf in jax.tree.leaves(node)
    )


def _is_tree(x: Any) -> bool:
    """Whether examples are a PyTree of arrays, and not one array."""
    if isinstance(x, list) or jax.tree_util.all_leaves([x]):
        return False
    return not all(isinstance(leaf, int | float) for leaf in jax.tree.leaves(x))


def _examples_array(name: str, x: Any, half: checks.Half) -> jax.Array:
    expected = "a batch of examples (n, ...)"
    array = checks.as_array(name, x, expected)
    if jnp.issubdtype(array.dtype, jnp.floating):
        array = checks.real_array(name, array, expected=expected, half=half)
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        raise TypeError(
            f"`{name}` has dtype {array.dtype}, expected real numbers, integers or booleans: "
            f"{expected}."
        )
    if array.ndim < 1 or array.size == 0:
        raise ValueError(
            f"`{name}` has shape {array.shape}, expected a batch of at least one example (n, ...)."
        )
    return array


def checked_batch(name: str, x: Any) -> PyTree[jax.Array]:
    """As `checked_examples`, of finite numbers.

    **Raises:** as that; `ValueError` where it holds NaN or infinity.
    """
    xs = checked_examples(name, x)
    for path, array in jax.tree_util.tree_leaves_with_path(xs):
        checks.finite(f"{name}{jax.tree_util.keystr(path)}", array)
    return xs


def floating_batch(name: str, x: Any) -> jax.Array:
    """`x` as a batch of examples that is one array of finite floating-point numbers.

    **Raises:** as `checked_batch`; `TypeError` for a PyTree, integers or booleans.
    """
    expected = "a batch of examples (n, ...)"
    if _is_tree(x):
        raise TypeError(f"`{name}` is of type {type(x).__name__}, expected one array: {expected}.")
    array = _examples_array(name, checks.real_array(name, x, expected=expected), "float32")
    checks.finite(name, array)
    return array


def like_examples(name: str, x: PyTree[jax.Array], of: str, others: PyTree[jax.Array]) -> None:
    """**Raises:** `ValueError` where the examples of a batch have another structure or other shapes
    than those of the batch `of`.
    """
    found, expected = one_of(x), one_of(others)
    same = jax.tree.structure(found) == jax.tree.structure(expected)
    shapes = [[leaf.shape for leaf in jax.tree.leaves(one)] for one in (found, expected)]
    if not same or shapes[0] != shapes[1]:
        raise ValueError(
            f"`{name}` holds examples of {described(found)}, expected those of `{of}`: "
            f"{described(expected)}."
        )
