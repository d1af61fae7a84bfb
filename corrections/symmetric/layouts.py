r"""Symmetric kernels as matrices: their layouts, and which of their eigenvalues are numbers.

A kernel over (example, output) comes in three layouts, each with the matrices that act on outputs
f (n, k):

    (n, n)         one matrix for all outputs, Theta (x) I_k
    (n, n, k)      one for each output
    (n, k, n, k)   one over (example, output)

An eigenvalue is known to some units of rounding, eps |lambda|_max, whatever the size of the matrix:
in float32 and in float64, for n up to 2000, the eigenvalues of singular kernels that `eigh` finds
in the place of zero came to 3 at most.
"""

import warnings
import weakref
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float

from zoo.common import checks

ZERO = 10
"""Eigenvalues up to this many units of rounding cannot be told from zero."""

NEGATIVE = 1000
"""An eigenvalue below minus this many units of rounding makes a kernel one that is not positive.
What computes a kernel rounds as well."""

ASYMMETRIC = 1e-4
"""Of the largest entry: entries that differ by more from their mirror images make no kernel of a
set with itself. Less is what kernels differ by that were computed in float32."""


def rounding(largest: Array) -> Array:
    """The unit of rounding of a matrix whose eigenvalues have this largest magnitude."""
    return jnp.finfo(largest.dtype).eps * largest


def resolved(values: Float[Array, "*b n"]) -> Bool[Array, "*b n"]:
    """Which eigenvalues of a positive matrix are told from zero."""
    return values > ZERO * rounding(_largest(values))


def positive(values: Float[Array, "*b n"]) -> Bool[Array, "*b"]:
    """Whether a matrix with these eigenvalues is positive semidefinite, to rounding."""
    return jnp.all(values >= -NEGATIVE * rounding(_largest(values)), axis=-1)


def _largest(values: Array) -> Float[Array, "*b 1"]:
    return jnp.max(jnp.abs(values), axis=-1, keepdims=True)


class Layout(NamedTuple):
    """How the array of a kernel holds its matrices, by its number of axes: 2, 3 or 4."""

    axes: int

    def blocks(self, kernel: Array) -> Float[Array, "count rows size"]:
        """The matrices of a kernel of any points with a set."""
        if self.axes == 2:
            return kernel[None]
        if self.axes == 3:
            return rearrange(kernel, "points n k -> k points n")
        return rearrange(kernel, "points k n l -> 1 (points k) (n l)")

    def columns(self, f: Float[Array, "n k"]) -> Float[Array, "count size c"]:
        """Outputs as columns that each matrix acts on."""
        if self.axes == 2:
            return f[None]
        return rearrange(f, "n k -> k n 1" if self.axes == 3 else "n k -> 1 (n k) 1")

    def outputs(self, columns: Float[Array, "count rows c"], k: int) -> Float[Array, "points k"]:
        """The inverse of `columns`, also for another number of points."""
        if self.axes == 2:
            return columns[0]
        if self.axes == 3:
            return rearrange(columns, "k points 1 -> points k")
        return rearrange(columns, "1 (points k) 1 -> points k", k=k)

    def times(self, kernel: Array, g: Float[Array, "n k"]) -> Array:
        """The kernel applied to outputs; one of higher order in its last slot."""
        if self.axes == 2:
            return kernel @ g
        if self.axes == 3:
            return jnp.einsum("abk,bk->ak", kernel, g)
        return jnp.tensordot(kernel, g, axes=2)

    def operator(self, kernel: Array, tags: Any = frozenset()) -> lx.AbstractLinearOperator:
        """A kernel as an operator: on (n,) where it is the same for each output, else on (n, k)."""
        if self.axes == 2:
            return lx.MatrixLinearOperator(kernel, tags)
        n, k = (kernel.shape[1], kernel.shape[2]) if self.axes == 3 else kernel.shape[2:]
        structure = jax.ShapeDtypeStruct((n, k), kernel.dtype)
        return lx.FunctionLinearOperator(lambda g: self.times(kernel, g), structure, tags)


def check_kernel(
    name: str, kernel: Any, *, layouts: tuple[int, ...] = (2, 3, 4)
) -> tuple[Array, Layout]:
    """A kernel of a set with itself, and its layout: one of those that are allowed.

    **Raises:** `TypeError` / `ValueError` unless it is real, finite, symmetric and of such a shape.
    """
    shapes = {2: "(n, n)", 3: "(n, n, k)", 4: "(n, k, n, k)"}
    listed = [shapes[axes] for axes in layouts]
    expected = " or ".join(filter(None, [", ".join(listed[:-1]), listed[-1]]))
    array = checks.real_array(name, kernel, expected=f"a kernel {expected}", half="refused")
    shape = array.shape
    half = shape[: array.ndim // 2] if array.ndim == 4 else shape[:1]
    square = array.ndim in layouts and shape == (*half, *half, *shape[2:][: array.ndim == 3])
    if not square or array.size == 0:
        raise ValueError(f"`{name}` has shape {shape}, expected {expected} with n, k >= 1.")
    checks.finite(name, array)
    check_symmetric(name, array)
    return array, Layout(array.ndim)


def check_symmetric(name: str, kernel: Array) -> None:
    """**Raises:** `ValueError` where a kernel of a set with itself, of any layout, differs from its
    transpose by more than rounding.
    """
    if checks.is_traced(kernel) or _FOUND_SYMMETRIC.get(id(kernel)) is kernel:
        return
    if kernel.size <= checks.SMALL:
        difference, scale = _asymmetry(np.asarray(kernel))
    else:
        difference, scale = map(float, _compiled_asymmetry(kernel))
    if difference > ASYMMETRIC * scale:
        raise ValueError(
            f"`{name}` is not symmetric: entries differ from their mirror images by up to "
            f"{difference:.3g} (its largest entry is {scale:.3g}), expected the kernel of a set "
            "with itself."
        )
    _FOUND_SYMMETRIC[id(kernel)] = kernel


def check_linear_operator(name: str, operator: Any) -> None:
    """**Raises:** `TypeError` for what is no operator of lineax, or one that acts on other than
    real floating-point numbers of full precision; `ValueError` where it is a matrix that is tagged
    as symmetric and is not, or one that is not finite.
    """
    if not isinstance(operator, lx.AbstractLinearOperator):
        raise TypeError(
            f"`{name}` is of type {type(operator).__name__}, expected an operator of lineax, as "
            "`corrections.NTKOperator`, `corrections.LossHessian` and `solvers.KernelBlocks` are."
        )
    for leaf in jax.tree.leaves(operator.in_structure()):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"`{name}` acts on numbers of dtype {leaf.dtype}, expected real floating-point "
                "numbers."
            )
        checks.full_precision(name, leaf.dtype)
    if isinstance(operator, lx.MatrixLinearOperator):
        checks.finite(name, operator.matrix)
        if lx.is_symmetric(operator) or lx.is_positive_semidefinite(operator):
            check_symmetric(name, operator.matrix)


def check_symmetric_operator(name: str, operator: Any) -> None:
    """**Raises:** as `check_linear_operator`; `ValueError` unless it is known to be symmetric."""
    check_linear_operator(name, operator)
    if not (lx.is_symmetric(operator) or lx.is_positive_semidefinite(operator)):
        raise ValueError(
            f"`{name}` is an operator that is not known to be symmetric, expected the kernel of a "
            "set with itself (leave `x2` out), or an operator of lineax with "
            "`lineax.symmetric_tag` or `lineax.positive_semidefinite_tag`."
        )


# Arrays of JAX never change: one that was found symmetric is not looked at again.
_FOUND_SYMMETRIC: weakref.WeakValueDictionary[int, Array] = weakref.WeakValueDictionary()


def _asymmetry(values: Any) -> tuple[Any, Any]:
    """How far entries are from their mirror images at most, and the largest entry."""
    swapped = values.transpose({2: (1, 0), 3: (1, 0, 2), 4: (2, 3, 0, 1)}[values.ndim])
    return abs(values - swapped).max(), abs(values).max()


_compiled_asymmetry = jax.jit(_asymmetry)


class RoundingWarning(UserWarning):
    """Part of an answer lies below what the precision of its numbers can tell."""


def warn_where_dropped(name: str, dropped: Any, dtype: Any, *, stacklevel: int = 4) -> None:
    """**Warns:** `RoundingWarning` where directions of a kernel, `name`, were left out."""
    count = checks.concrete(dropped)
    if count is not None and count > 0:
        warnings.warn(
            f"{int(count)} directions of {name} have eigenvalues that {np.dtype(dtype)} cannot "
            f"tell from zero (below {ZERO} units of rounding of the largest), and were left where "
            "they started (`.dropped`). Use float64, or noise or a ridge above that, if they "
            "matter; a singular kernel, as of an example that is there twice, has such directions.",
            RoundingWarning,
            stacklevel=stacklevel,
        )
