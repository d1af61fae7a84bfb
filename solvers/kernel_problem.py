"""A kernel, its targets and the outputs at the start, checked before any work."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from solvers.losses import check_targets, LossFunction
from zoo import checks


class KernelProblem(NamedTuple):
    """What a solve under a kernel starts from: arrays that fit each other, of the kernel's dtype.

    - `kernel`: rows of training points, then of test points: (n + m, n), (n + m, n, k) or
      (n + m, k, n, k).
    - `f0`: outputs at t = 0, (n + m, k).
    - `y`: targets, (n, k).
    """

    kernel: Array
    f0: Float[Array, "points k"]
    y: Float[Array, "n k"]


def check_kernel_problem(
    kernel: Any, y: Any, *, loss: LossFunction, f0: Any, kernel_test: Any, f0_test: Any
) -> KernelProblem:
    """The arguments as a `KernelProblem`.

    **Raises:** `ValueError` / `TypeError` that names the argument which does not fit.
    """
    kernel = checks.real_array("kernel", kernel, expected="(n, n), (n, n, k) or (n, k, n, k)")
    if kernel.ndim not in (2, 3, 4) or kernel.size == 0:
        raise ValueError(
            f"`kernel` has shape {kernel.shape}, expected (n, n), (n, n, k) or (n, k, n, k)."
        )
    n = kernel.shape[0]
    k = jnp.shape(y)[-1] if jnp.ndim(y) == 2 else 1
    target = check_targets(
        loss, y, (n, k), because=f"a row for each point of `kernel`, which has {n}"
    )
    compact = {2: (n,), 3: (n, k), 4: (n, k)}[kernel.ndim]
    outer = (k,) if kernel.ndim == 4 else ()
    checks.shape("kernel", kernel, (n, *outer, *compact), because=f"`y` has shape {target.shape}")
    checks.finite("kernel", kernel)
    _check_symmetric(kernel)
    f = _start("f0", f0, (n, k), kernel)
    if kernel_test is not None:
        rows = checks.real_array("kernel_test", kernel_test, expected="the kernel's test rows")
        checks.shape("kernel_test", rows, ("m", *kernel.shape[1:]), because="as `kernel`")
        checks.finite("kernel_test", rows)
        kernel = jnp.concatenate([kernel, rows.astype(kernel.dtype)])
        f = jnp.concatenate([f, _start("f0_test", f0_test, (rows.shape[0], k), kernel)])
    elif f0_test is not None:
        raise ValueError(
            "`f0_test` was given without `kernel_test`, expected both: the kernel's rows say how "
            "the test outputs move."
        )
    return KernelProblem(kernel, f, target.astype(kernel.dtype))


def _start(name: str, value: Any, shape: tuple[int, int], like: Array) -> Array:
    if value is None:
        return jnp.zeros(shape, like.dtype)
    array = checks.real_array(name, value, expected=f"outputs at t = 0, {shape}")
    checks.shape(name, array, shape, because="outputs at t = 0, one row a point")
    checks.finite(name, array)
    return array.astype(like.dtype)


def _check_symmetric(kernel: Array) -> None:
    values = checks.concrete(kernel)
    if values is None:
        return
    swapped = values.transpose({2: (1, 0), 3: (1, 0, 2), 4: (2, 3, 0, 1)}[kernel.ndim])
    difference, scale = np.max(np.abs(values - swapped)), np.max(np.abs(values))
    if difference > 100 * np.sqrt(np.finfo(values.dtype).eps) * scale:
        raise ValueError(
            f"`kernel` is not symmetric: entries differ from their mirror images by up to "
            f"{difference:.3g} (its largest entry is {scale:.3g}), expected the kernel of the "
            "training points with themselves."
        )
