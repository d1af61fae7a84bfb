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

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from corrections import KernelOperator
from solvers.blocks import KernelBlocks
from solvers.result import RESULTS
from zoo import checks

Operator = KernelBlocks | KernelOperator | lx.AbstractLinearOperator
OPERATORS = (KernelBlocks, KernelOperator, lx.AbstractLinearOperator)


class Space(NamedTuple):
    """What an operator acts on, and how its vectors are laid out as columns.

    - `points`: n.
    - `outputs`: k of an operator that couples the outputs: one column of n k numbers. None for one
      that acts on each output alike, K (x) I: a column for each, which share the products.
    - `dtype`: of the vectors.
    """

    points: int
    outputs: int | None
    dtype: Any

    @property
    def size(self) -> int:
        """Numbers in a column."""
        return self.points * (self.outputs or 1)

    def columns(self, vector: Float[Array, "n k"]) -> Float[Array, "size columns"]:
        """Outputs as columns."""
        return vector if self.outputs is None else vector.reshape(-1, 1)

    def rows(self, columns: Float[Array, "size columns"]) -> Float[Array, "n k"]:
        """The inverse of `columns`, also for another number of points."""
        return columns if self.outputs is None else columns.reshape(-1, self.outputs)


def space_of(name: str, operator: Operator, *, given: bool = False) -> Space:
    """The space that an operator takes its vectors from, or gives them in.

    **Raises:** `ValueError` unless they are (n,) or (n, k).
    """
    if isinstance(operator, KernelBlocks):
        found = operator.out_structure if given else operator.in_structure
        return Space(found.shape[0], None, found.dtype)
    if isinstance(operator, KernelOperator):
        found = operator.out_structure if given else operator.in_structure
    else:
        found = operator.out_structure() if given else operator.in_structure()
    shape: Any = getattr(found, "shape", ())
    if len(shape) not in (1, 2):
        raise ValueError(f"`{name}` acts on {found}, expected vectors (n,) or (n, k).")
    return Space(shape[0], shape[1] if len(shape) == 2 else None, found.dtype)


def check_kernel_operator(name: str, operator: Any) -> Space:
    """The space of the kernel of a set with itself.

    **Raises:** `TypeError` / `ValueError` for what is no operator, or not known to be symmetric.
    """
    if not isinstance(operator, OPERATORS):
        raise TypeError(
            f"`{name}` is of type {type(operator).__name__}, expected an operator: `KernelBlocks`, "
            "`corrections.NTKOperator` or one of lineax."
        )
    if isinstance(operator, lx.AbstractLinearOperator):
        symmetric = lx.is_symmetric(operator) or lx.is_positive_semidefinite(operator)
    else:
        symmetric = operator.symmetric
    if not symmetric:
        raise ValueError(
            f"`{name}` is not known to be symmetric, expected the kernel of the training points "
            "with themselves: leave `x2` out, or give the lineax operator "
            "`lineax.symmetric_tag` or `lineax.positive_semidefinite_tag`."
        )
    return space_of(name, operator)


def check_test_operator(name: str, operator: Any, space: Space) -> int:
    """The number of test points of an operator from the training points to them.

    **Raises:** `TypeError` / `ValueError` unless it is an operator on that space.
    """
    if not isinstance(operator, OPERATORS):
        raise TypeError(
            f"`{name}` is of type {type(operator).__name__}, expected an operator, as `kernel` is."
        )
    taken, given = space_of(name, operator), space_of(name, operator, given=True)
    if taken != space or given.outputs != space.outputs:
        raise ValueError(
            f"`{name}` goes from {tuple(taken)} to {tuple(given)} (points, outputs that it couples,"
            f" dtype), expected it to take {tuple(space)}, as `kernel` does."
        )
    return given.points


def product(operator: Operator, columns: Float[Array, "size c"]) -> Float[Array, "rows c"]:
    """The operator applied to columns: one evaluation of the kernel where it couples no outputs."""
    if isinstance(operator, KernelBlocks):
        return operator.mv(columns)
    space = space_of("operator", operator)
    if space.outputs is None:
        return jax.vmap(operator.mv, in_axes=1, out_axes=1)(columns)

    def single(column: Array) -> Array:
        return operator.mv(column.reshape(space.points, -1)).reshape(-1)

    return jax.lax.map(single, columns.T).T


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

    def unfinished(state: _Krylov) -> Array:
        return (state.error > rtol) & (state.size < steps)

    def grow(state: _Krylov) -> _Krylov:
        upto = jnp.minimum(state.size + jnp.maximum(state.size // 2, 4), steps)
        state = jax.lax.fori_loop(state.size, upto, lambda _, s: _one_more(operator, s), state)
        return state._replace(error=_small(state, ts[-1:], damping).error[0])

    last = jax.lax.while_loop(unfinished, grow, start)
    found = _small(last, ts, damping)
    basis, scale = last.basis[:-1], norms[None, None]
    solution = jnp.einsum("snc,tsc->tnc", basis, found.weights) * scale
    image = _at_each(operator, solution)
    known = jnp.einsum("snc,tsc->tnc", basis, found.images) * scale
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
    """An orthonormal basis (steps + 1, size, columns), and T by its two diagonals."""

    basis: Array
    diagonal: Array
    off: Array
    size: Array
    error: Array


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
    state = _Krylov(
        basis=jnp.zeros((steps + 1, *right.shape), right.dtype).at[0].set(right / safe[None]),
        diagonal=jnp.zeros((steps, right.shape[1]), right.dtype),
        off=jnp.zeros((steps, right.shape[1]), right.dtype),
        size=jnp.asarray(0),
        error=jnp.asarray(jnp.inf, right.dtype),
    )
    return state, norms, safe


def _one_more(operator: Operator, state: _Krylov) -> _Krylov:
    """One step of Lanczos' method; rows of the basis that do not exist yet are zero."""
    i = state.size
    image = product(operator, state.basis[i])
    along = jnp.einsum("snc,nc->sc", state.basis, image)
    rest = image - jnp.einsum("snc,sc->nc", state.basis, along)
    rest = rest - jnp.einsum("snc,sc->nc", state.basis, jnp.einsum("snc,nc->sc", state.basis, rest))
    beta = jnp.linalg.norm(rest, axis=0)
    ended = beta <= 10 * jnp.finfo(beta.dtype).eps * jnp.linalg.norm(image, axis=0)
    following = jnp.where(ended[None], 0, rest / jnp.where(ended, 1, beta)[None])
    return state._replace(
        basis=state.basis.at[i + 1].set(following),
        diagonal=state.diagonal.at[i].set(along[i]),
        off=state.off.at[i].set(jnp.where(ended, 0, beta)),
        size=i + 1,
    )


def _small(state: _Krylov, ts: Float[Array, " t"], damping: Array) -> _Small:
    """U(t) e_1 and T u(t) e_1 in the basis; the bound on what is missing."""
    steps = len(state.diagonal)
    last = state.size - 1
    # The link to the next vector is no part of T.
    inside = jnp.where(jnp.arange(steps)[:, None] < last, state.off, 0)[:-1]

    def tridiagonal(diagonal: Array, off: Array) -> Array:
        return jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1)

    matrix = jax.vmap(tridiagonal, in_axes=1)(state.diagonal, inside)
    values, vectors = jnp.linalg.eigh(matrix)  # (columns, steps), (columns, steps, steps)
    largest = jnp.max(jnp.abs(values))
    rounding = state.basis.shape[1] * jnp.finfo(values.dtype).eps * largest
    seen = values > rounding
    damped = jnp.where(seen, values + damping, 1)
    learned = jnp.where(seen[None], -jnp.expm1(-damped[None] * ts[:, None, None]) / damped[None], 0)
    along = learned * vectors[:, 0][None]
    weights = jnp.einsum("csr,tcr->tsc", vectors, along)
    images = jnp.einsum("csr,tcr->tsc", vectors, values[None] * along)
    missing = jnp.abs(state.off[last][None] * weights[:, last])
    positive = jnp.all(values > -100 * rounding)
    return _Small(weights, images, jnp.max(missing, axis=1), largest, positive)


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


PROBE = 20
"""Products that look for the largest eigenvalue and for negative ones."""
