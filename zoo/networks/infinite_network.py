r"""The infinitely wide network of a module: its kernels as a Gaussian process and in training.

K^0 = x . x' / d,  and layer by layer  K -> forward K + bias,  Theta -> backward Theta + gradient K
+ bias for layers with weights;  K -> E phi phi,  Theta -> E phi' phi' Theta  for activations.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, Float

from zoo.common import checks
from zoo.common.examples import floating_batch
from zoo.common.memory import check_fits
from zoo.common.precision import full_precision
from zoo.common.records import short_repr
from zoo.common.tiles import Blocks, DEVICE_BYTES, first_tiles, over_pairs, shards_of, Tiling
from zoo.common.trainable import is_state
from zoo.layers.frozen import Frozen
from zoo.limits.affine import AffineLimitRule
from zoo.limits.inputs import input_batch, input_kernels, InputBatch
from zoo.limits.kernels import LayerKernels, LimitLayout, LimitNeeds
from zoo.limits.rule import limit_rule_of, LimitRule
from zoo.limits.widths import LimitWidths, NoLimitError, product_of, Wide
from zoo.parameterization import Parameterization
from zoo.parameterized_layer import ParameterizedLayer

ERROR_TOLERANCE = 5e-5
"""The share of a kernel that a series may leave unresolved before there is a warning."""

_ARRAYS = 8
"""Arrays of the size of a layer's kernel that are alive at once, about."""
_CPU_TILE = 2**21  # bytes


class QuadratureWarning(UserWarning):
    """An activation without a closed form is resolved to fewer digits than `ERROR_TOLERANCE`."""


@short_repr
class Kernels(NamedTuple):
    """Both kernels of an infinitely wide network, (n1, n2); see `limit`."""

    nngp: Float[Array, "n1 n2"]
    ntk: Float[Array, "n1 n2"]


class InfiniteNetwork(eqx.Module):
    """A network of infinite width; see `limit`.

    Its arrays are the standard deviations of its layers, so that `jax.grad` and `jax.jvp` of what
    its kernels give are derivatives in them (`with_stds` sets many at once).
    """

    rule: LimitRule

    def nngp(
        self,
        x1: Float[ArrayLike, "n1 ..."],
        x2: Float[ArrayLike, "n2 ..."] | None = None,
        *,
        batch_size: int | None = None,
    ) -> Float[Array, "n1 n2"]:
        """K(x1, x2) = E f(x1) f(x2), the covariance of each output over initialisations.

        **Arguments:**

        - `x1`, `x2`: batches of examples; a missing `x2` means `x1`. Float64 is recommended; in
          float32 the tangent kernel of a kinked activation is good to 3e-4 near correlation 1.
        - `batch_size`: the most examples on each side of a tile (default: by memory).

        **Raises:** `ValueError` / `TypeError` for batches that do not fit; `NoLimitError`;
        `MemoryError` for a kernel that is larger than the memory.
        """
        return self._kernels(x1, x2, batch_size, tangent=False)[0]

    def ntk(
        self,
        x1: Float[ArrayLike, "n1 ..."],
        x2: Float[ArrayLike, "n2 ..."] | None = None,
        *,
        batch_size: int | None = None,
    ) -> Float[Array, "n1 n2"]:
        """Theta(x1, x2), the tangent kernel of each output; arguments as for `nngp`."""
        return self.kernels(x1, x2, batch_size=batch_size).ntk

    def kernels(
        self,
        x1: Float[ArrayLike, "n1 ..."],
        x2: Float[ArrayLike, "n2 ..."] | None = None,
        *,
        batch_size: int | None = None,
    ) -> Kernels:
        """Both, at the cost of `ntk`; arguments as for `nngp`."""
        nngp, ntk = self._kernels(x1, x2, batch_size, tangent=True)
        assert ntk is not None
        return Kernels(nngp, ntk)

    def with_stds(
        self,
        *,
        weight_std: Any = None,
        bias_std: Any = None,
        readout_std: Any = None,
    ) -> "InfiniteNetwork":
        """The same network with other standard deviations; they may be traced.

        **Arguments:**

        - `weight_std`, `readout_std`: of the weights, of all layers but the readout and of the
          readout. None leaves them.
        - `bias_std`: of the biases.

        **Raises:** `ValueError` for a `bias_std` of a network without biases.
        """

        def is_affine(node: Any) -> bool:
            return isinstance(node, AffineLimitRule)

        def moved(rule: Any) -> Any:
            if not is_affine(rule):
                return rule
            std = readout_std if rule.role == "readout" else weight_std
            if std is not None:
                std = jnp.asarray(std, rule.weight_std.dtype)
                rule = eqx.tree_at(lambda r: r.weight_std, rule, std)
            if bias_std is not None and rule.bias_std is not None:
                std = jnp.asarray(bias_std, rule.bias_std.dtype)
                rule = eqx.tree_at(lambda r: r.bias_std, rule, std)
            return rule

        layers = [r for r in jax.tree.leaves(self, is_leaf=is_affine) if is_affine(r)]
        if bias_std is not None and all(layer.bias_std is None for layer in layers):
            raise ValueError(
                f"`bias_std` is {bias_std!r}, but the network has no biases, expected None (or a "
                "model that was made with a `bias_std`)."
            )
        return jax.tree.map(moved, self, is_leaf=is_affine)

    @full_precision
    def _kernels(
        self, x1: Any, x2: Any, batch_size: int | None, *, tangent: bool
    ) -> tuple[Array, Array | None]:
        x1 = floating_batch("x1", x1)
        if x1.ndim < 2:
            raise ValueError(
                f"`x1` has shape {x1.shape}, expected a batch of vectors (n, d) or of "
                "channel-first images (n, channels, ...)."
            )
        if x2 is not None:
            x2 = floating_batch("x2", x2).astype(x1.dtype)
            checks.shape("x2", x2, ("n2", *x1.shape[1:]), because="examples as those of `x1`")
        batch_size = checks.integer_or_none("batch_size", batch_size)
        shards = shards_of(x1)
        n1, n2 = len(x1), len(x1 if x2 is None else x2)
        check_fits(f"the kernel of {n1} x {n2} examples", (n1, n2), x1.dtype, shards)
        if x2 is None and shards > 1:
            x2 = _on_every_device(x1)  # so that rows of the kernel are sharded as `x1` is
        nngp, ntk, error = _kernels(self.rule, x1, x2, batch_size, shards, tangent)
        checks.computed("`x1` or `x2`", (nngp, ntk))
        _warn(error)
        return nngp, ntk


_MOST_POWER = 16.0


def limit(
    model: Any, *, equivalent_to: Parameterization | None = None, rate_power: int | float = 0
) -> InfiniteNetwork:
    """The limit of infinite width of the very network that `model` is one draw of.

    All its hidden layers (the channels of convolutions) become infinite together, in their
    proportions. Outputs become independent Gaussian processes of covariance K = `.nngp`, and
    training follows Theta = `.ntk`; both are (n1, n2), for each output.

    **Arguments:**

    - `model`: `MLP`, `CNN`, `WideResNet` (norm None, "layer" or "group"), what `centered` and
      `scaled` make of them, or `Sequential` and `Residual` of zoo layers. Its parameters do not
      enter, only what its layers say of themselves.
    - `equivalent_to`: the learning rates of Theta. None: those of the model's parameterization,
      `learning_rates(model)`. Another parameterization: `learning_rates(model, equivalent_to=...)`,
      with which `STANDARD` has the tangent kernel of `NTK`.
    - `rate_power`: the learning rates are multiplied by this power of the width, the readout's
      fan-in. With -1 `STANDARD` has a tangent kernel under its own rates (Sohl-Dickstein et al.
      2020): that of a network over the width, to which its input layer adds nothing.

    For `MEAN_FIELD` and `MUP` the kernels are those at the start: outputs vanish there, up to the
    readout's bias, and the tangent kernel moves in training at any width. `STANDARD` has no
    tangent kernel under its own learning rates, but for `rate_power=-1`.

    **Raises:** `TypeError` for arguments of other types; `NoLimitError` (a `ValueError`) that names
    the layer without a rule: batch normalization, functions of the outputs (`with_output`), layers
    of others.

    Source: Jacot, Gabriel & Hongler (2018); Lee et al. (2018); Arora et al. (2019), "On exact
    computation with an infinitely wide neural net"; docs/theory.md, section 7.
    """
    if equivalent_to is not None and not isinstance(equivalent_to, Parameterization):
        raise TypeError(
            f"`equivalent_to` is {equivalent_to!r}, expected a `zoo.Parameterization` or None."
        )
    if not isinstance(rate_power, int | float) or not np.isfinite(rate_power):
        raise TypeError(f"`rate_power` is {rate_power!r}, expected a finite number.")
    if abs(rate_power) > _MOST_POWER:
        raise ValueError(
            f"`rate_power` is {rate_power!r}, expected one of at most {_MOST_POWER:g}: the width "
            "to such a power is no number."
        )
    return InfiniteNetwork(
        limit_rule_of(model, _widths_of(model, equivalent_to, float(rate_power)))
    )


def _widths_of(
    model: Any, equivalent_to: Parameterization | None, rate_power: float
) -> LimitWidths:
    """What grows with the width in `model`.

    **Raises:** `NoLimitError` for more than one readout.
    """
    nodes = sorted(_nodes(model), key=lambda found: found[1])  # what is trained comes first
    layers = [found for found in nodes if isinstance(found[0], ParameterizedLayer)]
    readouts: list[ParameterizedLayer] = []
    for layer, is_frozen in layers:
        if layer.role != "readout" or not _weights(layer):
            continue
        # A frozen one that is like another may be a copy of it, as in `centered`.
        known = any(layer is other or (is_frozen and _alike(layer, other)) for other in readouts)
        if not known:
            readouts.append(layer)
    if len(readouts) > 1:
        raise NoLimitError(
            f"`model` has {len(readouts)} layers with the role of a readout, expected one at most."
        )
    has_hidden = any(layer.role != "readout" and _weights(layer) for layer, _ in layers)
    # Parameters outside such layers are those of a layer too, whatever their place is.
    has_hidden = has_hidden or any(eqx.is_inexact_array(node) for node, _ in nodes)
    power, fan_in = 0.0, 1
    for layer in readouts:
        for name in _weights(layer):
            scaling = layer.tensor_scaling(name)
            law = product_of(scaling.multiplier, scaling.multiplier, scaling.init, scaling.init)
            power = max(power, -Wide("readout", "weight", has_hidden).power(law))
        fan_in = layer.fans["fan_in"]
    return LimitWidths(equivalent_to, rate_power, "", has_hidden, power, fan_in)


def _weights(layer: ParameterizedLayer) -> list[str]:
    """Its tensors that make a width: vectors over channels do not."""
    return [name for name, place in layer.tensors.items() if place.kind == "weight"]


def _alike(first: ParameterizedLayer, second: ParameterizedLayer) -> bool:
    """Whether the widths of a model mean the same to both layers."""
    return (first.parameterization, first.fans) == (second.parameterization, second.fans)


def _nodes(model: Any, frozen: bool = False) -> Iterator[tuple[Any, bool]]:
    """The layers with parameters in a model and the leaves outside of them, each with whether it is
    frozen.
    """

    def is_end(node: Any) -> bool:
        return isinstance(node, ParameterizedLayer | Frozen) or is_state(node)

    for node in jax.tree.leaves(model, is_leaf=is_end):
        if not isinstance(node, Frozen):
            yield node, frozen
        elif callable(layer := node.value):  # fixed numbers are no weights
            yield from _nodes(layer, frozen=True)


@eqx.filter_jit
def _kernels(
    rule: LimitRule,
    x1: Array,
    x2: Array | None,
    batch_size: int | None,
    shards: int,
    tangent: bool,
) -> tuple[Array, Array | None, Array]:
    needs = rule.needs(LimitNeeds())

    def tile(first: InputBatch, second: InputBatch) -> tuple[Array, Array]:
        """Kernels (1 or 2, n1, n2) and their error."""
        after = rule(input_kernels(first, second, tangent=tangent)).averaged()
        return _stacked(after), after.error

    at_most = batch_size or _tile_size(x1, needs, shards)
    first = second = input_batch(x1, needs)
    rows = columns = Tiling(len(x1), at_most, shards)
    if x2 is not None:
        second = input_batch(x2, needs)
        columns = Tiling(len(second.entries), at_most)
    if rows.count == columns.count == 1:
        both, error = tile(first, second)
    else:
        xs = first, None if x2 is None else second
        both, error = _in_tiles(tile, xs, (rows, columns))
    return both[0], both[1] if tangent else None, error


def _stacked(after: LayerKernels) -> Array:
    if after.space:
        raise NoLimitError(
            f"the model's outputs are images of {after.space} positions, expected a vector: end "
            "with `Flatten` or `GlobalAveragePool` and a dense layer."
        )
    if not after.tangent:
        return after.nngp[None]
    ntk = jnp.zeros_like(after.nngp) if after.ntk is None else after.ntk
    return jnp.stack([after.nngp, ntk])


def _tile_size(x: Array, needs: LimitNeeds, shards: int) -> int:
    positions = int(np.prod(x.shape[2:]))
    pairs = {LimitLayout.FULL: positions**2, LimitLayout.DIAGONAL: positions}.get(needs.between, 1)
    bytes_per_pair = _ARRAYS * x.dtype.itemsize * pairs
    return shards * max(1, int((_tile_bytes() / bytes_per_pair) ** 0.5))


def _tile_bytes() -> int:
    """On CPU little: a tile that stays in the caches of the cores is faster than a large one."""
    return _CPU_TILE if jax.default_backend() == "cpu" else DEVICE_BYTES


def _on_every_device(x: Array) -> Array:
    sharding = x.sharding
    if not isinstance(sharding, NamedSharding):
        return x
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.jit(lambda x: x, out_shardings=everywhere)(x)


Tile = Callable[[InputBatch, InputBatch], tuple[Array, Array]]


def _in_tiles(
    tile: Tile, xs: tuple[InputBatch, InputBatch | None], tilings: tuple[Tiling, Tiling]
) -> tuple[Array, Array]:
    """Block by block; of a batch with itself those on and above the diagonal."""
    blocks = Blocks(tilings, 1)
    write = blocks.write_both if xs[1] is None else blocks.write

    @jax.checkpoint
    def block_of(first: InputBatch, second: InputBatch) -> tuple[Array, Array]:
        kernels, error = tile(first, second)
        return jnp.moveaxis(kernels, 0, -1), error

    def visit(
        found: tuple[Array, Array], row: InputBatch, column: InputBatch, i: Array, j: Array
    ) -> tuple[Array, Array]:
        kernels, error = found
        here, here_error = block_of(row, column)
        return write(kernels, here, i, j), jnp.maximum(error, here_error)

    like, error = jax.eval_shape(block_of, *first_tiles(xs, tilings))
    start = blocks.empty(like), jnp.zeros((), error.dtype)
    kernels, error = over_pairs(visit, start, xs, tilings)
    return jnp.moveaxis(blocks.joined(kernels), -1, 0), error


def _warn(error: Array) -> None:
    value = checks.concrete(error)
    if value is not None and value > ERROR_TOLERANCE:
        warnings.warn(
            f"an activation without a closed form is resolved to {float(value):.1g} of its kernel "
            f"only (tolerance {ERROR_TOLERANCE:g}); most of it near correlation 1. Expected an "
            "`Activation` with a closed `dual`, as those of `zoo.ACTIVATIONS`, or for a smooth "
            "function that is steep more terms: "
            "`Activation(name, function, dual=zoo.HermiteDual(function, terms=2048))`. A kink "
            "leaves about 1/sqrt(terms) of its tangent kernel there.",
            QuadratureWarning,
            stacklevel=4,
        )
