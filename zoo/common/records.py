"""How records of arrays print: numbers where there are few, shapes where there are many."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np

from zoo.common import checks

_Record = TypeVar("_Record", bound=type)
_FEW = 6
_LONGEST = 60


def short_repr(record: _Record) -> _Record:
    """Lets a named tuple of arrays print in a line or two."""
    record.__repr__ = _shown  # pyright: ignore[reportAttributeAccessIssue]
    return record


def _shown(record: Any) -> str:
    fields = (f"{name}={_short(value)}" for name, value in zip(record._fields, record, strict=True))
    return f"{type(record).__name__}({', '.join(fields)})"


def _short(value: Any) -> str:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return repr(value)
    values = checks.concrete(value) if isinstance(value, jax.Array) else None
    if values is not None and values.size <= _FEW:
        return np.array2string(values, precision=4, separator=", ").replace("\n", "")
    text = eqx.tree_pformat(value)
    return text if len(text) <= _LONGEST else f"<{type(value).__name__}>"
