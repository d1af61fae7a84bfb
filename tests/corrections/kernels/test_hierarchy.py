import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import ntk, o3
from tests.models import inputs, tanh_mlp, TwoLayerLinear


def test_scalar_two_layer_linear_network_is_exact():
    """O_3 = 4 f / n (theory, section 6)."""
    model = TwoLayerLinear(7, key=jr.key(0))
    x = jnp.ones((1, 1))
    expected = 4 * model(x[0])[0] / 7
    np.testing.assert_allclose(jnp.squeeze(o3(model, x)), expected, rtol=1e-12)


@pytest.mark.smoke
def test_two_layer_linear_network_is_exact_on_three_different_sets():
    """O_3(a, b, c) = (2 f_c G_ab + f_a G_bc + f_b G_ac) / n (theory, section 6)."""
    n = 6
    model = TwoLayerLinear(n, 3, key=jr.key(0))
    a, b, c = inputs(2), inputs(3, seed=11), inputs(4, seed=12)
    fa, fb, fc = (np.asarray(jax.vmap(model)(x))[:, 0] for x in (a, b, c))
    expected = (
        2 * np.einsum("c,ab->abc", fc, a @ b.T)
        + np.einsum("a,bc->abc", fa, b @ c.T)
        + np.einsum("b,ac->abc", fb, a @ c.T)
    ) / n
    result = o3(model, a, b, c)
    assert result.shape == (2, 1, 3, 1, 4, 1)
    np.testing.assert_allclose(result[:, 0, :, 0, :, 0], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.long
def test_equals_nested_gradients_of_single_triples():
    """Grad (grad f_1 . M grad f_2) . M grad f_3, one scalar at a time, with a metric."""
    model = tanh_mlp()
    params, static = eqx.partition(model, eqx.is_inexact_array)
    metric = jax.tree.map(lambda p: 0.5 if p.ndim == 2 else 2.0, params)
    a, b, c = inputs(2), inputs(2, seed=11), inputs(2, seed=12)
    result = o3(model, a, b, c, metric=metric)

    def dot(u, v):
        return sum(jax.tree.leaves(jax.tree.map(lambda m, p, q: m * jnp.vdot(p, q), metric, u, v)))

    def f(p, x, output):
        return eqx.combine(p, static)(x)[output]

    def theta(p, *indices):
        return dot(*(jax.grad(f)(p, x, output) for x, output in indices))

    for i in range(2):
        for k in range(2):
            first, second, third = (a[i], k), (b[1 - i], 0), (c[i], 1 - k)
            expected = dot(jax.grad(theta)(params, first, second), jax.grad(f)(params, *third))
            np.testing.assert_allclose(result[i, k, 1 - i, 0, i, 1 - k], expected, rtol=1e-11)


@pytest.mark.long
def test_is_the_rate_at_which_the_kernel_moves():
    """D Theta / dt = - sum_c O_3(., ., c) g_c along theta' = - J^T g, by central differences."""
    model, x = tanh_mlp(width=16), inputs(3)
    g = inputs(3, 2, seed=20)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    _, pull = jax.vjp(lambda p: jax.vmap(eqx.combine(p, static))(x), params)
    direction = pull(g)[0]

    def moved(time):
        return ntk(eqx.apply_updates(model, jax.tree.map(lambda d: -time * d, direction)), x)

    h = 1e-4
    rate = (moved(h) - moved(-h)) / (2 * h)
    expected = -jnp.tensordot(o3(model, x), g, axes=2)
    np.testing.assert_allclose(rate, expected, atol=1e-6 * float(jnp.max(jnp.abs(expected))))


def test_only_the_first_two_slots_are_exchangeable():
    kernel = o3(tanh_mlp(), inputs(3))
    scale = float(jnp.max(jnp.abs(kernel)))
    swapped = jnp.transpose(kernel, (2, 3, 0, 1, 4, 5))
    np.testing.assert_allclose(kernel, swapped, atol=1e-13 * scale)
    assert float(jnp.max(jnp.abs(kernel - jnp.transpose(kernel, (0, 1, 4, 5, 2, 3))))) > 0.1 * scale


@pytest.mark.long
def test_missing_sets_are_the_first_one():
    model, x, other = tanh_mlp(), inputs(2), inputs(3, seed=11)
    np.testing.assert_allclose(o3(model, x), o3(model, x, x, x), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        o3(model, x, None, other), o3(model, x, x, other), rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(o3(model, x, other), o3(model, x, other, x), rtol=1e-12, atol=1e-14)


def test_bad_third_set_is_named(unchecked):
    with pytest.raises(ValueError, match=r"`model` does not take an example of `x3`"):
        o3(tanh_mlp(), inputs(2), None, inputs(2, d=4))
