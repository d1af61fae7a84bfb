"""Whether a result fits in memory, before any long work."""

import math
import os
from typing import Any

import jax
import numpy as np

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def check_fits(
    what: str, shape: tuple[int, ...], dtype: Any, devices: int = 1, instead: str = ""
) -> None:
    """**Raises:** `MemoryError` where an array of `shape` exceeds the memory of that many devices.

    `what` names it, `instead` continues the advice "fewer examples".
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    limit = _memory_bytes()
    if limit is None or size <= devices * limit:
        return
    raise MemoryError(
        f"{what} has shape {shape} and would take {_readable(size)}, expected at most the "
        f"{_readable(devices * limit)} of this memory: give fewer examples{instead}. "
        "`batch_size` bounds what is needed beside the result, not the result."
    )


def _memory_bytes() -> int | None:
    """The memory of the default device, or of this machine; None where nobody says."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _readable(size: int) -> str:
    power = min(max(size.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{size / 1024**power:.1f} {_UNITS[power]}"
