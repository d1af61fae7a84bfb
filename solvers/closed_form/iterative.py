r"""Functions of a kernel that is not formed, applied to vectors: Krylov methods.

    u(t) = (1 - exp(-K t / n)) / K b        Lanczos' method: all times from one Krylov space
    u(inf) = K^{-1} b                       conjugate gradients, preconditioned

With K V = V T + beta v e_m^T after m products, what Lanczos has of u(t) leaves an error e with

    |K e(t)| <= beta |e_m^T (1 - exp(-T t / n)) / T e_1| |b|

since e' = -(K e + r) / n, where r(s) is that vector at s <= t, times v. It grows with t, as T has
positive off-diagonal entries, and at t = inf it is the residual of conjugate gradients: u(t) never
takes more products than u(inf), without the preconditioner.

Lanczos' method is written out here, beside matfree's in `corrections.operators.krylov`: that takes
one vector and a number of steps that is known before; here columns share each product with the
kernel, and the error bound says when there have been enough.

All of it is computed in units of b and of K, so that neither squares nor quotients leave the range
of floating point: what comes for c K and d b is what comes for K and b, times d / c.

Sources: Saad (1992), "Analysis of some Krylov subspace approximations to the matrix exponential
operator"; Frangella, Tropp & Udell (2021), "Randomized Nystrom preconditioning".
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from corrections.symmetric.layouts import NEGATIVE, ZERO
from corrections.symmetric.matrix_functions import eigenbasis, Relaxation
from solvers.closed_form.conjugate_gradients import conjugate_gradients, Found, Map
from solvers.frozen_kernel.operators import at_each, Operator, product, Space, space_of


class Units(NamedTuple):
    """What numbers are measured in: a `kernel`'s eigenvalues, and the columns of `right`."""

    kernel: Float[Array, ""]
    right: Float[Array, " c"]

    def coefficients(self, scaled: Float[Array, "*t size c"]) -> Float[Array, "*t size c"]:
        """Solutions, in the units of b / K."""
        return scaled * jnp.broadcast_to(self.right, scaled.shape) / self.kernel

    def of_unit_columns(self, scaled: Float[Array, "*t size c"]) -> Float[Array, "*t size c"]:
        """Solutions for b / |b|, in the units of 1 / K: products of these with a small kernel are
        numbers also after a short time, where both are small in the kernel's own units.
        """
        return scaled / self.kernel

    def outputs(self, products: Float[Array, "*t rows c"]) -> Float[Array, "*t rows c"]:
        """Products of a kernel with solutions for b / |b|, in the units of b."""
        return products * jnp.broadcast_to(self.right, products.shape)


class KrylovSolution(NamedTuple):
    """u for columns, at some times in front or at one.

    - `scaled`: u in `units`, (t, size, columns); `image`: K u in those of b.
    - `error`: |b - (K + damping) u| / |b| of each column; of u(t) a bound on that of K u(t), with
      what rounding adds.
    - `backward_error`: that relative to |K + damping| |u| + |b|: the smallest relative change of
      K + damping and b for which u is exact.
    - `stagnated`: where rounding keeps the error above `rtol`.
    - `steps`: the most that a column took; `products`: evaluations of the operator.
    - `positive`: whether no negative eigenvalue was met.
    """

    scaled: Float[Array, "*t size c"]
    units: Units
    image: Float[Array, "*t size c"]
    error: Float[Array, "*t c"]
    backward_error: Float[Array, "*t c"]
    stagnated: Bool[Array, "*t c"]
    steps: Int[Array, ""]
    products: Int[Array, ""]
    positive: Bool[Array, ""]

    @property
    def solution(self) -> Float[Array, "*t size c"]:
        """The solution u."""
        return self.units.coefficients(self.scaled)

    def as_one_time(self) -> "KrylovSolution":
        """With an axis of one time in front."""
        names = ("scaled", "image", "error", "backward_error", "stagnated")
        return self._replace(**{name: getattr(self, name)[None] for name in names})


def learned_at(
    operator: Operator,
    right: Float[Array, "size c"],
    ts: Float[Array, " t"],
    *,
    damping: Array,
    rtol: Array,
    max_iterations: int,
) -> KrylovSolution:
    """(1 - exp(-(K + damping) t)) / (K + damping) b: here time carries the 1/n.

    One Krylov space for each column, with full reorthogonalisation; the columns share products.
    """
    space = space_of("operator", operator)
    steps = min(space.size, max_iterations)
    start, norms = _started(right, steps)
    eps = jnp.finfo(right.dtype).eps

    def apply(columns: Array) -> Array:
        return product(operator, columns)

    def unfinished(carry: tuple[_Krylov, _Projected]) -> Array:
        state, found = carry
        more = found.error[-1] > jnp.maximum(rtol, eps * found.size[-1])
        return jnp.any(more) & (state.size < steps)

    def grow(carry: tuple[_Krylov, _Projected]) -> tuple[_Krylov, _Projected]:
        state, _ = carry
        upto = jnp.minimum(state.size + jnp.maximum(state.size // 2, 4), steps)
        state = jax.lax.fori_loop(state.size, upto, lambda _, s: _lanczos_step(apply, s), state)
        return state, _projected(state, ts, damping)

    last, found = jax.lax.while_loop(unfinished, grow, (start, _before_the_first_step(start, ts)))
    units = Units(found.unit, norms)
    basis = last.basis[:, :steps]
    scaled = jnp.einsum("csn,tsc->tnc", basis, found.weights)
    image = at_each(operator, units.of_unit_columns(scaled))
    known = jnp.einsum("csn,tsc->tnc", basis, found.images)
    # The image is K u, or differs from it by the residual alone: whatever else there is, rounding
    # or an operator that is not linear and symmetric, is an error as well.
    error = jnp.maximum(found.error, jnp.linalg.norm(image - known, axis=1))
    backward_error = error / (found.size + 1)
    arrived = found.error <= jnp.maximum(rtol, eps * found.size)
    evaluations = len(ts) if space.outputs is not None else 1
    return KrylovSolution(
        scaled=scaled,
        units=units,
        image=image * norms[None, None],
        error=error,
        backward_error=backward_error,
        stagnated=arrived & (error > rtol) & _is_rounding(backward_error),
        steps=last.size,
        products=last.size + evaluations,
        positive=found.positive,
    )


class _Krylov(NamedTuple):
    """Orthonormal bases (columns, room, size), zero where nothing is yet; T by its two diagonals
    (steps, columns); `size` steps so far.
    """

    basis: Array
    diagonal: Array
    off: Array
    size: Array


class _Projected(NamedTuple):
    """In the `unit` of the kernel; `size` is |K| |u|, of unit columns."""

    weights: Array
    images: Array
    error: Array
    size: Array
    unit: Array
    largest: Array
    positive: Array


def _started(right: Float[Array, "size c"], steps: int) -> tuple[_Krylov, Array]:
    """The space of the columns alone, room for `steps` more; and their norms, 1 in place of 0."""
    norms = norms_of(right)
    size, columns = right.shape
    chunk = min(CHUNK, steps + 1)
    room = -(-(steps + 1) // chunk) * chunk
    basis = jnp.zeros((columns, room, size), right.dtype)
    state = _Krylov(
        basis=basis.at[:, 0].set((right / norms[None]).T),
        diagonal=jnp.zeros((steps, columns), right.dtype),
        off=jnp.zeros((steps, columns), right.dtype),
        size=jnp.asarray(0),
    )
    return state, norms


def norms_of(columns: Float[Array, "size c"]) -> Float[Array, " c"]:
    """Norms, also where the squares are out of range; 1 in the place of 0."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(columns), axis=0))
    scale = jnp.where(largest == 0, 1, largest)
    unit = jnp.where(largest[None] == 0, 1 / math.sqrt(len(columns)), columns / scale[None])
    return scale * jnp.linalg.norm(unit, axis=0)


def _lanczos_step(apply: Map, state: _Krylov) -> _Krylov:
    """One step of Lanczos' method with full reorthogonalisation, twice."""
    i = state.size
    last = state.basis[:, i]
    image = apply(last.T).T
    chunk = min(CHUNK, state.basis.shape[1])
    chunks = i // chunk + 1

    def remove(which: Array, rest: Array) -> Array:
        start = jnp.mod(which, chunks) * chunk
        rows = jax.lax.dynamic_slice_in_dim(state.basis, start, chunk, axis=1)
        return rest - jnp.einsum("csn,cs->cn", rows, jnp.einsum("csn,cn->cs", rows, rest))

    rest = jax.lax.fori_loop(0, 2 * chunks, remove, image)
    zero = jnp.all(rest == 0, axis=1)
    beta = norms_of(rest.T)
    ended = zero | (beta <= ZERO * jnp.finfo(beta.dtype).eps * norms_of(image.T))
    following = jnp.where(ended[:, None], 0, rest / beta[:, None])
    return state._replace(
        basis=state.basis.at[:, i + 1].set(following),
        diagonal=state.diagonal.at[i].set(jnp.sum(last * image, axis=1)),
        off=state.off.at[i].set(jnp.where(ended, 0, beta)),
        size=i + 1,
    )


def _before_the_first_step(state: _Krylov, ts: Float[Array, " t"]) -> _Projected:
    """What the space knows of U(t) before the first step."""
    steps, columns = state.off.shape
    zeros = jnp.zeros((len(ts), steps, columns), ts.dtype)
    return _Projected(
        weights=zeros,
        images=zeros,
        error=jnp.full((len(ts), columns), jnp.inf, ts.dtype),
        size=jnp.zeros((len(ts), columns), ts.dtype),
        unit=jnp.ones((), ts.dtype),
        largest=jnp.zeros((), ts.dtype),
        positive=jnp.array(True),
    )


def _projected(state: _Krylov, ts: Float[Array, " t"], damping: Array) -> _Projected:
    """u(t) e_1 and T u(t) e_1 in the basis; the bound on what is missing. In the eigenvectors of a
    corner of T that holds all there is: there are few shapes of it.
    """
    steps = len(state.off)
    corners = [min(CHUNK, steps)]
    while corners[-1] < steps:
        corners.append(min(2 * corners[-1], steps))
    branches = [functools.partial(_projected_to_corner, corner) for corner in corners]
    return jax.lax.switch(
        jnp.searchsorted(jnp.asarray(corners), state.size), branches, state, ts, damping
    )


def _projected_to_corner(
    corner: int, state: _Krylov, ts: Float[Array, " t"], damping: Array
) -> _Projected:
    last = state.size - 1
    diagonal, off = state.diagonal[:corner], state.off[:corner]
    # The link to the next vector is no part of T.
    inside = jnp.where(jnp.arange(corner)[:, None] < last, off, 0)[:-1]

    def tridiagonal(diagonal: Array, off: Array) -> Array:
        return jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1)

    matrix = jax.vmap(tridiagonal, in_axes=1)(diagonal, inside)
    # A column of numbers that are not finite has no say in the unit.
    entry = jnp.max(jnp.where(jnp.isfinite(matrix), jnp.abs(matrix), 0))
    entry = jnp.where(entry == 0, 1, entry)
    unit = jax.lax.stop_gradient(jnp.maximum(entry, damping))
    matrix, ridge = matrix / unit, damping / unit
    first = jnp.zeros((corner, 1), matrix.dtype).at[0].set(1)

    def of_column(matrix: Array) -> tuple[Array, Array]:
        # Not the eigenvectors themselves: where eigenvalues meet they have no derivatives.
        basis = eigenbasis(matrix + ridge * jnp.eye(corner, dtype=matrix.dtype))
        at_times = jax.lax.map(lambda t: basis.apply(Relaxation(t), first)[:, 0], ts * unit)
        return at_times, basis.values - ridge

    weights, values = jax.vmap(of_column)(matrix)
    weights = rearrange(weights, "c t s -> t s c")
    images = jnp.einsum("csr,trc->tsc", matrix, weights)
    largest = jnp.max(jnp.where(jnp.isfinite(values), jnp.abs(values), 0))
    rounding = jnp.finfo(values.dtype).eps * largest
    room = ((0, 0), (0, len(state.off) - corner), (0, 0))
    return _Projected(
        weights=jnp.pad(weights, room),
        images=jnp.pad(images, room),
        error=jnp.abs((off[last] / unit)[None] * weights[:, last]),
        size=largest * jnp.linalg.norm(weights, axis=1),
        unit=unit,
        largest=largest,
        positive=~jnp.any(values < -NEGATIVE * rounding),
    )


def solve(
    operator: Operator,
    right: Float[Array, "size c"],
    *,
    damping: Array,
    rtol: Array,
    max_iterations: int,
    preconditioner_rank: int,
) -> KrylovSolution:
    """Conjugate gradients, preconditioned by a randomised Nystrom approximation of K."""
    space = space_of("operator", operator)
    together = space.outputs is None
    nystrom_key, probe_key = jr.split(jr.key(0))
    probe = min(space.size, PROBE)
    state, _ = _started(jr.normal(probe_key, (space.size, 1), space.dtype), probe)
    fixed = _without_derivatives(operator, space, 1)
    state = jax.lax.fori_loop(0, probe, lambda _, s: _lanczos_step(fixed, s), state)
    probed = _projected(state, jnp.zeros(1, space.dtype), jax.lax.stop_gradient(damping))
    rank = min(space.size, preconditioner_rank)
    precondition = _nystrom(operator, space, rank, damping, probed.unit, nystrom_key)
    units = Units(probed.unit, jax.lax.stop_gradient(norms_of(right)))

    def apply(columns: Array) -> Array:
        return (product(operator, columns) + damping * columns) / units.kernel

    def solved(right: Array) -> tuple[Array, Found]:
        return conjugate_gradients(
            apply, precondition, right, tolerance=rtol, max_steps=max_iterations
        )

    unit = right / units.right[None]
    if together:
        scaled, found = solved(unit)
    else:
        scaled, found = jax.lax.map(lambda b: solved(b[:, None]), unit.T)
        scaled, found = (
            scaled[..., 0].T,
            found._replace(error=found.error[:, 0], stagnated=found.stagnated[:, 0]),
        )
    image = product(operator, scaled) / units.kernel
    magnitude = jnp.linalg.norm(jax.lax.stop_gradient(scaled), axis=0)
    backward_error = found.error / ((probed.largest + damping / units.kernel) * magnitude + 1)
    spent = found.steps + found.checks
    sketched = min(rank, 1) if together else rank
    return KrylovSolution(
        scaled=scaled,
        units=units,
        image=image * units.right[None],
        error=found.error,
        backward_error=backward_error,
        stagnated=found.stagnated & _is_rounding(backward_error),
        steps=jnp.max(found.steps),
        products=probe + sketched + (spent + 1 if together else jnp.sum(spent + 1)),
        positive=probed.positive,
    )


def _without_derivatives(operator: Operator, space: Space, columns: int) -> Map:
    """The operator on so many columns, for what only helps to find a solution."""
    example = jnp.zeros((space.size, columns), space.dtype)
    apply, constants = jax.closure_convert(lambda v: product(operator, v), example)
    constants = jax.lax.stop_gradient(constants)
    return lambda v: apply(v, *constants)


def _nystrom(
    operator: Operator, space: Space, rank: int, damping: Array, unit: Array, key: PRNGKeyArray
) -> Map:
    """The inverse of U (L + damping) U^T + (L_r + damping) (1 - U U^T), where U L U^T approximates
    K, from its product with `rank` random vectors: in the `unit` of K.
    """
    if rank == 0:
        return lambda v: v
    test = jnp.linalg.qr(jr.normal(key, (space.size, rank), space.dtype))[0]
    sketch = _without_derivatives(operator, space, rank)(test) / unit
    # A shift by the rounding of the sketch keeps its core positive; it is taken off again.
    eps = jnp.finfo(space.dtype).eps
    shift = math.sqrt(space.size) * eps * jnp.maximum(jnp.linalg.norm(sketch), eps)
    sketch = sketch + shift * test
    core = test.T @ sketch
    values, vectors = jnp.linalg.eigh((core + core.T) / 2)
    half = (sketch @ vectors) / jnp.sqrt(jnp.maximum(values, shift))[None]
    left, singular, _ = jnp.linalg.svd(half, full_matrices=False)
    # Smaller ones are not told from rounding, which their inverse would make large.
    damped = jax.lax.stop_gradient(damping) / unit
    kept = jnp.maximum(singular**2 - shift, math.sqrt(eps)) + damped

    def inverse(v: Array) -> Array:
        return v / kept[-1] + left @ ((1 / kept - 1 / kept[-1])[:, None] * (left.T @ v))

    return inverse


def _is_rounding(backward_error: Array) -> Array:
    return backward_error <= ROUNDING * jnp.finfo(backward_error.dtype).eps


CHUNK = 32
"""Vectors of a basis that are taken at once: the work grows with those that there are."""

PROBE = 20
"""Products that look for the largest eigenvalue and for negative ones."""

ROUNDING = 100
"""Times eps: the backward error up to which rounding is what keeps a solve from its tolerance. It
was 0.03 to 16 for kernels of networks and of squared distances, with a damping of 1e-6 or more of
the largest eigenvalue where these were singular."""
