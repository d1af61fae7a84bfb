"""The network that is trained, and one gradient of its training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.random as jr

from corrections.parameters import split
from scripts.benchmark.timing import bytes_taken
from solvers import CrossEntropy
from solvers.losses import mean_loss
from zoo import MLP
from zoo.networks.network import Network

NAME = "tanh MLP 784-512x3-10"


class Training(NamedTuple):
    """A model, its data, a function that computes the gradient of its mean loss, and the bytes that
    takes: its arguments, its result and what lies between.
    """

    model: Network
    x: jax.Array
    y: jax.Array
    loss: CrossEntropy
    gradient: Callable[[], Any]
    bytes_taken: int


def training(n: int, model: Network | None = None, shape: tuple[int, ...] = (784,)) -> Training:
    """The network `NAME`, or another, and n random examples of ten classes."""
    if model is None:
        model = MLP(784, 10, width=512, depth=3, activation="tanh", key=jr.key(0))
    x, loss = jr.normal(jr.key(1), (n, *shape)), CrossEntropy()
    y = jax.nn.one_hot(jr.randint(jr.key(2), (n,), 0, 10), 10)
    params, apply = split(model)

    @jax.jit
    def gradient(params: Any, x: jax.Array, y: jax.Array) -> Any:
        outputs = jax.vmap(apply, in_axes=(None, 0))
        return jax.grad(lambda p: mean_loss(loss, outputs(p, x), y))(params)

    taken = bytes_taken(gradient, params, x, y)
    return Training(model, x, y, loss, lambda: gradient(params, x, y), taken)
