r"""Products of gradients from their factors, without the gradients.

A layer that is affine in its weights, z = W a + b at each position p, gives an example the gradient
sum_p delta_p (x) a_p, where a_p is what enters the position and delta_p = df/dz_p. So (theory,
section 3)

    <g_1, g_2> = sum_pq (a_1p . a_2q) (delta_1p . delta_2q)      pairs of positions, or
               = <sum_p delta_1p (x) a_1p, sum_q delta_2q (x) a_2q>          gradients,

whichever takes fewer operations. A dense layer has one position: its gradients are never formed. A
convolution has one for each position of its output. Derivatives of gradients are sums of such
terms, by the product rule, and are contracted alike.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from zoo.common.tiles import working_bytes


class Term(eqx.Module):
    """sum_p delta_p (x) a_p for each of n examples: the gradient of a layer's weight, or a part of
    a derivative of it.

    - `input`: a, with the weight's multiplier.
    - `cotangent`: delta, for each of k outputs.
    - `rows`: of a lookup in a table of so many rows, for which `input` holds places, (n, positions,
      1), in the place of one-hot rows; else None.
    - `to_bias`: whether sum_p delta_p is (a part of a derivative of) the bias's gradient. False
      where a is a derivative: the 1 that stands for a before the bias is constant.
    """

    input: Float[Array, "n positions in"]
    cotangent: Float[Array, "n k positions out"]
    to_bias: bool = eqx.field(static=True)
    rows: int | None = eqx.field(static=True, default=None)

    @property
    def entering(self) -> Float[Array, "n positions size"]:
        """What enters each position, in numbers."""
        return entering(self.input, self.rows)


def entering(a: Float[Array, "*n size"], rows: int | None) -> Float[Array, "*n entries"]:
    """What enters positions, in numbers: of a lookup in so many rows one-hot rows."""
    return a if rows is None else jax.nn.one_hot(a[..., 0].astype(int), rows, dtype=a.dtype)


class Materialized(NamedTuple):
    """The same, summed up: the gradients themselves."""

    weight: Float[Array, "n k size"]
    bias: Float[Array, "n k out"]


class Deferred(NamedTuple):
    """The same, summed up as they are contracted and not before: a few channels at a time."""

    term: Term


LayerGradients = list[Term] | Materialized | Deferred


class Gradients(NamedTuple):
    """The gradients of n examples' k outputs, or derivatives of them.

    - `layers`: one entry for each ruled layer.
    - `rest`: the part of the parameters that no rule covers.
    """

    layers: list[Any]
    rest: Float[Array, "n k parameters"]


def pairs_are_cheaper(
    positions: int,
    size: int,
    out: int,
    *,
    outputs: int,
    pairs: int,
    partners: int,
    one_hot: bool = False,
) -> bool:
    """Whether products of pairs of positions take fewer operations than those of gradients.

    **Arguments:**

    - `positions`, `size`, `out`: of the layer; lengths of a and delta.
    - `outputs`, `pairs`: the outputs of an example, and the pairs of outputs that are contracted
      for a pair of examples.
    - `partners`: examples that share the cost of forming an example's gradients.
    - `one_hot`: whether a is, of which products are comparisons of places.
    """
    of_pairs = positions**2 * ((1 if one_hot else size) + pairs * out)
    of_gradients = pairs * out * size + outputs * positions * out * size / partners
    return of_pairs <= of_gradients


def materialized(terms: list[Term]) -> Materialized:
    """The gradients that `terms` add up to."""
    weight = sum(jnp.einsum("nkpo,npi->nkoi", term.cotangent, term.entering) for term in terms)
    bias = sum(jnp.sum(term.cotangent, axis=2) for term in terms if term.to_bias)
    return Materialized(weight.reshape(*weight.shape[:2], -1), bias)  # pyright: ignore


class Metrics(NamedTuple):
    """The metric of every parameter, as products of gradients take it.

    - `layers`: for each ruled layer that of its weight and of its bias, the latter with the square
      of its multiplier; None for a layer without bias.
    - `rest`: of each parameter that no rule covers; None where it is 1.
    """

    layers: list[tuple[Any, Any]]
    rest: Float[Array, " parameters"] | None


@jax.named_scope("kernel_products")
def product(
    metrics: Metrics, first: Gradients, second: Gradients, *, diagonal: bool = False
) -> Float[Array, "n1 ..."]:
    """<g_1, g_2>_M for all pairs of examples and outputs of two batches, (n1, k, n2, l);
    `diagonal`: of equal outputs only, (n1, n2, k).
    """
    rest = first.rest
    if metrics.rest is not None:
        rest = rest * repeated(metrics.rest, first)[None, None]
    total = gram(rest, second.rest, diagonal)
    for metric, layer1, layer2 in zip(metrics.layers, first.layers, second.layers, strict=True):
        if isinstance(layer1, Deferred):
            # One after the other: two of them at a time get in each other's way in the caches.
            same = layer2 is layer1
            total, layer1 = jax.lax.optimization_barrier((total, layer1))
            layer2 = layer1 if same else layer2
        total += layer_product(layer1, layer2, *metric, diagonal=diagonal)
    return total


def repeated(metric: Array, gradients: Gradients) -> Array:
    """The metric of the rest, once for each output that is on its axis."""
    return jnp.tile(metric, gradients.rest.shape[-1] // max(metric.size, 1))


def layer_product(
    first: LayerGradients, second: LayerGradients, weight: Any, bias: Any, *, diagonal: bool = False
) -> Float[Array, "n1 ..."] | float:
    """The products of two sets' gradients of one layer, as `product`; its metrics as `Metrics`."""
    if isinstance(first, Materialized):
        assert isinstance(second, Materialized)
        total = weight * gram(first.weight, second.weight, diagonal)
        if bias is not None:
            total += bias * gram(first.bias, second.bias, diagonal)
        return total
    if isinstance(first, Deferred):
        assert isinstance(second, Deferred)
        assert not diagonal
        return _product_by_channels(first.term, second.term, weight, bias)
    assert isinstance(second, list)
    return sum(_pairs_product(t1, t2, weight, bias, diagonal) for t1 in first for t2 in second)


def _product_by_channels(
    first: Term, second: Term, weight: Any, bias: Any
) -> Float[Array, "n1 k n2 l"]:
    """The products of gradients of which a part, that of some channels of the layer's output, is
    materialized at a time: as many as the caches hold. Half of a symmetric product is computed.
    """
    sets = [first] if second is first else [first, second]
    (n1, k1, _, out), (n2, k2) = first.cotangent.shape, second.cotangent.shape[:2]
    channels, inputs = _channels_at_once(sets), [term.entering for term in sets]

    def gradients(term: Term, a: Array, start: Array) -> tuple[Array, Array]:
        part = jax.lax.dynamic_slice_in_dim(term.cotangent, start, channels, axis=3)
        k = part.shape[1]
        delta = rearrange(part, "n k positions channels -> n (k channels) positions")
        rows = rearrange(delta @ a, "n (k channels) size -> (n k) (channels size)", k=k)
        biases = rearrange(jnp.sum(delta, axis=2), "n (k channels) -> (n k) channels", k=k)
        return rows, biases

    half = n1 * k1 // 2 if second is first else 0
    upper, lower = slice(half), slice(half, None)
    blocks = [(upper, upper), (upper, lower), (lower, lower)] if half else [(lower, lower)]

    def add(total: list[Array], start: Array) -> tuple[list[Array], None]:
        parts = [gradients(*one, start) for one in zip(sets, inputs, strict=True)]
        (rows, row_biases), (columns, column_biases) = parts[0], parts[-1]
        added = []
        for so_far, (of_rows, of_columns) in zip(total, blocks, strict=True):
            block = weight * (rows[of_rows] @ columns[of_columns].T)
            if bias is not None:
                block += bias * (row_biases[of_rows] @ column_biases[of_columns].T)
            added.append(so_far + block)
        return added, None

    nothing = jnp.zeros((n1 * k1, n2 * k2), first.input.dtype)
    zeros = [nothing[of_rows, of_columns] for of_rows, of_columns in blocks]
    total, _ = jax.lax.scan(add, zeros, jnp.arange(0, out, channels))
    if half:
        product = jnp.block([[total[0], total[1]], [total[1].T, total[2]]])
    else:
        (product,) = total
    return rearrange(product, "(n1 k) (n2 l) -> n1 k n2 l", k=k1, l=k2)


def _channels_at_once(sets: list[Term]) -> int:
    """A divisor of the channels whose part of the gradients fits in the caches."""
    n_k = sum(math.prod(term.cotangent.shape[:2]) for term in sets)
    out, size = sets[0].cotangent.shape[-1], sets[0].rows or sets[0].input.shape[-1]
    fitting = working_bytes() // 4 // (n_k * size * sets[0].input.dtype.itemsize)
    return max(c for c in range(1, out + 1) if out % c == 0 and c <= max(1, fitting))


def gram(
    first: Float[Array, "n1 k size"], second: Float[Array, "n2 l size"], diagonal: bool = False
) -> Float[Array, "n1 ..."]:
    """All inner products of two sets of vectors: one product of two matrices, (n1, k, n2, l), or
    one for each k, (n1, n2, k).
    """
    if diagonal:
        return jnp.einsum("nks,mks->nmk", first, second)
    rows, columns = (rearrange(v, "n k size -> (n k) size") for v in (first, second))
    of_each = {"k": first.shape[1], "l": second.shape[1]}
    return rearrange(rows @ columns.T, "(n1 k) (n2 l) -> n1 k n2 l", **of_each)


def _pairs_product(first: Term, second: Term, weight: Any, bias: Any, diagonal: bool) -> Array:
    if first.rows is None:
        inputs = weight * gram(first.input, second.input)
    else:
        places = first.input[:, :, None, None, 0] == second.input[None, None, :, :, 0]
        inputs = weight * places.astype(first.input.dtype)
    if bias is not None and first.to_bias and second.to_bias:
        inputs += bias
    if diagonal:
        cotangents = jnp.einsum("nkpo,mkqo->knpmq", first.cotangent, second.cotangent)
        return jnp.moveaxis(jnp.sum(inputs[None] * cotangents, axis=(2, 4)), 0, -1)
    merged = [
        rearrange(term.cotangent, "n k positions out -> n (k positions) out")
        for term in (first, second)
    ]
    cotangents = rearrange(
        gram(merged[0], merged[1]),
        "n1 (k p) n2 (l q) -> n1 k p n2 l q",
        k=first.cotangent.shape[1],
        l=second.cotangent.shape[1],
    )
    return jnp.sum(inputs[:, None, :, :, None] * cotangents, axis=(2, 5))


class Direction(eqx.Module):
    """The direction V = sum_r delta_c (x) a_c of a layer's weight, r over positions.

    Materialized only where that takes fewer operations than its factors.
    """

    input: Float[Array, "r in"]
    cotangent: Float[Array, "r out"]
    matrix: Float[Array, "out in"] | None
    rows: int | None = eqx.field(static=True)

    def __init__(
        self, a_c: Float[Array, "r in"], delta_c: Float[Array, "r out"], rows: int | None = None
    ):
        """`rows`: as of a `Term`."""
        (positions, size), out = a_c.shape, delta_c.shape[-1]
        self.input, self.cotangent, self.rows = a_c, delta_c, rows
        materialized = rows is None and positions * (size + out) > size * out
        self.matrix = delta_c.T @ a_c if materialized else None

    def push(self, a: Float[Array, "p in"]) -> Float[Array, "p out"]:
        """v a_p."""
        if self.rows is not None:
            return (a == self.input[None, :, 0]).astype(a.dtype) @ self.cotangent
        if self.matrix is None:
            return (a @ self.input.T) @ self.cotangent
        return a @ self.matrix.T

    def pull(self, delta: Float[Array, "k p out"]) -> Float[Array, "k p in"]:
        """v^T delta_p."""
        if self.matrix is None:
            return (delta @ self.cotangent.T) @ self.input
        return delta @ self.matrix
