import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import Activation, activation_function, ACTIVATIONS

GRID = jnp.linspace(-12.0, 12.0, 240_001)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_lipschitz_constants_are_the_largest_slopes(name):
    """Sup |phi'| and sup |phi''| over a grid; at a kink the slope jumps and phi'' is unbounded."""
    phi = ACTIVATIONS[name]
    slopes = jax.vmap(jax.grad(phi.function))(GRID)
    np.testing.assert_allclose(jnp.max(jnp.abs(slopes)), phi.lipschitz, rtol=1e-5)
    jumps = np.abs(np.diff(slopes)) / np.diff(GRID)
    if phi.derivative_lipschitz == math.inf:
        assert phi.smoothness == 0
        assert jumps.max() > 0.9 / float(GRID[1] - GRID[0])
    else:
        np.testing.assert_allclose(jumps.max(), phi.derivative_lipschitz, rtol=1e-3, atol=1e-9)
        curvatures = jax.vmap(jax.grad(jax.grad(phi.function)))(GRID)
        largest = float(jnp.max(jnp.abs(curvatures)))
        np.testing.assert_allclose(largest, phi.derivative_lipschitz, rtol=2e-4)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_smoothness_counts_continuous_derivatives(name):
    """Derivatives up to the stated number are continuous at 0, the next one is not."""
    phi = ACTIVATIONS[name]
    derivative, eps = phi.function, 1e-9
    for order in range(4):
        jump = abs(float(derivative(jnp.array(eps)) - derivative(jnp.array(-eps))))
        assert (jump < 1e-7) == (order <= phi.smoothness), order
        if order > phi.smoothness:
            break
        derivative = jax.grad(derivative)


def test_names_functions_and_records_are_taken():
    assert activation_function("tanh") is ACTIVATIONS["tanh"]
    assert activation_function(jnp.tanh) is ACTIVATIONS["tanh"]
    record = Activation("cube", lambda x: x**3, smoothness=math.inf)
    assert activation_function(record) is record

    def swish(x):
        return x * jax.nn.sigmoid(x)

    made = activation_function(swish)
    assert (made.name, made.smoothness, made.lipschitz) == ("swish", None, None)
    np.testing.assert_allclose(made(GRID), ACTIVATIONS["silu"](GRID), atol=1e-12)


def test_unknown_activations_are_named(unchecked):
    with pytest.raises(ValueError, match="`activation` is 'swish', expected one of 'relu', "):
        activation_function("swish")
    with pytest.raises(TypeError, match="`activation` is 3, expected a name of `zoo"):
        activation_function(3)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_derivatives_of_a_batch_are_those_one_by_one(name):
    """Derivatives outside of `jit` and `vmap` of those inside, also where a slope is constant."""
    phi, a = ACTIVATIONS[name], jnp.linspace(-2.0, 2.0, 7)

    def derivative(fn):
        return lambda a: jax.jvp(fn, (a,), (jnp.ones_like(a),))[1]

    inside = jax.jit(jax.vmap(jax.vmap(jax.grad(phi))))
    batched = derivative(derivative(inside))(jnp.stack([a, 2 * a]))
    third = derivative(derivative(derivative(phi.function)))
    expected = [[third(entry) for entry in row] for row in (a, 2 * a)]
    np.testing.assert_allclose(batched, expected, rtol=1e-9, atol=1e-12)
