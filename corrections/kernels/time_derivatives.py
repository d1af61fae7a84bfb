r"""How the tangent kernel starts to move in training, at the cost of a few kernels.

    theta' = - M J(theta)^T g,    Theta' = - O_3 g,    Theta'' = O_4 g g        at fixed g

without O_3 or O_4: the kernel's Taylor coefficients along the path of the parameters.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree, Shaped

from corrections.kernels.ntk import tangent_kernel
from corrections.parameters import (
    check_metric,
    check_model,
    check_pairs,
    Metric,
    Model,
    Params,
    precondition,
    split,
)
from corrections.smoothness import warn_at_kinks
from corrections.taylor.taylor_model import taylor_coefficients
from zoo.common import checks
from zoo.common.examples import checked_batch, count
from zoo.common.precision import full_precision
from zoo.common.records import short_repr


@short_repr
class KernelRates(NamedTuple):
    """A tangent kernel and what O_3 and O_4 do to it; see `kernel_rates`.

    - `kernel`: Theta, (n1, k, n2, k).
    - `first`: -O_3 g, in units of Theta over time.
    - `second`: O_4 g g, in units of Theta over time squared.
    """

    kernel: Float[Array, "n1 k n2 k"]
    first: Float[Array, "n1 k n2 k"]
    second: Float[Array, "n1 k n2 k"]


@full_precision
def kernel_rates(
    model: Model,
    x: PyTree[Shaped[ArrayLike, "n ..."]],
    g: Float[ArrayLike, "n k"],
    *,
    metric: Metric | None = None,
    kernel_pairs: tuple[PyTree[Shaped[ArrayLike, "n1 ..."]], PyTree[Shaped[ArrayLike, "n2 ..."]]]
    | None = None,
) -> KernelRates:
    """The first two derivatives in time of the tangent kernel in gradient flow, with g held fixed.

    With g = dL/df the first is that of training, Theta' = -O_3 g; of the second,
    Theta'' = O_4 g g - O_3 g', it is the part that O_4 brings.

    **Arguments:**

    - `model`: any callable PyTree, one example in, k outputs out, with activations that have third
      derivatives.
    - `x`: the training examples, (n, ...).
    - `g`: what multiplies the gradients of the outputs, (n, k): the derivative of the loss in the
      outputs, its mean over examples included.
    - `metric`: the learning-rate multipliers M, a PyTree prefix of the parameters (default: 1).
    - `kernel_pairs`: (x1, x2), examples of which the kernel is looked at (default: `x` with
      itself).

    **Raises:** `ValueError` / `TypeError` for batches that are empty, not finite or not real, a
    model that does not take them, a `g` or a metric that does not fit. **Warns:** `KinkWarning` for
    activations without these derivatives.

    Source: Huang & Yau (2020), eqs. 1.9-1.11; Dyer & Gur-Ari (2020).
    """
    x = checked_batch("x", x)
    outputs = check_model(model, "x", x, forward_mode=True)
    (k,) = outputs.shape
    g = checks.real_array("g", g, expected="a number for each output of each example, (n, k)")
    checks.shape("g", g, (count(x), k), because="a number for each output of each example")
    checks.finite("g", g)
    if metric is not None:
        check_metric(model, metric)
    x1, x2 = check_pairs(model, kernel_pairs) or (x, x)
    warn_at_kinks(model, 3)
    rates = _kernel_rates(model, x, g.astype(outputs.dtype), metric, x1, x2)
    checks.computed("`model`, `x`, `g`, `metric` or `kernel_pairs`", rates)
    return rates


@eqx.filter_jit
def _kernel_rates(
    model: Model, x: PyTree, g: Array, metric: Metric | None, x1: PyTree, x2: PyTree
) -> KernelRates:
    params, apply = split(model)

    def velocity(params: Params) -> Params:
        _, pull = jax.vjp(lambda p: jax.vmap(apply, in_axes=(None, 0))(p, x), params)
        return jax.tree.map(jnp.negative, precondition(metric, pull(g)[0]))

    def kernel(params: Params) -> Array:
        return tangent_kernel(eqx.combine(params, model), x1, x2, metric=metric)

    first = velocity(params)
    _, second = jax.jvp(velocity, (params,), (first,))
    path = [first, jax.tree.map(lambda leaf: leaf / 2, second)]
    start, rate, half = taylor_coefficients(kernel, params, path, 2)
    return KernelRates(start, rate, 2 * half)
