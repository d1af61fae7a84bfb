r"""Jointly Gaussian outputs: what infinitely wide networks predict, with their uncertainty.

Samples are m + R z with z ~ N(0, 1) and R the symmetric root of C, from eigenvectors: a covariance
that is singular (training points without noise, a point that is there twice) has one as well, and
so have derivatives of samples.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from corrections.symmetric.matrix_functions import eigenbasis, SquareRoot
from solvers.result import raise_where_failed, RESULTS, SolverError
from zoo.common import checks
from zoo.common.precision import full_precision


class Gaussian(eqx.Module):
    """Jointly Gaussian outputs on a set of points, at one time or at several.

    - `mean`: (p, k), or (t, p, k).
    - `covariance`: (p, p), or (t, p, p), the same for each output, which are independent of each
      other; (p, k, p, k) for a kernel that couples them; or None where only the mean is known.
    """

    mean: Float[Array, "*t p k"]
    covariance: Float[Array, "..."] | None

    @property
    def std(self) -> Float[Array, "*t p k"]:
        """The standard deviation of each output.

        **Raises:** `ValueError` where only the mean is known.
        """
        covariance = self._flat_covariance()
        variance = jnp.maximum(jnp.diagonal(covariance, axis1=-2, axis2=-1), 0)
        coupled = covariance.shape[-1] != self.mean.shape[-2]
        variance = variance.reshape(self.mean.shape) if coupled else variance[..., None]
        return jnp.sqrt(jnp.broadcast_to(variance, self.mean.shape))

    @full_precision
    def sample(self, key: PRNGKeyArray, count: int) -> Float[Array, "count *t p k"]:
        """Samples, independent of each other also between times.

        **Raises:** `ValueError` where only the mean is known, or for a `count` below 1.
        """
        count = checks.integer("count", count)
        checks.key("key", key)
        covariance = self._flat_covariance()
        size = covariance.shape[-1]
        columns = self.mean.shape[-2] * self.mean.shape[-1] // size
        shape = (count, *covariance.shape[:-1], columns)
        noise = jr.normal(key, shape, covariance.dtype)

        def moved(covariance: Array, noise: Float[Array, "count size k"]) -> Array:
            basis = eigenbasis(covariance)
            return jax.vmap(lambda z: basis.apply(SquareRoot(), z))(noise)

        if covariance.ndim == 3:
            moved = jax.vmap(moved, in_axes=(0, 1), out_axes=1)
        return self.mean[None] + moved(covariance, noise).reshape(count, *self.mean.shape)

    def _flat_covariance(self) -> Float[Array, "*t size size"]:
        if self.covariance is None:
            raise ValueError(
                "Only the mean is known here, expected a covariance: `posterior` needs "
                '`kernel_test_test` for that of test points, and `method="exact"` for that of '
                "training points."
            )
        p, k = self.mean.shape[-2:]
        coupled = self.covariance.ndim == self.mean.ndim + 2
        size = p * k if coupled else p
        return self.covariance.reshape(*self.mean.shape[:-2], size, size)


class PredictionError(SolverError):
    """A prediction failed under `throw=True`. `.partial` is what it came to: NaN, or of an
    iterative solve its best iterate, whose error is in its `stats`.
    """


def raise_unless_successful(prediction: Any, *, throw: bool) -> Any:
    """A prediction itself, or a `PredictionError` where it failed and `throw` asks for that."""

    def error() -> PredictionError:
        return PredictionError(
            f"{RESULTS[prediction.result]} `throw=False` returns what there is, and so does "
            "`.partial` of this error.",
            prediction,
        )

    return raise_where_failed(prediction, error, throw=throw)
