"""Theta1 = [Theta]_1 + [Theta]_2 along theta_0 + eps d_1 + eps^2 d_2: no tensor is formed."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from corrections.kernels.ntk import tangent_kernel
from corrections.operators.krylov import extreme_eigenpairs
from corrections.parameters import Metric, Model, Pairs, Params
from solvers.flows.jet_products import JetProducts
from solvers.problem import Problem


def products_of(
    model: Model,
    problem: Problem,
    metric: Metric | None,
    kernel_pairs: Pairs | None,
    batch_size: int | None,
) -> tuple[JetProducts, Float[Array, "n1 k n2 k"] | None]:
    """The products with the kernel along a path, and Theta_0 on the pairs that were asked for."""
    network = JetProducts(model, problem.sets, metric, kernel_pairs, batch_size)
    if kernel_pairs is None:
        return network, None
    return network, tangent_kernel(model, *kernel_pairs, metric=metric, batch_size=batch_size)


def kernel1(network: JetProducts, path: list[Params]) -> Float[Array, "n1 k n2 k"] | None:
    """Theta1 on the pairs that were asked for."""
    coefficients = network.kernel(path)
    return None if coefficients is None else coefficients[1] + coefficients[2]


def kernel1_times(
    network: JetProducts, path: list[Params], g: Float[Array, "n k"]
) -> Float[Array, "points k"]:
    """Theta1 g on all points."""
    _, first, second = network.kernel_times(g, path)
    return first + second


def norm_of_kernel1(
    network: JetProducts, path: list[Params], like: Float[Array, "n k"]
) -> Float[Array, ""]:
    """|Theta1| on the training points, whose outputs are like these, by Lanczos."""
    start = jax.random.normal(jax.random.key(0), (1, like.size), like.dtype)

    def product(vector: Array) -> Array:
        return kernel1_times(network, path, vector.reshape(like.shape))[: len(like)].ravel()

    pairs = extreme_eigenpairs(product, start, which="magnitude", matvecs=64, rtol=1e-3)
    return jnp.abs(pairs.values[0])
