"""The network that is trained, and one gradient of its training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.random as jr

from corrections.parameters import split
from solvers import CrossEntropy
from solvers.losses import mean_loss
from zoo import MLP

NAME = "tanh MLP 784-512x3-10"


class Training(NamedTuple):
    """A model, its data, and a function that computes the gradient of its mean loss."""

    model: MLP
    x: jax.Array
    y: jax.Array
    loss: CrossEntropy
    gradient: Callable[[], Any]


def training(n: int) -> Training:
    """The network `NAME` and n random examples of ten classes."""
    model = MLP(784, 10, width=512, depth=3, activation="tanh", key=jr.key(0))
    x, loss = jr.normal(jr.key(1), (n, 784)), CrossEntropy()
    y = jax.nn.one_hot(jr.randint(jr.key(2), (n,), 0, 10), 10)
    params, apply = split(model)

    @eqx.filter_jit
    def gradient(params: Any, x: jax.Array) -> Any:
        outputs = jax.vmap(apply, in_axes=(None, 0))
        return jax.grad(lambda p: mean_loss(loss, outputs(p, x), y))(params)

    return Training(model, x, y, loss, lambda: gradient(params, x))
