"""Which arrays of a model are its parameters: the one place that decides it."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree


def parameters(model: PyTree) -> PyTree:
    """What of `model` is trained and differentiated, with None in the place of everything else.

    The parameters of a model are its inexact arrays, but for those in `equinox.nn.State` and
    `equinox.nn.StateIndex`: running statistics and the like are written by the forward pass, and
    nobody trains them. (`Frozen` holds no inexact arrays.) Trees like this one are what optimisers
    start from, and what metrics and directions in parameter space are shaped like.

    **Arguments:**

    - `model`: any PyTree; of a tree like the parameters it is that tree.
    """
    return eqx.filter(model, trained(model))


def partitioned(model: PyTree) -> tuple[PyTree, PyTree]:
    """The parameters of a model, and all the rest of it, for `equinox.combine`."""
    params, rest = eqx.partition(model, trained(model))
    return params, rest


def is_state(node: Any) -> bool:
    """Whether a node of a model holds what its forward pass writes: no array in it is trained."""
    return isinstance(node, eqx.nn.State | eqx.nn.StateIndex)


def trained(model: PyTree) -> PyTree[bool]:
    """Whether each leaf of a model is a parameter."""

    def of_node(node: Any) -> PyTree[bool]:
        if is_state(node):
            return jax.tree.map(lambda _: False, node)
        return eqx.is_inexact_array(node)

    return jax.tree.map(of_node, model, is_leaf=is_state)
