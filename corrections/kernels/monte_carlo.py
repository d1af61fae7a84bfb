r"""Kernels of finite networks averaged over initialisations: what the limit is compared with.

    mean = 1/S sum_s K_s,      error = sqrt(sum_s (K_s - mean)^2 / (S (S - 1)))

over S draws of a network, for its covariance (`corrections.nngp`) and its tangent kernel
(`corrections.ntk`). The mean of a network of width n differs from the limit by O(1/n); each draw
differs from the mean by O(n^{-1/2}).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from corrections.kernels.ntk import nngp, ntk
from corrections.parameters import check_metric, check_model, check_parameters, Metric, Model
from zoo.common import checks
from zoo.common.examples import checked_batch
from zoo.common.records import short_repr


@short_repr
class MonteCarloKernels(NamedTuple):
    """Averages over draws of a network; see `monte_carlo_kernels`.

    - `nngp`, `ntk`: means, (n1, n2).
    - `nngp_error`, `ntk_error`: their standard errors, (n1, n2).
    - `nngp_spread`, `ntk_spread`: standard deviations of one draw, (n1, n2).
    - `n_samples`: draws.
    """

    nngp: Float[Array, "n1 n2"]
    ntk: Float[Array, "n1 n2"]
    nngp_error: Float[Array, "n1 n2"]
    ntk_error: Float[Array, "n1 n2"]
    nngp_spread: Float[Array, "n1 n2"]
    ntk_spread: Float[Array, "n1 n2"]
    n_samples: int


def monte_carlo_kernels(
    model_fn: Callable[[PRNGKeyArray], Model],
    x1: PyTree[Shaped[Array, "n1 ..."]],
    x2: PyTree[Shaped[Array, "n2 ..."]] | None = None,
    *,
    n_samples: int,
    key: PRNGKeyArray,
    metric_fn: Callable[[Model], Metric] | None = None,
    batch_size: int | None = None,
) -> MonteCarloKernels:
    """The mean kernels of a network over its initialisations, with standard errors.

    **Arguments:**

    - `model_fn`: from a key to a network, `lambda key: MLP(784, 1, width=2048, depth=2, key=key)`
      say. Networks of one structure are compiled once.
    - `x1`, `x2`: batches of examples; a missing `x2` means `x1`.
    - `n_samples`: how many networks are drawn, at least 2.
    - `key`: of the draws.
    - `metric_fn`: from a network to the metric of its tangent kernel,
      `lambda model: learning_rates(model, equivalent_to=NTK)` say (default: none, M = 1).
    - `batch_size`: as in `ntk`.

    **Returns:** `MonteCarloKernels`. The tangent kernel is the average over equal outputs
    (`ntk(..., outputs="mean")`); the covariance is that of outputs under a random readout
    (`nngp`), whose mean is the same and which varies less.

    **Raises:** as `ntk` and `nngp`; `ValueError` for fewer than 2 draws.

    Source: Novak et al. (2019), "Bayesian deep convolutional networks with many channels are
    Gaussian processes", section 4; Novak et al. (2020), "Neural Tangents", section 3.
    """
    checks.integer("n_samples", n_samples, least=2)
    for name, fn in (("model_fn", model_fn), ("metric_fn", metric_fn)):
        if not callable(fn) and not (name == "metric_fn" and fn is None):
            raise TypeError(f"`{name}` is {fn!r}, expected a function.")
    checks.key("key", key)
    x1 = checked_batch("x1", x1)
    moments = None
    for count, sample_key in enumerate(jr.split(key, n_samples), start=1):
        model = model_fn(sample_key)
        if count == 1:  # which traces it; the others are of its structure
            check_model(model, "x1", x1, called="model_fn(key)")
        else:
            check_parameters(model, "model_fn(key)")
        metric = None if metric_fn is None else metric_fn(model)
        check_metric(model, metric, "metric_fn(model)")
        options = {"metric": metric, "outputs": "mean", "batch_size": batch_size}
        draw = jnp.stack([nngp(model, x1, x2), ntk(model, x1, x2, **options)])
        moments = _updated(moments, draw, count)
    assert moments is not None
    mean, squares = moments
    spread = jnp.sqrt(squares / (n_samples - 1))
    error = spread / jnp.sqrt(n_samples)
    return MonteCarloKernels(mean[0], mean[1], error[0], error[1], spread[0], spread[1], n_samples)


def _updated(moments: tuple[Array, Array] | None, draw: Array, count: int) -> tuple[Array, Array]:
    """Mean and sum of squared deviations with one more draw (Welford 1962)."""
    if moments is None:
        return draw, jnp.zeros_like(draw)
    return _welford(*moments, draw, jnp.asarray(count, draw.dtype))


@jax.jit
def _welford(mean: Array, squares: Array, draw: Array, count: Array) -> tuple[Array, Array]:
    moved = mean + (draw - mean) / count
    return moved, squares + (draw - mean) * (draw - moved)
