"""Theta1 = [Theta]_1 + [Theta]_2 along theta_0 + eps d_1 + eps^2 d_2: no tensor is formed."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from corrections import ntk
from corrections.krylov import extreme_eigenpairs
from corrections.parameters import Metric, Model, Params
from solvers.losses import MeanSquaredError
from solvers.matrix_free import matrix_free_flow, MatrixFreeFlow
from solvers.problem import Pairs, Problem


def products_of(
    model: Model,
    problem: Problem,
    metric: Metric | None,
    kernel_pairs: Pairs | None,
    batch_size: int | None,
) -> tuple[MatrixFreeFlow, Float[Array, "n1 k n2 k"] | None]:
    """The products with the kernel along a path, and Theta_0 on the pairs that were asked for."""
    flow = matrix_free_flow(
        model,
        (problem.x,) if problem.x_test is None else (problem.x, problem.x_test),
        problem.y,
        order=4,
        loss=MeanSquaredError(),
        metric=metric,
        kernel_pairs=kernel_pairs,
        batch_size=batch_size,
    )
    if kernel_pairs is None:
        return flow, None
    return flow, ntk(model, *kernel_pairs, metric=metric, batch_size=batch_size)


def kernel1(flow: MatrixFreeFlow, path: list[Params]) -> Float[Array, "n1 k n2 k"] | None:
    """Theta1 on the pairs that were asked for."""
    coefficients = flow.kernel_coefficients(path)
    return None if coefficients is None else coefficients[1] + coefficients[2]


def kernel1_times(
    flow: MatrixFreeFlow, path: list[Params], g: Float[Array, "n k"]
) -> Float[Array, "points k"]:
    """Theta1 g on all points."""
    _, (first, _), (second, _) = flow.products(g, path)
    return first + second


def norm_of_kernel1(flow: MatrixFreeFlow, path: list[Params]) -> Float[Array, ""]:
    """|Theta1| on the training points, by Lanczos."""
    y = flow.y
    start = jax.random.normal(jax.random.key(0), (1, y.size), y.dtype)

    def product(vector: Array) -> Array:
        return kernel1_times(flow, path, vector.reshape(y.shape))[: len(y)].ravel()

    pairs = extreme_eigenpairs(product, start, which="magnitude", matvecs=64, rtol=1e-3)
    return jnp.abs(pairs.values[0])
