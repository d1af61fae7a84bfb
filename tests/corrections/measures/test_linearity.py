"""Norms of the first two derivatives against dense eigenvalues, and what kappa is made of."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import hessian_norm, jacobian_norm, kappa, KinkWarning, ntk
from tests import oracles
from tests.corrections.contraction.test_gradient_factors import random_metric
from tests.models import inputs, tanh_mlp, TwoLayerLinear
from zoo import astype, CNN, scaled, Sequential


def hessians(model, x, metric=None):
    """M^{1/2} H M^{1/2} of all outputs, dense: (n, k, parameters, parameters)."""
    vector, outputs, m = oracles.flat(model, metric)
    root = jnp.sqrt(m)
    return jax.hessian(outputs)(vector, x) * jnp.outer(root, root)[None, None]


def small_cnn():
    return CNN((1, 4, 4), 2, channels=2, depth=1, activation="tanh", key=jr.key(0))


CASES = {
    "MLP": (lambda: tanh_mlp(width=5), (3,)),
    "CNN": (small_cnn, (1, 4, 4)),
    "a user's own": (lambda: eqx.nn.MLP(3, 2, 4, 2, activation=jnp.sin, key=jr.key(0)), (3,)),
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "with_metric"),
    [
        ("MLP", True),
        *(
            pytest.param(name, with_metric, marks=pytest.mark.slow)
            for name in CASES
            for with_metric in (False, True)
            if (name, with_metric) != ("MLP", True)
        ),
    ],
)
def test_norms_are_those_of_dense_matrices(name, with_metric):
    make, shape = CASES[name]
    model, x = make(), jr.normal(jr.key(1), (3, *shape))
    metric = random_metric(model) if with_metric else None
    found = hessian_norm(model, x, metric=metric)
    dense = jnp.abs(jnp.linalg.eigvalsh(hessians(model, x, metric))).max(axis=-1)
    np.testing.assert_allclose(found.value, dense, rtol=1e-6)
    assert found.value.shape == (3, 2)
    assert bool(jnp.all(found.converged))
    found = jacobian_norm(model, x, metric=metric)
    kernel = ntk(model, x, metric=metric).reshape(6, 6)
    expected = jnp.sqrt(jnp.linalg.eigvalsh(kernel)[-1])
    np.testing.assert_allclose(found.value, expected, rtol=1e-6)
    assert bool(found.converged)
    if not with_metric:
        by_batches = jacobian_norm(model, x, metric=metric, batch_size=2)
        np.testing.assert_allclose(by_batches.value, expected, rtol=1e-6)


@pytest.mark.long
def test_two_layer_linear_network_is_known():
    """With f = n^{-1/2} v . u x: the Hessian has the eigenvalues +-|x| n^{-1/2}."""
    model, x = TwoLayerLinear(16, 1, key=jr.key(0)), jnp.array([[1.0], [-3.0]])
    found = hessian_norm(model, x)
    np.testing.assert_allclose(found.value, [[0.25], [0.75]], rtol=1e-12)
    square = (jnp.sum(model.u**2) + jnp.sum(model.v**2)) / 16
    np.testing.assert_allclose(jacobian_norm(model, x[:1]).value, jnp.sqrt(square), rtol=1e-9)
    y = jnp.array([[2.0]])
    found = kappa(model, x[:1], y)
    distance = jnp.abs(y - jax.vmap(model)(x[:1]))[0, 0]
    np.testing.assert_allclose(found.value, distance * 0.25 / square, rtol=1e-6)
    assert bool(found.converged)


@pytest.mark.slow
def test_short_runs_of_kappa_say_so():
    model, x = tanh_mlp(), inputs(2)
    found = kappa(model, x, jnp.ones((2, 2)), iterations=1, starts=1, rtol=1e-9)
    assert not bool(found.converged)
    assert float(found.residual) > 0


@pytest.mark.long
def test_short_runs_say_so():
    model, x = tanh_mlp(width=12), inputs(2)
    for found in (hessian_norm(model, x, matvecs=3), jacobian_norm(model, x, matvecs=2)):
        assert not bool(jnp.any(found.converged))
        assert bool(jnp.all(found.residual > 0))


@pytest.mark.slow
def test_second_derivative_of_a_set_is_a_stationary_lower_bound():
    """Against a dense search over unit vectors w of outputs: max |sum_a w_a H_a|."""
    model, x, y = tanh_mlp(width=4), inputs(2), jnp.ones((2, 2))
    found = kappa(model, x, y, starts=6)
    dense = hessians(model, x).reshape(4, *[oracles.flat(model)[0].size] * 2)
    weights = jr.normal(jr.key(0), (4000, 4))
    weights /= jnp.linalg.norm(weights, axis=1, keepdims=True)
    norms = jax.lax.map(
        lambda w: jnp.abs(jnp.linalg.eigvalsh(jnp.tensordot(w, dense, 1))).max(), weights
    )
    best = float(norms.max())
    assert bool(found.converged)
    assert best <= float(found.second_derivative.value) * (1 + 1e-9)
    assert float(found.second_derivative.value) <= best * 1.02  # 4000 points of a 3-sphere
    expected = found.distance * found.second_derivative.value / found.jacobian.value**2
    np.testing.assert_allclose(found.value, expected, rtol=1e-12)
    np.testing.assert_allclose(found.distance, jnp.linalg.norm(y - jax.vmap(model)(x)), rtol=1e-12)


@pytest.mark.slow
def test_kappa_scales_and_does_not_count_examples_twice():
    """Outputs and targets in other units are the same problem, and so is each example twice."""
    model, x, y = tanh_mlp(), inputs(2), jnp.ones((2, 2))
    found = kappa(model, x, y)
    twice = (jnp.concatenate([x, x]), jnp.concatenate([7 * y, 7 * y]))
    again = kappa(scaled(model, 7.0), *twice, batch_size=3)
    np.testing.assert_allclose(again.value, found.value, rtol=1e-3)
    np.testing.assert_allclose(again.distance, 7 * 2**0.5 * found.distance, rtol=1e-12)


@pytest.mark.long
def test_in_32_bits():
    model, x = astype(tanh_mlp(), "float32"), inputs(2).astype("float32")
    found = hessian_norm(model, x, rtol=1e-3)
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.value, hessian_norm(tanh_mlp(), inputs(2)).value, rtol=1e-3)
    assert bool(jnp.all(found.converged))


def test_under_jit():
    model, x = tanh_mlp(), inputs(2)
    found = eqx.filter_jit(hessian_norm)(model, x)
    np.testing.assert_allclose(found.value, hessian_norm(model, x).value, rtol=1e-6)


@pytest.mark.long
def test_kinks_warn_and_a_linear_network_has_no_curvature():
    x = inputs(2)
    with pytest.warns(KinkWarning, match="relu, which has fewer than 2 continuous"):
        hessian_norm(tanh_mlp(activation="relu"), x)
    readout = Sequential([jnp.cos, eqx.nn.Linear(3, 2, key=jr.key(0))])
    found = hessian_norm(readout, x)
    np.testing.assert_array_equal(found.value, 0.0)
    assert bool(jnp.all(found.converged))
    found = kappa(readout, x, jnp.ones((2, 2)))
    assert float(found.value) == 0.0
    assert bool(found.converged)


def test_bad_arguments_are_named(unchecked):
    model, x = tanh_mlp(), inputs(2)
    with pytest.raises(ValueError, match="`matvecs` is 0, expected an integer >= 1"):
        hessian_norm(model, x, matvecs=0)
    with pytest.raises(ValueError, match="`rtol` is 0, expected a finite number > 0"):
        jacobian_norm(model, x, rtol=0)
    with pytest.raises(ValueError, match=r"`y` has shape \(2, 3\), expected \(2, 2\)"):
        kappa(model, x, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="`x` has 1 entries out of 6 that are not finite"):
        hessian_norm(model, x.at[0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="`metric` has the entry -1"):
        hessian_norm(model, x, metric=-1.0)
