r"""The kernel hierarchy: how the neural tangent kernel itself moves in training.

    O_1(1) = f_1,    O_s(1..s) = grad O_{s-1}(1..s-1) . M grad f_s,    O_2 = Theta
    d/dt O_s(1..s) = - sum_c O_{s+1}(1..s, c) g_c                      for any loss, g = dL/df

(Huang & Yau 2020, "Dynamics of deep neural networks and neural tangent hierarchy"; Dyer & Gur-Ari
2020). Only the first two slots are exchangeable.
"""

import functools

import einops
import equinox as eqx
import jax
from jaxtyping import Array, Float

from corrections.kernel import gram, jacobian
from corrections.parameters import (
    check_batch,
    check_metric,
    check_model,
    Metric,
    Model,
    Params,
    precondition,
    split,
)
from corrections.smoothness import warn_at_kinks
from zoo.precision import full_precision


@full_precision
def o3(
    model: Model,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."] | None = None,
    x3: Float[Array, "n3 ..."] | None = None,
    *,
    metric: Metric | None = None,
) -> Float[Array, "n1 k n2 k n3 k"]:
    """O_3(1, 2, 3) = grad Theta(1, 2) . M grad f_3, the kernel that moves the tangent kernel.

    With S(a; b, c) = g_b^T M H_a M g_c it is S(1; 2, 3) + S(2; 1, 3): symmetric in its first two
    slots, not in the others. Computed as O_3(., ., c) = jvp(Theta, theta, M J^T e_c), one
    direction c at a time.

    **Arguments:**

    - `model`: any callable PyTree, one example in, a vector of k outputs out. Its activations
      should have second derivatives: at kinks (ReLU) these are taken almost everywhere.
    - `x1`, `x2`, `x3`: batches of examples; a missing one means `x1`.
    - `metric`: the learning-rate multipliers M, a PyTree prefix of the parameters (default: 1).

    **Raises:** as `ntk`. **Warns:** `KinkWarning` for activations without second derivatives.

    Source: Huang & Yau (2020); Dyer & Gur-Ari (2020).
    """
    x1 = check_batch("x1", x1)
    x2 = None if x2 is None else check_batch("x2", x2)
    x3 = None if x3 is None else check_batch("x3", x3)
    outputs = check_model(model, "x1", x1)
    for name, x in (("x2", x2), ("x3", x3)):
        if x is not None:
            check_model(model, name, x, outputs=outputs)
    check_metric(model, metric)
    warn_at_kinks(model, 2)
    return _o3(model, x1, x2, x1 if x3 is None else x3, metric, outputs.shape[0])


@eqx.filter_jit
def _o3(
    model: Model, x1: Array, x2: Array | None, x3: Array, metric: Metric | None, k: int
) -> Array:
    params, apply = split(model)

    def theta(params: Params) -> Float[Array, "m1 m2"]:
        rows1 = jacobian(apply, params, x1)
        rows2 = rows1 if x2 is None else jacobian(apply, params, x2)
        return gram(rows1, rows2, metric)

    _, theta_along = jax.linearize(theta, params)
    directions = jax.vmap(functools.partial(precondition, metric))(jacobian(apply, params, x3))
    stacked = jax.lax.map(theta_along, directions)
    return einops.rearrange(stacked, "(c m) (a k) (b l) -> a k b l c m", **dict.fromkeys("klm", k))
