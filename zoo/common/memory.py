"""How much memory kernels may take: what they keep, and whether a result fits before any long work.

What is kept (gradients of examples, which are computed again where they are not) follows from one
setting, `memory_limit`.
"""

import contextlib
import contextvars
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
_POWERS = {"": 1} | {
    prefix + "i" * binary + "B": base**power
    for binary, base in ((True, 1024), (False, 1000))
    for power, prefix in enumerate(("K", "M", "G", "T"), start=1)
}
_VARIABLE = "FINITE_WIDTH_MEMORY"

_LIMIT: contextvars.ContextVar[int | None] = contextvars.ContextVar("memory_limit", default=None)


def memory_limit(size: int | str) -> contextlib.AbstractContextManager[None]:
    """Within this context kernels keep at most so much, on each device, beside their result.

    `ntk`, `o3` and `o4` keep the gradients of as many examples as fit; those of all others are
    computed anew each time they are needed. A smaller limit takes longer and gives the same
    numbers, to rounding.

    **Arguments:**

    - `size`: bytes, or a text such as "4 GiB" or "800 MB".

    Outside of such a context the environment variable `FINITE_WIDTH_MEMORY` says it, in the same
    way; where that is not set, it is half of the device's memory, and on a CPU a quarter of the
    machine's. It holds in the thread that enters it, and in a function under `jax.jit` as it was
    when this was traced.

    **Raises:** `ValueError` / `TypeError` for what is no such size.
    """
    return _limited(_bytes("size", size))


@contextlib.contextmanager
def _limited(size: int) -> Iterator[None]:
    token = _LIMIT.set(size)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def kept_bytes() -> int:
    """What kernels may keep on each device, by `memory_limit`, the environment or the memory.

    **Raises:** `ValueError` where the environment says no size.
    """
    given = _LIMIT.get()
    if given is not None:
        return given
    of_environment = os.environ.get(_VARIABLE)
    if of_environment:
        return _bytes(_VARIABLE, of_environment)
    share = 4 if jax.default_backend() == "cpu" else 2
    return (_memory_bytes() or 2**32) // share


def _bytes(name: str, size: Any) -> int:
    """**Raises:** `ValueError` / `TypeError` for what is no positive number of bytes."""
    wrong = f"`{name}` is {size!r}, expected a positive number of bytes, or a text such as '4 GiB'."
    if isinstance(size, bool) or not isinstance(size, int | np.integer | str):
        raise TypeError(wrong)
    if isinstance(size, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]i?B)?\s*", size)
        if found is None:
            raise ValueError(wrong)
        size = int(float(found[1]) * _POWERS[found[2] or ""])
    if size < 1:
        raise ValueError(wrong)
    return int(size)


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
        "`batch_size` and `zoo.memory_limit` bound what is needed beside the result, not the "
        "result."
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
