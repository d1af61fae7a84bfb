r"""Which learning rates gradient descent survives, and what it does above the first of them.

Of squared loss under a kernel whose largest eigenvalue is lam (of Theta / D) the error along it is
multiplied by 1 - eta lam a step: it shrinks for eta < 2 / lam. A finite network can survive more,
up to about 4 / lam: the loss first rises, which shrinks the kernel, and then falls: the catapult
(Lewkowycz et al. 2020, "The large learning rate phase of deep learning").
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from corrections import extreme_eigenvalues
from corrections.symmetric.layouts import check_kernel, positive
from solvers.frozen_kernel.operators import space_of
from solvers.result import SolverError
from zoo.common import checks
from zoo.common.checks import Number
from zoo.common.precision import full_precision
from zoo.common.records import short_repr

Phase = Literal["lazy", "catapult", "divergent"]


SMALLER_STEPS = (
    "Steps of squared loss are stable up to `max_learning_rate(kernel, momentum=momentum)` (a "
    "`diag_reg` counts as part of the kernel): take a smaller `learning_rate`."
)
"""What helps descent that diverges."""


@full_precision
def max_learning_rate(
    kernel: Float[ArrayLike, "n *points"] | lx.AbstractLinearOperator,
    *,
    n: int | None = None,
    momentum: Number = 0.0,
    nesterov: bool = False,
) -> Float[Array, ""]:
    """The learning rate above which descent of squared loss diverges under a frozen kernel.

    eta_max = 2 D (1 + m) / lam_max(Theta) with heavy-ball momentum m, and
    2 D (1 + m) / ((1 + 2 m) lam_max(Theta)) with Nesterov's; for the mean loss
    1/(2 D) |f - y|^2. Another loss multiplies lam_max by the largest curvature it has in f.

    **Arguments:**

    - `kernel`: (n, n), (n, n, k), (n, k, n, k), or a symmetric operator.
    - `n`: the number of examples D in the loss (default: the kernel's).
    - `momentum`: m in [0, 1).
    - `nesterov`: whether the momentum is Nesterov's.

    **Raises:** `ValueError` / `TypeError` for a kernel of another shape or that is not finite, a
    momentum outside [0, 1); `SolverError` where the eigenvalue of an operator did not converge.

    Source: Lee et al. (2019), section 2.2; docs/theory.md, section 8.
    """
    m = checks.nonnegative_scalar("momentum", momentum, below=1.0)
    n = checks.integer_or_none("n", n)
    if isinstance(kernel, lx.AbstractLinearOperator):
        found = extreme_eigenvalues(kernel)
        converged = checks.concrete(found.converged)
        if converged is not None and not converged.all():
            raise SolverError(
                "The largest eigenvalue of `kernel` did not converge: take "
                "`corrections.extreme_eigenvalues(kernel, matvecs=...)` with more products. "
                "`.partial` of this error holds what was found.",
                found,
            )
        largest, count = found.values[0], space_of("kernel", kernel).points
    else:
        largest, count = _largest_eigenvalue(kernel)
    m = m.astype(largest.dtype)
    bound = 2 * (count if n is None else n) * (1 + m) / largest
    return bound / (1 + 2 * m) if nesterov else bound


def _largest_eigenvalue(kernel: ArrayLike) -> tuple[Array, int]:
    array, layout = check_kernel("kernel", kernel)
    values = jnp.linalg.eigvalsh(layout.blocks(array))
    known = checks.concrete(positive(values))
    if known is not None and not known.all():
        raise ValueError(
            f"`kernel` has the eigenvalue {float(values.min()):.3g}, expected a positive "
            "semidefinite kernel: descent diverges at every rate under this one."
        )
    return jnp.max(values), array.shape[0]


@short_repr
class Catapult(NamedTuple):
    """The output and the kernel of a two-layer linear network under gradient descent; see
    `catapult_map`.

    - `f`: after 0, 1, .. steps, (steps + 1,).
    - `kernel`: Theta at the same steps.
    """

    f: Float[Array, " points"]
    kernel: Float[Array, " points"]


def catapult_map(
    f: Number, kernel: Number, *, width: int, learning_rate: Number, steps: int
) -> Catapult:
    """Gradient descent of f = width^{-1/2} v . u x at x = 1 to the target 0, in its two variables:

        f <- (1 - eta lam + eta^2 f^2 / width) f
        lam <- lam + (eta f^2 / width) (eta lam - 4)

    Exact at any width. For 2 < eta lam < 4 the loss f^2 / 2 rises until lam has fallen below
    2 / eta, and then falls: the catapult; beyond about 4 it diverges.

    **Arguments:**

    - `f`, `kernel`: the output and its tangent kernel lam = (|u|^2 + |v|^2) / width at the start.
    - `width`: number of hidden units.
    - `learning_rate`: eta > 0.
    - `steps`: how many.

    **Raises:** `ValueError` for a kernel or a learning rate that is not > 0, counts below 1.

    Source: Lewkowycz et al. (2020), eqs. 6-7.
    """
    start = (
        checks.finite_scalar("f", f).astype(float),
        checks.nonnegative_scalar("kernel", kernel, strictly=True).astype(float),
    )
    eta = checks.nonnegative_scalar("learning_rate", learning_rate, strictly=True).astype(float)
    width = checks.integer("width", width)
    steps = checks.integer("steps", steps)

    def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Catapult]:
        f, lam = state
        square = f**2 / width
        moved = (1 - eta * lam + eta**2 * square) * f, lam + eta * square * (eta * lam - 4)
        return moved, Catapult(*moved)

    _, path = jax.lax.scan(step, start, length=steps)
    return Catapult(*(jnp.concatenate([a[None], b]) for a, b in zip(start, path, strict=True)))


def training_phase(losses: Sequence[float] | Float[ArrayLike, " steps"]) -> Phase:
    """Which phase a run of gradient descent is in, from its training losses step by step.

    "lazy": the loss never rose above its start; "catapult": it did, and came back below;
    "divergent": it did not come back, or is not finite. Rises within rounding (1e-6, relative) do
    not count.

    **Arguments:**

    - `losses`: of full batches, from the start on, at least two, of a run long enough to settle.

    **Raises:** `ValueError` / `TypeError` for losses that are no vector of at least two numbers, or
    whose first is not finite.

    Source: Lewkowycz et al. (2020), section 2.
    """
    given = np.asarray(losses)
    if not any(jnp.issubdtype(given.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise TypeError(f"`losses` has dtype {given.dtype}, expected real numbers, one a step.")
    values = given.astype(float)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(
            f"`losses` has shape {values.shape}, expected a vector of at least two, one a step."
        )
    if not np.isfinite(values[0]):
        raise ValueError(f"`losses` starts at {values[0]}, expected a finite number.")
    if not np.all(np.isfinite(values)):
        return "divergent"
    above = values > values[0] + 1e-6 * abs(values[0])
    if not above.any():
        return "lazy"
    return "divergent" if above[-1] else "catapult"
