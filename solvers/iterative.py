r"""Functions of a kernel that is not formed, applied to vectors: Krylov methods.

    u(t) = (1 - exp(-K t / n)) / K b        Lanczos' method: all times from one Krylov space
    u(inf) = K^{-1} b                       conjugate gradients, preconditioned

With K V = V T + beta v e_m^T after m products, what Lanczos has of u(t) leaves an error e with

    |K e(t)| <= beta |e_m^T (1 - exp(-T t / n)) / T e_1| |b|

since e' = -(K e + r) / n, where r(s) is that vector at s <= t, times v. It grows with t, as T has
positive off-diagonal entries, and at t = inf it is the residual of conjugate gradients: u(t) never
takes more products than u(inf), without the preconditioner.

Sources: Saad (1992), "Analysis of some Krylov subspace approximations to the matrix exponential
operator"; Frangella, Tropp & Udell (2021), "Randomized Nystrom preconditioning".
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from solvers.operators import Operator, product, Space, space_of
from solvers.result import RESULTS
from zoo import checks


class Learned(NamedTuple):
    """U(t) for columns and times.

    - `solution`: u(t), (t, size, columns); `image`: K u(t).
    - `error`: a bound on |K e(t)| / |b|, the largest over columns, with what rounding adds, (t,).
    - `products`: evaluations of the operator.
    - `positive`: whether no Ritz value was negative.
    """

    solution: Float[Array, "t size c"]
    image: Float[Array, "t size c"]
    error: Float[Array, " t"]
    products: Int[Array, ""]
    positive: Bool[Array, ""]


def learned_at(
    operator: Operator,
    right: Float[Array, "size c"],
    ts: Float[Array, " t"],
    *,
    damping: Array,
    rtol: Array,
    max_iterations: int,
) -> Learned:
    """(1 - exp(-(K + damping) t)) / (K + damping) b: here time carries the 1/n.

    One Krylov space for each column, with full reorthogonalisation; the columns share products.
    """
    space = space_of("operator", operator)
    steps = min(space.size, max_iterations)
    start, norms, safe = _started(right, steps)

    def unfinished(carry: tuple[_Krylov, _Small]) -> Array:
        state, found = carry
        return (found.error[-1] > rtol) & (state.size < steps)

    def grow(carry: tuple[_Krylov, _Small]) -> tuple[_Krylov, _Small]:
        state, _ = carry
        upto = jnp.minimum(state.size + jnp.maximum(state.size // 2, 4), steps)
        state = jax.lax.fori_loop(state.size, upto, lambda _, s: _one_more(operator, s), state)
        return state, _small(state, ts, damping)

    last, found = jax.lax.while_loop(unfinished, grow, (start, _nothing(start, ts)))
    basis, scale = last.basis[:, :steps], norms[None, None]
    solution = jnp.einsum("csn,tsc->tnc", basis, found.weights) * scale
    image = _at_each(operator, solution)
    known = jnp.einsum("csn,tsc->tnc", basis, found.images) * scale
    # The image is K u, or differs from it by the residual alone: whatever else there is, rounding
    # or an operator that is not linear and symmetric, is an error as well.
    departure = jnp.linalg.norm(image - known, axis=1) / safe[None]
    evaluations = len(ts) if space.outputs is not None else 1
    return Learned(
        solution=solution,
        image=image,
        error=jnp.maximum(found.error, jnp.max(departure, axis=1)),
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


class _Small(NamedTuple):
    weights: Array
    images: Array
    error: Array
    largest: Array
    positive: Array


def _started(right: Float[Array, "size c"], steps: int) -> tuple[_Krylov, Array, Array]:
    """The space of the columns alone, room for `steps` more; norms, and 1 in the place of 0."""
    norms = jnp.linalg.norm(right, axis=0)
    safe = jnp.where(norms == 0, 1, norms)
    size, columns = right.shape
    chunk = min(CHUNK, steps + 1)
    room = -(-(steps + 1) // chunk) * chunk
    basis = jnp.zeros((columns, room, size), right.dtype)
    state = _Krylov(
        basis=basis.at[:, 0].set((right / safe[None]).T),
        diagonal=jnp.zeros((steps, columns), right.dtype),
        off=jnp.zeros((steps, columns), right.dtype),
        size=jnp.asarray(0),
    )
    return state, norms, safe


def _one_more(operator: Operator, state: _Krylov) -> _Krylov:
    """One step of Lanczos' method with full reorthogonalisation, twice."""
    i = state.size
    last = state.basis[:, i]
    image = product(operator, last.T).T
    chunk = min(CHUNK, state.basis.shape[1])
    chunks = i // chunk + 1

    def remove(which: Array, rest: Array) -> Array:
        start = jnp.mod(which, chunks) * chunk
        rows = jax.lax.dynamic_slice_in_dim(state.basis, start, chunk, axis=1)
        return rest - jnp.einsum("csn,cs->cn", rows, jnp.einsum("csn,cn->cs", rows, rest))

    rest = jax.lax.fori_loop(0, 2 * chunks, remove, image)
    beta = jnp.linalg.norm(rest, axis=1)
    ended = beta <= 10 * jnp.finfo(beta.dtype).eps * jnp.linalg.norm(image, axis=1)
    following = jnp.where(ended[:, None], 0, rest / jnp.where(ended, 1, beta)[:, None])
    return state._replace(
        basis=state.basis.at[:, i + 1].set(following),
        diagonal=state.diagonal.at[i].set(jnp.sum(last * image, axis=1)),
        off=state.off.at[i].set(jnp.where(ended, 0, beta)),
        size=i + 1,
    )


def _nothing(state: _Krylov, ts: Float[Array, " t"]) -> _Small:
    """What the space knows of U(t) before the first step."""
    zeros = jnp.zeros((len(ts), *state.off.shape), ts.dtype)
    return _Small(
        zeros, zeros, jnp.full_like(ts, jnp.inf), jnp.zeros((), ts.dtype), jnp.array(True)
    )


def _small(state: _Krylov, ts: Float[Array, " t"], damping: Array) -> _Small:
    """U(t) e_1 and T u(t) e_1 in the basis; the bound on what is missing. In the eigenvectors of a
    corner of T that holds all there is: there are few shapes of it.
    """
    steps = len(state.off)
    corners = [min(CHUNK, steps)]
    while corners[-1] < steps:
        corners.append(min(2 * corners[-1], steps))
    branches = [functools.partial(_of_corner, corner) for corner in corners]
    return jax.lax.switch(
        jnp.searchsorted(jnp.asarray(corners), state.size), branches, state, ts, damping
    )


def _of_corner(corner: int, state: _Krylov, ts: Float[Array, " t"], damping: Array) -> _Small:
    last = state.size - 1
    diagonal, off = state.diagonal[:corner], state.off[:corner]
    # The link to the next vector is no part of T.
    inside = jnp.where(jnp.arange(corner)[:, None] < last, off, 0)[:-1]

    def tridiagonal(diagonal: Array, off: Array) -> Array:
        return jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1)

    matrix = jax.vmap(tridiagonal, in_axes=1)(diagonal, inside)
    values, vectors = jnp.linalg.eigh(matrix)  # (columns, corner), (columns, corner, corner)
    largest = jnp.max(jnp.abs(values))
    rounding = state.basis.shape[-1] * jnp.finfo(values.dtype).eps * largest
    seen = values > rounding
    damped = jnp.where(seen, values + damping, 1)[None]
    learned = jnp.where(seen[None], -jnp.expm1(-damped * ts[:, None, None]) / damped, 0)
    along = learned * vectors[:, 0][None]
    weights = jnp.einsum("csr,tcr->tsc", vectors, along)
    images = jnp.einsum("csr,tcr->tsc", vectors, values[None] * along)
    missing = jnp.abs(off[last][None] * weights[:, last])
    positive = jnp.all(values > -100 * rounding)
    room = ((0, 0), (0, len(state.off) - corner), (0, 0))
    return _Small(
        weights=jnp.pad(weights, room),
        images=jnp.pad(images, room),
        error=jnp.max(missing, axis=1),
        largest=largest,
        positive=positive,
    )


def _at_each(operator: Operator, vectors: Float[Array, "t size c"]) -> Float[Array, "t rows c"]:
    """The operator applied at each time, in one product."""
    t, _, c = vectors.shape
    images = product(operator, jnp.moveaxis(vectors, 0, 1).reshape(-1, t * c))
    return jnp.moveaxis(images.reshape(-1, t, c), 1, 0)


class Solved(NamedTuple):
    """(K + damping)^{-1} b for columns.

    - `solution`, and its `image` under K, (size, columns).
    - `error`: |b - (K + damping) u| / |b|, the largest over columns, by a product of its own.
    - `products`: evaluations of the operator.
    - `positive`: whether no negative eigenvalue was met.
    """

    solution: Float[Array, "size c"]
    image: Float[Array, "size c"]
    error: Float[Array, ""]
    products: Int[Array, ""]
    positive: Bool[Array, ""]


def solve(
    operator: Operator,
    right: Float[Array, "size c"],
    *,
    damping: Array,
    rtol: Array,
    max_iterations: int,
    preconditioner_rank: int,
) -> Solved:
    """Conjugate gradients, preconditioned by a randomised Nystrom approximation of K."""
    space = space_of("operator", operator)
    nystrom_key, probe_key = jr.split(jr.key(0))
    probe = min(space.size, PROBE)
    state, _, _ = _started(jr.normal(probe_key, (space.size, 1), space.dtype), probe)
    state = jax.lax.fori_loop(0, probe, lambda _, s: _one_more(operator, s), state)
    probed = _small(state, jnp.zeros(1, space.dtype), damping)
    largest = jnp.where(probed.largest > 0, probed.largest, 1)
    rank = min(space.size, preconditioner_rank)
    precondition = _nystrom(operator, space, rank, damping, largest, nystrom_key)
    structure = jax.ShapeDtypeStruct((space.size,), space.dtype)
    tag = lx.positive_semidefinite_tag

    def apply(column: Array) -> Array:
        return product(operator, column[:, None])[:, 0]

    # In units of b and of K: then one absolute tolerance says when a column is done.
    scaled = lx.FunctionLinearOperator(lambda v: (apply(v) + damping * v) / largest, structure, tag)
    inverse = lx.FunctionLinearOperator(lambda v: largest * precondition(v), structure, tag)
    tolerance = rtol / 4
    options: Any = {"rtol": tolerance, "atol": tolerance, "stabilise_every": None}
    solver = lx.CG(**options, norm=jnp.linalg.norm, max_steps=max_iterations)
    norms = jnp.linalg.norm(right, axis=0)
    safe = jnp.where(norms == 0, 1, norms)

    def column(b: Array) -> tuple[Array, Array]:
        with_inverse = {"preconditioner": inverse}
        found = lx.linear_solve(scaled, b, solver, options=with_inverse, throw=False)
        return found.value, jnp.asarray(found.stats["num_steps"])

    unit = (right / safe[None]).T
    over = jax.vmap(column) if space.outputs is None else lambda v: jax.lax.map(column, v)
    solution, taken = over(unit)
    solution = solution.T * (norms / largest)[None]
    image = product(operator, solution)
    residual = jnp.linalg.norm(right - image - damping * solution, axis=0) / safe
    spent = taken + 1  # CG takes one at its start
    together = space.outputs is None
    sketched = min(rank, 1) if together else rank
    return Solved(
        solution=solution,
        image=image,
        error=jnp.max(residual),
        products=probe + sketched + (jnp.max(spent) + 1 if together else jnp.sum(spent + 1)),
        positive=probed.positive,
    )


def _nystrom(
    operator: Operator, space: Space, rank: int, damping: Array, largest: Array, key: PRNGKeyArray
) -> Callable[[Array], Array]:
    """The inverse of U (L + damping) U^T + (L_r + damping) (1 - U U^T), where U L U^T approximates
    K, with its `largest` eigenvalue, from its product with `rank` random vectors.
    """
    if rank == 0:
        return lambda v: v / largest
    test = jnp.linalg.qr(jr.normal(key, (space.size, rank), space.dtype))[0]
    sketch = product(operator, test)
    # A shift by the rounding of the sketch keeps its core positive; it is taken off again.
    shift = math.sqrt(space.size) * jnp.finfo(space.dtype).eps * jnp.linalg.norm(sketch)
    sketch = sketch + shift * test
    core = test.T @ sketch
    values, vectors = jnp.linalg.eigh((core + core.T) / 2)
    half = (sketch @ vectors) / jnp.sqrt(jnp.maximum(values, shift))[None]
    left, singular, _ = jnp.linalg.svd(half, full_matrices=False)
    # Smaller ones are not told from rounding, which their inverse would make large.
    floor = math.sqrt(jnp.finfo(space.dtype).eps) * largest
    kept = jnp.maximum(singular**2 - shift, floor) + damping

    def inverse(v: Array) -> Array:
        return v / kept[-1] + left @ ((1 / kept - 1 / kept[-1]) * (left.T @ v))

    return inverse


def check_krylov_options(rtol: Any, max_iterations: Any, preconditioner_rank: Any) -> None:
    """**Raises:** `ValueError` for options out of range."""
    checks.nonnegative_number("rtol", rtol, strictly=True)
    checks.integer("max_iterations", max_iterations)
    checks.integer("preconditioner_rank", preconditioner_rank, least=0)


def outcome(error: Array, positive: Array, rtol: Array) -> Any:
    """How a solve ended whose relative error this is; NaN has not converged."""
    ok, failed = RESULTS.successful, RESULTS.max_steps_reached
    arrived = RESULTS.where(jnp.all(error <= rtol), ok, failed)  # pyright: ignore
    return RESULTS.where(positive, arrived, RESULTS.kernel_not_positive)  # pyright: ignore


CHUNK = 32
"""Vectors of a basis that are taken at once: the work grows with those that there are."""

PROBE = 20
"""Products that look for the largest eigenvalue and for negative ones."""
