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
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree
from matfree import stochtrace

from corrections.kernels.alignment import alignment, label_vector, label_vectors, symmetric_matrix
from corrections.operators.krylov import extreme_eigenpairs, lanczos, WHICH, Which
from corrections.operators.linear_operator import flat_operator, vectors_like
from corrections.symmetric.layouts import check_symmetric_operator, rounding, ZERO
from zoo.common import checks
from zoo.common.norms import largest_magnitude, norm
from zoo.common.precision import full_precision
from zoo.common.records import short_repr


@short_repr
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


@short_repr
class SpectralDensity(NamedTuple):
    """A density of eigenvalues as point masses: `weights` (samples, m), each row of sum 1, at
    `nodes` (samples, m). Their mean over samples estimates the mean over all eigenvalues:
    mean_i h(lambda_i) = mean over samples of sum_j weights h(nodes).
    """

    nodes: Float[Array, "samples m"]
    weights: Float[Array, "samples m"]


@short_repr
class Eigenvalues(NamedTuple):
    """Extreme eigenvalues of a symmetric operator, the most wanted first.

    - `values`: (count,), in the units of the operator.
    - `residuals`: |A v - value v| of each; there is an eigenvalue within that distance.
    - `converged`: whether that is at most `rtol` times the largest magnitude of all. Where it is
      False the value lies inside the spectrum and nothing more is known of it.
    - `vectors`: eigenvectors of length 1, shaped as what the operator takes with `count` in front.
    """

    values: Float[Array, " count"]
    residuals: Float[Array, " count"]
    converged: Bool[Array, " count"]
    vectors: PyTree


@full_precision
def spectrum(
    kernel: Float[Array, "..."] | lx.AbstractLinearOperator,
    y: Float[Array, "n k"] | None = None,
    *,
    count: int = 10,
    matvecs: int = 100,
    rtol: float = 1e-3,
    key: PRNGKeyArray | None = None,
) -> Spectrum:
    """Eigenvalues of a kernel, its condition number, its effective rank, its alignment with labels.

    **Arguments:**

    - `kernel`: (n, n), (n, k, n, k), or a symmetric operator of lineax on (n, k) or (n,): an
      `NTKOperator` or `solvers.KernelBlocks` of a set with itself.
    - `y`: labels (n, k). With a kernel (n, n) the kernel is taken as Theta (x) I_k.
    - `count`: of an operator, how many of the largest eigenvalues are wanted.
    - `matvecs`: of an operator, the most products for each eigenvalue, and random vectors for the
      effective rank and |K|_F (relative error about sqrt(2 / matvecs)).
    - `rtol`: what counts as converged.
    - `key`: for the random vectors of an operator (default: `jax.random.key(0)`).

    **Raises:** `ValueError` / `TypeError` for a kernel that is not square, symmetric and finite, an
    operator between two sets, labels that do not fit, counts below 1 or `count` > `matvecs`.

    Source: for the effective rank Roy & Vetterli (2007) and the participation ratio; for the
    alignment Cristianini et al. (2001), "On kernel-target alignment".
    """
    count = checks.integer("count", count)
    matvecs = checks.integer("matvecs", matvecs)
    checks.nonnegative_number("rtol", rtol)
    key = checks.key_or_default("key", key)
    if isinstance(kernel, lx.AbstractLinearOperator):
        check_symmetric_operator("kernel", kernel)
        outputs = vectors_like("kernel", kernel.in_structure())
        shape, size = (*outputs.shape, 1)[:2], kernel.in_size()
        if count > matvecs:
            raise ValueError(
                f"`count` is {count} and `matvecs` {matvecs}, expected at least as many products "
                "as eigenvalues that are wanted."
            )
        vector = None if y is None else label_vector(y, shape)
        with jax.numpy_dtype_promotion("standard"):
            return _of_operator(kernel, vector, min(count, size), matvecs, rtol, key)
    matrix, shape = symmetric_matrix(kernel)
    vectors = None if y is None else label_vectors(y, shape).astype(matrix.dtype)
    return _of_matrix(matrix, vectors, rtol)


@full_precision
def extreme_eigenvalues(
    operator: lx.AbstractLinearOperator,
    count: int = 1,
    *,
    which: Which = "largest",
    matvecs: int = 200,
    rtol: float = 1e-4,
    key: PRNGKeyArray | None = None,
) -> Eigenvalues:
    """The ends of the spectrum of a symmetric operator, by Lanczos' method with restarts.

    **Arguments:**

    - `operator`: symmetric, of lineax: an `NTKOperator` of a set with itself, a `LossHessian`,
      `solvers.KernelBlocks`, or one that is tagged symmetric.
    - `count`: how many eigenvalues, with their multiplicity.
    - `which`: "largest" or "smallest", or the largest in "magnitude".
    - `matvecs`: the most products that are taken for each.
    - `rtol`: what counts as converged. Eigenvalues are closer than their residuals: their error
      goes like the square of the residual over the distance to the next one.
    - `key`: for the start (default: `jax.random.key(0)`).

    **Raises:** `ValueError` / `TypeError` for an operator that is not symmetric, an unknown
    `which`, counts below 1 or above the operator's size.

    Source: Saad (2011), "Numerical methods for large eigenvalue problems", chapters 4 and 6.
    """
    count = checks.integer("count", count)
    matvecs = checks.integer("matvecs", matvecs)
    checks.choice("which", which, WHICH)
    checks.nonnegative_number("rtol", rtol, strictly=True)
    check_symmetric_operator("operator", operator)
    key = checks.key_or_default("key", key)
    with jax.numpy_dtype_promotion("standard"):
        return _extremes(operator, count, which, matvecs, rtol, key)


@full_precision
def spectral_density(
    operator: lx.AbstractLinearOperator,
    *,
    matvecs: int = 50,
    samples: int = 10,
    key: PRNGKeyArray | None = None,
) -> SpectralDensity:
    """The density of eigenvalues of an operator, by stochastic Lanczos quadrature.

    **Arguments:**

    - `operator`: symmetric, of lineax: an `NTKOperator` of a set with itself, a `LossHessian`,
      `solvers.KernelBlocks`, or one that is tagged symmetric.
    - `matvecs`: products per sample: moments up to 2 matvecs - 1 of each sample are exact.
    - `samples`: random vectors that are averaged over.
    - `key`: for them (default: `jax.random.key(0)`).

    **Raises:** `ValueError` / `TypeError` for an operator that is not symmetric, counts below 1.

    Source: Golub & Meurant (2010); Ghorbani, Krishnan & Xiao (2019), algorithm 1.
    """
    matvecs = checks.integer("matvecs", matvecs)
    samples = checks.integer("samples", samples)
    check_symmetric_operator("operator", operator)
    key = checks.key_or_default("key", key)
    with jax.numpy_dtype_promotion("standard"):
        found = _density(operator, matvecs, samples, key)
    nodes = checks.concrete(found.nodes)
    if nodes is not None and not np.all(np.isfinite(nodes)):
        raise ValueError("`operator` gives numbers that are not finite, expected finite ones.")
    return found


@eqx.filter_jit
def _of_matrix(matrix: Array, vectors: Array | None, rtol: float) -> Spectrum:
    ascending, basis = jnp.linalg.eigh(matrix)
    values, basis = ascending[::-1], basis[:, ::-1]
    residuals = norm(matrix @ basis - basis * values[None], axis=0)
    aligned = energy = None
    if vectors is not None:
        energy = jnp.sum((basis.T @ (vectors / norm(vectors))) ** 2, axis=1)
        aligned = alignment(matrix, vectors)
    return Spectrum(
        values,
        residuals,
        residuals <= rtol * values[0],
        _condition(values[0], values[-1]),
        (jnp.sum(values) / norm(values)) ** 2,
        aligned,
        energy,
    )


@eqx.filter_jit
def _of_operator(
    operator: lx.AbstractLinearOperator,
    vector: Array | None,
    count: int,
    matvecs: int,
    rtol: float,
    key: PRNGKeyArray,
) -> Spectrum:
    product, size, dtype, _ = flat_operator(operator)
    start_key, sample_key = jr.split(key)
    once_key, again_key = jr.split(start_key)
    ritz = lanczos(product, jr.normal(once_key, (size,), dtype), min(matvecs, size))
    priority = jnp.where(ritz.exists, ritz.values, -jnp.inf)
    descending = jnp.argsort(priority)[::-1][:count]
    top = jnp.where(ritz.exists[descending][:, None], ritz.vectors.T[descending] @ ritz.basis, 0)
    found_values, vectors = priority[descending], top
    if others := min(count, size - count):
        # A Krylov space has one vector of each eigenvalue, multiple or not: others lie outside.
        starts = jr.normal(again_key, (others, size), dtype)
        again = extreme_eigenpairs(
            product, starts, which="largest", matvecs=matvecs, rtol=rtol, known=top
        )
        found_values = jnp.concatenate([found_values, again.values])
        vectors = jnp.concatenate([top, again.vectors])
    largest = jnp.argsort(found_values)[::-1][:count]
    last = jnp.argmin(jnp.where(ritz.exists, ritz.values, jnp.inf))
    values = jnp.append(found_values[largest], ritz.values[last])
    basis = jnp.concatenate([vectors[largest], (ritz.vectors[:, last] @ ritz.basis)[None]])
    exists = jnp.isfinite(values)
    values = jnp.where(exists, values, jnp.nan)
    residuals = norm(jax.lax.map(product, basis) - values[:, None] * basis, axis=1)
    residuals = jnp.where(exists, residuals, jnp.inf)
    samples = stochtrace.sampler_signs(jnp.zeros(size, dtype), num=matvecs)(sample_key)
    images = jax.lax.map(product, samples)
    unit = largest_magnitude(images)
    trace = jnp.mean(jnp.sum(samples * (images / unit), axis=1))
    squared_norm = jnp.mean(jnp.sum((images / unit) ** 2, axis=1))
    aligned = energy = None
    if vector is not None:
        direction = vector / norm(vector)
        aligned = jnp.sum(direction * (product(direction) / unit)) / jnp.sqrt(squared_norm)
        energy = (basis @ direction) ** 2
    return Spectrum(
        values,
        residuals,
        residuals <= rtol * values[0],
        _condition(values[0], values[-1]),
        jnp.clip(trace**2 / jnp.where(squared_norm > 0, squared_norm, 1), 1, size),
        aligned,
        energy,
    )


@eqx.filter_jit
def _extremes(
    operator: lx.AbstractLinearOperator,
    count: int,
    which: Which,
    matvecs: int,
    rtol: float,
    key: PRNGKeyArray,
) -> Eigenvalues:
    product, size, dtype, unravel = flat_operator(operator)
    if count > size:
        raise ValueError(f"`count` is {count}, expected at most the size {size} of `operator`.")
    found = extreme_eigenpairs(
        product,
        jr.normal(key, (count, size), dtype),
        which=which,
        matvecs=matvecs,
        rtol=rtol,
    )
    vectors = jax.vmap(unravel)(found.vectors)
    return Eigenvalues(found.values, found.residuals, found.converged, vectors)


@eqx.filter_jit
def _density(
    operator: lx.AbstractLinearOperator, matvecs: int, samples: int, key: PRNGKeyArray
) -> SpectralDensity:
    product, size, dtype, _ = flat_operator(operator)
    matvecs = min(matvecs, size)

    def of_sample(vector: Array) -> tuple[Array, Array]:
        found = lanczos(product, vector, matvecs)
        return found.values, found.weights

    like = jnp.zeros(size, dtype)
    starts = stochtrace.sampler_signs(like, num=samples)(key)
    return SpectralDensity(*jax.lax.map(of_sample, starts))


def _condition(largest: Array, smallest: Array) -> Array:
    """Their ratio; infinite where the smallest cannot be told from zero."""
    singular = smallest <= ZERO * rounding(largest)
    return jnp.where(singular, jnp.inf, largest / jnp.where(singular, 1, smallest))
