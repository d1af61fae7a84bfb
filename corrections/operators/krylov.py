r"""The ends of the spectrum of a symmetric linear map, from its products with vectors alone.

Lanczos' method (matfree's, with full reorthogonalisation unless one pair alone is wanted), started
again from the wanted Ritz vectors until their residuals are small:

    |A v - theta v| <= r   means that A has an eigenvalue within r of theta
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from matfree import decomp

from zoo.common.norms import largest_magnitude

Product = Callable[[Array], Array]
Which = Literal["largest", "smallest", "magnitude"]
"""Which eigenvalues: the algebraically largest or smallest, or the largest in magnitude."""
WHICH: tuple[Which, ...] = ("largest", "smallest", "magnitude")


class Ritz(NamedTuple):
    """What a Krylov space knows of an operator.

    - `values`: Ritz values, ascending.
    - `weights`: of the start vector along each, of sum 1; zero where there is no Ritz pair, since
      the space ended before.
    - `vectors`: Ritz vectors are `vectors.T @ basis`.
    - `basis`: orthonormal rows; zero beyond the end of the space.
    - `exists`: which values belong to the operator.
    """

    values: Float[Array, " steps"]
    weights: Float[Array, " steps"]
    vectors: Float[Array, "steps steps"]
    basis: Float[Array, "steps size"]
    exists: Array


class Eigenpairs(NamedTuple):
    """Estimates of eigenvalues, the most wanted first.

    - `values`, `vectors`: orthonormal rows.
    - `residuals`: |A v - value v|; there is an eigenvalue within that distance.
    - `converged`: whether that is at most `rtol` times the largest magnitude of a Ritz value.
    """

    values: Float[Array, " count"]
    vectors: Float[Array, "count size"]
    residuals: Float[Array, " count"]
    converged: Bool[Array, " count"]


def lanczos(product: Product, start: Float[Array, " size"], steps: int) -> Ritz:
    """Ritz values and vectors of the Krylov space of `start`.

    Where that space is smaller than `steps` (an operator of low rank), what matfree goes on with is
    rounding: it is cut off.
    """
    scaled, unit = _in_units(product, start)
    found = _lanczos(scaled, start, steps)
    return found._replace(values=found.values * unit)


def _in_units(product: Product, vector: Float[Array, " size"]) -> tuple[Product, Array]:
    """The map over the size of what it makes of a vector, and that: squares of its numbers, which
    all methods here take, neither overflow nor underflow.
    """
    unit = largest_magnitude(product(vector / largest_magnitude(vector)))
    return lambda v: product(v) / unit, unit


def _lanczos(
    product: Product, start: Float[Array, " size"], steps: int, *, orthogonal: bool = True
) -> Ritz:
    reortho = "full" if orthogonal else "none"
    found = decomp.tridiag_sym(steps, custom_vjp=False, reortho=reortho)(product, start)
    tridiagonal = jnp.asarray(found.J_small)
    corner, off = tridiagonal[0, 0], jnp.diagonal(tridiagonal, 1)
    # |A q|, whatever comes of the rounding after the end of the space.
    scale = jnp.abs(corner) + (jnp.abs(off[0]) if steps > 1 else 0)
    goes_on = jnp.abs(off) > 10 * jnp.finfo(start.dtype).eps * scale  # False for NaN
    inside = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(goes_on).astype(bool)])
    both = inside[:, None] & inside[None]
    matrix = jnp.where(both, tridiagonal, jnp.diag(jnp.full(steps, corner)))
    values, vectors = jnp.linalg.eigh(matrix)
    vectors = jnp.where(inside[:, None], vectors, 0)
    exists = jnp.sum(vectors**2, axis=0) > 0.5
    basis = jnp.where(inside[:, None], jnp.asarray(found.Q_tall), 0)
    return Ritz(values, vectors[0] ** 2, vectors, basis, exists)


def extreme_eigenpairs(
    product: Product,
    starts: Float[Array, "count size"],
    *,
    which: Which,
    matvecs: int,
    rtol: float,
    known: Float[Array, "m size"] | None = None,
    cycle: int | None = None,
    orthogonal: bool = True,
) -> Eigenpairs:
    """Extreme eigenpairs of a symmetric operator, one after the other: each in the
    space that is orthogonal to those before, so that multiple eigenvalues are found as well.

    **Arguments:**

    - `product`: v -> A v.
    - `starts`: a vector for each pair that is wanted, at most as many as the size. Take random
      ones: a start that is orthogonal to an eigenvector does not find it.
    - `matvecs`: the most products that are taken for each pair; fewer where its residual comes
      below `rtol` times the largest magnitude among the Ritz values.
    - `known`: orthonormal eigenvectors that are not wanted again, or rows of zeros.
    - `cycle`: products between two restarts, as many vectors being stored (default: `CYCLE`).
    - `orthogonal`: whether vectors are orthogonalised against all before. Without that rounding
      makes copies of Ritz values that have converged, which are no harm to one pair.
    """
    product, unit = _in_units(product, starts[0])
    size = starts.shape[1]
    steps = max(1, min(size, CYCLE if cycle is None else cycle, matvecs - 1))

    def next_pair(
        carry: tuple[Array, Array], start: Array
    ) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        found, place = carry

        def outside(vector: Array) -> Array:
            return vector - (found @ vector) @ found

        def improved(start: Array) -> _Estimate:
            inside = outside(start)
            ritz = _lanczos(
                lambda v: outside(product(outside(v))), inside, steps, orthogonal=orthogonal
            )
            best = jnp.argmax(_priority(ritz.values, which, ritz.exists))
            # Outside once more: of what was found before rounding has left some in the basis.
            vector = outside(ritz.vectors[:, best] @ ritz.basis)
            vector /= jnp.linalg.norm(vector)
            image = product(vector)
            value = jnp.vdot(vector, image)
            residual = jnp.linalg.norm(image - value * vector)
            scale = jnp.max(jnp.where(ritz.exists, jnp.abs(ritz.values), 0))
            return _Estimate(value, vector, residual, scale, jnp.asarray(steps + 1))

        def unfinished(estimate: _Estimate) -> Array:
            more = estimate.residual > rtol * estimate.scale
            return more & (estimate.products + steps < matvecs)

        def again(estimate: _Estimate) -> _Estimate:
            new = improved(estimate.vector)
            scale = jnp.maximum(new.scale, estimate.scale)
            return new._replace(scale=scale, products=estimate.products + steps + 1)

        done = jax.lax.while_loop(unfinished, again, improved(start))
        found = found.at[place].set(done.vector)
        return (found, place + 1), (done.value, done.residual, done.scale)

    before = jnp.zeros((0, size), starts.dtype) if known is None else known
    begin = jnp.concatenate([before, jnp.zeros_like(starts)]), jnp.asarray(len(before))
    (vectors, _), (values, residuals, scales) = jax.lax.scan(next_pair, begin, starts)
    vectors = vectors[len(before) :]
    order = jnp.argsort(_priority(values, which, jnp.isfinite(values)))[::-1]
    values, vectors, residuals = values[order], vectors[order], residuals[order]
    converged = residuals <= rtol * jnp.max(scales)
    return Eigenpairs(values * unit, vectors, residuals * unit, converged)


class _Estimate(NamedTuple):
    value: Array
    vector: Array
    residual: Array
    scale: Array
    products: Array


def _priority(values: Array, which: Which, exists: Array) -> Array:
    """Larger where an eigenvalue is more wanted."""
    priority = {"largest": values, "smallest": -values, "magnitude": jnp.abs(values)}[which]
    return jnp.where(exists, priority, jnp.full_like(priority, -jnp.inf))


CYCLE = 12
"""Products between two restarts: as many vectors like the parameters are stored."""
