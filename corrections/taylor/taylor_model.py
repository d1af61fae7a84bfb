r"""Taylor models: a network replaced by its expansion in the parameters.

    f_q(x; theta) = sum_{j=0}^{q} 1/j! D^j f(x; theta_0)[d, ..., d],        d = theta - theta_0

(Lee et al. 2019 for q = 1; Bai & Lee 2020 for q = 2). All derivatives along a path come from one
primitive, `taylor_coefficients`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from corrections.forward_mode import check_forward_mode
from corrections.parameters import (
    check_model,
    check_real,
    check_tree_like,
    direction,
    Metric,
    Model,
    split,
)
from corrections.smoothness import warn_at_kinks
from corrections.taylor.jets import coefficients_along, hoist_barrier, jet
from zoo import forward_train, parameters
from zoo.common import checks
from zoo.common.examples import checked_batch, one_of
from zoo.common.precision import full_precision
from zoo.common.trainable import partitioned
from zoo.layers.frozen import Frozen


def taylor_coefficients(
    fn: Callable[[PyTree], PyTree], theta: PyTree, path: Sequence[PyTree], order: int
) -> list[PyTree]:
    """The coefficients c_0 .. c_order of fn(theta + eps path[0] + eps^2 path[1] + ...) in eps.

    These are Taylor coefficients, derivatives divided by j!; entries of the path beyond its length
    are zero. Computed by nested `jax.jvp` along the scalar eps, and differentiable in turn.

    **Arguments:**

    - `fn`: any JAX function of a PyTree of floating-point arrays.
    - `theta`, and each entry of `path`: trees of the same structure and shapes.
    - `order`: the highest power of eps, >= 0.

    **Raises:** `ValueError` for an order that is not an integer >= 0, or a path whose entries are
    not like `theta`; `TypeError` for a path that is no sequence.
    """
    order = checks.integer("order", order, least=0)
    if not isinstance(path, list | tuple):
        raise TypeError(
            f"`path` is of type {type(path).__name__}, expected a list or tuple of trees like "
            "`theta`: the coefficients of eps, eps^2, ..."
        )
    checks.function("fn", fn, "a function of a tree like `theta`")
    check_real("theta", theta)
    for i, step in enumerate(path):
        check_tree_like(f"path[{i}]", step, theta, "`theta`")
        check_real(f"path[{i}]", step)

    at = jet(theta, path[:order])
    return coefficients_along(lambda eps: fn(at(eps)), order)


class TaylorModel(eqx.Module):
    """The Taylor expansion of a model in its parameters; see `taylorize`.

    Its parameters are those of the model, in the same structure, under `.model`: whatever trains
    the model trains its expansion. The point of expansion is frozen.
    """

    model: PyTree
    _base: Frozen[Any]
    order: int = eqx.field(static=True)

    @property
    def base(self) -> PyTree:
        """The parameters that the model is expanded about."""
        return self._base.value

    @property
    def displacement(self) -> PyTree:
        """theta - theta_0, a tree like the parameters."""
        return jax.tree.map(jnp.subtract, split(self.model)[0], self.base)

    def lift_metric(self, metric: Metric | None) -> Metric | None:
        """A metric on the parameters of the model as one on those of its expansion, which are the
        same.
        """
        if metric is None:
            return None
        return eqx.tree_at(lambda taylor: taylor.model, parameters(self), metric)

    def __call__(self, x: PyTree[Shaped[Array, "..."]]) -> Float[Array, "..."]:
        """The expansion for one example, in the shape of the model's outputs."""
        if self.order > 0:
            check_forward_mode(self.model, x)
        _, static = partitioned(self.model)
        terms = self._terms(lambda p: eqx.combine(p, static)(x))
        return sum(terms[1:], start=terms[0])

    def forward_train(
        self, xs: PyTree[Shaped[Array, "n ..."]]
    ) -> tuple[Float[Array, "n ..."], "TaylorModel"]:
        """See `zoo.forward_train`: the expansion of what a batch gives in training, where batch
        normalization takes the batch's own statistics, and those depend on the parameters.

        The statistics that are kept move as those of the network at theta_0 do, whose expansion
        this is.
        """
        if self.order > 0:
            check_forward_mode(self.model, one_of(xs))
        params, static = partitioned(self.model)
        terms = self._terms(lambda p: forward_train(eqx.combine(p, static), xs)[0])
        _, moved = forward_train(eqx.combine(self.base, static), xs)
        model = eqx.combine(params, partitioned(moved)[1])
        outputs = sum(terms[1:], start=terms[0])
        return outputs, eqx.tree_at(lambda taylor: taylor.model, self, model)

    def reparameterized(self, move: Callable[[PyTree], PyTree]) -> "TaylorModel":
        """The same expansion where `move` is linear in the parameters; see `zoo.reparameterize`."""
        base = move(eqx.combine(self.base, partitioned(self.model)[1]))
        return TaylorModel(move(self.model), Frozen(split(base)[0]), self.order)

    def _terms(self, fn: Callable[[PyTree], Array]) -> list[Array]:
        base, displacement = self.base, self.displacement
        if self.order > 1:
            base, displacement = hoist_barrier(base, displacement)
        return taylor_coefficients(fn, base, [displacement], self.order)


def taylorize(model: Model, order: int, *, at: Model | None = None) -> TaylorModel:
    """The Taylor expansion of `model` in its parameters: a model in its own right.

    f_q(x; theta) = sum_{j <= order} 1/j! D^j f(x; theta_0)[theta - theta_0, ...]

    **Arguments:**

    - `model`: any callable PyTree; the parameters theta of the result start at its own.
    - `order`: q >= 0. Order 0 is constant, 1 the linearised network, 2 the quadratic model.
    - `at`: a model of the same structure whose parameters are theta_0 (default: `model` itself).
      A frozen copy is kept. It may be a network at any time of its training.

    What is frozen inside `model`, such as the statistics of batch normalization, stays as it is:
    the expansion is one of `model(x)` with these statistics. In training,
    `zoo.forward_train(taylor, xs)` expands what the batch gives under its own statistics.

    An order costs about two forward passes: 2 order + 1 in all, as nested JVPs after XLA has merged
    what they compute twice (docs/linearity.md).

    The parameters of the result are those of `model`, under `.model`; `.lift_metric(metric)` makes
    a metric for the result of one for `model`.

    **Raises:** `ValueError` for an order that is not an integer >= 0, or where `at` differs from
    `model` in structure or shapes. **Warns:** `KinkWarning` from order 2 on, for activations with
    fewer than `order` derivatives.

    Source: Lee et al. (2019), eq. 5, for order 1; Bai & Lee (2020) for order 2.
    """
    order = checks.integer("order", order, least=0)
    if not callable(model):
        raise TypeError(f"`model` is {model!r}, expected a callable PyTree.")
    check_real("model", model)
    params, _ = split(model)
    if at is not None:
        check_real("at", at)
    base = params if at is None else split(at)[0]
    check_tree_like("at", base, params)
    warn_at_kinks(model, order, stacklevel=3)
    return TaylorModel(model=model, _base=Frozen(base), order=order)


@full_precision
def taylor_terms(
    model: Model, x: PyTree[Shaped[Array, "n ..."]], displacement: PyTree, order: int
) -> Float[Array, "terms n k"]:
    """Each order's contribution to the Taylor expansion of `model` about its parameters.

    Term j is 1/j! D^j f(x; theta_0)[d, ..., d]; their sum is the Taylor model at theta_0 + d.

    **Arguments:**

    - `model`: any callable PyTree, at theta_0.
    - `x`: a batch of examples, (n, ...).
    - `displacement`: d, a tree like `zoo.parameters(model)`.
    - `order`: the highest order, >= 0.

    **Returns:** (order + 1, n, k): f_0, J d, 1/2 d H d, ...

    **Raises:** `ValueError` / `TypeError` for an order that is not an integer >= 0, a batch that is
    empty or not finite, a displacement of another structure than the parameters. **Warns:**
    `KinkWarning` as `taylorize`.
    """
    order = checks.integer("order", order, least=0)
    x = checked_batch("x", x)
    check_model(model, "x", x, forward_mode=order > 0)
    params, apply = split(model)
    displacement = direction("displacement", displacement, params)
    warn_at_kinks(model, order)
    batched = jax.vmap(apply, in_axes=(None, 0))
    path = [displacement]
    terms = jnp.stack(taylor_coefficients(lambda p: batched(p, x), params, path, order))
    checks.computed("`model`, `x` or `displacement`", terms)
    return terms
