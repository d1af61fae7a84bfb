r"""A kernel function as an operator: K(x1, x2) g, a tile of the kernel at a time.

    (K g)_a = sum_b k(x_a, x_b) g_b

so that regression on large sets needs no kernel in memory (`mse_flow_operator`, `posterior`).
"""

import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from corrections.symmetric import check_symmetric
from zoo import checks
from zoo.precision import full_precision
from zoo.tiles import Tiling

KernelFunction = Callable[..., Any]
"""Two batches of examples in, (n1, ...) and (n2, ...), their kernel (n1, n2) out."""


class KernelBlocks(eqx.Module):
    """The kernel of a function k(x1, x2), evaluated in tiles as it is multiplied: K (x) I_k.

    It maps g, (n2, k), to K g, (n1, k). A product evaluates the kernel once, whatever k is, and
    never holds more than `batch_size`^2 numbers of it; of a set with itself it evaluates only the
    tiles on and above the diagonal.
    """

    kernel_fn: KernelFunction
    x1: Shaped[Array, "n1 ..."]
    x2_given: Shaped[Array, "n2 ..."] | None
    batch_size: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        kernel_fn: KernelFunction,
        x1: Shaped[ArrayLike, "n1 ..."],
        x2: Shaped[ArrayLike, "n2 ..."] | None = None,
        *,
        batch_size: int,
        outputs: int = 1,
    ):
        """**Arguments:**

        - `kernel_fn`: k(x1, x2) -> (n1, n2) for two batches of examples, such as the kernel of an
          infinitely wide network. Written in JAX.
        - `x1`, `x2`: batches of examples, (n1, ...) and (n2, ...); a missing `x2` means `x1`, and
          the kernel has to be symmetric and positive semidefinite.
        - `batch_size`: the most examples on each side of a tile.
        - `outputs`: the k of `in_structure`. Products take any number of columns.

        **Raises:** `ValueError` / `TypeError` for batches that are empty, not finite or not
        real, sizes below 1, a function whose first tile is not (n1, n2), not finite or, of a
        set with itself, not symmetric.
        """
        batch_size = checks.integer("batch_size", batch_size)
        outputs = checks.integer("outputs", outputs)
        self.kernel_fn, self.batch_size, self.outputs = kernel_fn, batch_size, outputs
        self.x1 = checks.batch("x1", x1)
        self.x2_given = None if x2 is None else checks.batch("x2", x2)
        first = kernel_between(
            "kernel_fn", kernel_fn, self.x1[:batch_size], self.x2[:batch_size], self.symmetric
        )
        self.dtype = first.dtype

    @property
    def symmetric(self) -> bool:
        """Whether both sets are the same."""
        return self.x2_given is None

    @property
    def x2(self) -> Shaped[Array, "n2 ..."]:
        """The examples that the operator takes vectors on."""
        return self.x1 if self.x2_given is None else self.x2_given

    @property
    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape (n2, k) and dtype of what the operator takes."""
        return jax.ShapeDtypeStruct((len(self.x2), self.outputs), self.dtype)

    @property
    def out_structure(self) -> jax.ShapeDtypeStruct:
        """Shape (n1, k) and dtype of what it gives."""
        return jax.ShapeDtypeStruct((len(self.x1), self.outputs), self.dtype)

    @full_precision
    def mv(self, vector: Float[Array, "n2 k"]) -> Float[Array, "n1 k"]:
        """The operator applied to any number of columns.

        **Raises:** `ValueError` / `TypeError` for an array of another shape or no floating type.
        """
        vector = checks.real_array("vector", vector, expected="an array (n2, k)")
        checks.shape("vector", vector, (len(self.x2), "k"), "a row for each example of `x2`")
        return _product(self, vector.astype(self.dtype))

    def transpose(self) -> "KernelBlocks":
        """K(x2, x1) = K(x1, x2)^T: takes (n1, k), gives (n2, k). `kernel_fn` has to say the same
        of two examples in either order.
        """
        if self.x2_given is None:
            return self
        return eqx.tree_at(lambda op: (op.x1, op.x2_given), self, (self.x2_given, self.x1))

    @property
    def T(self) -> "KernelBlocks":
        """`transpose()`."""
        return self.transpose()

    def as_lineax(self) -> lx.FunctionLinearOperator:
        """The operator on (n2, k) for `lineax`, tagged positive semidefinite where both sets are
        the same.
        """
        tags: Any = lx.positive_semidefinite_tag if self.symmetric else frozenset()
        return lx.FunctionLinearOperator(self.mv, self.in_structure, tags)


def kernel_between(
    name: str, kernel_fn: KernelFunction, x1: Array, x2: Array, symmetric: bool
) -> Float[Array, "n1 n2"]:
    """The kernel that the argument `name` gives between two batches.

    **Raises:** `TypeError` / `ValueError` unless it is a finite matrix, (n1, n2); with `symmetric`,
    unless its first n2 rows are symmetric.
    """
    if not callable(kernel_fn):
        raise TypeError(
            f"`{name}` is of type {type(kernel_fn).__name__}, expected a function "
            "k(x1, x2) -> (n1, n2)."
        )
    value = f"{name}(x1, x2)"
    try:
        found = kernel_fn(x1, x2)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{value}` failed for batches of shapes {x1.shape} and {x2.shape}: {error}"
        ) from error
    kernel = checks.real_array(value, found, expected="a kernel (n1, n2)", half="refused")
    checks.shape(value, kernel, (len(x1), len(x2)), "an entry for each pair of examples")
    checks.finite(value, kernel)
    if symmetric:
        check_symmetric(value, kernel[: len(x2)])
    return kernel


@eqx.filter_jit
def _product(operator: KernelBlocks, vector: Array) -> Array:
    rows = Tiling(len(operator.x1), operator.batch_size)
    columns = Tiling(len(operator.x2), operator.batch_size)
    x1, x2 = rows.split(operator.x1), columns.split(operator.x2)
    # Examples that fill up the last tile are there already: they count once.
    first = jnp.arange(columns.count * columns.size) < columns.n
    g = columns.split(vector) * first.reshape(columns.count, columns.size, 1).astype(vector.dtype)
    pairs = itertools.product(range(rows.count), range(columns.count))
    kept = np.array([(i, j) for i, j in pairs if i <= j or not operator.symmetric])

    def add(total: Array, pair: Array) -> tuple[Array, None]:
        i, j = pair[0], pair[1]
        tile = jnp.asarray(operator.kernel_fn(x1[i], x2[j]))
        total = total.at[i].add(tile @ g[j])
        if operator.symmetric:
            mirrored = jnp.where(i == j, 0, tile.T @ g[i])
            total = total.at[j].add(mirrored)
        return total, None

    zero = jnp.zeros((rows.count, rows.size, vector.shape[1]), vector.dtype)
    return rows.join(jax.lax.scan(add, zero, jnp.asarray(kept))[0])
