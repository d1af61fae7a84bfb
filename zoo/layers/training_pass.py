"""The forward pass of training, where a batch moves the statistics of batch normalization."""

from typing import Any, TypeVar

import jax
from jaxtyping import Array, Float, PyTree, Shaped

from zoo.common import checks
from zoo.common.examples import checked_examples
from zoo.layers.frozen import Frozen
from zoo.layers.normalization import BatchNorm

_Model = TypeVar("_Model")


def forward_train(
    model: _Model, xs: PyTree[Shaped[Array, "n ..."]]
) -> tuple[Float[Array, "n ..."], _Model]:
    """Outputs of a batch as in training, and the model with its statistics moved.

    Batch normalization takes the statistics of `xs` here, while `model(x)` takes the frozen ones
    it has gathered. A model without it gives `jax.vmap(model)(xs)` and itself. For training,

        def loss(model):
            outputs, moved = zoo.forward_train(model, xs)
            return mean_loss(outputs), moved

        (value, moved), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(model)

    then apply the updates to `moved`.

    **Arguments:**

    - `model`: a model of the zoo, or a module of your own. One that holds a `BatchNorm` states how
      a batch runs through it in a method `forward_train(xs) -> (outputs, module)`.
    - `xs`: a batch of examples, (n, ...), or a PyTree of arrays with as many rows.

    **Raises:** `TypeError` for a module that holds a `BatchNorm` and has no such method, or where
    `xs` holds no real numbers; `ValueError` for an empty batch.
    """
    checks.function("model", model, "a callable PyTree")
    xs = checked_examples("xs", xs, half="kept")
    run: Any = getattr(model, "forward_train", None)
    if run is not None:
        return run(xs)
    if _holds_batch_norm(model):
        raise TypeError(
            f"{type(model).__name__} holds batch normalization and has no method `forward_train`, "
            "expected `forward_train(self, xs) -> (outputs, module)`: only the module knows how a "
            "batch runs through it. (`zoo.Sequential` and `zoo.Residual` have one.)"
        )
    model_fn: Any = model
    return jax.vmap(model_fn)(xs), model


def _holds_batch_norm(model: Any) -> bool:
    """Whether `model` has batch normalization in it that is not frozen."""

    def stops(node: Any) -> bool:
        return isinstance(node, BatchNorm | Frozen)

    return any(isinstance(node, BatchNorm) for node in jax.tree.leaves(model, is_leaf=stops))
