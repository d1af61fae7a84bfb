"""Kernels by their definition: gradients of all parameters, in one flat vector each."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree


def flat(model, metric=None):
    """The parameters as a vector, the function (vector, batch) -> (n, k), and M as a vector."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    vector, unravel = ravel_pytree(params)

    def outputs(vector, x):
        return jax.vmap(eqx.combine(unravel(vector), static))(x)

    prefix = 1.0 if metric is None else metric
    full = jax.tree.map(
        lambda m, part: jax.tree.map(lambda p: jnp.ones_like(p) * m, part), prefix, params
    )
    return vector, outputs, ravel_pytree(full)[0]


def kernel(model, x1, x2, metric=None):
    """J M J^T, (n1, k, n2, k)."""
    vector, outputs, m = flat(model, metric)
    j1, j2 = (jax.jit(jax.jacrev(outputs))(vector, x) for x in (x1, x2))
    return jnp.einsum("akp,p,blp->akbl", j1, m, j2)


def third(model, x1, x2, x3, metric=None):
    """The derivative of J M J^T along each M grad f_3, (n1, k, n2, k, n3, k)."""
    vector, outputs, m = flat(model, metric)

    def theta(vector, x1, x2):
        j1, j2 = (jax.jacrev(outputs)(vector, x) for x in (x1, x2))
        return jnp.einsum("akp,p,blp->akbl", j1, m, j2)

    @jax.jit
    def along(direction, vector, x1, x2):
        # All of them arguments: as constants, XLA of jaxlib 0.6.1 folds some convolutions wrongly.
        return jax.jvp(lambda v: theta(v, x1, x2), (vector,), (direction,))[1]

    directions = m[None, None] * jax.jit(jax.jacrev(outputs))(vector, x3)
    rows = [[along(v, vector, x1, x2) for v in of_example] for of_example in directions]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def fourth(model, x1, x2, x3, x4, metric=None):
    """The derivative of `third` along each M grad f_4, the gradients in `third` moving too."""
    vector, outputs, m = flat(model, metric)

    def theta(vector):
        j1, j2 = (jax.jacrev(outputs)(vector, x) for x in (x1, x2))
        return jnp.einsum("akp,p,blp->akbl", j1, m, j2)

    def along_each(fn, x):
        """The derivatives of `fn` along M grad f for each output of `x`, on the last axes."""

        def derivatives(vector):
            directions = m[None, None] * jax.jacrev(outputs)(vector, x)
            each = jax.vmap(jax.vmap(lambda v: jax.jvp(fn, (vector,), (v,))[1]))(directions)
            return jnp.moveaxis(each, (0, 1), (-2, -1))

        return derivatives

    return jax.jit(along_each(along_each(theta, x3), x4))(vector)
