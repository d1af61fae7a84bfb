"""The recursion of theory section 7 for both kernels, in NumPy: an oracle for `zoo.limit`.

The state is one matrix over all examples and positions, K[(i, p), (j, q)], and one like it for the
tangent kernel. A convolution is a sum of A_q K A_q^T over the positions of its kernel, with A_q the
matrix that picks the neighbour q. Nothing of the zoo's limits is used, only what layers say they
are; NTK parameterization.
"""

import itertools
import math

import numpy as np

from zoo import Activation, Conv, Dense, Flatten, GlobalAveragePool, GroupNorm, Residual, Sequential


def joint_kernels(model, xs):
    """NNGP and tangent kernel, (n, n), of a network of the zoo."""
    n, channels, *space = xs.shape
    flat = np.moveaxis(np.asarray(xs, float).reshape(n, channels, -1), 1, 2).reshape(-1, channels)
    state = flat @ flat.T / channels, np.zeros((len(flat), len(flat))), 0.0
    (k, t, scale), space = _through(model.body, state, tuple(space), n)
    assert space == ()
    return k, t + scale * k


def _through(layer, state, space, n):
    k, t, scale = state  # scale z z' is what scales add to the tangent kernel of a channel z
    positions = math.prod(space)
    if isinstance(layer, Sequential):
        for inner in layer.layers:
            state, space = _through(inner, state, space, n)
        return state, space
    if isinstance(layer, Residual):
        assert scale == 0
        (kb, tb, _), out = _through(layer.branch, state, space, n)
        if layer.shortcut is not None:
            (k, t, _), _ = _through(layer.shortcut, state, space, n)
        return (k + kb, t + tb, 0.0), out
    if isinstance(layer, Activation):
        values, slopes, weighted = DUALS[layer.name](k)
        return (values, slopes * t + scale * weighted, 0.0), space
    if isinstance(layer, GroupNorm):
        power = np.diag(k).reshape(n, positions).mean(axis=1) + layer.epsilon
        root = np.repeat(power, positions) ** -0.5
        k, t = (m * root[:, None] * root[None] for m in (k, t))
        return (k, t + 1, scale + 1), space
    if isinstance(layer, Flatten | GlobalAveragePool):
        pick = np.eye(positions) if isinstance(layer, Flatten) else np.ones((positions, positions))
        weights = pick / pick.sum()
        means = [
            np.einsum("ipjq,pq->ij", m.reshape(n, positions, n, positions), weights) for m in (k, t)
        ]
        return (*means, scale), ()
    t = t + scale * k
    if isinstance(layer, Conv):
        picks, space = _picks(layer, space)
        each = [np.kron(np.eye(n), pick) for pick in picks]
        k, t = (sum(a @ m @ a.T for a in each) / len(each) for m in (k, t))
    else:
        assert isinstance(layer, Dense)
    w, b = layer.weight_std**2, (layer.bias_std or 0.0) ** 2
    return (w * k + b, w * k + b + w * t, 0.0), space


def _relu(k):
    std = np.sqrt(np.diag(k))
    angle = np.arccos(np.clip(k / np.outer(std, std), -1, 1))
    values = np.outer(std, std) * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    return values, (np.pi - angle) / (2 * np.pi), values


def _erf(k):
    root = np.sqrt(1 + 2 * np.diag(k))
    sine = np.clip(2 * k / np.outer(root, root), -1, 1)
    values = 2 / np.pi * np.arcsin(sine)
    outer = np.outer(root, root) ** 2 * (1 - sine**2)
    slopes = 4 / np.pi / np.sqrt(outer)
    return values, slopes, slopes * k / outer


def _tanh(k):
    """By 2-d Gauss-Hermite quadrature."""
    std = np.sqrt(np.diag(k))
    rho = np.clip(k / np.outer(std, std), -1, 1)
    z, w = np.polynomial.hermite_e.hermegauss(160)
    w = w / w.sum()
    a, b = np.sqrt((1 + rho) / 2)[..., None, None], np.sqrt((1 - rho) / 2)[..., None, None]
    u = std[:, None, None, None] * (a * z[:, None] + b * z)
    v = std[None, :, None, None] * (a * z[:, None] - b * z)

    def mean(fn):
        return np.einsum("xyij,i,j->xy", fn(u) * fn(v), w, w)

    slopes = mean(lambda s: 1 - np.tanh(s) ** 2)
    return mean(np.tanh), slopes, mean(lambda s: s * (1 - np.tanh(s) ** 2))


def _identity(k):
    return k, np.ones_like(k), k


DUALS = {"relu": _relu, "erf": _erf, "tanh": _tanh, "identity": _identity}


def _picks(layer, space):
    """A_q for each position q of the kernel, (out positions, in positions); the output's space."""
    kernel, circular = layer.weight.shape[2:], layer.padding == "CIRCULAR"
    valid = layer.padding == "VALID"
    axes = []
    for length, k, s in zip(space, kernel, layer.stride, strict=True):
        out = (length - k) // s + 1 if valid else math.ceil(length / s)
        low = 0 if valid else max((out - 1) * s + k - length, 0) // 2
        per_offset = []
        for q in range(k):
            pick = np.zeros((out, length))
            for p in range(out):
                index = s * p + q - low
                if circular:
                    pick[p, index % length] = 1
                elif 0 <= index < length:
                    pick[p, index] = 1
            per_offset.append(pick)
        axes.append(per_offset)
    picks = []
    for chosen in itertools.product(*axes):
        whole = np.ones((1, 1))
        for pick in chosen:
            whole = np.kron(whole, pick)
        picks.append(whole)
    return picks, tuple(len(per_offset[0]) for per_offset in axes)
