"""Products of matrices in full precision, on every device."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

_P = ParamSpec("_P")
_R = TypeVar("_R")


def full_precision(fn: Callable[_P, _R]) -> Callable[_P, _R]:
    """Runs `fn` under `jax.default_matmul_precision("highest")`.

    Accelerators multiply float32 matrices in fewer bits by default (bfloat16 on TPUs), which is
    too little for differences of kernels; this covers the products inside the model as well.
    """

    @functools.wraps(fn)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with jax.default_matmul_precision("highest"):
            return fn(*args, **kwargs)

    return wrapped
