r"""A model as a function of its parameters, and the metric on them.

The parameters theta of a model are `zoo.parameters(model)`: real numbers. The metric M is a
constant non-negative diagonal on them, one learning-rate multiplier a parameter; gradient flow is
theta' = - M (df/dtheta)^T dL/df, and every contraction of two parameter indices takes M.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from corrections.forward_mode import check_forward_mode, ForwardModeError
from zoo import parameters
from zoo.common import checks
from zoo.common.examples import checked_batch, count, described, one_of
from zoo.common.trainable import partitioned

Model = Callable[[Any], Array]
"""A callable PyTree: one example in, k outputs out.

An example is an array, or a PyTree of arrays (a dictionary with a mask, a tuple of two inputs), of
which a batch (n, ...) has a row for each in every leaf. Outputs of shape () are k = 1, those of
more axes are read as a vector in C order."""
Params = PyTree[Array]
Metric = PyTree[Any]
"""A PyTree prefix of the parameters with one scalar, or one array of its shape, a leaf."""
Apply = Callable[[Params, Any], Array]
"""The outputs (k,) of a model with these parameters for one example."""
Method = Literal["auto", "structured", "jacobian"]
"""How products of gradients are taken; see `corrections.ntk`."""
Pairs = tuple[PyTree[Shaped[Array, "n1 ..."]], PyTree[Shaped[Array, "n2 ..."]]]
"""Examples of which a kernel is shown."""
METHODS: tuple[Method, ...] = ("auto", "structured", "jacobian")


def split(model: Model) -> tuple[Params, Apply]:
    """The parameters of `model`, and the function (parameters, one example) -> outputs (k,)."""
    params, static = partitioned(model)

    def apply(params: Params, x: Any) -> Array:
        return as_vector(eqx.combine(params, static)(x))

    return params, apply


def vector_model(model: Model) -> Callable[[Any], Float[Array, " k"]]:
    """`model` as a function of an example whose outputs are a vector."""
    return lambda x: as_vector(model(x))


def as_vector(outputs: Float[Array, "..."]) -> Float[Array, " k"]:
    """The outputs for an example, in C order."""
    return outputs if outputs.ndim == 1 else outputs.reshape(-1)


def precondition(metric: Metric | None, gradient: PyTree) -> PyTree:
    """M applied to a tree that is shaped like the parameters (None: M = 1)."""
    if metric is None:
        return gradient
    return jax.tree.map(
        lambda m, part: jax.tree.map(lambda g: jnp.asarray(m, g.dtype) * g, part), metric, gradient
    )


def check_model(
    model: Model,
    name: str,
    x: PyTree[Shaped[Array, "n ..."]],
    *,
    outputs: jax.ShapeDtypeStruct | None = None,
    forward_mode: bool = False,
    called: str = "model",
) -> jax.ShapeDtypeStruct:
    """`check_parameters` and `check_outputs` of the argument that is `called` so."""
    if outputs is None:
        check_parameters(model, called)
    return check_outputs(model, name, x, outputs=outputs, forward_mode=forward_mode, called=called)


def check_parameters(model: Model, name: str = "model") -> None:
    """**Raises:** `TypeError` where the argument `name` cannot be called or has complex parameters;
    `ValueError` where it has none, or some that are not finite.
    """
    if not callable(model):
        raise TypeError(f"`{name}` is of type {type(model).__name__}, expected a callable PyTree.")
    leaves = jax.tree_util.tree_leaves_with_path(parameters(model))
    if not leaves:
        functions = any(callable(leaf) for leaf in jax.tree.leaves(model))
        raise ValueError(
            f"`{name}` has no parameters, expected at least one floating-point array among its "
            f"leaves (`zoo.parameters`).{_OF_FUNCTIONS if functions else ''}"
        )
    check_real(name, model)
    for path, leaf in leaves:
        checks.finite(f"{name}{jax.tree_util.keystr(path)}", leaf)


_OF_FUNCTIONS = (
    " Arrays that a function takes along (a closure, `functools.partial`) are no leaves: expected "
    "`jax.tree_util.Partial(apply, params)` or an `eqx.Module` that holds them."
)


def check_real(name: str, tree: PyTree) -> None:
    """**Raises:** `TypeError` for complex parameters: a gradient, a kernel and a step along either
    mean one thing for a complex number and another for its two parts. And for half precision, in
    which sums over the parameters lose all but their first digits.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters(tree)):
        if jnp.iscomplexobj(leaf):
            raise TypeError(
                f"`{name}` has the complex parameter `{name}{jax.tree_util.keystr(path)}` "
                f"({leaf.dtype}), expected real ones: hold its real and imaginary parts as two "
                "arrays, and put them together where the model is called."
            )
        if checks.is_half(leaf.dtype):
            advice = f'`zoo.astype({name}, "float32")` has the same weights.'
            checks.full_precision(f"{name}{jax.tree_util.keystr(path)}", leaf.dtype, advice)


def check_outputs(
    model: Model,
    name: str,
    x: PyTree[Shaped[Array, "n ..."]],
    *,
    outputs: jax.ShapeDtypeStruct | None = None,
    forward_mode: bool = False,
    called: str = "model",
) -> jax.ShapeDtypeStruct:
    """Shape (k,) and dtype of the outputs of `model`, read as a vector, on an example of `x`.

    Traces the model, so call it inside what is compiled where the time of a call matters.

    **Arguments:**

    - `forward_mode`: whether the model has to have derivatives in forward mode.
    - `called`: the argument that the model is.

    **Raises:** `ValueError` where the model does not take such an example, or does not give an
    array (of as many entries as `outputs`, where that is given); `TypeError` for outputs that are
    no real floating-point numbers, or a model without the derivatives that are needed.
    """
    example = one_of(x)
    try:
        out = eqx.filter_eval_shape(model, example)
    except ForwardModeError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise ValueError(
            f"`{called}` does not take an example of `{name}`, which has {described(example)} "
            f"(`{name}` is a batch of {count(x)}): "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(out, jax.ShapeDtypeStruct) or math.prod(out.shape) == 0:
        raise ValueError(
            f"`{called}(x)` gives {out} for one example of `{name}`, expected one array of k "
            "outputs, at least one."
        )
    out = jax.ShapeDtypeStruct((math.prod(out.shape),), out.dtype)
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(
            f"`{called}` gives outputs of dtype {out.dtype} for an example of `{name}`, expected "
            "real floating-point numbers (of a complex number its real and imaginary part, say)."
        )
    checks.full_precision("model(x)", out.dtype, "Let the model compute in float32.")
    if outputs is not None and out.shape != outputs.shape:
        raise ValueError(
            f"`{called}(x)` gives {out.shape[0]} outputs for an example of `{name}`, expected "
            f"{outputs.shape[0]} as for the first batch."
        )
    if forward_mode:
        check_forward_mode(model, example)
    return out


def check_pairs(model: Model, pairs: Any) -> Pairs | None:
    """`kernel_pairs` as two batches.

    **Raises:** `ValueError` / `TypeError` unless they are examples of `model`.
    """
    if pairs is None:
        return None
    if not isinstance(pairs, tuple | list) or len(pairs) != 2:
        raise ValueError(f"`kernel_pairs` is {pairs!r}, expected two batches of examples (x1, x2).")
    x1, x2 = (checked_batch(f"kernel_pairs[{i}]", x) for i, x in enumerate(pairs))
    for i, x in enumerate((x1, x2)):
        check_model(model, f"kernel_pairs[{i}]", x)
    return x1, x2


def check_tree_like(
    name: str, tree: PyTree, like: PyTree, what: str = "the parameters of `model`"
) -> None:
    """**Raises:** `ValueError` where `tree` has another structure or other shapes than `like`."""
    got, expected = (jax.tree.leaves(jax.tree.map(jnp.shape, t)) for t in (tree, like))
    if jax.tree.structure(tree) != jax.tree.structure(like) or got != expected:
        raise ValueError(
            f"`{name}` does not match {what}, expected a tree of the same structure and shapes: "
            f"got {_shapes(tree)}, expected {_shapes(like)}."
        )


def direction(name: str, tree: PyTree, like: Params) -> Params:
    """The parameters of the argument `name`, a tree like those of the model, in their types.

    **Raises:** `ValueError` where it has another structure or other shapes, or is not finite;
    `TypeError` where it is complex.
    """
    check_real(name, tree)
    tree = parameters(tree)
    check_tree_like(name, tree, like)
    for leaf in jax.tree.leaves(tree):
        checks.finite(name, leaf)
    return jax.tree.map(lambda leaf, param: leaf.astype(param.dtype), tree, like)


def _shapes(tree: PyTree) -> str:
    return ", ".join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree)) or "none"


def check_metric(model: Model, metric: Metric | None, name: str = "metric") -> None:
    """**Raises:** `ValueError` / `TypeError` where `metric` does not fit the parameters of `model`
    or has entries that are negative, not finite or no real numbers.
    """
    if metric is None:
        return
    for leaf in jax.tree.leaves(metric):
        if not isinstance(leaf, int | float) and not eqx.is_array(leaf):
            raise TypeError(f"`{name}` has the leaf {leaf!r}, expected numbers or arrays >= 0.")
        if jnp.iscomplexobj(leaf):
            raise TypeError(f"`{name}` has a complex leaf, expected real numbers >= 0.")
    params, _ = split(model)
    try:
        fits = jax.tree.leaves(
            jax.tree.map(
                lambda m, part: all(
                    jnp.shape(m) in ((), leaf.shape) for leaf in jax.tree.leaves(part)
                ),
                metric,
                params,
            )
        )
    except ValueError as error:
        raise ValueError(
            f"`{name}` does not match the parameters, expected a PyTree prefix of "
            f"`zoo.parameters(model)`: {error}"
        ) from error
    if not all(fits):
        raise ValueError(
            f"`{name}` has a leaf whose shape is not that of its parameter, expected one number, "
            "or an array of the parameter's shape, a leaf."
        )
    for leaf in jax.tree.leaves(metric):
        checks.finite(name, leaf)
        values = checks.concrete(leaf)
        if values is not None and bool(np.any(values < 0)):
            raise ValueError(
                f"`{name}` has the entry {values.min()}, expected learning-rate multipliers >= 0."
            )
