"""Real parameters that meet complex activations or integer examples: kernels of plain gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import dntk, ntk, NTKOperator, o3


class Filtered(eqx.Module):
    """Real weights act on the Fourier coefficients of an example; the output is real."""

    inner: eqx.nn.Linear
    readout: eqx.nn.Linear

    def __call__(self, x):
        a = jnp.fft.irfft(self.inner(jnp.fft.rfft(x).astype(complex)), 4)
        return self.readout(jnp.tanh(a))


class Dense(eqx.Module):
    inner: eqx.nn.Linear
    readout: eqx.nn.Linear

    def __call__(self, x):
        return self.readout(jnp.tanh(self.inner(x)))


def filtered():
    keys = jr.split(jr.key(0))
    return Filtered(eqx.nn.Linear(3, 3, key=keys[0]), eqx.nn.Linear(4, 2, key=keys[1]))


@jax.jit
def plain_kernels(leaves, x):
    """J J^T and g_2 H_1 g_3, of the Jacobian of all parameters in one vector."""
    structure = jax.tree.structure(eqx.filter(filtered(), eqx.is_inexact_array))
    vector, unravel = jax.flatten_util.ravel_pytree(jax.tree.unflatten(structure, leaves))
    static = eqx.filter(filtered(), eqx.is_inexact_array, inverse=True)

    def outputs(vector):
        return jax.vmap(eqx.combine(unravel(vector), static))(x)

    jacobian, hessian = jax.jacrev(outputs)(vector), jax.jacrev(jax.jacrev(outputs))(vector)
    kernel = jnp.einsum("aip,bjp->aibj", jacobian, jacobian)
    return kernel, jnp.einsum("aipq,bjp,ckq->aibjck", hessian, jacobian, jacobian)


@pytest.mark.filterwarnings("ignore:.*promotion")
def test_complex_activations():
    with jax.numpy_dtype_promotion("standard"):
        model, x = filtered(), jr.normal(jr.key(2), (3, 4))
        leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
        kernel, third = plain_kernels(leaves, x)
        np.testing.assert_allclose(ntk(model, x), kernel, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(dntk(model, x), third, rtol=1e-10, atol=1e-12)
        found = NTKOperator(model, x).as_matrix()
        np.testing.assert_allclose(found, kernel.reshape(6, 6), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kernel", [ntk, o3])
def test_integers_that_enter_a_dense_layer(kernel):
    keys = jr.split(jr.key(0))
    model = Dense(eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.Linear(4, 2, key=keys[1]))
    x = jnp.array([[0, 1, 2], [3, -4, 5]])
    with jax.numpy_dtype_promotion("standard"):
        found, expected = kernel(model, x), kernel(model, x.astype(float))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_bias_of_integers_is_no_parameter():
    layer = eqx.nn.Linear(3, 2, key=jr.key(0))
    layer = eqx.tree_at(lambda one: one.bias, layer, jnp.array([1, 2]))
    x = jr.normal(jr.key(1), (4, 3))
    with jax.numpy_dtype_promotion("standard"):
        kernel = ntk(layer, x)
    np.testing.assert_allclose(kernel, jnp.einsum("ij,kl->ikjl", x @ x.T, jnp.eye(2)), rtol=1e-12)
