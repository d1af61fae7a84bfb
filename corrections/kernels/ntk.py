r"""The neural tangent kernel of a finite network.

    Theta(x1, x2) = J(x1) M J(x2)^T,      J = df/dtheta,      O_2 of the hierarchy

(Jacot et al. 2018), at the parameters the model holds; and that of its last hidden representation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
from einops import rearrange
from jaxtyping import Array, Float, PyTree, Shaped

from corrections.contraction.factors import Factors
from corrections.contraction.gradient_factors import GradientFactors
from corrections.contraction.products import Gradients, Metrics, product
from corrections.kernels.panels import (
    as_outputs,
    axis_of_columns,
    block_of_kernel,
    kernel_in_panels,
    Outputs,
    Plan,
    plan,
)
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
from zoo.common.memory import check_fits, kept_bytes
from zoo.common.precision import full_precision
from zoo.common.tiles import (
    Blocks,
    first_tiles,
    in_tiles,
    over_pairs,
    shards_of,
    Tiling,
    working_bytes,
)
from zoo.convolution import outside_loops
from zoo.networks.transforms import without_transforms


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
    - `batch_size`: the most examples whose gradients are computed in one step, which bounds what
      that needs; default: what stays in the caches, and all at once where everything is small.

    What is kept beside the kernel is set by `zoo.memory_limit`, not by `batch_size`: gradients of
    as many rows as fit, past which the columns stream, so that those of every example are computed
    once where all fit, and about once for each n / rows where they do not. Of a symmetric kernel
    the blocks on and above the diagonal are computed. Inside the user's own `jit`, `grad` or
    `scan`, and on several devices, tiles of a quarter of that memory take the place of rows.

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
    options = _Options(outputs, method, batch_size, kept_bytes())
    shards = shards_of(x1)
    if shards > 1 or checks.is_traced((model, x1, x2, metric)):
        return _in_one_program(model, x1, x2, metric, options, shards)
    found = _at_once(model, x1, x2, metric, options)
    if not isinstance(found, _TooLarge):
        return found

    def of_tile(x: PyTree, start: Array, size: int) -> Gradients:
        return _of_tile(model, x, start, size, metric, options, found.partners)

    ns = count(x1), count(x1 if x2 is None else x2)
    return kernel_in_panels(of_tile, found.metrics, (x1, x2), ns, found.plan, outputs, found.k)


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


_AT_ONCE = 32
"""A kernel is computed at once where all that it needs takes no more than so many tiles."""


class _Options(NamedTuple):
    outputs: Outputs
    method: Method
    batch_size: int | None
    memory: int


class _TooLarge(NamedTuple):
    """What there is to know of a kernel that is not computed at once."""

    plan: Plan
    metrics: Metrics
    k: int
    partners: int


class _Taken(NamedTuple):
    """A model taken apart for a kernel of n1 x n2 examples."""

    factored: GradientFactors
    materialize: list[bool]
    stored: int
    working: int

    def gradients(self, x: PyTree, outputs: Outputs, *, deferred: bool = False) -> Gradients:
        """Those of a batch; for "mean" of all outputs as one."""
        at = jax.vmap(self.factored.factors)(x)
        at = _outputs_as_one(at) if outputs == "mean" else at
        return self.factored.gradients(at, self.materialize, deferred=deferred)


def _taken(
    model: Model, x: PyTree, metric: Metric | None, options: _Options, partners: int
) -> _Taken:
    factored = GradientFactors(model, one_of(x), metric, method=options.method)
    k = factored.outputs.shape[0]
    pairs = k * k if options.outputs == "full" else k
    materialize = factored.materialize(pairs=pairs, partners=partners)
    return _Taken(factored, materialize, *factored.bytes_per_example(materialize))


def _checked_sizes(
    model: Model, x1: PyTree, x2: PyTree | None, outputs: Outputs, shards: int
) -> tuple[int, int]:
    of_model = check_outputs(model, "x1", x1)
    if x2 is not None:
        check_outputs(model, "x2", x2, outputs=of_model)
    ns = count(x1), count(x1 if x2 is None else x2)
    _check_kernel_fits(ns, of_model.shape[0], of_model.dtype, outputs, shards)
    return ns


@eqx.filter_jit
def _at_once(
    model: Model, x1: PyTree, x2: PyTree | None, metric: Metric | None, options: _Options
) -> Array | _TooLarge:
    """The kernel in one program without loops, where all that it needs is small."""
    outputs, _, batch_size, memory = options
    n1, n2 = _checked_sizes(model, x1, x2, outputs, 1)
    taken = _taken(model, x1, metric, options, n2)
    k, metrics = taken.factored.outputs.shape[0], taken.factored.metrics()
    examples = n1 if x2 is None else n1 + n2
    at_most = min(memory, _AT_ONCE * working_bytes())
    deferred = outputs != "diagonal"
    needed = taken.working + (0 if deferred else taken.stored)
    if batch_size is not None or examples * needed > at_most:
        chosen = plan(
            rows=n1,
            columns=None if x2 is None else n2,
            stored=taken.stored,
            working=taken.working,
            tile=batch_size,
            memory=memory,
        )
        return _TooLarge(chosen, metrics, k, n2)
    with outside_loops():
        g1 = taken.gradients(x1, outputs, deferred=deferred)
        g2 = None if x2 is None else taken.gradients(x2, outputs, deferred=deferred)
    return block_of_kernel(metrics, g1, g2, outputs, k)


@eqx.filter_jit
def _of_tile(
    model: Model,
    x: PyTree,
    start: Array,
    size: int,
    metric: Metric | None,
    options: _Options,
    partners: int,
) -> Gradients:
    """The gradients of so many examples of a batch, without loops."""
    with outside_loops():
        tile = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size), x)
        return _taken(model, x, metric, options, partners).gradients(tile, options.outputs)


@eqx.filter_jit
def _in_one_program(
    model: Model,
    x1: PyTree,
    x2: PyTree | None,
    metric: Metric | None,
    options: _Options,
    shards: int,
) -> Array:
    """The same where the kernel is a part of the user's program, and on several devices."""
    outputs, _, batch_size, memory = options
    n1, n2 = _checked_sizes(model, x1, x2, outputs, shards)
    factored, _, stored, working = taken = _taken(model, x1, metric, options, n2)
    tile, k, metrics = (
        batch_size or working_bytes() // working,
        *factored.outputs.shape,
        factored.metrics(),
    )

    def gradients(x: PyTree, shards: int) -> Gradients:
        return in_tiles(lambda x: taken.gradients(x, outputs), x, tile, shards, batched=True)

    def block(g1: Gradients, g2: Gradients) -> Array:
        return _block(metrics, g1, g2, outputs, k)

    if (n1 if x2 is None else n1 + n2) * stored <= memory * shards:
        g1 = gradients(x1, shards)
        return block(g1, g1 if x2 is None else gradients(x2, 1))
    at_most = max(1, memory * shards // (4 * stored))
    rows = columns = Tiling(n1, at_most, shards)
    if x2 is not None:
        columns = Tiling(n2, at_most)
    return _in_tiles(gradients, block, (x1, x2), (rows, columns))


def _block(metrics: Metrics, g1: Gradients, g2: Gradients, outputs: Outputs, k: int) -> Array:
    """The part of the kernel between two batches, from gradients of the outputs, or of "mean" with
    all k as one.
    """
    return as_outputs(product(metrics, g1, g2, diagonal=outputs == "diagonal"), outputs, k)


Products = Callable[[Gradients, Gradients], Array]


def _outputs_as_one(at: Factors) -> Factors:
    """Factors of one output, whose product is the sum of those of equal outputs."""
    cotangents = tuple(
        rearrange(delta, "n k positions out -> n 1 positions (k out)") for delta in at.cotangents
    )
    return Factors(at.inputs, cotangents, rearrange(at.rest, "n k rest -> n 1 (k rest)"))


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
    blocks = Blocks(tilings, axis_of_columns(block))
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
