r"""The kernel hierarchy: how the neural tangent kernel itself moves in training.

    O_1(1) = f_1,    O_s(1..s) = grad O_{s-1}(1..s-1) . M grad f_s,    O_2 = Theta
    d/dt O_s(1..s) = - sum_c O_{s+1}(1..s, c) g_c                      for any loss, g = dL/df

(Huang & Yau 2020, "Dynamics of deep neural networks and neural tangent hierarchy"; Dyer & Gur-Ari
2020). Only the first two slots are exchangeable.
"""

from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from corrections.contraction.gradient_factors import GradientFactors
from corrections.kernels.curvature import Curvature
from corrections.parameters import (
    check_metric,
    check_outputs,
    check_parameters,
    Method,
    METHODS,
    Metric,
    Model,
)
from corrections.smoothness import warn_at_kinks
from zoo.common import checks
from zoo.common.examples import checked_batch, count, one_of
from zoo.common.memory import check_fits, kept_bytes
from zoo.common.precision import full_precision
from zoo.common.tiles import shards_of


@full_precision
def o3(
    model: Model,
    x1: PyTree[Shaped[Array, "n1 ..."]],
    x2: PyTree[Shaped[Array, "n2 ..."]] | None = None,
    x3: PyTree[Shaped[Array, "n3 ..."]] | None = None,
    *,
    metric: Metric | None = None,
    method: Method = "auto",
    batch_size: int | None = None,
) -> Float[Array, "n1 k n2 k n3 k"]:
    """O_3(1, 2, 3) = grad Theta(1, 2) . M grad f_3, the kernel that moves the tangent kernel.

    With S(a; b, c) = g_b^T M H_a M g_c (`dntk`) it is S(1; 2, 3) + S(2; 1, 3): symmetric in its
    first two slots, not in the others.

    **Arguments:**

    - `model`: any callable PyTree, one example in, k outputs out. Its activations
      should have second derivatives: at kinks (ReLU) these are taken almost everywhere.
    - `x1`, `x2`, `x3`: batches of examples; a missing one means `x1`.
    - `metric`: the learning-rate multipliers M, a PyTree prefix of the parameters (default: 1).
    - `method`: as in `ntk`. With a rule, the direction M g_3 of a dense layer is never formed.
    - `batch_size`: the most examples of each set that are taken at once: memory is then that of a
      tile, beside the kernel itself. Default: what fits in about 1 GiB.

    **Raises:** as `ntk`. **Warns:** `KinkWarning` for activations without second derivatives.

    Source: Huang & Yau (2020); Dyer & Gur-Ari (2020).
    """
    sets, options = _checked(model, (x1, x2, x3), metric, method, batch_size)
    warn_at_kinks(model, 2)
    return _computed("o3", model, sets, options)


@full_precision
def dntk(
    model: Model,
    x1: PyTree[Shaped[Array, "n1 ..."]],
    x2: PyTree[Shaped[Array, "n2 ..."]] | None = None,
    x3: PyTree[Shaped[Array, "n3 ..."]] | None = None,
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
    sets, options = _checked(model, (x1, x2, x3), metric, method, batch_size)
    warn_at_kinks(model, 2)
    return _computed("dntk", model, sets, options)


@full_precision
def o4(
    model: Model,
    x1: PyTree[Shaped[Array, "n1 ..."]],
    x2: PyTree[Shaped[Array, "n2 ..."]] | None = None,
    x3: PyTree[Shaped[Array, "n3 ..."]] | None = None,
    x4: PyTree[Shaped[Array, "n4 ..."]] | None = None,
    *,
    metric: Metric | None = None,
    method: Method = "auto",
    batch_size: int | None = None,
) -> Float[Array, "n1 k n2 k n3 k n4 k"]:
    """O_4(1, 2, 3, 4) = grad O_3(1, 2, 3) . M grad f_4, the kernel that moves O_3.

    With I and II of `ddntk` it is

        I(1; 2, 3, 4) + II(1, 2; 3, 4) + II(1, 3; 2, 4)  +  the same with 1 and 2 exchanged,

    symmetric in its first two slots, not in the others.

    **Arguments:**

    - `model`: any callable PyTree, one example in, k outputs out. Its activations
      should have third derivatives: at kinks (ReLU) these are taken almost everywhere.
    - `x1`, `x2`, `x3`, `x4`: batches of examples; a missing one means `x1`.
    - `metric`, `method`, `batch_size`: as in `o3`.

    **Raises:** as `ntk`. **Warns:** `KinkWarning` for activations without third derivatives.

    Source: Huang & Yau (2020); Dyer & Gur-Ari (2020); docs/theory.md, section 2.
    """
    sets, options = _checked(model, (x1, x2, x3, x4), metric, method, batch_size)
    warn_at_kinks(model, 3)
    return _computed("o4", model, sets, options)


@full_precision
def ddntk(
    model: Model,
    x1: PyTree[Shaped[Array, "n1 ..."]],
    x2: PyTree[Shaped[Array, "n2 ..."]] | None = None,
    x3: PyTree[Shaped[Array, "n3 ..."]] | None = None,
    x4: PyTree[Shaped[Array, "n4 ..."]] | None = None,
    *,
    kind: Literal["I", "II"],
    metric: Metric | None = None,
    method: Method = "auto",
    batch_size: int | None = None,
) -> Float[Array, "n1 k n2 k n3 k n4 k"]:
    """The second differentials of the NTK, which O_4 is made of.

    - "I": I(1; 2, 3, 4) = T_1[M g_2, M g_3, M g_4] with T_1 the third derivative of f_1, symmetric
      in its last three slots.
    - "II": II(1, 2; 3, 4) = (H_1 M g_3) . M (H_2 M g_4) with H the Hessians: the same where 1, 2
      and 3, 4 are exchanged together.

    **Arguments, Raises, Warns:** as `o4`; `ValueError` for another `kind`.

    Source: Roberts, Yaida & Hanin (2021), "The principles of deep learning theory", where these are
    the two ddNTKs.
    """
    checks.choice("kind", kind, ("I", "II"))
    sets, options = _checked(model, (x1, x2, x3, x4), metric, method, batch_size)
    warn_at_kinks(model, 3 if kind == "I" else 2)
    name = {"I": "ddntk I", "II": "ddntk II"}[kind]
    return _computed(name, model, sets, options)


# What each kernel is the sum of: contractions, and the slot of the kernel for each of their own.
_SUMS: dict[str, list[tuple[str, tuple[int, ...]]]] = {
    "dntk": [("s", (0, 1, 2))],
    "o3": [("s", (0, 1, 2)), ("s", (1, 0, 2))],
    "ddntk I": [("i", (0, 1, 2, 3))],
    "ddntk II": [("ii", (0, 1, 2, 3))],
    "o4": [
        ("i", (0, 1, 2, 3)),
        ("i", (1, 0, 2, 3)),
        ("ii", (0, 1, 2, 3)),
        ("ii", (1, 0, 2, 3)),
        ("ii", (0, 2, 1, 3)),
        ("ii", (1, 2, 0, 3)),
    ],
}


class _Options(NamedTuple):
    metric: Metric | None
    method: Method
    batch_size: int | None
    shards: int
    memory: int


def _computed(name: str, model: Model, sets: tuple[PyTree | None, ...], options: _Options) -> Array:
    kernel = _contracted(name, model, sets, options)
    checks.computed("`model`, `x1` to `x4` or `metric`", kernel)
    return kernel


@eqx.filter_jit
def _contracted(
    name: str, model: Model, sets: tuple[PyTree | None, ...], options: _Options
) -> Array:
    """The sum of contractions that `_SUMS` names; each is computed once for the same sets."""
    first = sets[0]
    assert first is not None
    outputs = check_outputs(model, "x1", first, forward_mode=True)
    for slot, x in enumerate(sets[1:], start=2):
        if x is not None:
            check_outputs(model, f"x{slot}", x, outputs=outputs)
    given = [0 if x is None else slot for slot, x in enumerate(sets)]
    xs = [first if x is None else x for x in sets]
    shape = tuple(size for x in xs for size in (count(x), *outputs.shape))
    counts = " x ".join(str(count(x)) for x in xs)
    check_fits(f"the kernel of {counts} examples", shape, outputs.dtype, options.shards)
    metric, method, batch_size, shards, memory = options
    curvature = Curvature(
        GradientFactors(model, one_of(first), metric, method=method),
        partners=count(xs[1]),
        batch_size=batch_size,
        shards=shards,
        memory=memory,
    )
    found: dict[tuple[Any, ...], Array] = {}
    total: Any = 0
    for contraction, slots in _SUMS[name]:
        key = (contraction, *(given[slot] for slot in slots))
        if key not in found:
            found[key] = getattr(curvature, contraction)(*(xs[slot] for slot in slots))
        axes = [2 * slots.index(slot) + part for slot in range(len(slots)) for part in (0, 1)]
        total += jnp.transpose(found[key], axes)
    return total


def _checked(
    model: Model,
    sets: tuple[PyTree | None, ...],
    metric: Metric | None,
    method: Method,
    batch_size: int | None,
) -> tuple[tuple[PyTree | None, ...], _Options]:
    """The batches and options, where all of them make sense."""
    checks.choice("method", method, METHODS)
    batch_size = checks.integer_or_none("batch_size", batch_size)
    batches = tuple(
        None if x is None and slot > 1 else checked_batch(f"x{slot}", x)
        for slot, x in enumerate(sets, start=1)
    )
    check_parameters(model)
    check_metric(model, metric)
    return batches, _Options(metric, method, batch_size, shards_of(batches[0]), kept_bytes())
