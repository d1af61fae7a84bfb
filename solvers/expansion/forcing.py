r"""What drives the first correction of the outputs: Theta1(s) Delta0(s), from tensors or without.

Times here are tau = t / n and residuals those of the sum over examples, Delta = f - y.

    Theta1(s) = - sum_k O_3^(k) Delta_k w_1(0, lam_k) + sum_kl O_4^(kl) Delta_k Delta_l w_2(0, lam_k, lam_k + lam_l)
              = DTheta[d_1 + d_2] + 1/2 D^2 Theta[d_1, d_1]

    d_1(s) = - M J^T a(s),    a(s) = Theta_0^{-1} (1 - e^{-s Theta_0}) Delta
    d_2(s) = M int_0^s sum_c Delta_c(u) H_c M J^T a(u) du
"""  # noqa: E501

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from corrections.parameters import split
from corrections.symmetric.layouts import resolved
from solvers.expansion.divided_differences import discount, phi_1, w2
from solvers.expansion.matrix_free import kernel1, kernel1_times, norm_of_kernel1
from solvers.expansion.quadrature import gauss
from solvers.flows.jet_products import JetProducts
from zoo.common.examples import count


class Modes(eqx.Module):
    """Theta_0 on the training points, and the residual at the start, in its eigenvectors.

    Eigenvalues that cannot be told from zero are zero here. `rows` are Theta_0(x, X) of the test
    points. Composite indices (example, output) are flat.
    """

    values: Float[Array, " size"]
    vectors: Float[Array, "size size"]
    residual: Float[Array, " size"]
    rows: Float[Array, "rows size"]

    def coefficients(self, s: Array) -> Float[Array, " size"]:
        """a(s), as the training points have it."""
        return self.vectors @ (self.residual * phi_1(self.values, s))

    def fitted(self, s: Array) -> Float[Array, " size"]:
        """What of the residual is gone at s, in the eigenvectors."""
        positive = self.values > 0
        safe = jnp.where(positive, self.values, 1)
        return self.residual * jnp.where(positive, safe * phi_1(safe, s), 0)

    def left(self, s: Array) -> Float[Array, " size"]:
        """Delta0(s), in the eigenvectors."""
        return self.residual * discount(self.values, s)


class Interval(NamedTuple):
    """An interval [start, start + length] of time."""

    start: Array
    length: Array


class StoredForcing(eqx.Module):
    """O_3 and O_4, stored: slot 1 on training then test points, the others in eigenvectors."""

    o3: Float[Array, "points size size"]
    o4: Float[Array, "points size size size"]

    def at_start(self) -> None:
        return None

    def at_nodes(self, modes: Modes, path: None, interval: Interval) -> tuple[Array, None]:
        """Theta1 Delta0 at the nodes of an interval, (nodes, points)."""
        nodes, _, _ = gauss(modes.values.dtype)

        def at(s: Array) -> Array:
            return self._kernel(modes, s) @ modes.left(s)

        return jax.lax.map(at, interval.start + interval.length * nodes), None

    def kernel(self, modes: Modes, s: Array, path: None) -> Float[Array, "size size"]:
        """Theta1(s) on the training points."""
        size = len(modes.values)
        return self._kernel(modes, s)[:size] @ modes.vectors.T

    def norm(self, modes: Modes, s: Array, path: None) -> Array:
        """|Theta1(s)| on the training points."""
        return jnp.max(jnp.abs(jnp.linalg.eigvalsh(self.kernel(modes, s, path))))

    def _kernel(self, modes: Modes, s: Array) -> Float[Array, "points size"]:
        lam, delta = modes.values, modes.residual
        first = delta * phi_1(lam, s)
        # At s = inf: 1 / (lam_k (lam_k + lam_l)), of which the finite form takes inf - inf.
        total = jnp.where(lam > 0, lam, 1)
        limit = 1 / (total[:, None] * (total[:, None] + total[None]))
        finite = w2(lam[:, None], lam[None], jnp.where(jnp.isinf(s), 0, s))
        second = jnp.outer(delta, delta) * jnp.where(jnp.isinf(s), limit, finite)
        points, size = self.o3.shape[:2]
        moved = self.o4.reshape(points * size, -1) @ second.ravel()
        return moved.reshape(points, size) - self.o3 @ first


class PathForcing(eqx.Module):
    """The same from the parameters d_1 and d_2: no tensor but Theta_0 is ever stored."""

    network: JetProducts

    def at_start(self) -> PyTree:
        """d_2(0)."""
        return jax.tree.map(jnp.zeros_like, split(self.network.model)[0])

    def at_nodes(self, modes: Modes, path: PyTree, interval: Interval) -> tuple[Array, PyTree]:
        """Theta1 Delta0 at the nodes of an interval, (nodes, points), and d_2 at its end."""
        nodes, weights, upto = gauss(modes.values.dtype)
        times = interval.start + interval.length * nodes

        def pulled(s: Array) -> PyTree:
            return self.network.directions(self._residual(modes, s), [self._first(modes, s)])[1]

        # d_2' is minus the first coefficient of M J^T Delta.
        rates = jax.lax.map(pulled, times)

        def moved(weights: Array) -> PyTree:
            def leaf(start: Array, rate: Array) -> Array:
                weight = (interval.length * weights).astype(rate.dtype)
                return start - jnp.tensordot(weight, rate, axes=1)

            return jax.tree.map(leaf, path, rates)

        def forcing(node: tuple[Array, Array]) -> Array:
            s, weights = node
            along = [self._first(modes, s), moved(weights)]
            return kernel1_times(self.network, along, self._residual(modes, s)).ravel()

        return jax.lax.map(forcing, (times, upto)), moved(weights)

    def kernel(self, modes: Modes, s: Array, path: PyTree) -> Array | None:
        """Theta1(s) on the pairs that were asked for."""
        return kernel1(self.network, [self._first(modes, s), path])

    def norm(self, modes: Modes, s: Array, path: PyTree) -> Array:
        """|Theta1(s)| on the training points."""
        return norm_of_kernel1(
            self.network, [self._first(modes, s), path], self._residual(modes, s)
        )

    @property
    def _rows(self) -> int:
        return count(self.network.sets[0])

    def _first(self, modes: Modes, s: Array) -> PyTree:
        a = modes.coefficients(s).reshape(self._rows, -1)
        return jax.tree.map(jnp.negative, self.network.directions(a, [])[0])

    def _residual(self, modes: Modes, s: Array) -> Array:
        return (modes.vectors @ modes.left(s)).reshape(self._rows, -1)


def modes_of(kernel: Array, residual: Array, rows: Array) -> Modes:
    """The modes of Theta_0 (size, size)."""
    values, vectors = jnp.linalg.eigh(kernel)
    values = jnp.where(resolved(values), values, 0)
    return Modes(values, vectors, vectors.T @ residual, rows)


def rotated(modes: Modes, tensor: Array) -> Array:
    """All slots of a tensor but the first, in the eigenvectors."""
    for slot in range(1, tensor.ndim):
        tensor = jnp.moveaxis(jnp.moveaxis(tensor, slot, -1) @ modes.vectors, -1, slot)
    return tensor
