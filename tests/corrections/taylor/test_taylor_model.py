import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from corrections import ntk, taylor_coefficients, taylor_terms, taylorize
from corrections.parameters import split
from tests.models import batch_norm_network, inputs, Polynomial, tanh_mlp
from zoo import forward_train, WideResNet

NORMS = (None, "layer", "group", "batch")


def displaced(model, size, seed=5):
    """A random displacement of the model's parameters, of Euclidean norm `size`."""
    params, _ = split(model)
    leaves, structure = jax.tree.flatten(params)
    keys = jr.split(jr.key(seed), len(leaves))
    noise = [jr.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    scale = size / jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in noise))
    return jax.tree.unflatten(structure, [scale * leaf for leaf in noise])


def cubic():
    return Polynomial(w=jr.normal(jr.key(0), (2, 3)), b=jr.normal(jr.key(1), (2,)))


def test_coefficients_along_a_curved_path():
    """exp(t1 eps + t2 eps^2 + t3 eps^3) to order 4, by its power series."""
    t1, t2, t3 = 0.7, -0.4, 0.3
    path = [jnp.array(t) for t in (t1, t2, t3)]
    coefficients = taylor_coefficients(jnp.exp, jnp.array(0.0), path, 4)
    expected = [
        1,
        t1,
        t2 + t1**2 / 2,
        t3 + t1 * t2 + t1**3 / 6,
        t1 * t3 + t2**2 / 2 + t1**2 * t2 / 2 + t1**4 / 24,
    ]
    np.testing.assert_allclose(jnp.stack(coefficients), expected, rtol=1e-13)


@pytest.mark.smoke
def test_a_polynomial_model_is_reproduced_at_its_degree():
    model, x = cubic(), inputs(5)
    d = displaced(model, 3.0)
    moved = eqx.apply_updates(model, d)
    expected = jax.vmap(moved)(x)
    np.testing.assert_allclose(jnp.sum(taylor_terms(model, x, d, 3), axis=0), expected, rtol=1e-12)
    np.testing.assert_allclose(taylor_terms(model, x, d, 4)[4], 0, atol=1e-12)
    np.testing.assert_allclose(jax.vmap(taylorize(moved, 3, at=model))(x), expected, rtol=1e-12)
    assert not np.allclose(jax.vmap(taylorize(moved, 2, at=model))(x), expected, rtol=1e-3)


@pytest.mark.parametrize("order", range(5))
def test_error_falls_with_the_next_power_of_the_displacement(order):
    model, x = tanh_mlp(), inputs(4)
    sizes = np.array([0.02, 0.04, 0.08])
    errors = []
    for size in sizes:
        moved = eqx.apply_updates(model, displaced(model, size))
        approximation = jax.vmap(taylorize(moved, order, at=model))(x)
        errors.append(float(jnp.linalg.norm(approximation - jax.vmap(moved)(x))))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope == pytest.approx(order + 1, abs=0.1)


@pytest.mark.long
def test_terms_are_finite_differences():
    """Term j is the coefficient of s^j of f(theta + s d): by central differences in s."""
    model, x = tanh_mlp(), inputs(2)
    d = displaced(model, 1.0)
    h = 0.01

    def at(s):
        return jax.vmap(eqx.apply_updates(model, jax.tree.map(lambda a: s * h * a, d)))(x)

    terms = taylor_terms(model, x, d, 4)
    values = {s: at(s) for s in range(-3, 4)}
    weights = {  # sixth-, fourth- and again fourth-order formulas, coefficients / j!
        1: ({1: 45, 2: -9, 3: 1}, -1, 60 * h),
        2: ({0: -490, 1: 270, 2: -27, 3: 2}, 1, 2 * 180 * h**2),
        3: ({1: -13, 2: 8, 3: -1}, -1, 6 * 8 * h**3),
        4: ({0: 56, 1: -39, 2: 12, 3: -1}, 1, 24 * 6 * h**4),
    }
    for order, (half, parity, divisor) in weights.items():
        total = sum(
            w * (values[s] + parity * values[-s]) if s else w * values[0] for s, w in half.items()
        )
        np.testing.assert_allclose(terms[order], total / divisor, rtol=3e-4, atol=3e-5)


@pytest.mark.long
def test_terms_are_the_jacobian_and_hessian_contractions():
    model, x = tanh_mlp(), inputs(3)
    d = displaced(model, 0.5)
    params, apply = split(model)
    flat, unravel = ravel_pytree(params)
    direction, _ = ravel_pytree(d)

    def outputs(vector):
        return jax.vmap(apply, in_axes=(None, 0))(unravel(vector), x)

    terms = taylor_terms(model, x, d, 2)
    np.testing.assert_allclose(terms[0], outputs(flat), rtol=1e-13)
    np.testing.assert_allclose(terms[1], jax.jacobian(outputs)(flat) @ direction, rtol=1e-11)
    hessian = jax.hessian(outputs)(flat)
    expected = 0.5 * jnp.einsum("nkpq,p,q->nk", hessian, direction, direction)
    np.testing.assert_allclose(terms[2], expected, rtol=1e-11, atol=1e-14)


def test_starts_at_the_model_with_its_tangent_kernel():
    model, x = tanh_mlp(), inputs(3)
    for order in (1, 2):
        taylor = taylorize(model, order)
        np.testing.assert_allclose(jax.vmap(taylor)(x), jax.vmap(model)(x), rtol=1e-13)
        np.testing.assert_allclose(ntk(taylor, x), ntk(model, x), rtol=1e-11, atol=1e-13)


def test_order_zero_is_constant():
    model, x = tanh_mlp(), inputs(3)
    moved = eqx.apply_updates(model, displaced(model, 1.0))
    np.testing.assert_array_equal(jax.vmap(taylorize(moved, 0, at=model))(x), jax.vmap(model)(x))


@pytest.mark.long
def test_any_optimiser_trains_it_and_the_base_stays():
    model, x = tanh_mlp(), inputs(8)
    taylor = taylorize(model, 2)
    params = eqx.filter(taylor, eqx.is_inexact_array)
    assert sum(p.size for p in jax.tree.leaves(params)) == sum(
        p.size for p in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    )
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    state = optimizer.init(params)

    @eqx.filter_value_and_grad
    def loss(taylor):
        return jnp.mean((jax.vmap(taylor)(x) - 1.0) ** 2)

    losses = []
    for _ in range(20):
        value, gradient = loss(taylor)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers in
            updates, state = optimizer.update(
                gradient, state, eqx.filter(taylor, eqx.is_inexact_array)
            )
        taylor = eqx.apply_updates(taylor, updates)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    assert eqx.tree_equal(taylor.base, split(model)[0])
    expected = jnp.sum(taylor_terms(model, x, taylor.displacement, 2), axis=0)
    np.testing.assert_allclose(jax.vmap(taylor)(x), expected, rtol=1e-12)


def flops(model, x):
    compiled = eqx.filter_jit(lambda m, x: jax.vmap(m)(x)).lower(model, x).compile()
    found = compiled.compiled.cost_analysis()
    return (found[0] if isinstance(found, list) else found)["flops"]


@pytest.mark.parametrize(
    "name", ["MLP", *(pytest.param(f"WideResNet {n}", marks=pytest.mark.slow) for n in NORMS)]
)
def test_cost_grows_by_two_forward_passes_an_order(name):
    """Operations as the compiler counts them: at most 2 order + 1.3 times those of the network. The
    entry-by-entry work of normalizations, many terms at order 4, adds up to 0.4 on small images.
    """
    if name == "MLP":
        model = tanh_mlp(in_size=64, out_size=10, width=256, depth=3)
        x, spare = jnp.zeros((16, 64)), 1.3
    else:
        norm = None if name.endswith("None") else name.split()[1]
        spare = 1.3 if norm is None else 1.7
        model = WideResNet((3, 16, 16), 10, norm=norm, activation="tanh", key=jr.key(0))
        x = jnp.zeros((4, 3, 16, 16))
    forward = flops(model, x)
    for order in range(1, 5):
        assert flops(taylorize(model, order), x) <= (2 * order + spare) * forward


@pytest.mark.long
def test_batch_norm_keeps_its_statistics_in_evaluation_and_takes_the_batchs_in_training():
    model, xs = batch_norm_network(), jr.normal(jr.key(2), (5, 1, 4, 4))
    _, model = forward_train(model, 2 * xs + 1)
    d = displaced(model, 0.3)
    moved = eqx.apply_updates(model, d)
    taylor = taylorize(moved, 2, at=model)
    expected = jnp.sum(taylor_terms(model, xs, d, 2), axis=0)
    np.testing.assert_allclose(jax.vmap(taylor)(xs), expected, rtol=1e-10)

    params, static = eqx.partition(model, eqx.is_inexact_array)
    terms = taylor_coefficients(
        lambda p: forward_train(eqx.combine(p, static), xs)[0], params, [d], 2
    )
    outputs, trained = forward_train(taylor, xs)
    np.testing.assert_allclose(outputs, sum(terms[1:], start=terms[0]), rtol=1e-10)
    assert not np.allclose(outputs, jax.vmap(taylor)(xs), rtol=1e-2)
    _, at_base = forward_train(model, xs)
    norm, expected_norm = trained.model.layers[1], at_base.layers[1]
    np.testing.assert_array_equal(norm.mean, expected_norm.mean)
    np.testing.assert_array_equal(norm.variance, expected_norm.variance)
    for got, kept in zip(*(jax.tree.leaves(split(m)[0]) for m in (trained, taylor)), strict=True):
        np.testing.assert_array_equal(got, kept)


@pytest.mark.parametrize("order", [-1, 1.5, True])
def test_bad_order_is_named(unchecked, order):
    message = re.escape(f"`order` is {order!r}, expected an integer >= 0")
    with pytest.raises(ValueError, match=message):
        taylorize(tanh_mlp(), order)
    with pytest.raises(ValueError, match=message):
        taylor_terms(tanh_mlp(), inputs(2), displaced(tanh_mlp(), 1.0), order)


def test_other_structures_are_refused(unchecked):
    with pytest.raises(ValueError, match="`at` does not match the parameters of `model`"):
        taylorize(tanh_mlp(), 1, at=tanh_mlp(width=4))
    with pytest.raises(ValueError, match="`displacement` does not match the parameters"):
        taylor_terms(tanh_mlp(), inputs(2), displaced(tanh_mlp(width=4), 1.0), 1)
    model = tanh_mlp()
    spoiled = eqx.tree_at(lambda m: m.layers[0].bias, displaced(model, 1.0), jnp.full(8, jnp.nan))
    with pytest.raises(ValueError, match="`displacement` has 8 entries out of 8 that are not"):
        taylor_terms(model, inputs(2), spoiled, 1)
    with pytest.raises(TypeError, match=r"`model` is 3\.0, expected a callable"):
        taylorize(3.0, 2)


def test_a_path_that_is_none_is_refused(unchecked):
    """A displacement in the place of [displacement] would be read as a path of its rows."""
    with pytest.raises(TypeError, match=r"`path` is of type .*Array.*, expected a list or tuple"):
        taylor_coefficients(jnp.sum, jnp.ones(3), 2 * jnp.ones(3), 2)
    with pytest.raises(
        ValueError, match=r"`path\[0\]` does not match `theta`.*got \(2,\), expected \(3"
    ):
        taylor_coefficients(jnp.sum, jnp.ones(3), [jnp.ones(2)], 1)


def test_any_callable_pytree_is_a_model():
    """A container that compares by identity, as `jax.tree_util.Partial` does."""
    weights = {"w": jnp.array([[1.0, 2.0], [3.0, -1.0]])}
    model = jax.tree_util.Partial(lambda p, x: jnp.tanh(p["w"] @ x), weights)
    x = inputs(3, 2)
    np.testing.assert_allclose(jax.vmap(taylorize(model, 1))(x), jax.vmap(model)(x), rtol=1e-13)
    d = eqx.filter(model, eqx.is_inexact_array)
    assert taylor_terms(model, x, d, 1).shape == (2, 3, 2)
