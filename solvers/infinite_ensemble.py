r"""Infinitely wide networks that were trained: mean and covariance over their initialisations.

With A(t) = Theta(., X) (1 - exp(-Theta t / D)) / Theta and outputs at the start of covariance K,

    mean(t) = A(t) y
    cov(t)  = K(x, x') + A K(X, X) A'^T - (A K(X, x') + K(x, X) A'^T) = B K B^T,    B = [-A, 1]

As (B R)(B R)^T with a root of K it is symmetric and positive by construction, also on the training
points, where it vanishes.

Source: Lee et al. (2019), "Wide neural networks of any depth evolve as linear models under
gradient descent", eqs. 13-16.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from solvers.blocks import kernel_between, KernelFunction
from solvers.gaussian import Gaussian, positive_root, raise_unless_successful
from solvers.losses import check_targets, MeanSquaredError
from solvers.mse import Regularization
from solvers.result import check_times, RESULTS, Times
from zoo import checks
from zoo.memory import check_fits
from zoo.precision import full_precision


class Ensemble(eqx.Module):
    """Outputs of infinitely many infinitely wide networks in training; see `ensemble`.

    - `ts`: times, (t,).
    - `points`: their distribution on training points, then test points: `.mean` (t, n + m, k),
      `.covariance` (t, n + m, n + m), `.std`, `.sample(key, count)`.
    - `valid`: which times hold numbers, (t,). All others are NaN.
    - `t_reached`: the last of them.
    - `result`: a member of `RESULTS`.
    - `train_size`: n.
    """

    ts: Float[Array, " t"]
    points: Gaussian
    valid: Bool[Array, " t"]
    t_reached: Float[Array, ""]
    result: Any
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
    x: Float[ArrayLike, "n ..."],
    y: Float[ArrayLike, "n k"],
    ts: Times,
    *,
    x_test: Float[ArrayLike, "m ..."] | None = None,
    diag_reg: float = 0.0,
    diag_reg_scale: Regularization = "absolute",
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

    **Returns:** an `Ensemble`. Directions in which Theta is zero to rounding are never learned.

    **Raises:** `ValueError` / `TypeError` for arguments that do not fit, kernels of other shapes,
    not finite or not symmetric; `MemoryError` where covariances do not fit; `PredictionError` for a
    kernel with a negative eigenvalue.

    Source: Lee et al. (2019), eqs. 13-16; docs/theory.md, section 7.
    """
    ts = check_times(ts, infinite=True)
    x = checks.batch("x", x)
    if jnp.ndim(y) != 2:
        raise ValueError(f"`y` has shape {jnp.shape(y)}, expected targets (n, k).")
    shape = (len(x), jnp.shape(y)[1])
    y = check_targets(MeanSquaredError(), y, shape, because="a row for each example of `x`")
    both = x
    if x_test is not None:
        x_test = checks.batch("x_test", x_test)
        checks.shape("x_test", x_test, ("m", *x.shape[1:]), because="examples as those of `x`")
        both = jnp.concatenate([x, x_test.astype(x.dtype)])
    checks.nonnegative_number("diag_reg", diag_reg)
    checks.choice("diag_reg_scale", diag_reg_scale, ("absolute", "relative"))
    check_fits("the covariance at all times", (len(ts), len(both), len(both)), x.dtype)
    theta = kernel_between("ntk", ntk, both, x, symmetric=True)
    prior = kernel_between("nngp", nngp, both, both, symmetric=True)
    dtype = theta.dtype
    found = _ensemble(
        theta,
        prior.astype(dtype),
        y.astype(dtype),
        ts.astype(dtype),
        jnp.asarray(diag_reg, dtype),
        diag_reg_scale == "relative",
    )
    return raise_unless_successful(found, throw=throw)


@eqx.filter_jit
def _ensemble(
    theta: Float[Array, "points n"],
    prior: Float[Array, "points points"],
    y: Float[Array, "n k"],
    ts: Float[Array, " t"],
    ridge: Float[Array, ""],
    relative: bool,
) -> Ensemble:
    n = len(y)
    values, vectors = jnp.linalg.eigh(theta[:n])
    rounding = n * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    seen = values > rounding
    damped = jnp.where(seen, values + (ridge * jnp.mean(values) if relative else ridge), 1)
    root, prior_positive = positive_root(prior)
    positive = prior_positive & jnp.all(values > -100 * rounding)
    modes = theta @ vectors
    along_y, along_root = vectors.T @ y, vectors.T @ root[:n]

    def at(t: Array) -> tuple[Array, Array]:
        learned = jnp.where(seen, -jnp.expm1(-damped * (t / n)) / damped, 0)
        reach = modes * learned[None]
        left = root - reach @ along_root
        return reach @ along_y, left @ left.T

    mean, covariance = jax.lax.map(at, ts)
    finite = jnp.all(jnp.isfinite(mean), axis=(1, 2)) & jnp.all(
        jnp.isfinite(covariance), axis=(1, 2)
    )
    valid = positive & jnp.cumprod(finite).astype(bool)
    diverged = RESULTS.where(jnp.all(finite), RESULTS.successful, RESULTS.diverged)  # pyright: ignore
    usable = valid[:, None, None]
    return Ensemble(
        ts=ts,
        points=Gaussian(jnp.where(usable, mean, jnp.nan), jnp.where(usable, covariance, jnp.nan)),
        valid=valid,
        t_reached=jnp.max(jnp.where(valid, ts, 0)),
        result=RESULTS.where(positive, diverged, RESULTS.kernel_not_positive),  # pyright: ignore
        train_size=n,
    )
