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
