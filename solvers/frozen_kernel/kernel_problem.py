"""A kernel, its targets and the outputs at the start, checked before any work."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from corrections.symmetric.layouts import check_symmetric
from solvers.frozen_kernel.frozen_kernel import frozen_kernel, FrozenKernel
from solvers.frozen_kernel.operators import (
    check_kernel_operator,
    check_test_operator,
    Operator,
    outputs_or_zero,
)
from solvers.losses import check_targets, LossFunction, one_hot_labels
from zoo.common import checks

Kernel = Float[ArrayLike, "n *points"] | Operator
"""A kernel on the training points: an array, or an operator on vectors (n, k)."""
TestKernel = Float[ArrayLike, "m *points"] | Operator
Targets = Float[ArrayLike, "n ..."] | Int[ArrayLike, " n"]
TestTargets = Float[ArrayLike, "m ..."] | Int[ArrayLike, " m"]
"""Targets (n, k), in the shape of outputs, or integer labels for a loss of classes."""


class KernelProblem(NamedTuple):
    """What a solve under a kernel starts from: arrays that fit each other, of the kernel's dtype.

    - `kernel`: rows of training points, then of test points.
    - `f0`: outputs at t = 0, (n + m, k).
    - `y`: targets, (n, k).
    """

    kernel: FrozenKernel
    f0: Float[Array, "points k"]
    y: Float[Array, "n k"]


def check_weights(weights: Any, y: Float[Array, "n k"]) -> Float[Array, " n"] | None:
    """`weights` as weights of the examples, of the dtype of `y`.

    **Raises:** `ValueError` / `TypeError` unless they are n finite numbers >= 0.
    """
    if weights is None:
        return None
    array = checks.real_array("weights", weights, expected="a weight for each example, (n,)")
    checks.shape("weights", array, y.shape[:1], because="one for each training point")
    checks.finite("weights", array)
    values = checks.concrete(array)
    if values is not None and values.min() < 0:
        raise ValueError(
            f"`weights` holds {values.min()} (at index {int(values.argmin())}), expected numbers "
            ">= 0."
        )
    return array.astype(y.dtype)


def check_kernel_problem(
    kernel: Any, y: Any, *, loss: LossFunction, f0: Any, kernel_test: Any, f0_test: Any
) -> KernelProblem:
    """The arguments as a `KernelProblem`.

    **Raises:** `ValueError` / `TypeError` that names the argument which does not fit.
    """
    if isinstance(kernel, Operator):
        return _check_operators(kernel, y, loss, f0, kernel_test, f0_test)
    layouts = "(n, n), (n, n, k) or (n, k, n, k)"
    kernel = checks.real_array("kernel", kernel, expected=layouts, half="refused")
    if kernel.ndim not in (2, 3, 4) or kernel.size == 0:
        raise ValueError(f"`kernel` has shape {kernel.shape}, expected {layouts}.")
    n = kernel.shape[0]
    shape = kernel.shape[1:] if kernel.ndim > 2 else np.shape(() if f0 is None else f0)[1:]
    y = one_hot_labels(loss, y, shape[-1] if shape else None)
    k = np.shape(y)[-1] if np.ndim(y) == 2 else 1
    target = check_targets(
        loss, y, (n, k), because=f"a row for each point of `kernel`, which has {n}"
    )
    compact = {2: (n,), 3: (n, k), 4: (n, k)}[kernel.ndim]
    outer = (k,) if kernel.ndim == 4 else ()
    checks.shape("kernel", kernel, (n, *outer, *compact), because=f"`y` has shape {target.shape}")
    checks.finite("kernel", kernel)
    check_symmetric("kernel", kernel)
    f, test = outputs_or_zero("f0", f0, (n, k), kernel.dtype), None
    if kernel_test is not None:
        rows = checks.real_array(
            "kernel_test", kernel_test, expected="the kernel's test rows", half="refused"
        )
        checks.shape("kernel_test", rows, ("m", *kernel.shape[1:]), because="as `kernel`")
        checks.finite("kernel_test", rows)
        f_test = outputs_or_zero("f0_test", f0_test, (rows.shape[0], k), kernel.dtype)
        test, f = rows.astype(kernel.dtype), jnp.concatenate([f, f_test])
    elif f0_test is not None:
        raise ValueError(
            "`f0_test` was given without `kernel_test`, expected both: the kernel's rows say how "
            "the test outputs move."
        )
    return KernelProblem(frozen_kernel(kernel, test), f, target.astype(kernel.dtype))


def check_start(start: Any, parts: tuple[PyTree, ...], *, given: bool) -> tuple[PyTree, ...]:
    """The state to go on from, like the `parts` of one at t = 0 in shape and dtype; those where
    there is none.

    **Raises:** `ValueError` / `TypeError` for a state of another structure, or where outputs at
    t = 0 were `given` too.
    """
    if start is None:
        return parts
    if given:
        raise ValueError("`start` was given with `f0` or `f0_test`, expected one of them.")
    leaves, structure = jax.tree.flatten(parts)
    found, of_start = jax.tree.flatten(tuple(start) if isinstance(start, list) else start)
    shapes, shapes_found = [leaf.shape for leaf in leaves], [jnp.shape(leaf) for leaf in found]
    if of_start != structure or shapes_found != shapes:
        raise ValueError(
            f"`start` has parts of shape {shapes_found}, "
            f"expected {shapes}: `.final` of a trajectory of the same problem."
        )
    arrays = [
        checks.real_array("start", leaf, expected="`.final`", integers=True) for leaf in found
    ]
    for array in arrays:
        checks.finite("start", array)
    given_as = [array.astype(leaf.dtype) for array, leaf in zip(arrays, leaves, strict=True)]
    return jax.tree.unflatten(structure, given_as)


def _check_operators(
    kernel: Operator, y: Any, loss: LossFunction, f0: Any, kernel_test: Any, f0_test: Any
) -> KernelProblem:
    space = check_kernel_operator("kernel", kernel)
    y = one_hot_labels(loss, y, space.outputs)
    k = space.outputs or (np.shape(y)[-1] if np.ndim(y) == 2 else 1)
    target = check_targets(loss, y, (space.points, k), because="what `kernel` acts on")
    f = outputs_or_zero("f0", f0, (space.points, k), space.dtype)
    if kernel_test is not None:
        m = check_test_operator("kernel_test", kernel_test, space)
        f = jnp.concatenate([f, outputs_or_zero("f0_test", f0_test, (m, k), space.dtype)])
    elif f0_test is not None:
        raise ValueError("`f0_test` was given without `kernel_test`, expected both.")
    return KernelProblem(frozen_kernel(kernel, kernel_test), f, target.astype(space.dtype))
