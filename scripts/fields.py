"""The fields of a config: their checks, without JAX (a wrong one is refused at once), as JSON."""

import dataclasses
import itertools
import math
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path
from typing import Any


def choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """**Raises:** `ValueError` where `value` is not among the choices."""
    if value not in choices:
        listed = ", ".join(repr(one) for one in choices)
        raise ValueError(f"`{name}` is {value!r}, expected one of {listed}.")


def distinct(name: str, values: Any, *, empty: bool = False) -> None:
    """**Raises:** `ValueError` where `values` is no sequence of different values, or is empty
    without leave.
    """
    fine = isinstance(values, tuple | list) and all(isinstance(v, Hashable) for v in values)
    fine = fine and len(set(values)) == len(values)
    if not fine or not (values or empty):
        least = "" if empty else ", at least one"
        raise ValueError(f"`{name}` is {values!r}, expected different values{least}.")


def integer(name: str, value: Any, *, least: int = 1) -> None:
    """**Raises:** `ValueError` where `value` is no integer, or smaller than `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` is {value!r}, expected an integer >= {least}.")


def seed(name: str, value: Any) -> None:
    """**Raises:** `ValueError` where `value` is no integer from 0 to 2^32 - 1: a key of 32 bits is
    that of the seed modulo 2^32.
    """
    integer(name, value, least=0)
    if value >= 2**32:
        raise ValueError(
            f"`{name}` is {value!r}, expected an integer below 2^32: in float32 a larger one draws "
            f"the network of {value % 2**32}."
        )


def number(name: str, value: Any, *, positive: bool = False) -> None:
    """**Raises:** `ValueError` where `value` is no finite number >= 0 (> 0 with `positive`)."""
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fine or value < 0 or (positive and value == 0):
        bound = "> 0" if positive else ">= 0"
        raise ValueError(f"`{name}` is {value!r}, expected a finite number {bound}.")


def increasing(name: str, values: Sequence[float]) -> None:
    """**Raises:** `ValueError` where the values do not increase."""
    if any(b <= a for a, b in itertools.pairwise(values)):
        raise ValueError(f"`{name}` is {values!r}, expected increasing values.")


def folder_name(name: str, value: Any) -> None:
    """**Raises:** `ValueError` where `value` is neither None nor the name of a folder, which a
    command line can say too.
    """
    if value is None:
        return
    fine = isinstance(value, str) and bool(value) and Path(value).name == value
    if not fine or value == "None" or value.startswith("-"):
        raise ValueError(
            f"`{name}` is {value!r}, expected the name of a folder: no path, no '-' in front."
        )


def choices(config: Any) -> dict[str, Any]:
    """The fields of a config as JSON has them."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
