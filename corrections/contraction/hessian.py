r"""The Hessian of an output of one example, in the coordinates of the gradient's factors.

A layer z_p = V a_p, with the 1 of its bias among the entries of a, has the gradient sum_p delta_p
(x) a_p. Moving the weights by V acts on the network through V a_p and V^T delta_p alone, and so the
Hessian lives on

    V = C Q^T + R D,      Q, R: orthonormal, span(a_p) and span(delta_p);      D Q = 0

of dimension out r + s (in - r), r and s the positions, in the place of out in. There

    |V|^2 = |C|^2 + |D|^2,     V a_p = C Q^T a_p,     V^T delta_p = Q C^T delta_p + D^T R^T delta_p

and H V = G = sum_p delta_p' (x) a_p + delta_p (x) a_p', with ' the derivative along V, has the
coordinates C = G Q, D = R^T G (1 - Q Q^T). Exact: what is left out is in the kernel of H.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from corrections.contraction.factors import Factors, Tangent
from corrections.contraction.gradient_factors import GradientFactors
from corrections.contraction.products import entering
from corrections.contraction.rules import RuledLayer


class FactorHessian:
    """M^{1/2} H M^{1/2} of w . f(x) for one example, on a space that holds its range.

    To be made inside the trace that uses it.

    **Arguments:**

    - `factored`: the model, taken apart.
    - `x`: an example.
    - `weights`: w, of its outputs.
    """

    def __init__(self, factored: GradientFactors, x: PyTree, weights: Float[Array, " k"]):
        self._factored = factored
        self._at, self._derivative = jax.linearize(
            lambda tangent: factored.factors(x, tangent, weights[None]), factored.zero_tangent(1)
        )
        factors = zip(factored.ruled, self._at.inputs, self._at.cotangents, strict=True)
        self._layers = [_Layer(ruled, a, delta[0]) for ruled, a, delta in factors]
        self._root = jnp.sqrt(factored.rest_metric).astype(factored.rest.dtype)

    @property
    def size(self) -> int:
        """The dimension of the space."""
        return sum(layer.size for layer in self._layers) + self._root.size

    def product(self, vector: Float[Array, " size"]) -> Float[Array, " size"]:
        """The operator applied to a vector."""
        parts, start = [], 0
        for layer in self._layers:
            parts.append(layer.direction(vector[start : start + layer.size]))
            start += layer.size
        dot = self._derivative(self._tangent(parts, self._root * vector[start:]))
        return self._coordinates(dot)

    def _tangent(self, directions: list["_Direction"], rest: Array) -> Tangent:
        """What moving along a direction does to the calls."""
        shifts, pulls = [], []
        for ruled, call, places in self._factored.calls_with_places():
            direction = directions[call.layer]
            shifts.append(ruled.from_positions(direction.shift[places], call.output))
            pulls.append(
                ruled.multiplier * ruled.scattered(direction.pull[places], call.input)[None]
            )
        return Tangent(shifts, pulls, rest)

    def _coordinates(self, dot: Factors) -> Array:
        of_layers = [
            layer.coordinates(da, ddelta[0])
            for layer, da, ddelta in zip(self._layers, dot.inputs, dot.cotangents, strict=True)
        ]
        return jnp.concatenate([*of_layers, self._root * dot.rest[0]])


def hessian_size(factored: GradientFactors, x: PyTree[jax.ShapeDtypeStruct]) -> int:
    """The dimension of the space of a `FactorHessian` of an example like this."""
    sizes = []

    def look(x: PyTree) -> Array:
        weights = jnp.ones(factored.outputs.shape, factored.outputs.dtype)
        sizes.append(FactorHessian(factored, x, weights).size)
        return weights

    jax.eval_shape(look, x)
    return sizes[0]


class _Direction:
    """V, by what it does to a layer's calls: V a_p, (positions, out), and V^T delta_p without what
    belongs to the bias, (positions, in).
    """

    def __init__(self, shift: Array, pull: Array):
        self.shift, self.pull = shift, pull


class _Layer:
    """A layer at an example: what enters and leaves its positions, and its coordinates."""

    def __init__(self, ruled: RuledLayer, a: Array, delta: Float[Array, "positions out"]):
        weight, bias = ruled.metrics(delta.dtype)
        entries = entering(a, ruled.rows)
        self._root = jnp.sqrt(jnp.asarray(weight, delta.dtype))
        self._moves = ruled.rows is None
        self._entries = entries.shape[1]
        columns = [self._root * entries]
        if bias is not None:
            root = jnp.sqrt(jnp.asarray(bias, delta.dtype))
            columns.append(jnp.full((len(entries), 1), 1, delta.dtype) * root)
        self._a, self._delta = jnp.concatenate(columns, axis=1), delta
        (positions, size), out = self._a.shape, delta.shape[1]
        r, s = min(positions, size), min(positions, out)
        self._reduced = out * r + s * size < out * size
        self._of_c, self._of_d = ((out, r), (s, size)) if self._reduced else ((out, size), (0, 0))
        if self._reduced:
            self._q, self._r = (jnp.linalg.qr(v.T)[0] for v in (self._a, delta))

    @property
    def size(self) -> int:
        """How many coordinates there are."""
        return math.prod(self._of_c) + math.prod(self._of_d)

    def direction(self, vector: Float[Array, " size"]) -> _Direction:
        """The direction of these coordinates; of D the part with D Q = 0."""
        first = math.prod(self._of_c)
        c = vector[:first].reshape(self._of_c)
        if not self._reduced:
            return _Direction(self._a @ c.T, self._pulled(self._delta @ c))
        d = self._outside(vector[first:].reshape(self._of_d))
        shift = (self._a @ self._q) @ c.T
        pull = (self._delta @ c) @ self._q.T + (self._delta @ self._r) @ d
        return _Direction(shift, self._pulled(pull))

    def coordinates(self, da: Array, ddelta: Array) -> Float[Array, " size"]:
        """Those of G, from the derivatives of the factors."""
        moved = jnp.zeros_like(self._a)
        if self._moves:
            moved = moved.at[:, : self._entries].set(self._root * da)
        if not self._reduced:
            return (ddelta.T @ self._a + self._delta.T @ moved).ravel()
        c = ddelta.T @ (self._a @ self._q) + self._delta.T @ (moved @ self._q)
        d = self._outside((self._delta @ self._r).T @ moved)
        return jnp.concatenate([c.ravel(), d.ravel()])

    def _outside(self, d: Float[Array, "s size"]) -> Float[Array, "s size"]:
        return d - (d @ self._q) @ self._q.T

    def _pulled(self, pull: Float[Array, "positions size"]) -> Array:
        return self._root * pull[:, : self._entries]
