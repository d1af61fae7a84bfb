r"""The kernel hierarchy: how the neural tangent kernel itself moves in training.

    O_1(1) = f_1,    O_s(1..s) = grad O_{s-1}(1..s-1) . M grad f_s,    O_2 = Theta
    d/dt O_s(1..s) = - sum_c O_{s+1}(1..s, c) g_c                      for any loss, g = dL/df

(Huang & Yau 2020, "Dynamics of deep neural networks and neural tangent hierarchy"; Dyer & Gur-Ari
2020). Only the first two slots are exchangeable.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from corrections.anatomy import Anatomy
from corrections.contraction import Factors, ONE_OUTPUT
from corrections.parameters import (
    check_batch,
    check_metric,
    check_model,
    Method,
    METHODS,
    Metric,
    Model,
)
from corrections.smoothness import warn_at_kinks
from zoo import checks
from zoo.precision import full_precision

_TILE_BYTES = 2**28
"""What the tangents of one tile of directions may take where no `batch_size` is given."""


@full_precision
def o3(
    model: Model,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."] | None = None,
    x3: Float[Array, "n3 ..."] | None = None,
    *,
    metric: Metric | None = None,
    method: Method = "auto",
    batch_size: int | None = None,
) -> Float[Array, "n1 k n2 k n3 k"]:
    """O_3(1, 2, 3) = grad Theta(1, 2) . M grad f_3, the kernel that moves the tangent kernel.

    With S(a; b, c) = g_b^T M H_a M g_c (`dntk`) it is S(1; 2, 3) + S(2; 1, 3): symmetric in its
    first two slots, not in the others.

    **Arguments:**

    - `model`: any callable PyTree, one example in, a vector of k outputs out. Its activations
      should have second derivatives: at kinks (ReLU) these are taken almost everywhere.
    - `x1`, `x2`, `x3`: batches of examples; a missing one means `x1`.
    - `metric`: the learning-rate multipliers M, a PyTree prefix of the parameters (default: 1).
    - `method`: as in `ntk`. With a rule, the direction M g_3 of a dense layer is never formed.
    - `batch_size`: how many examples of `x3` are taken at once. Default: as many as keep the
      tangents within 256 MiB.

    **Raises:** as `ntk`. **Warns:** `KinkWarning` for activations without second derivatives.

    Source: Huang & Yau (2020); Dyer & Gur-Ari (2020).
    """
    x1, x2, x3 = _checked(model, x1, x2, x3, metric, method, batch_size)
    warn_at_kinks(model, 2)
    return _o3(model, x1, x2, x3, metric, method, batch_size)


@full_precision
def dntk(
    model: Model,
    x1: Float[Array, "n1 ..."],
    x2: Float[Array, "n2 ..."] | None = None,
    x3: Float[Array, "n3 ..."] | None = None,
    *,
    metric: Metric | None = None,
    method: Method = "auto",
    batch_size: int | None = None,
) -> Float[Array, "n1 k n2 k n3 k"]:
    """S(1; 2, 3) = g_2^T M H_1 M g_3, with H_1 the Hessian of the output f_1.

    Symmetric in its last two slots; O_3(1, 2, 3) = S(1; 2, 3) + S(2; 1, 3). Half of it times
    (learning rate)^2 g_2 g_3 is what a step of gradient descent adds to the linearized change of
    f_1.

    **Arguments, Raises, Warns:** as `o3`.

    Source: Roberts, Yaida & Hanin (2021), "The principles of deep learning theory", chapter 11,
    where it is the differential of the NTK.
    """
    x1, x2, x3 = _checked(model, x1, x2, x3, metric, method, batch_size)
    warn_at_kinks(model, 2)
    return _dntk(model, x1, x1 if x2 is None else x2, x3, metric, method, batch_size)


@eqx.filter_jit
def _o3(
    model: Model,
    x1: Array,
    x2: Array | None,
    x3: Array,
    metric: Metric | None,
    method: Method,
    batch_size: int | None,
) -> Array:
    options = (metric, method, batch_size)
    half = _dntk(model, x1, x1 if x2 is None else x2, x3, *options)
    other = half if x2 is None else _dntk(model, x2, x1, x3, *options)
    return half + jnp.transpose(other, (2, 3, 0, 1, 4, 5))


@eqx.filter_jit
def _dntk(
    model: Model,
    x1: Array,
    x2: Array,
    x3: Array,
    metric: Metric | None,
    method: Method,
    batch_size: int | None,
) -> Array:
    anatomy = Anatomy(model, x1[0], metric, method=method)
    factors2, factors3 = (jax.vmap(anatomy.factors)(x) for x in (x2, x3))
    factors1, tangents_along = _linearized(anatomy, x1)

    def one_direction(along: Factors) -> Float[Array, "n1 k n2 k"]:
        tangents = tangents_along(along)
        rows = jax.vmap(
            lambda f1, df1: jax.vmap(lambda f2: anatomy.product_along(f1, df1, f2), out_axes=1)(
                factors2
            )
        )
        return rows(factors1, tangents)

    directions = jax.vmap(one_direction, in_axes=(ONE_OUTPUT,))
    if batch_size is None:
        batch_size = _examples_in_a_tile(anatomy, len(x1))
    stacked = jax.lax.map(directions, factors3, batch_size=min(batch_size, len(x3)))
    return jnp.moveaxis(stacked, (0, 1), (4, 5))


def _linearized(anatomy: Anatomy, x: Array) -> tuple[Factors, Callable[[Factors], Factors]]:
    """The factors of a batch, and their derivatives where the parameters move along M grad f_c."""

    def batched(arrays: list[Array]) -> list[Array]:
        return [jnp.zeros((len(x), *a.shape), a.dtype) for a in arrays]

    def factors(shifts: list[Array], pulls: list[Array], rest: Array) -> Factors:
        return jax.vmap(anatomy.factors, in_axes=(0, 0, 0, None))(x, shifts, pulls, rest)

    at, tangents = jax.linearize(
        factors, batched(anatomy.no_shifts()), batched(anatomy.no_pulls()), anatomy.rest
    )

    def along(direction: Factors) -> Factors:
        shifts, pulls = jax.vmap(anatomy.moved, in_axes=(0, None))(at, direction)
        return tangents(shifts, pulls, anatomy.rest_metric * direction.rest)

    return at, along


def _examples_in_a_tile(anatomy: Anatomy, n: int) -> int:
    """How many examples' directions fit in `_TILE_BYTES`."""
    k = anatomy.outputs.shape[0]
    entries = sum(
        math.prod(shape.shape) for call in anatomy.calls for shape in (call.input, call.output)
    )
    entries = n * k * (1 + k) * max(entries, 1) + n * k * k * anatomy.rest.size
    return max(1, _TILE_BYTES // (entries * anatomy.outputs.dtype.itemsize))


def _checked(
    model: Model,
    x1: Array,
    x2: Array | None,
    x3: Array | None,
    metric: Metric | None,
    method: Method,
    batch_size: int | None,
) -> tuple[Array, Array | None, Array]:
    """The batches, where all arguments make sense."""
    checks.choice("method", method, METHODS)
    if batch_size is not None:
        checks.integer("batch_size", batch_size)
    x1 = check_batch("x1", x1)
    x2 = None if x2 is None else check_batch("x2", x2)
    x3 = None if x3 is None else check_batch("x3", x3)
    outputs = check_model(model, "x1", x1)
    for name, x in (("x2", x2), ("x3", x3)):
        if x is not None:
            check_model(model, name, x, outputs=outputs)
    check_metric(model, metric)
    return x1, x2, x1 if x3 is None else x3
