"""What a model holds, wherever it holds it: in fields, static ones too, and behind functions."""

import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

_NOTHING_INSIDE = (
    str, bytes, int, float, complex, bool, type(None), np.ndarray, np.generic, jax.Array,
    type, types.ModuleType, types.BuiltinFunctionType,
)  # fmt: skip


def contents(model: Any) -> Iterator[Any]:
    """The objects that a model is made of, each once: fields and attributes, entries of containers,
    what is wrapped by `jax.jit` and the like, arguments of `functools.partial`, closures.

    What a function takes from the module it is written in is not seen.
    """
    found: set[int] = set()
    kept, waiting = [], [model]
    while waiting:
        node = waiting.pop()
        if isinstance(node, _NOTHING_INSIDE) or id(node) in found:
            continue
        found.add(id(node))
        kept.append(node)  # an id is one of an object that lives
        yield node
        waiting.extend(_inside(node))


def _inside(node: Any) -> list[Any]:
    if isinstance(node, Mapping):
        return list(node.values())
    if isinstance(node, list | tuple | set | frozenset):
        return list(node)
    if isinstance(node, functools.partial):
        return [node.func, *node.args, *node.keywords.values()]
    if isinstance(node, types.MethodType):
        return [node.__self__, node.__func__]
    if isinstance(node, types.FunctionType):
        cells = [cell for cell in node.__closure__ or () if not _is_empty(cell)]
        return [*(cell.cell_contents for cell in cells), *vars(node).values()]
    wrapped = getattr(node, "__wrapped__", None)
    return [*vars(node).values(), wrapped] if hasattr(node, "__dict__") else [wrapped]


def _is_empty(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:
        return True
