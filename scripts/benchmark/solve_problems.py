"""Kernels with targets, and what float32 programs and float64 make of them, beside `solves`.

Each solve stands here twice: as one program in float32 that a user might write, without checks
(Cholesky, or the eigenvectors at finite times), and in float64 by NumPy and SciPy.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import scipy.linalg
from jax.scipy.linalg import cho_solve
from jaxtyping import Array

from zoo import limit, load, MLP

Numbers = dict[str, Any]


class Problem(NamedTuple):
    """n examples, then m test examples, with the float32 kernels of all, (n + m, n + m).

    - `noises`: noise and ridge to solve with, in units of the mean of the diagonal.
    """

    name: str
    x: Array
    y: Array
    nngp: Array
    ntk: Array
    noises: tuple[float, ...]


def images(n: int, m: int, root: Path | None) -> Problem:
    """MNIST where `root` holds it, else clusters of random images, under the arc-cosine kernels of
    a ReLU network.
    """
    if root is not None:
        data = load("mnist", root=root, n_train=n, n_test=m)
        both = jnp.concatenate([data.x_train, data.x_test])
        name, x, y = "MNIST", both.reshape(n + m, -1), data.y_train
    else:
        keys = jr.split(jr.key(0), 2)
        name, labels = "clusters", jnp.arange(n + m) % 10
        x = jr.normal(keys[0], (10, 784))[labels] + 0.5 * jr.normal(keys[1], (n + m, 784))
        y = jnp.eye(10)[labels[:n]] - 0.1
    network = limit(MLP(x.shape[1], 10, width=8, depth=3, bias_std=0.1, key=jr.key(0)))
    nngp, ntk = network.kernels(x)
    return Problem(name, x, y, nngp, ntk, (0.0, 1e-2))


def smooth(n: int, m: int) -> Problem:
    """A noisy sine on a line, under a Gaussian kernel: of its eigenvalues a few are not zero."""
    keys = jr.split(jr.key(0), 2)
    x = jr.uniform(keys[0], (n + m, 1), minval=-5.0, maxval=5.0)
    y = jnp.sin(x[:n]) + 0.1 * jr.normal(keys[1], (n, 1))
    kernel = jnp.exp(-((x - x.T) ** 2) / 2)
    return Problem("RBF", x, y, kernel, kernel, (1e-2,))


@jax.jit
def posterior_by_cholesky(kernel: Array, y: Array, noise: Array) -> Numbers:
    """Means, covariances and evidence of a Gaussian process; `kernel` is that of all points."""
    n, k = y.shape
    of_train, across, of_test = kernel[:n, :n], kernel[n:, :n], kernel[n:, n:]
    factor = jnp.linalg.cholesky(of_train + noise * jnp.eye(n))
    weights = cho_solve((factor, True), y)
    determinant = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    return {
        "mean": of_train @ weights,
        "test mean": across @ weights,
        "covariance": of_train - of_train @ cho_solve((factor, True), of_train),
        "test covariance": of_test - across @ cho_solve((factor, True), across.T),
        "evidence": -0.5 * (jnp.sum(y * weights) + k * (determinant + n * jnp.log(2 * jnp.pi))),
    }


@jax.jit
def fit_by_cholesky(kernel: Array, missing: Array, ridge: Array) -> Numbers:
    """The limit of training: its coefficients, and how far the outputs of all points move."""
    n = len(missing)
    factor = jnp.linalg.cholesky(kernel[:n, :n] + ridge * jnp.eye(n))
    coefficients = cho_solve((factor, True), missing)
    return {"outputs": kernel[:, :n] @ coefficients, "coefficients": coefficients}


@eqx.filter_jit
def regression_by_cholesky(
    model: MLP, x: Array, rows: list[Array], y: Array, ridge: Array
) -> Numbers:
    """Predictions of all points from those of the model, with their residual and norm."""
    start, kernel = jax.vmap(model)(x), jnp.concatenate(rows)
    n = len(y)
    fit = fit_by_cholesky(kernel, y - start[:n], ridge)
    moved, outputs = fit["outputs"], start + fit["outputs"]
    residual = jnp.linalg.norm(outputs[:n] - y)
    return {
        "outputs": outputs,
        "residual": residual,
        "norm": jnp.sqrt(jnp.sum(fit["coefficients"] * moved[:n])),
    }


@jax.jit
def fit_by_eigenvectors(kernel: Array, missing: Array, ts: Array) -> Numbers:
    """The same at finite times."""
    n = len(missing)
    values, vectors = jnp.linalg.eigh(kernel[:n, :n])
    along = vectors.T @ missing
    coefficients = jnp.stack([vectors @ (_weights(values, t / n)[:, None] * along) for t in ts])
    return {"outputs": kernel[:, :n] @ coefficients, "coefficients": coefficients[-1]}


@jax.jit
def ensemble_by_cholesky(ntk: Array, nngp: Array, y: Array, ridge: Array) -> Numbers:
    """Mean and covariance of trained networks at t = inf."""
    n = len(y)
    factor = jnp.linalg.cholesky(ntk[:n, :n] + ridge * jnp.eye(n))
    return _ensemble(cho_solve((factor, True), ntk[:n]).T[None], nngp, y)


@jax.jit
def ensemble_by_eigenvectors(ntk: Array, nngp: Array, y: Array, ts: Array) -> Numbers:
    """The same at finite times."""
    n = len(y)
    values, vectors = jnp.linalg.eigh(ntk[:n, :n])
    along = ntk[:, :n] @ vectors
    reach = jnp.stack([(along * _weights(values, t / n)[None]) @ vectors.T for t in ts])
    return _ensemble(reach, nngp, y)


def _weights(values: Array, t: Array) -> Array:
    return -jnp.expm1(-values * t) / values


def _ensemble(reach: Any, nngp: Any, y: Any) -> Numbers:
    n = len(y)
    crossed = reach @ nngp[:n]
    covariance = nngp[None] + crossed[..., :n] @ reach.mT - crossed - crossed.mT
    return {"mean": reach @ y, "covariance": covariance}


def exact_posterior(kernel: Array, y: Array, noise: float) -> Numbers:
    """As `posterior_by_cholesky`, in float64."""
    rows, targets = _double(kernel), _double(y)
    n, k = y.shape
    of_train, across, of_test = rows[:n, :n], rows[n:, :n], rows[n:, n:]
    factor = scipy.linalg.cho_factor(of_train + noise * np.eye(n), lower=True)
    weights = scipy.linalg.cho_solve(factor, targets)
    determinant = 2 * np.sum(np.log(np.diagonal(factor[0])))
    return {
        "mean": of_train @ weights,
        "test mean": across @ weights,
        "covariance": of_train - of_train @ scipy.linalg.cho_solve(factor, of_train),
        "test covariance": of_test - across @ scipy.linalg.cho_solve(factor, across.T),
        "evidence": -0.5 * (np.sum(targets * weights) + k * (determinant + n * np.log(2 * np.pi))),
    }


def exact_fit(kernel: Array, missing: Array, ridge: float, ts: Sequence[float]) -> np.ndarray:
    """How far the outputs of all points move in float64, (t, n + m, k)."""
    reach = _exact_reach(_double(kernel)[:, : len(missing)], ridge, ts)
    return reach @ _double(missing)


def exact_ensemble(ntk: Array, nngp: Array, y: Array, ridge: float, ts: Sequence[float]) -> Numbers:
    """As `ensemble_by_cholesky` and `ensemble_by_eigenvectors`, in float64."""
    reach = _exact_reach(_double(ntk)[:, : len(y)], ridge, ts)
    return _ensemble(reach, _double(nngp), _double(y))


def backward_error(kernel: Array, ridge: float, a: Array, y: Array) -> float:
    """Of coefficients that should solve (K + ridge) a = y, in Frobenius norms."""
    system, found, right = _double(kernel), _double(a), _double(y)
    system = system + ridge * np.eye(len(system))
    norm = np.linalg.norm
    residual = norm(system @ found - right)
    return float(residual / (norm(system) * norm(found) + norm(right)))


def _exact_reach(rows: np.ndarray, ridge: float, ts: Sequence[float]) -> np.ndarray:
    n = rows.shape[1]
    system = rows[:n] + ridge * np.eye(n)
    if tuple(ts) == (math.inf,):
        return scipy.linalg.solve(system, rows.T, assume_a="pos").T[None]
    values, vectors = np.linalg.eigh(system)
    weights = [-np.expm1(-values * t / n) / values for t in ts]
    return np.stack([(rows @ vectors * weight) @ vectors.T for weight in weights])


def _double(array: Any) -> np.ndarray:
    return np.asarray(array, np.float64)
