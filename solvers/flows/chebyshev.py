r"""A stabilised explicit method for stiff gradient flows, as a diffrax solver.

Gradient flow is stiff in one way only: the eigenvalues of its Jacobian, -Theta times the Hessian of
the loss, are real, negative and spread over many decades. A Runge-Kutta method whose s stages
follow Chebyshev polynomials is stable for step x spectral radius <= 0.65 s^2, where s stages of a
usual one reach about s / 2: over times t it takes some sqrt(t) right-hand sides where that takes t.
It solves no linear systems, so that a kernel need not be formed.

Source: Sommeijer, Shampine & Verwer (1997), "RKC: an explicit solver for parabolic PDEs",
section 2.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from zoo.common import checks
from zoo.common.norms import norm

_DAMPING = 2 / 13
_STABLE = 2 / 3 * (1 - 2 / 15 * _DAMPING)  # step x radius <= _STABLE (s^2 - 1)
_REFRESH = 10  # accepted steps between two estimates of the spectral radius
_SAFETY = 1.2  # power iteration estimates the radius from below
_POWER_STEPS = 30


class ChebyshevState(NamedTuple):
    """What goes from one step to the next.

    - `velocity`: at the start of the step.
    - `radius`: of the Jacobian's spectrum, `direction` the state's direction that belongs to it.
    - `age`: steps since that was estimated.
    - `velocities`: right-hand sides so far, in steps that were accepted.
    """

    velocity: PyTree
    radius: Array
    direction: PyTree
    age: Array
    velocities: Array


class RungeKuttaChebyshev(diffrax.AbstractAdaptiveSolver):
    """The method of Runge-Kutta-Chebyshev of order 2, for ODEs whose Jacobian has real eigenvalues
    <= 0, however large: gradient flows. Each step takes as many stages as its size asks for. The
    vector field should be without jumps.

    The spectral radius comes from power iterations on differences of velocities. Steps that need
    more than `max_stages` are rejected, since rounding errors grow with the square of their number.
    """

    max_stages: int = 4096

    def __check_init__(self) -> None:
        checks.integer("max_stages", self.max_stages, least=2)

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., Any]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation
    )

    def order(self, terms: Any) -> int:
        """2."""
        return 2

    def error_order(self, terms: Any) -> int:
        """3: the error of a step, which is estimated, is of third order."""
        return 3

    def init(self, terms: Any, t0: Any, t1: Any, y0: PyTree, args: Any) -> ChebyshevState:
        """The state before the first step."""
        velocity = terms.vf(t0, y0, args)
        return ChebyshevState(
            velocity=velocity,
            radius=jnp.zeros((), _dtype(y0)),
            direction=some_direction(y0),
            age=jnp.asarray(_REFRESH),
            velocities=jnp.asarray(1),
        )

    def func(self, terms: Any, t0: Any, y0: PyTree, args: Any) -> PyTree:
        """The velocity."""
        return terms.vf(t0, y0, args)

    def step(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: PyTree,
        args: Any,
        solver_state: ChebyshevState,
        made_jump: Any,
    ) -> tuple[PyTree, PyTree, dict[str, Any], ChebyshevState, Any]:
        """A step of size t1 - t0, its estimated error, and what interpolates it."""
        kept = solver_state
        velocity = kept.velocity
        radius, direction, tried = jax.lax.cond(
            kept.age >= _REFRESH,
            lambda: spectral_radius(lambda y: terms.vf(t0, y, args), y0, velocity, kept.direction),
            lambda: (kept.radius, kept.direction, jnp.asarray(0)),
        )
        h = jnp.asarray(t1 - t0, radius.dtype)
        needed = jnp.ceil(jnp.sqrt(1 + _SAFETY * h * radius / _STABLE))
        allowed = needed <= self.max_stages
        stages = jnp.where(allowed, jnp.clip(needed, 2, self.max_stages), 2)
        y1, velocity1 = _stages(lambda t, y: terms.vf(t, y, args), t0, h, y0, velocity, stages)

        def estimate(a: Array, b: Array, fa: Array, fb: Array) -> Array:
            error = 0.8 * (a - b) + 0.4 * h.astype(a.dtype) * (fa + fb)
            return jnp.where(allowed, error, jnp.inf)

        error = jax.tree.map(estimate, y0, y1, velocity, velocity1)
        scaled = [jax.tree.map(lambda v: h.astype(v.dtype) * v, v) for v in (velocity, velocity1)]
        state = ChebyshevState(
            velocity=velocity1,
            radius=radius,
            direction=direction,
            age=jnp.where(kept.age >= _REFRESH, 1, kept.age + 1),
            velocities=kept.velocities + tried + stages.astype(int),
        )
        dense_info = {"y0": y0, "y1": y1, "k0": scaled[0], "k1": scaled[1]}
        return y1, error, dense_info, state, diffrax.RESULTS.successful


def spectral_radius(
    vector_field: Callable[[PyTree], PyTree], y: PyTree, velocity: PyTree, direction: PyTree
) -> tuple[Array, PyTree, Array]:
    """The spectral radius of the Jacobian of `vector_field` at `y`, where it is `velocity`: power
    iterations on differences, from `direction`, until they change by 1 % or less.

    Returns the radius (from below), its direction and how many right-hand sides it took.
    """
    dtype = _dtype(y)
    step = jnp.sqrt(jnp.finfo(dtype).eps) * (1 + _norm(y))

    def iterate(carry: tuple[PyTree, Array, Array, Array]) -> tuple[PyTree, Array, Array, Array]:
        direction, radius, _, count = carry
        size = _norm(direction)
        unit = jax.tree.map(
            lambda d: jnp.where(size > 0, d / jnp.where(size > 0, size, 1).astype(d.dtype), 1),
            direction,
        )
        size = _norm(unit)
        moved = vector_field(
            jax.tree.map(lambda a, u: a + (step / size).astype(a.dtype) * u, y, unit)
        )
        change = jax.tree.map(lambda a, b: (a - b) / step.astype(a.dtype), moved, velocity)
        return change, _norm(change), radius, count + 1

    def unsettled(carry: tuple[PyTree, Array, Array, Array]) -> Array:
        _, radius, before, count = carry
        return (count < 3) | ((count < _POWER_STEPS) & (jnp.abs(radius - before) > 0.01 * radius))

    zero = jnp.zeros((), dtype)
    direction, radius, _, count = jax.lax.while_loop(
        unsettled, iterate, (direction, zero, zero, jnp.asarray(0))
    )
    return radius, direction, count


def radius_at(vector_field: Callable[[PyTree], PyTree], y: PyTree) -> Array:
    """The spectral radius of the Jacobian of `vector_field` at `y`, from below."""
    return spectral_radius(vector_field, y, vector_field(y), some_direction(y))[0]


class _Polynomial(NamedTuple):
    """T_j, T_j' and T_j'' at w0 = 1 + excess, and their last increments.

    Sums of positive numbers: no digits are lost where w0 is 1 to rounding.
    """

    values: Array  # (3,)
    increments: Array  # (3,)

    def next(self, excess: Array) -> "_Polynomial":
        t, t1, _ = self.values
        forced = jnp.stack([jnp.zeros_like(t), 2 * t, 4 * t1])
        increments = self.increments + 2 * excess * self.values + forced
        return _Polynomial(self.values + increments, increments)


def _stages(
    vector_field: Callable[[Any, PyTree], PyTree],
    t0: Any,
    h: Array,
    y0: PyTree,
    velocity: PyTree,
    stages: Array,
) -> tuple[PyTree, PyTree]:
    """The last of the stages Y_1 .. Y_s, and the velocity there."""
    excess = _DAMPING / stages**2
    # T_1 = w0, T_1' = 1, T_1'' = 0; T_0 = 1
    first = _Polynomial(
        jnp.stack([1 + excess, jnp.ones_like(excess), jnp.zeros_like(excess)]),
        jnp.stack([excess, jnp.ones_like(excess), jnp.zeros_like(excess)]),
    )
    last = jax.lax.fori_loop(1, stages.astype(int), lambda _, p: p.next(excess), first)
    w0, w1 = 1 + excess, last.values[1] / last.values[2]
    second = first.next(excess)
    b2 = second.values[2] / second.values[1] ** 2

    def combine(*terms: tuple[Array, PyTree]) -> PyTree:
        coefficients, trees = zip(*terms, strict=True)
        return jax.tree.map(
            lambda *leaves: sum(
                c.astype(leaf.dtype) * leaf for c, leaf in zip(coefficients, leaves, strict=True)
            ),
            *trees,
        )

    def stage(_: Any, carry: tuple) -> tuple:
        polynomial, b_before, b_last, a_last, c_before, c_last, d_before, d_last, _ = carry
        following = polynomial.next(excess)
        t, t1, t2 = following.values
        b = t2 / t1**2
        mu, nu, mu_tilde = 2 * b * w0 / b_last, -b / b_before, 2 * b * w1 / b_last
        gamma = -a_last * mu_tilde
        moved = vector_field(t0 + c_last.astype(h.dtype) * h, jax.tree.map(jnp.add, y0, d_last))
        d = combine(
            (mu, d_last),
            (nu, d_before),
            (mu_tilde * h, moved),
            (gamma * h, velocity),
        )
        c = mu * c_last + nu * c_before + mu_tilde + gamma
        return following, b_last, b, 1 - b * t, c_last, c, d_last, d, moved

    c1 = b2 * w1
    # What the stages add to y0, d = Y - y0: what does not move stays where it is, to the last bit.
    d0, d1 = jax.tree.map(jnp.zeros_like, y0), combine((c1 * h, velocity))
    start = (first, b2, b2, 1 - b2 * w0, jnp.zeros_like(c1), c1, d0, d1, velocity)
    # One stage more than there are, for its velocity: the vector field is compiled once.
    *_, d, _, moved = jax.lax.fori_loop(0, stages.astype(int), stage, start)
    return jax.tree.map(jnp.add, y0, d), moved


def some_direction(y: PyTree) -> PyTree:
    """A direction that no eigenvector is likely to be orthogonal to, unlike a velocity, in which
    what is fast has died out.

    Its entries are cos(i^2 mod 6283), spread as if drawn: a random generator would take longer to
    compile than all else in the solver.
    """

    def spread(leaf: Array) -> Array:
        entries = jnp.arange(1, leaf.size + 1, dtype=leaf.dtype)
        return jnp.cos(entries**2 % 6283).reshape(leaf.shape)

    return jax.tree.map(spread, y)


def _norm(tree: PyTree) -> Array:
    return norm(jnp.stack([norm(leaf.astype(_dtype(tree))) for leaf in jax.tree.leaves(tree)]))


def _dtype(tree: PyTree) -> Any:
    return jnp.result_type(*jax.tree.leaves(tree))
