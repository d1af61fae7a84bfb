r"""Eigenvalues of a kernel: how fast each direction of function space is learned.

Under gradient flow of squared loss the component of the error along an eigenvector of Theta decays
at the rate of its eigenvalue. Dense kernels are diagonalised; of operators Lanczos' method finds
the ends of the spectrum, and its density (Golub & Meurant 2010; Ghorbani, Krishnan & Xiao 2019).
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from matfree import decomp, stochtrace

from corrections.operator import KernelOperator
from zoo import checks
from zoo.precision import full_precision


class Spectrum(NamedTuple):
    """Eigenvalues of a symmetric kernel over (example, output), and what follows from them.

    - `eigenvalues`: in descending order. Of an operator: the `count` largest, then the smallest one
      that was found.
    - `residuals`: |K v - lambda v| of each; there is an eigenvalue within that distance.
    - `converged`: whether that is at most `rtol` times the largest eigenvalue. Of an operator the
      smallest is the last to converge; without, it is an upper bound.
    - `condition_number`: largest over smallest eigenvalue; infinite for a singular kernel. Of an
      operator whose smallest eigenvalue has not converged: a lower bound.
    - `effective_rank`: (sum lambda)^2 / sum lambda^2, between 1 and the size; of an operator
      estimated by random vectors.
    - `alignment`: y . K y / (|K|_F |y|^2) with the labels y, between -1 and 1 (1: K is a multiple
      of y y^T); None without labels (Cristianini et al. 2001).
    - `label_energy`: for each eigenvalue the part of |y|^2 along its eigenvector; None without
      labels.
    """

    eigenvalues: Float[Array, " count"]
    residuals: Float[Array, " count"]
    converged: Bool[Array, " count"]
    condition_number: Float[Array, ""]
    effective_rank: Float[Array, ""]
    alignment: Float[Array, ""] | None
    label_energy: Float[Array, " count"] | None


class SpectralDensity(NamedTuple):
    """A density of eigenvalues as point masses: `weights` (samples, m), each row of sum 1, at
    `nodes` (samples, m). Their mean over samples estimates the mean over all eigenvalues:
    mean_i h(lambda_i) = mean over samples of sum_j weights h(nodes).
    """

    nodes: Float[Array, "samples m"]
    weights: Float[Array, "samples m"]


@full_precision
def spectrum(
    kernel: Float[Array, "..."] | KernelOperator,
    y: Float[Array, "n k"] | None = None,
    *,
    count: int = 10,
    matvecs: int = 100,
    rtol: float = 1e-3,
    key: PRNGKeyArray | None = None,
) -> Spectrum:
    """Eigenvalues of a kernel, its condition number, its effective rank, its alignment with labels.

    **Arguments:**

    - `kernel`: (n, n), (n, k, n, k), or an operator between a set and itself.
    - `y`: labels (n, k). With a kernel (n, n) the kernel is taken as Theta (x) I_k.
    - `count`: of an operator, how many of the largest eigenvalues are wanted.
    - `matvecs`: of an operator, products per Lanczos run, and random vectors for the effective rank
      and |K|_F (relative error about sqrt(2 / matvecs)); at most its size.
    - `rtol`: what counts as converged.
    - `key`: for the random vectors of an operator (default: `jax.random.key(0)`).

    **Raises:** `ValueError` / `TypeError` for a kernel that is not square, symmetric and finite, an
    operator between two sets, labels that do not fit, counts below 1 or `count` > `matvecs`.

    Source: for the effective rank Roy & Vetterli (2007) and the participation ratio; for the
    alignment Cristianini et al. (2001), "On kernel-target alignment".
    """
    checks.integer("count", count)
    checks.integer("matvecs", matvecs)
    checks.nonnegative_number("rtol", rtol)
    if isinstance(kernel, KernelOperator):
        shape = _square(kernel)
        size = shape[0] * shape[1]
        if count > matvecs:
            raise ValueError(
                f"`count` is {count} and `matvecs` {matvecs}, expected at least as many products "
                "as eigenvalues that are wanted."
            )
        vector = None if y is None else _labels(y, shape)
        key = jr.key(0) if key is None else key
        with jax.numpy_dtype_promotion("standard"):
            return _of_operator(kernel, vector, min(count, size), matvecs, rtol, key)
    matrix, shape = _symmetric_matrix(kernel)
    vectors = None
    if y is not None:
        labels = checks.real_array("y", y, expected="labels (n, k)")
        if len(shape) == 1:
            checks.shape("y", labels, (shape[0], "k"), "one row for each row of `kernel`")
            vectors = labels
        else:
            vectors = _labels(labels, shape)[:, None]
        checks.finite("y", labels)
        vectors = vectors.astype(matrix.dtype)
    return _of_matrix(matrix, vectors, rtol)


@full_precision
def spectral_density(
    operator: KernelOperator,
    *,
    matvecs: int = 50,
    samples: int = 10,
    key: PRNGKeyArray | None = None,
) -> SpectralDensity:
    """The density of eigenvalues of an operator, by stochastic Lanczos quadrature.

    **Arguments:**

    - `operator`: between a set and itself.
    - `matvecs`: products per sample: moments up to 2 matvecs - 1 of each sample are exact.
    - `samples`: random vectors that are averaged over.
    - `key`: for them (default: `jax.random.key(0)`).

    **Raises:** `ValueError` for an operator between two sets, counts below 1.

    Source: Golub & Meurant (2010); Ghorbani, Krishnan & Xiao (2019), algorithm 1.
    """
    checks.integer("matvecs", matvecs)
    checks.integer("samples", samples)
    shape = _square(operator)
    matvecs = min(matvecs, shape[0] * shape[1])
    key = jr.key(0) if key is None else key
    with jax.numpy_dtype_promotion("standard"):
        return _density(operator, matvecs, samples, key)


@eqx.filter_jit
def _of_matrix(matrix: Array, vectors: Array | None, rtol: float) -> Spectrum:
    ascending, basis = jnp.linalg.eigh(matrix)
    values, basis = ascending[::-1], basis[:, ::-1]
    residuals = jnp.linalg.norm(matrix @ basis - basis * values[None], axis=0)
    norm = jnp.sqrt(jnp.sum(values**2))
    aligned = energy = None
    if vectors is not None:
        squares = jnp.sum((basis.T @ vectors) ** 2, axis=1)
        energy = squares / jnp.sum(vectors**2)
        aligned = jnp.sum(vectors * (matrix @ vectors)) / (
            norm * jnp.linalg.norm(vectors.T @ vectors)
        )
    return Spectrum(
        values,
        residuals,
        residuals <= rtol * values[0],
        _condition(values[0], values[-1], len(values)),
        jnp.sum(values) ** 2 / norm**2,
        aligned,
        energy,
    )


@eqx.filter_jit
def _of_operator(
    operator: KernelOperator,
    vector: Array | None,
    count: int,
    matvecs: int,
    rtol: float,
    key: PRNGKeyArray,
) -> Spectrum:
    product, size = _flat_product(operator)
    start_key, sample_key = jr.split(key)
    dtype = operator.in_structure.dtype
    steps = min(matvecs, size)
    found = decomp.tridiag_sym(steps)(product, jr.normal(start_key, (size,), dtype))
    ascending, vectors = jnp.linalg.eigh(found.J_small)
    chosen = jnp.array([*range(steps - 1, steps - 1 - count, -1), 0])
    values = ascending[chosen]
    basis = vectors[:, chosen].T @ found.Q_tall
    residuals = jnp.linalg.norm(jax.lax.map(product, basis) - values[:, None] * basis, axis=1)
    samples = stochtrace.sampler_signs(jnp.zeros(size, dtype), num=matvecs)(sample_key)
    images = jax.lax.map(product, samples)
    trace = jnp.mean(jnp.sum(samples * images, axis=1))
    squared_norm = jnp.mean(jnp.sum(images**2, axis=1))
    aligned = energy = None
    if vector is not None:
        square = jnp.sum(vector**2)
        aligned = jnp.sum(vector * product(vector)) / (jnp.sqrt(squared_norm) * square)
        energy = (basis @ vector) ** 2 / square
    return Spectrum(
        values,
        residuals,
        residuals <= rtol * values[0],
        _condition(values[0], values[-1], size),
        jnp.clip(trace**2 / squared_norm, 1, size),
        aligned,
        energy,
    )


@eqx.filter_jit
def _density(
    operator: KernelOperator, matvecs: int, samples: int, key: PRNGKeyArray
) -> SpectralDensity:
    product, size = _flat_product(operator)
    lanczos = decomp.tridiag_sym(matvecs)

    def of_sample(vector: Array) -> tuple[Array, Array]:
        nodes, vectors = jnp.linalg.eigh(lanczos(product, vector).J_small)
        return nodes, vectors[0] ** 2

    like = jnp.zeros(size, operator.in_structure.dtype)
    starts = stochtrace.sampler_signs(like, num=samples)(key)
    return SpectralDensity(*jax.lax.map(of_sample, starts))


def _flat_product(operator: KernelOperator):
    """The operator on flat vectors, and their length."""
    shape = operator.in_structure.shape

    def product(vector: Array) -> Array:
        return operator.mv(vector.reshape(shape)).reshape(vector.shape)

    return product, shape[0] * shape[1]


def _condition(largest: Array, smallest: Array, size: int) -> Array:
    """Their ratio; infinite where the smallest is zero to rounding."""
    rounding = size * jnp.finfo(largest.dtype).eps * largest
    singular = smallest <= rounding
    return jnp.where(singular, jnp.inf, largest / jnp.where(singular, 1, smallest))


def _square(operator: KernelOperator) -> tuple[int, ...]:
    if not operator.symmetric:
        raise ValueError(
            "`kernel` is an operator between two sets, expected one of a set with itself: leave "
            "`x2` out."
        )
    return operator.in_structure.shape


def _labels(y: Array, shape: tuple[int, ...]) -> Array:
    """Labels as one vector over (example, output)."""
    labels = checks.real_array("y", y, expected=f"labels {shape}")
    checks.shape("y", labels, shape, "one row for each example of `kernel`")
    checks.finite("y", labels)
    return labels.reshape(-1)


def _symmetric_matrix(kernel: Array) -> tuple[Array, tuple[int, ...]]:
    """The kernel as a matrix, and the shape (n,) or (n, k) of what it acts on."""
    kernel = checks.real_array("kernel", kernel, expected="a kernel (n, n) or (n, k, n, k)")
    half = kernel.shape[: kernel.ndim // 2]
    if kernel.ndim not in (2, 4) or kernel.shape != (*half, *half) or kernel.size == 0:
        raise ValueError(
            f"`kernel` has shape {kernel.shape}, expected (n, n) or (n, k, n, k) with n, k >= 1."
        )
    checks.finite("kernel", kernel)
    size = half[0] * (half[1] if len(half) == 2 else 1)
    matrix = kernel.reshape(size, size)
    values = checks.concrete(matrix)
    if values is not None:
        asymmetry = abs(values - values.T).max()
        if asymmetry > 1e-4 * abs(values).max():
            raise ValueError(
                f"`kernel` differs from its transpose by up to {asymmetry:.3g}, expected a "
                "symmetric kernel: one of a set with itself."
            )
    return (matrix + matrix.T) / 2, half
