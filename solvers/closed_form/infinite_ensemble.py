r"""Infinitely wide networks that were trained: mean and covariance over their initialisations.

With A(t) = Theta(., X) (1 - exp(-Theta t / D)) / Theta and outputs at the start of covariance K,

    mean(t) = A(t) y
    cov(t)  = K(x, x') + A K(X, X) A'^T - (A K(X, x') + K(x, X) A'^T) = B K B^T,    B = [-A, 1]

On the training points, where it vanishes, the two parts of B are subtracted first.

Source: Lee et al. (2019), "Wide neural networks of any depth evolve as linear models under
gradient descent", eqs. 13-16.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree, Shaped

from corrections.symmetric.layouts import warn_where_dropped
from corrections.symmetric.positive_matrix import is_positive
from solvers.closed_form.gaussian import Gaussian, raise_unless_successful
from solvers.frozen_kernel.frozen_kernel import check_ridge, Ridge, RidgeScale, StoredKernel
from solvers.frozen_kernel.kernel_blocks import kernel_between, KernelFunction
from solvers.losses import check_targets, MeanSquaredError
from solvers.result import as_times, check_times, ends_at_infinity, last_valid, RESULTS, Times
from zoo.common.checks import Number
from zoo.common.examples import checked_batch, count, joined, like_examples
from zoo.common.memory import check_fits
from zoo.common.precision import full_precision


class Ensemble(eqx.Module):
    """Outputs of infinitely many infinitely wide networks in training; see `ensemble`.

    - `ts`: times, (t,).
    - `points`: their distribution on training points, then test points: `.mean` (t, n + m, k),
      `.covariance` (t, n + m, n + m), `.std`, `.sample(key, count)`.
    - `valid`: which times hold numbers, (t,). All others are NaN.
    - `t_reached`: the last of them.
    - `result`: a member of `RESULTS`.
    - `dropped`: directions of Theta that cannot be told from zero, and that could have been learned
      by the last time had they been known.
    - `train_size`: n.
    """

    ts: Float[Array, " t"]
    points: Gaussian
    valid: Bool[Array, " t"]
    t_reached: Float[Array, ""]
    result: Any
    dropped: Int[Array, ""]
    train_size: int = eqx.field(static=True)

    @property
    def train(self) -> Gaussian:
        """The distribution on training points."""
        return self._part(slice(None, self.train_size))

    @property
    def test(self) -> Gaussian | None:
        """The distribution on test points, or None where there are none."""
        if self.points.mean.shape[1] == self.train_size:
            return None
        return self._part(slice(self.train_size, None))

    @property
    def successful(self) -> Bool[Array, ""]:
        """Whether all times hold numbers."""
        return jnp.asarray(self.result == RESULTS.successful)

    def _part(self, rows: slice) -> Gaussian:
        assert self.points.covariance is not None
        return Gaussian(self.points.mean[:, rows], self.points.covariance[:, rows, rows])


@full_precision
def ensemble(
    nngp: KernelFunction,
    ntk: KernelFunction,
    x: PyTree[Shaped[ArrayLike, "n ..."]],
    y: Float[ArrayLike, "n k"],
    ts: Times,
    *,
    x_test: PyTree[Shaped[ArrayLike, "m ..."]] | None = None,
    diag_reg: Number = 0.0,
    diag_reg_scale: RidgeScale = "absolute",
    throw: bool = True,
) -> Ensemble:
    """The infinite ensemble: mean and covariance of trained infinitely wide networks at any times.

    mean = A y,  cov = K(x, x') + A K A'^T - (A K(X, x') + K(x, X) A'^T),
    A = Theta(x, X) (1 - exp(-Theta t / n)) / Theta

    for gradient flow of `MeanSquaredError` from random initialisations. At t = 0 the mean is 0 and
    the covariance K. With `ntk=nngp` only readouts are trained, and t = inf is the posterior of the
    Gaussian process of covariance K without noise (`posterior`); in general it is no posterior.

    **Arguments:**

    - `nngp`, `ntk`: the kernels K and Theta of an infinitely wide network: functions
      k(x1, x2) -> (n1, n2) of two batches, `limit(model).nngp` and `limit(model).ntk` say.
    - `x`, `y`: training examples (n, ...) and targets (n, k).
    - `ts`: increasing times >= 0, (t,): learning rate x number of steps. The last may be `inf`.
    - `x_test`: test examples, (m, ...).
    - `diag_reg`, `diag_reg_scale`: a ridge on the displacement of the parameters, as in `mse_flow`.
    - `throw`: raise for a kernel that is not positive (default), or return NaN, marked.

    **Returns:** an `Ensemble`. Directions in which Theta cannot be told from zero are never
    learned.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, kernels of other shapes,
    not finite or not symmetric; `MemoryError` where covariances do not fit; `PredictionError` for a
    kernel with a negative eigenvalue. **Warns:** `RoundingWarning` where directions were dropped.

    Source: Lee et al. (2019), eqs. 13-16; docs/theory.md, section 7.
    """
    ts = check_times(ts, infinite=True)
    x = checked_batch("x", x)
    if np.ndim(y) != 2:
        raise ValueError(f"`y` has shape {np.shape(y)}, expected targets (n, k).")
    shape = (count(x), np.shape(y)[1])
    y = check_targets(MeanSquaredError(), y, shape, because="a row for each example of `x`")
    both = x
    if x_test is not None:
        x_test = checked_batch("x_test", x_test)
        like_examples("x_test", x_test, "x", x)
        both = joined(x, x_test)
    ridge = check_ridge(diag_reg, diag_reg_scale)
    check_fits("the covariance at all times", (len(ts), count(both), count(both)), y.dtype)
    theta = kernel_between("ntk", ntk, both, x, symmetric=True)
    prior = kernel_between("nngp", nngp, both, both, symmetric=True)
    dtype = theta.dtype
    ts = as_times(ts, dtype)
    shown = _ensemble(theta, prior.astype(dtype), y.astype(dtype), ts, ridge, ends_at_infinity(ts))
    found = Ensemble(ts=ts, t_reached=last_valid(ts, shown["valid"]), **shown)
    found = raise_unless_successful(found, throw=throw)
    warn_where_dropped("`ntk`", found.dropped, dtype)
    return found


@eqx.filter_jit
def _ensemble(
    theta: Float[Array, "points n"],
    prior: Float[Array, "points points"],
    y: Float[Array, "n k"],
    ts: Float[Array, " t"],
    ridge: Ridge,
    to_the_limit: bool,
) -> dict[str, Any]:
    """An `Ensemble` without its times, which may be infinite."""
    n = len(y)
    kernel = StoredKernel(theta)
    # A is solved from Theta^T: it loses no digits to directions that Theta hardly has.
    found = kernel.flowed(ts, ridge, theta.T, to_the_limit)
    positive = found.positive & is_positive(prior)

    def at(coefficients: Array) -> tuple[Array, Array]:
        reach = coefficients[0].T
        return reach @ y, _covariance(jnp.eye(*theta.shape, dtype=theta.dtype) - reach, prior)

    mean, covariance = jax.lax.map(at, found.coefficients)
    healthy = jnp.all(jnp.isfinite(mean), axis=(1, 2)) & jnp.all(
        jnp.isfinite(covariance), axis=(1, 2)
    )
    valid = positive & jnp.cumprod(healthy).astype(bool)
    diverged = RESULTS.where(jnp.all(healthy), RESULTS.successful, RESULTS.diverged)  # pyright: ignore
    usable = valid[:, None, None]
    return {
        "points": Gaussian(
            jnp.where(usable, mean, jnp.nan), jnp.where(usable, covariance, jnp.nan)
        ),
        "valid": valid,
        "result": RESULTS.where(positive, diverged, RESULTS.kernel_not_positive),  # pyright: ignore
        "dropped": found.dropped,
        "train_size": n,
    }


def _covariance(
    left: Float[Array, "points n"], prior: Float[Array, "points points"]
) -> Float[Array, "points points"]:
    """B K B^T with B = [left, E], E the identity on test points and 0 on training points."""
    n = left.shape[1]
    crossed = left @ prior[:n, n:]
    moved = left @ prior[:n, :n] @ left.T
    moved = moved.at[:, n:].add(crossed).at[n:].add(crossed.T).at[n:, n:].add(prior[n:, n:])
    return (moved + moved.T) / 2
