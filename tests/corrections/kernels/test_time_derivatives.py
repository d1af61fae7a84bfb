import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import kernel_rates, ntk, o3, o4
from solvers import MeanSquaredError, parameter_flow
from zoo import CNN, learning_rates, MLP, STANDARD


def cases():
    key = jr.key(3)
    mlp = MLP(3, 2, width=5, depth=2, activation="tanh", bias_std=0.3, key=key)
    cnn = CNN(
        (1, 4, 4), 2, channels=3, depth=1, activation="gelu", parameterization=STANDARD, key=key
    )
    return [
        (mlp, jr.normal(key, (4, 3)), None),
        (cnn, jr.normal(key, (3, 1, 4, 4)), learning_rates(cnn)),
        (mlp, jr.normal(key, (4, 3)), learning_rates(mlp, equivalent_to=STANDARD)),
    ]


@pytest.mark.parametrize(
    "case", [pytest.param(0, marks=pytest.mark.long), 1, pytest.param(2, marks=pytest.mark.long)]
)
def test_they_are_the_stored_kernels_times_the_residual(case):
    model, x, metric = cases()[case]
    g = jr.normal(jr.key(1), (len(x), 2))
    found = kernel_rates(model, x, g, metric=metric)
    np.testing.assert_allclose(found.kernel, ntk(model, x, metric=metric), rtol=1e-11, atol=1e-12)
    first = -jnp.einsum("aibjck,ck->aibj", o3(model, x, metric=metric), g)
    second = jnp.einsum("aibjckdl,ck,dl->aibj", o4(model, x, metric=metric), g, g)
    for got, expected in ((found.first, first), (found.second, second)):
        np.testing.assert_allclose(got, expected, atol=1e-10 * float(jnp.abs(expected).max()))
    pairs = kernel_rates(model, x, g, metric=metric, kernel_pairs=(x[1:], x[:2]))
    for got, whole in zip(pairs, found, strict=True):
        np.testing.assert_allclose(got, whole[1:, :, :2], rtol=1e-9, atol=1e-12)


@pytest.mark.long
def test_the_first_is_how_the_kernel_of_the_network_starts_to_move():
    """By the kernels that gradient flow shows, a short time after the start."""
    model, x, metric = cases()[2]
    y = jr.normal(jr.key(5), (len(x), 2))
    g = (jax.vmap(model)(x) - y) / len(x)
    rate = kernel_rates(model, x, g, metric=metric).first
    t = 1e-4
    shown = parameter_flow(
        model,
        x,
        y,
        jnp.array([0.0, t, 2 * t]),
        loss=MeanSquaredError(),
        metric=metric,
        kernel_pairs=(x, x),
        rtol=1e-12,
        atol=1e-14,
    ).kernel
    slope = (-3 * shown[0] + 4 * shown[1] - shown[2]) / (2 * t)  # to second order in t
    np.testing.assert_allclose(rate, slope, atol=1e-5 * float(jnp.abs(rate).max()))


@pytest.mark.parametrize(
    ("g", "error", "message"),
    [
        (jnp.ones((4, 3)), ValueError, r"`g` has shape \(4, 3\), expected \(4, 2\)"),
        (jnp.full((4, 2), jnp.nan), ValueError, r"`g` has 8 entries out of 8 that are not finite"),
        ("residual", TypeError, r"`g` is not an array: got str"),
    ],
)
def test_a_residual_that_does_not_fit_is_refused(g, error, message, unchecked):
    model, x, _ = cases()[0]
    with pytest.raises(error, match=message):
        kernel_rates(model, x, g)
