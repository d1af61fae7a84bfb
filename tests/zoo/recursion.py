"""The recursion of theory section 7 for E z^2, in NumPy: an oracle for initial scales.

The state is the covariance C[p, q] = E a_p a_q of one channel over pairs of positions, in the limit
of many channels. Nothing of the zoo's forward pass is used, only what the layers say they are.
"""

import itertools
import math

import jax.numpy as jnp
import numpy as np

from zoo import Activation, Conv, Dense, Flatten, GlobalAveragePool, GroupNorm, Residual, Sequential

# Gauss-Hermite in two dimensions: of no use to a kink to all digits, but to 1e-3.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def preactivation_moments(model, x):
    """E z^2, averaged over positions, for each layer with weights, in the order of the calls."""
    found = []
    space = x.shape[1:]
    flat = np.asarray(x, float).reshape(x.shape[0], -1)
    _through(model.body, flat.T @ flat / x.shape[0], space, found)
    return found


def _through(layer, c, space, found):
    if isinstance(layer, Sequential):
        for inner in layer.layers:
            c, space = _through(inner, c, space, found)
        return c, space
    if isinstance(layer, Residual):
        branch, out = _through(layer.branch, c, space, found)
        if layer.shortcut is not None:
            c, _ = _through(layer.shortcut, c, space, found)
        return branch + c, out
    if isinstance(layer, Activation):
        return _activated(layer.function, c), space
    if isinstance(layer, GroupNorm):
        return c / (np.trace(c) / len(c) + layer.epsilon), space
    if isinstance(layer, Flatten):
        return np.array([[np.trace(c) / len(c)]]), ()
    if isinstance(layer, GlobalAveragePool):
        return np.array([[c.mean()]]), ()
    if isinstance(layer, Conv):
        c, space = _convolved(layer, c, space)
    else:
        assert isinstance(layer, Dense)
    c = layer.weight_std**2 * c + (layer.bias_std or 0.0) ** 2
    found.append(np.trace(c) / len(c))
    return c, space


def _activated(function, c):
    """E phi(u) phi(v) for (u, v) ~ N(0, [[c_pp, c_pq], [c_pq, c_qq]]), by quadrature."""
    std = np.sqrt(np.diag(c))
    rho = np.clip(c / np.outer(std, std), -1, 1)[..., None, None]
    u, v = _NODES[:, None], _NODES[None, :]
    first = _values(function, std[:, None] * _NODES)[:, None, :, None]
    second = _values(function, std[None, :, None, None] * (rho * u + np.sqrt(1 - rho**2) * v))
    return np.einsum("pqij,i,j->pq", first * second, _WEIGHTS, _WEIGHTS)


def _values(function, points):
    return np.asarray(function(jnp.asarray(points)))


def _convolved(layer, c, space):
    """The mean over the offsets of a patch of the covariance between equal offsets."""
    kernel, circular = layer.weight.shape[2:], layer.padding == "CIRCULAR"
    valid = layer.padding == "VALID"
    axes = []  # for each axis: input index by (output position, offset), -1 outside
    for n, k, s in zip(space, kernel, layer.stride, strict=True):
        out = (n - k) // s + 1 if valid else math.ceil(n / s)
        low = 0 if valid else max((out - 1) * s + k - n, 0) // 2
        index = s * np.arange(out)[:, None] + np.arange(k)[None, :] - low
        axes.append(index % n if circular else np.where((index >= 0) & (index < n), index, -1))
    out_space = tuple(len(index) for index in axes)
    total = np.zeros((math.prod(out_space),) * 2)
    for offset in itertools.product(*map(range, kernel)):
        columns = [index[:, q] for index, q in zip(axes, offset, strict=True)]
        grid = np.meshgrid(*columns, indexing="ij")
        inside = np.all([g >= 0 for g in grid], axis=0).ravel()
        at = np.ravel_multi_index([np.maximum(g, 0) for g in grid], space).ravel()
        total += c[np.ix_(at, at)] * np.outer(inside, inside)
    return total / math.prod(kernel), out_space
