r"""The neural tangent kernel of a finite network.

    Theta(x1, x2) = J(x1) M J(x2)^T,      J = df/dtheta,      O_2 of the hierarchy

(Jacot et al. 2018), at the parameters the model holds; and that of its last hidden representation.
"""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, PyTree, Shaped

from corrections.contraction.factors import Factors
from corrections.contraction.gradient_factors import GradientFactors
from corrections.contraction.products import Deferred, Gradients, LayerGradients, Materialized, Term
from corrections.parameters import (
    check_metric,
    check_outputs,
    check_parameters,
    Method,
    METHODS,
    Metric,
    Model,
)
from zoo import ParameterizedLayer
from zoo.common import checks
from zoo.common.examples import checked_batch, count, one_of
from zoo.common.memory import check_fits
from zoo.common.precision import full_precision
from zoo.common.tiles import (
    Blocks,
    first_tiles,
    in_tiles,
    over_pairs,
    shards_of,
    STORED_BYTES,
    Tiling,
    working_bytes,
)
from zoo.convolution import outside_loops
from zoo.networks.transforms import without_transforms

Outputs = Literal["full", "mean", "diagonal"]


@full_precision
def ntk(
    model: Model,
    x1: PyTree[Shaped[Array, "n1 ..."]],
    x2: PyTree[Shaped[Array, "n2 ..."]] | None = None,
    *,
    metric: Metric | None = None,
    outputs: Outputs = "full",
    method: Method = "auto",
    batch_size: int | None = None,
) -> Float[Array, "n1 ..."]:
    """The neural tangent kernel Theta = J M J^T.

    **Arguments:**

    - `model`: any callable PyTree, one example in, k outputs out: an output of shape () is k = 1,
      one of more axes is read in C order.
    - `x1`, `x2`: batches of examples, (n1, ...) and (n2, ...), or PyTrees of arrays with as many
      rows, one row of each of which the model takes; a missing `x2` means `x1`.
    - `metric`: the learning-rate multipliers M, a PyTree prefix of the parameters (default: 1).
    - `outputs`: "full" gives (n1, k, n2, k); "diagonal" only equal outputs, (n1, n2, k); "mean"
      the average over equal outputs, (n1, n2).
    - `method`: "auto" never forms the gradients of dense layers, and of convolutions only where
      that is cheaper (`corrections.contraction`); what it has no rule for takes the Jacobian, and
      so do layers whose arrays enter the outputs in another way than by calls of the layer
      (`corrections.contraction.contractible`). "structured" insists that every dense layer and
      convolution has its rule; "jacobian" takes the Jacobian of all parameters. All give the same
      numbers, to rounding.
    - `batch_size`: computes tiles of so many examples of `x1` against so many of `x2`: memory is
      then that of two tiles, beside the kernel itself. Of a symmetric kernel only the tiles on and
      above the diagonal are computed. Default: all at once where the gradients of all examples
      take less than 1 GiB, else tiles that do. Where also what is needed to compute them takes no
      more, and nothing is traced (by a `jit`, `grad` or `scan` around), there are no loops at all.

    **Raises:** `ValueError` / `TypeError` for an input that is empty, not finite or not real,
    a model that does not give a vector, a metric that does not fit, an unknown `outputs` or
    `method`, a `batch_size` below 1; `ValueError` for "structured" where a layer's rule does not
    apply, with each such layer and why, and for a kernel that overflows its type; `MemoryError` for
    one that is larger than the memory.

    Source: Jacot, Gabriel & Hongler (2018), section 4; for the metric docs/theory.md, section 1.
    """
    x1 = checked_batch("x1", x1)
    x2 = None if x2 is None else checked_batch("x2", x2)
    check_parameters(model)
    check_metric(model, metric)
    kernel = tangent_kernel(model, x1, x2, metric, outputs, method, batch_size)
    checks.computed("`model`, `x1`, `x2` or `metric`", kernel)
    return kernel


def tangent_kernel(
    model: Model,
    x1: PyTree,
    x2: PyTree | None = None,
    metric: Metric | None = None,
    outputs: Outputs = "full",
    method: Method = "auto",
    batch_size: int | None = None,
) -> Float[Array, "n1 ..."]:
    """`ntk` of a model, a metric and batches that fit; whether it has overflowed is not looked at.

    **Raises:** `ValueError` for unknown `outputs` or `method`, or a `batch_size` below 1.
    """
    checks.choice("outputs", outputs, ("full", "mean", "diagonal"))
    checks.choice("method", method, METHODS)
    batch_size = checks.integer_or_none("batch_size", batch_size)
    traced = checks.is_traced((model, x1, x2, metric))
    return _ntk(model, x1, x2, metric, outputs, method, batch_size, shards_of(x1), traced)


@full_precision
def nngp(
    model: Model,
    x1: PyTree[Shaped[Array, "n1 ..."]],
    x2: PyTree[Shaped[Array, "n2 ..."]] | None = None,
) -> Float[Array, "n1 n2"]:
    """The finite-width kernel of the last hidden representation a, as the readout sees it.

    K(x1, x2) = sigma_w^2 a(x1) . a(x2) / n + sigma_b^2: the covariance of each output where only
    the readout is random. In the limit of infinite width it is the kernel of the network as a
    Gaussian process, whatever the parameterization.

    **Arguments:**

    - `model`: a network whose last layer with a `zoo.ContractionRule` is its readout: `MLP`,
      `CNN`, `WideResNet`, `equinox.nn.MLP`. A function of the outputs may follow (`with_output`);
      it does not enter. All parameters reach the outputs through the readout. Of `scaled(model,
      alpha)` it is alpha^2 times that of the model, of `centered(model)` zero.
    - `x1`, `x2`: batches of examples; a missing `x2` means `x1`.

    The variances are those the readout starts with; for a readout without a parameterization
    (`equinox.nn.Linear`) sigma_w = 1 and sigma_b = 0.

    **Raises:** as `ntk`; `ValueError` for a model without such a readout.

    Source: Neal (1996); Lee et al. (2018), "Deep neural networks as Gaussian processes".
    """
    x1 = checked_batch("x1", x1)
    x2 = None if x2 is None else checked_batch("x2", x2)
    check_parameters(model)
    inner, factor = without_transforms(model)
    kernel = factor * _nngp(inner, x1, x2)
    checks.computed("`model`, `x1` or `x2`", kernel)
    return kernel


@eqx.filter_jit
def _nngp(model: Model, x1: PyTree, x2: PyTree | None) -> Array:
    of_model = check_outputs(model, "x1", x1)
    if x2 is not None:
        check_outputs(model, "x2", x2, outputs=of_model)
    n1, n2 = count(x1), count(x1 if x2 is None else x2)
    check_fits(f"the kernel of {n1} x {n2} examples", (n1, n2), of_model.dtype)
    factored = GradientFactors(model, one_of(x1), None)
    layer, a = factored.readout()
    tile = (
        working_bytes() // factored.bytes_per_example(factored.materialize(pairs=1, partners=1))[1]
    )
    hidden1 = in_tiles(a, x1, tile)
    hidden2 = hidden1 if x2 is None else in_tiles(a, x2, tile)
    weight, bias = 1.0, 0.0
    if isinstance(layer, ParameterizedLayer):
        variances = [
            (layer.multiplier(name) * layer.init_std(name)) ** 2 if name in layer.tensors else 0.0
            for name in ("weight", "bias")
        ]
        weight, bias = variances[0] * hidden1.shape[1], variances[1]
    return weight * (hidden1 @ hidden2.T) / hidden1.shape[1] + bias


@eqx.filter_jit
def _ntk(
    model: Model,
    x1: PyTree,
    x2: PyTree | None,
    metric: Metric | None,
    outputs: Outputs,
    method: Method,
    batch_size: int | None,
    shards: int,
    traced: bool,
) -> Array:
    of_model = check_outputs(model, "x1", x1)
    if x2 is not None:
        check_outputs(model, "x2", x2, outputs=of_model)
    n1, n2, k = count(x1), count(x1 if x2 is None else x2), of_model.shape[0]
    _check_kernel_fits((n1, n2), k, of_model.dtype, outputs, shards)
    factored = GradientFactors(model, one_of(x1), metric, method=method)
    pairs = k * k if outputs == "full" else k
    partners = min(batch_size or n2, n2)
    materialize = factored.materialize(pairs=pairs, partners=partners)
    stored, working = factored.bytes_per_example(materialize)
    product = _product(factored, outputs)

    def of_batch(x: PyTree, *, deferred: bool = False) -> Gradients:
        at = jax.vmap(factored.factors)(x)
        at = _outputs_as_one(at) if outputs == "mean" else at
        return factored.gradients(at, materialize, deferred=deferred)

    examples = n1 if x2 is None else n1 + n2
    once = batch_size is None and shards == 1 and not traced
    if once and examples * working <= STORED_BYTES:
        with outside_loops():
            g1 = of_batch(x1, deferred=True)
            return product(g1, g1 if x2 is None else of_batch(x2, deferred=True))

    def gradients(x: PyTree, shards: int) -> Gradients:
        return in_tiles(of_batch, x, working_bytes() // working, shards, batched=True)

    if batch_size is None and examples * stored > STORED_BYTES * shards:
        batch_size = max(1, STORED_BYTES * shards // (4 * stored))
    if batch_size is None:
        g1 = gradients(x1, shards)
        return product(g1, g1 if x2 is None else gradients(x2, 1))
    rows = columns = Tiling(n1, batch_size, shards)
    if x2 is not None:
        columns = Tiling(n2, batch_size)
    return _in_tiles(gradients, product, (x1, x2), (rows, columns))


Products = Callable[[Gradients, Gradients], Array]


def _product(factored: GradientFactors, outputs: Outputs) -> Products:
    """The part of the kernel between two batches, from their gradients."""
    if outputs == "full":
        return factored.product
    if outputs == "mean":
        k = factored.outputs.shape[0]
        return lambda g1, g2: factored.product(g1, g2)[:, 0, :, 0] / k

    def diagonal(g1: Gradients, g2: Gradients) -> Array:
        def of_one_output(i: Array) -> Array:
            one = _one_output(g1, i)
            return factored.product(one, one if g2 is g1 else _one_output(g2, i))[:, 0, :, 0]

        return jax.vmap(of_one_output, out_axes=-1)(jnp.arange(factored.outputs.shape[0]))

    return diagonal


def _outputs_as_one(at: Factors) -> Factors:
    """Factors of one output, whose product is the sum of those of equal outputs."""
    cotangents = tuple(
        rearrange(delta, "n k positions out -> n 1 positions (k out)") for delta in at.cotangents
    )
    return Factors(at.inputs, cotangents, rearrange(at.rest, "n k rest -> n 1 (k rest)"))


def _one_output(gradients: Gradients, i: Array) -> Gradients:
    """The gradients of output `i` alone."""

    def slice_of(array: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(array, i, 1, axis=1)

    def of_terms(terms: list[Term]) -> list[Term]:
        return [Term(term.input, slice_of(term.cotangent), term.to_bias) for term in terms]

    def of_layer(layer: LayerGradients) -> LayerGradients:
        if isinstance(layer, Materialized):
            return Materialized(slice_of(layer.weight), slice_of(layer.bias))
        return Deferred(*of_terms([layer.term])) if isinstance(layer, Deferred) else of_terms(layer)

    return Gradients([of_layer(layer) for layer in gradients.layers], slice_of(gradients.rest))


def _in_tiles(
    gradients: Callable[[PyTree, int], Gradients],
    product: Products,
    xs: tuple[PyTree, PyTree | None],
    tilings: tuple[Tiling, Tiling],
) -> Array:
    """The kernel, block by block; of a batch with itself those on and above the diagonal."""
    shards = tilings[0].shards

    def of_rows(x: PyTree) -> Gradients:
        return gradients(x, shards)

    def of_columns(x: PyTree) -> Gradients:
        return gradients(x, tilings[1].shards)

    row, column = first_tiles(xs, tilings)
    shapes = jax.eval_shape(of_rows, row), jax.eval_shape(of_columns, column)
    block = jax.eval_shape(product, *shapes)
    # In (n1, k, n2, k) the outputs of rows have an axis of their own.
    blocks = Blocks(tilings, 2 if block.ndim == 4 else 1)
    write = blocks.write_both if xs[1] is None else blocks.write

    def visit(kernel: Array, row: Gradients, column: Gradients, i: Array, j: Array) -> Array:
        return write(kernel, product(row, column), i, j)

    start = blocks.empty(block)
    kernel = over_pairs(visit, start, xs, tilings, of_rows=of_rows, of_columns=of_columns)
    return blocks.joined(kernel)


def _check_kernel_fits(
    ns: tuple[int, int], k: int, dtype: Any, outputs: Outputs, shards: int
) -> None:
    shape = {"full": (ns[0], k, ns[1], k), "diagonal": (*ns, k), "mean": ns}[outputs]
    small = " or outputs='mean'" if outputs != "mean" and k > 1 else ""
    check_fits(f"the kernel of {ns[0]} x {ns[1]} examples", shape, dtype, shards, small)
