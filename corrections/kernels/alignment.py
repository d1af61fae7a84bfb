r"""A kernel as a matrix over (example, output), and labels as vectors that it acts on."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from corrections.symmetric.layouts import check_kernel
from zoo.common import checks
from zoo.common.norms import largest_magnitude, norm
from zoo.common.precision import full_precision


def label_vector(y: Array, shape: tuple[int, ...]) -> Array:
    """Labels as one vector over (example, output).

    **Raises:** `ValueError` / `TypeError` for labels of another shape, not finite, or all zero.
    """
    labels = checks.real_array("y", y, expected=f"labels {shape}")
    checks.shape("y", labels, shape, "one row for each example of `kernel`")
    checks.finite("y", labels)
    checks.nonzero("y", labels, "labels that have a direction")
    return labels.reshape(-1)


def symmetric_matrix(kernel: Array) -> tuple[Array, tuple[int, ...]]:
    """The kernel as a matrix, and the shape (n,) or (n, k) of what it acts on.

    **Raises:** `ValueError` / `TypeError` for one that is not square, symmetric and finite.
    """
    kernel, layout = check_kernel("kernel", kernel, layouts=(2, 4))
    matrix = layout.blocks(kernel)[0]
    return (matrix + matrix.T) / 2, kernel.shape[: kernel.ndim // 2]


def label_vectors(y: Array, shape: tuple[int, ...]) -> Float[Array, "size count"]:
    """Labels as the vectors that a kernel on `shape` acts on: one, or of a compact kernel (n, n)
    one for each output.

    **Raises:** as `label_vector`.
    """
    if len(shape) == 2:
        return label_vector(y, shape)[:, None]
    labels = checks.real_array("y", y, expected="labels (n, k)")
    checks.shape("y", labels, (shape[0], "k"), "one row for each row of `kernel`")
    checks.finite("y", labels)
    checks.nonzero("y", labels, "labels that have a direction")
    return labels


@full_precision
def kernel_target_alignment(
    kernel: Float[Array, "..."], y: Float[Array, "n k"]
) -> Float[Array, ""]:
    """The alignment y . K y / (|K|_F |y y^T|_F) of a kernel with labels, between -1 and 1, for a
    positive kernel between 0 and 1, without unit: 1 where K is a multiple of y y^T.

    **Arguments:**

    - `kernel`: (n, n), read as Theta (x) I_k against all outputs at once, or (n, k, n, k);
      symmetric.
    - `y`: labels, (n, k).

    **Raises:** `ValueError` / `TypeError` for a kernel that is not square, symmetric and finite,
    labels that do not fit, and where one of them is all zero.

    Source: Cristianini, Shawe-Taylor, Elisseeff & Kandola (2001), definition 1.
    """
    matrix, shape = symmetric_matrix(kernel)
    checks.nonzero("kernel", matrix, "a kernel that has a direction")
    return alignment(matrix, label_vectors(y, shape).astype(matrix.dtype))


def alignment(
    matrix: Float[Array, "size size"], vectors: Float[Array, "size count"]
) -> Float[Array, ""]:
    """<K, Y Y^T>_F / (|K|_F |Y Y^T|_F)."""
    matrix, vectors = (a / largest_magnitude(a) for a in (matrix, vectors))
    norms = norm(matrix) * norm(vectors.T @ vectors)
    return jnp.sum(vectors * (matrix @ vectors)) / norms
