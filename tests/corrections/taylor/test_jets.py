import jax
import jax.numpy as jnp
import numpy as np

from corrections.taylor.jets import coefficients_along, degrees_along, jet, polynomial


def test_coefficients_of_a_composition():
    """exp(1 + 2 eps + 3 eps^2) = e (1 + 2 eps + (3 + 2) eps^2 + (6 + 4/3) eps^3 + ...)."""
    path = jet(jnp.ones(()), [2 * jnp.ones(()), 3 * jnp.ones(())])
    found = coefficients_along(lambda eps: jnp.exp(path(eps)), 3)
    np.testing.assert_allclose(found, np.e * np.array([1, 2, 5, 22 / 3]), rtol=1e-14)


def test_is_differentiable_in_its_coefficients():
    """d/dc of the coefficient c_1^2 + 2 c_0 c_2 of (c_0 + c_1 eps + c_2 eps^2)^2."""

    def second(coefficients):
        return coefficients_along(lambda eps: polynomial(eps, coefficients) ** 2, 2)[2]

    at = [jnp.array(2.0), jnp.array(3.0), jnp.array(5.0)]
    np.testing.assert_allclose(jax.grad(second)(at), [10.0, 6.0, 4.0], rtol=1e-14)
    _, moved = jax.jvp(lambda c1: second([at[0], c1, at[2]]), (at[1],), (jnp.ones(()),))
    np.testing.assert_allclose(moved, 6.0, rtol=1e-14)
    curved = jax.hessian(lambda c: second(list(c)))(jnp.stack(at))
    np.testing.assert_allclose(curved, [[0, 0, 2], [0, 2, 0], [2, 0, 0]], atol=1e-14)


def test_value_is_untouched_where_the_step_is_infinite():
    at = jet(jnp.ones(2), [jnp.full(2, jnp.inf)])
    np.testing.assert_array_equal(coefficients_along(at, 0)[0], 1.0)


def test_degrees_are_those_of_the_expressions():
    path = jet(jnp.array(2.0), [jnp.array(3.0)])

    def arrays(eps):
        w = path(eps)
        return [jnp.ones(()), w, w * w, jnp.tanh(w)]

    assert degrees_along(arrays, 0) == [0, 0, 0, 0]
    assert degrees_along(arrays, 1) == [0, 1, 1, 1]
    assert degrees_along(arrays, 3) == [0, 1, 2, 3]
