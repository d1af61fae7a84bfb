r"""Second and third derivatives of a network, contracted with gradients: the parts of O_3 and O_4.

    S(1; 2, 3)      = g_2 . H_1 g_3
    I(1; 2, 3, 4)   = T_1[g_2, g_3, g_4]
    II(1, 2; 3, 4)  = (H_1 g_3) . (H_2 g_4)

with g, H, T the first three derivatives of outputs in the parameters, every contraction with the
metric. H_1 g_3 is the derivative of the gradient g_1 where the parameters move along g_3, and
T_1[., g_3, g_4] its second derivative along g_3 and g_4. Both come in factors: the tangents of what
enters and leaves each layer (`corrections.contraction.gradient_factors`), so no direction is ever
materialized that a rule keeps in factors.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from corrections.contraction.factors import Factors, Tangent
from corrections.contraction.gradient_factors import GradientFactors
from corrections.contraction.products import Gradients
from zoo.common.examples import count
from zoo.common.tiles import in_tiles, Tiling, working_bytes

_Third = Float[Array, "n1 k n2 k n3 k"]
_Fourth = Float[Array, "n1 k n2 k n3 k n4 k"]


class Curvature:
    """S, I and II of a model that is taken apart.

    **Arguments:**

    - `factored`: the model.
    - `partners`: examples of the second set, which share the cost of forming gradients.
    - `batch_size`: the most examples of each set that are taken at once; None: what fits.
    - `shards`: of the first set.
    - `memory`: bytes that may be kept on each device.
    """

    def __init__(
        self,
        factored: GradientFactors,
        *,
        partners: int,
        batch_size: int | None,
        shards: int,
        memory: int,
    ):
        self._factored, self._batch_size, self._shards = factored, batch_size, shards
        self._memory = memory
        self._k = factored.outputs.shape[0]
        self._materialize = factored.materialize(pairs=self._k**2, partners=partners)
        self._stored, self._working = factored.bytes_per_example(self._materialize)

    @jax.named_scope("S")
    def s(self, x1: PyTree, x2: PyTree, x3: PyTree) -> _Third:
        """S(1; 2, 3)."""
        in_second = self._over_gradients(x2)

        def of_rows(x1: PyTree) -> Array:
            batch = _MovingBatch(self._factored, x1)
            tile = self._tile(count(x3), count(x1))

            def of_direction(along: Factors) -> Array:
                first = self._first(batch, batch.along(along)[1])
                return in_second(lambda g2: self._factored.product(first, g2))

            return self._directions_last(of_direction, x3, tile)

        return self._rows(of_rows, x1)

    @jax.named_scope("I")
    def i(self, x1: PyTree, x2: PyTree, x3: PyTree, x4: PyTree) -> _Fourth:
        """I(1; 2, 3, 4)."""
        in_second = self._over_gradients(x2)

        def of_rows(x1: PyTree) -> Array:
            batch = _MovingBatch(self._factored, x1)
            # What is kept of a third direction is about four times its derivatives.
            tile3 = self._tile(count(x3), 4 * count(x1))
            tile4 = self._tile(count(x4), count(x1) * tile3.directions)

            def of_third(along3: Factors) -> Array:
                move3, dot3 = batch.along(along3)
                second = batch.second_along(move3)

                def of_fourth(along4: Factors) -> Array:
                    move4, dot4 = batch.along(along4)
                    ddot = second(move4, batch.mixed((along3, along4), (dot3, dot4)))
                    first = self._factored.second_derivative(
                        batch.at, (dot3, dot4), ddot, self._materialize
                    )
                    return in_second(lambda g2: self._factored.product(first, g2))

                return self._directions_last(of_fourth, x4, tile4)

            stacked = self._directions_last(of_third, x3, tile3)
            return jnp.moveaxis(stacked, (-2, -1), (4, 5))

        return self._rows(of_rows, x1)

    @jax.named_scope("II")
    def ii(self, x1: PyTree, x2: PyTree, x3: PyTree, x4: PyTree) -> _Fourth:
        """II(1, 2; 3, 4)."""
        second_tile = self._batch_size or count(x2)
        one_tile = Tiling(count(x2), second_tile).count == 1
        whole = _MovingBatch(self._factored, x2) if one_tile else None

        def of_rows(x1: PyTree) -> Array:
            batch = _MovingBatch(self._factored, x1)
            tile3 = self._tile(count(x3), count(x1))

            def of_third(along3: Factors) -> Array:
                first = self._first(batch, batch.along(along3)[1])

                def of_columns(x2: PyTree) -> Array:
                    other = whole or _MovingBatch(self._factored, x2)

                    def of_fourth(along4: Factors) -> Array:
                        return self._factored.product(
                            first, self._first(other, other.along(along4)[1])
                        )

                    tile4 = self._tile(count(x4), count(x2))
                    found = self._directions_last(of_fourth, x4, tile4)
                    return jnp.moveaxis(found, (2, 3), (0, 1))  # the second set in front

                columns = in_tiles(of_columns, x2, second_tile, batched=True)
                return jnp.moveaxis(columns, (0, 1), (2, 3))

            stacked = self._directions_last(of_third, x3, tile3)
            return jnp.moveaxis(stacked, (-2, -1), (4, 5))

        return self._rows(of_rows, x1)

    def _first(self, batch: "_MovingBatch", dot: Factors) -> Gradients:
        return self._factored.derivative(batch.at, dot, self._materialize)

    def _rows(self, fn: Callable[[PyTree], Array], x1: PyTree) -> Array:
        """`fn` of tiles of the first set, its axis in front."""
        shards = self._shards if count(x1) % self._shards == 0 else 1
        at_most = self._batch_size or max(1, shards * self._memory // (8 * self._working))
        return in_tiles(fn, x1, at_most, shards, batched=True)

    def _over_gradients(self, x2: PyTree) -> Callable[[Callable[[Gradients], Array]], Array]:
        """Applies a function of gradients to those of `x2`, whose axis is the last but one."""

        def gradients(x: PyTree) -> Gradients:
            return self._factored.gradients(jax.vmap(self._factored.factors)(x), self._materialize)

        at_most = max(1, self._memory // (2 * self._stored))
        tiling = Tiling(count(x2), at_most)
        if tiling.count == 1:
            tile = self._batch_size or working_bytes() // self._working
            stored = in_tiles(gradients, x2, tile, batched=True)
            return lambda fn: fn(stored)
        tiles = tiling.split(x2)

        def over_tiles(fn: Callable[[Gradients], Array]) -> Array:
            found = jax.lax.map(lambda x: fn(gradients(x)), tiles)
            return tiling.join(jnp.moveaxis(found, 0, -3), axis=found.ndim - 3)

        return over_tiles

    def _tile(self, n: int, moved: int) -> "_DirectionTile":
        """How many directions of n examples are taken at once, along each of which `moved` move.

        As many as keep the derivatives in the working memory, at least one.
        """
        directions = max(1, working_bytes() // (moved * self._working))
        examples = max(1, min(directions // self._k, self._batch_size or n, n))
        return _DirectionTile(examples, min(directions, self._k))

    def _directions_last(
        self, fn: Callable[[Factors], Array], x: PyTree, tile: "_DirectionTile"
    ) -> Array:
        """`fn` of the factors of each output of each example, on the two last axes."""

        def of_example(x: PyTree) -> Array:
            inputs, *of_outputs = self._factored.factors(x)
            return in_tiles(lambda c: fn(Factors(inputs, *c)), tuple(of_outputs), tile.outputs)

        return jnp.moveaxis(in_tiles(of_example, x, tile.examples), (0, 1), (-2, -1))


class _DirectionTile(NamedTuple):
    """Directions that are taken at once: so many outputs of so many examples."""

    examples: int
    outputs: int

    @property
    def directions(self) -> int:
        return self.examples * self.outputs


class _MovingBatch:
    """The factors of a batch, and their derivatives where the parameters move."""

    def __init__(self, factored: GradientFactors, x: PyTree):
        self._factored = factored
        zero = factored.zero_tangent()
        shifts, pulls = (
            [jnp.zeros((count(x), *a.shape), a.dtype) for a in arrays]
            for arrays in (zero.shifts, zero.pulls)
        )
        self._at_rest = Tangent(shifts, pulls, zero.rest)

        def factors(tangent: Tangent) -> Factors:
            return jax.vmap(factored.factors, in_axes=(0, Tangent(0, 0, None)))(x, tangent)  # pyright: ignore[reportArgumentType]

        self._factors = factors
        self.at, self._derivative = jax.linearize(factors, self._at_rest)
        self._unfolded = jax.vmap(factored.unfolded)(self.at)

    def along(self, direction: Factors) -> tuple[Tangent, Factors]:
        """How the calls move along M grad f_c, and the derivatives of the factors."""
        tangent = self._tangent_along(self.at, direction, self._unfolded)
        return tangent, self._derivative(tangent)

    def second_along(self, tangent: Tangent) -> Callable[[Tangent, Tangent], Factors]:
        """The mixed second derivatives of the factors along `tangent` and another, as a function of
        the other and of how the calls move along both.
        """

        def derivative(at: Tangent, tangent: Tangent) -> Factors:
            return jax.jvp(self._factors, (at,), (tangent,))[1]

        return jax.linearize(derivative, self._at_rest, tangent)[1]

    def mixed(self, directions: tuple[Factors, Factors], dots: tuple[Factors, Factors]) -> Tangent:
        """How the calls move along both of two directions, of which `dots` are the derivatives of
        the factors: each shifts what the other has changed.
        """
        (along3, along4), (dot3, dot4) = directions, dots
        unfolded3, unfolded4 = (jax.vmap(self._factored.unfolded)(dot) for dot in dots)
        moves = (
            self._tangent_along(dot4, along3, unfolded4, derivative=True),
            self._tangent_along(dot3, along4, unfolded3, derivative=True),
        )
        return jax.tree.map(jnp.add, *moves)

    def _tangent_along(
        self, at: Factors, along: Factors, unfolded: list[Array | None], *, derivative: bool = False
    ) -> Tangent:
        def moved(at: Factors, unfolded: list[Array | None]) -> Tangent:
            return self._factored.tangent_along(at, along, unfolded, derivative=derivative)

        return jax.vmap(moved, out_axes=Tangent(0, 0, None))(at, unfolded)  # pyright: ignore[reportArgumentType]
