"""Models whose kernels are known in closed form, and small networks for comparisons."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from zoo import ACTIVATIONS, BatchNorm, Conv, Dense, Flatten, MLP, Sequential


class TwoLayerLinear(eqx.Module):
    """f(x) = n^{-1/2} v^T U x: its kernels are polynomials (theory, section 6)."""

    u: Float[Array, "n d"]
    v: Float[Array, " n"]

    def __init__(self, width: int, in_size: int = 1, *, key: Array):
        u_key, v_key = jr.split(key)
        self.u = jr.normal(u_key, (width, in_size))
        self.v = jr.normal(v_key, (width,))

    @property
    def width(self) -> int:
        return self.v.shape[0]

    def __call__(self, x: Array) -> Array:
        return (self.v @ (self.u @ x))[None] / jnp.sqrt(self.width)


class Polynomial(eqx.Module):
    """k outputs that are cubic in the parameters: its Taylor model of order 3 is exact."""

    w: Float[Array, "k d"]
    b: Float[Array, " k"]

    def __call__(self, x: Array) -> Array:
        z = self.w @ x
        return z**3 + 2 * z * self.b + self.b**2 + 1


def tanh_mlp(seed: int = 0, in_size: int = 3, out_size: int = 2, width: int = 8, **options) -> MLP:
    """A small smooth network with biases."""
    options = {"bias_std": 0.5, "depth": 2, "activation": "tanh"} | options
    return MLP(in_size, out_size, width=width, key=jr.key(seed), **options)


def batch_norm_network() -> Sequential:
    """The smallest network with batch normalization, on images (1, 4, 4)."""
    layers = [Conv(1, 2, kernel_size=(3, 3), key=jr.key(0)), BatchNorm(2), ACTIVATIONS["tanh"]]
    return Sequential([*layers, Flatten(), Dense(32, 2, key=jr.key(1))])


def inputs(n: int, d: int = 3, seed: int = 10) -> Array:
    """N random examples."""
    return jr.normal(jr.key(seed), (n, d))


def one_hot(n: int, k: int) -> Array:
    """N one-hot targets over k classes."""
    return jax.nn.one_hot(jnp.arange(n) % k, k, dtype=float)


class Stateful(eqx.Module):
    """Layers that take an `equinox.nn.State`, with the one they are evaluated in."""

    layers: "NormalizedDense"
    state: eqx.nn.State
    shift: eqx.nn.StateIndex

    def __call__(self, x: Array) -> Array:
        return self.layers(x, self.state)[0] + self.shift.init


class NormalizedDense(eqx.Module):
    """A dense layer and Equinox's batch normalization by running statistics."""

    dense: eqx.nn.Linear
    norm: eqx.nn.BatchNorm

    def __init__(self):
        self.dense = eqx.nn.Linear(3, 2, key=jr.key(0))
        self.norm = eqx.nn.BatchNorm(2, "batch", mode="ema", inference=True)

    def __call__(self, x: Array, state: eqx.nn.State) -> tuple[Array, eqx.nn.State]:
        z, state = self.norm(self.dense(x), state)
        return jnp.tanh(z), state


def stateful_network() -> Stateful:
    """With running statistics, and an index that holds its own, that are not those of the start."""
    layers, state = eqx.nn.make_with_state(NormalizedDense)()
    moved = jax.tree.map(
        lambda leaf: leaf + 0.5 if eqx.is_inexact_array(leaf) else jnp.zeros_like(leaf), state
    )
    return Stateful(layers, moved, eqx.nn.StateIndex(jnp.array([0.3, -0.2])))
