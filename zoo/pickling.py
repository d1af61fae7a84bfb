"""Exceptions that travel between processes, with what they carry."""

import copy
import io
import pickle
import sys
from collections.abc import Callable
from typing import Any


class PicklableException:
    """A base of exceptions that carry more than a message: they pickle, whatever they carry.

    Python's own exceptions are rebuilt from their message alone, which fails where the constructor
    takes more: a pool of processes then waits for ever for the error of its worker.

    Each attribute is pickled on its own. One that cannot be, a model with a `lambda` in it say, is
    None in the exception that arrives, and a note of it says why. Functions that JAX has wrapped
    (`jax.nn.relu`) are pickled by name, as other functions are.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        error: Any = self
        carried = {name: _Parcel(value) for name, value in vars(self).items()}
        return _rebuilt, (type(self), error.args, carried)


def _rebuilt(
    kind: type[BaseException], args: tuple[Any, ...], carried: "dict[str, _Parcel]"
) -> BaseException:
    # Not the constructor, whose arguments are for the class to choose.
    error = kind.__new__(kind, *args)
    vars(error).update({name: parcel.value for name, parcel in carried.items()})
    for name, parcel in carried.items():
        if parcel.lost is not None:
            error.add_note(f"`.{name}` is None here: it could not be pickled ({parcel.lost}).")
    return error


class _Parcel:
    """A value, or why it was lost on the way."""

    def __init__(self, value: Any, lost: str | None = None):
        self.value, self.lost = value, lost

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            packed = io.BytesIO()
            _Pickler(packed, pickle.HIGHEST_PROTOCOL).dump(self.value)
            return _unpacked, (packed.getvalue(),)
        except Exception as error:
            return _Parcel, (None, _reason(error))

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Parcel":
        return _Parcel(copy.deepcopy(self.value, memo), self.lost)


def _unpacked(packed: bytes) -> _Parcel:
    try:
        return _Parcel(pickle.loads(packed))
    except Exception as error:
        return _Parcel(None, _reason(error))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class _Pickler(pickle.Pickler):
    """Pickles by name every function that a module holds by that name.

    `pickle` itself does so for plain functions and takes those that are wrapped (`jax.jit`,
    `jax.custom_jvp`) apart, where what is inside is no longer what the name stands for.
    """

    def reducer_override(self, obj: Any) -> Any:
        if callable(obj) and not isinstance(obj, type) and _held_by_name(obj):
            return obj.__qualname__
        return NotImplemented


def _held_by_name(function: Callable[..., Any]) -> bool:
    module, path = (getattr(function, name, None) for name in ("__module__", "__qualname__"))
    if not isinstance(module, str) or not isinstance(path, str):
        return False
    found: Any = sys.modules.get(module)
    for name in path.split("."):
        found = getattr(found, name, None)
    return found is function
