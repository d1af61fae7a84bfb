"""What users pass in to be called between steps, and what it gives: rows that are all alike."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from corrections.parameters import Model

Callbacks = Mapping[str, Callable[[Any], Any]]
"""Functions of the model by name, each giving an array or a PyTree of arrays."""


def check_callbacks(callbacks: Any) -> dict[str, Callable[[Any], Any]]:
    """`callbacks` as a dictionary.

    **Raises:** `TypeError` unless it maps names to functions, or is None.
    """
    if callbacks is None:
        return {}
    if not isinstance(callbacks, Mapping):
        raise TypeError(
            f"`callbacks` is {callbacks!r}, expected functions of the model by name, "
            "`{'outputs': lambda model: jax.vmap(model)(x)}` say."
        )
    for name, callback in callbacks.items():
        if not isinstance(name, str):
            raise TypeError(f"`callbacks` has the key {name!r}, expected names (strings).")
        if not callable(callback):
            raise TypeError(f"`callbacks[{name!r}]` is {callback!r}, expected a function of model.")
    return dict(callbacks)


class FailedCall(Exception):
    """What a user passed in failed while a training ran; its cause is how."""


def failed_call(what: str, step: int, error: Exception) -> FailedCall:
    """The failure of `what` after so many steps, from the error that it raised."""
    failed = FailedCall(f"{what} failed after step {step}: {type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed


@contextlib.contextmanager
def calling(name: str, step: int) -> Iterator[None]:
    """**Raises:** `FailedCall` where what is called in here fails."""
    try:
        yield
    except Exception as error:
        raise failed_call(f"`{name}`", step, error) from error


class CallbackRows:
    """Calls callbacks, and holds each to what it gave first."""

    def __init__(self, callbacks: Callbacks):
        self._callbacks = callbacks
        self._called: set[str] = set()
        self._first: dict[str, PyTree] = {}

    def row(self, model: Model, step: int) -> dict[str, PyTree]:
        """What each gives for the model after so many steps.

        **Raises:** `FailedCall` where one fails, or gives what is no tree of arrays of numbers, or
        another tree than at first.
        """
        return {name: self._call(name, model, step) for name in self._callbacks}

    def like(self, model: Model, step: int) -> dict[str, PyTree]:
        """Zeros like a row; None for a callback that has given none that can be used.

        Those that were not called before are called for it.
        """
        for name in self._callbacks.keys() - self._called:
            with contextlib.suppress(FailedCall):
                self._call(name, model, step)
        first = {name: self._first.get(name) for name in self._callbacks}
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), first)

    def _call(self, name: str, model: Model, step: int) -> PyTree:
        self._called.add(name)
        with calling(f"callbacks[{name!r}]", step):
            found = jax.tree.map(_array, self._callbacks[name](model))
            shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), found)
            first = self._first.setdefault(name, shapes)
            if not _equal(shapes, first):
                raise ValueError(
                    f"it gave {_described(shapes)}, expected {_described(first)} as at first: the "
                    "rows of a history have one structure, one shape and one dtype."
                )
            return found


def _array(leaf: Any) -> Array:
    if isinstance(leaf, jax.Array):
        array = leaf
    else:
        try:
            array = jnp.array(leaf)  # a copy: an array of NumPy may be written to later
        except TypeError as error:
            raise TypeError(f"it gave {leaf!r}, expected a number or an array.") from error
    if not jnp.issubdtype(array.dtype, jnp.number) and array.dtype != bool:
        raise TypeError(f"it gave an array of dtype {array.dtype}, expected numbers.")
    return array


def _equal(shapes: PyTree, others: PyTree) -> bool:
    same_structure = jax.tree.structure(shapes) == jax.tree.structure(others)
    return same_structure and jax.tree.leaves(shapes) == jax.tree.leaves(others)


def _described(shapes: PyTree) -> str:
    leaves: Sequence[jax.ShapeDtypeStruct] = jax.tree.leaves(shapes)
    arrays = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves)
    structure = jax.tree.structure(shapes)
    return arrays if structure == jax.tree.structure(0) else f"{structure} of {arrays or 'nothing'}"
