"""Whether JAX can hold a value static."""

from typing import Any


def is_hashable(value: Any) -> bool:
    """Whether it can."""
    try:
        hash(value)
    except TypeError:
        return False
    return True
