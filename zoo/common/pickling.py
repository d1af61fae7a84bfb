"""What travels between processes: exceptions with what they carry, models with their functions.

`pickle` takes functions that JAX has wrapped (`jnp.tanh` is one of `jax.jit`, `jax.nn.relu` one of
`jax.custom_jvp`) apart, and fails on what is inside, which is no longer what their name stands for.
"""

import copy
import functools
import importlib
import io
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any


class PicklableFunctions:
    """A base of objects that hold functions, also in tuples, lists and dictionaries: those that JAX
    has wrapped are pickled by name, as other functions are, and come back as themselves.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {name: _mapped(_by_name, value) for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({name: _mapped(_itself, value) for name, value in state.items()})


class _Named:
    """A function that pickles as its name."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __reduce__(self) -> tuple[Any, ...]:
        return _found, (self.function.__module__, self.function.__qualname__)


def _by_name(value: Any) -> Any:
    wrapped = callable(value) and not isinstance(value, type | types.FunctionType)
    return _Named(value) if wrapped and _held_by_name(value) else value


def _itself(value: Any) -> Any:
    return value.function if isinstance(value, _Named) else value


def _mapped(fn: Callable[[Any], Any], value: Any) -> Any:
    """`fn` of a value, or of the entries of Python's own containers."""
    if type(value) in (tuple, list):
        return type(value)(_mapped(fn, entry) for entry in value)
    if type(value) is dict:
        return {key: _mapped(fn, entry) for key, entry in value.items()}
    return fn(value)


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
    """Pickles by name every function that a module holds by that name."""

    def reducer_override(self, obj: Any) -> Any:
        if callable(obj) and not isinstance(obj, type) and _held_by_name(obj):
            return obj.__qualname__
        return NotImplemented


def _held_by_name(function: Callable[..., Any]) -> bool:
    module, path = (getattr(function, name, None) for name in ("__module__", "__qualname__"))
    if not isinstance(module, str) or not isinstance(path, str) or module not in sys.modules:
        return False
    try:
        return _found(module, path) is function
    except AttributeError:
        return False


def _found(module: str, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), importlib.import_module(module))
