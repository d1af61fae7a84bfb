import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from corrections import nngp, ntk, o3, taylorize
from solvers import MeanSquaredError, parameter_flow
from tests.models import inputs, tanh_mlp
from zoo import (
    centered,
    Frozen,
    limit,
    MLP,
    NTK,
    reparameterize,
    scaled,
    STANDARD,
    with_output,
)


@pytest.mark.long
def test_centered_starts_at_zero_with_the_same_kernels():
    model, x = tanh_mlp(), inputs(3)
    transformed = centered(model)
    np.testing.assert_array_equal(jax.vmap(transformed)(x), 0)
    np.testing.assert_allclose(ntk(transformed, x), ntk(model, x), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(o3(transformed, x), o3(model, x), rtol=1e-11, atol=1e-13)


@pytest.mark.long
def test_the_copy_of_a_centered_model_is_never_trained():
    model, x = tanh_mlp(), inputs(4)
    trained = parameter_flow(
        centered(model), x, jnp.ones((4, 2)), [5.0], loss=MeanSquaredError()
    ).final
    expected = jax.vmap(trained.model)(x) - jax.vmap(model)(x)
    np.testing.assert_allclose(jax.vmap(trained)(x), expected, rtol=1e-12, atol=1e-14)
    assert float(jnp.max(jnp.abs(expected))) > 0.1
    params = eqx.filter(trained, eqx.is_inexact_array)
    assert eqx.tree_equal(params.model, eqx.filter(trained.model, eqx.is_inexact_array))
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers in
        updates, _ = optimizer.update(params, optimizer.init(params), params)
    decayed = eqx.apply_updates(trained, updates)
    frozen = [leaf for leaf in jax.tree.leaves(decayed, is_leaf=_is_frozen) if _is_frozen(leaf)]
    assert len(frozen) == 1
    assert eqx.tree_equal(frozen[0].value, model)


def _is_frozen(node):
    return isinstance(node, Frozen)


def test_scaled_multiplies_kernels_by_powers_of_alpha():
    model, x = tanh_mlp(), inputs(3)
    transformed = scaled(model, 3.0)
    np.testing.assert_allclose(jax.vmap(transformed)(x), 3 * jax.vmap(model)(x), rtol=1e-13)
    np.testing.assert_allclose(ntk(transformed, x), 9 * ntk(model, x), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(o3(transformed, x), 27 * o3(model, x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "transform",
    [
        lambda m: scaled(m, 3.0),
        centered,
        lambda m: scaled(centered(m), 3.0),
        lambda m: scaled(scaled(m, 3.0), 0.5),
    ],
)
def test_covariances_over_initialisations_are_those_of_the_outputs(transform):
    """As the limit of infinite width says; of functions of the outputs there is none."""
    model, x = MLP(3, 1, width=4096, depth=1, activation="erf", key=jr.key(0)), inputs(3)
    expected = limit(transform(model)).nngp(x)
    np.testing.assert_allclose(nngp(transform(model), x), expected, rtol=0.1)
    np.testing.assert_array_equal(nngp(with_output(model, "tanh"), x), nngp(model, x))


@pytest.mark.parametrize("output", ["softmax", "sigmoid", "tanh", lambda f: f**3])
def test_output_functions_enter_the_kernel_by_the_chain_rule(output):
    model, x = tanh_mlp(), inputs(3)
    transformed = with_output(model, output)
    f = jax.vmap(model)(x)
    jacobians = jax.vmap(jax.jacobian(transformed.output))(f)
    expected = jnp.einsum("aki,aibj,blj->akbl", jacobians, ntk(model, x), jacobians)
    np.testing.assert_allclose(ntk(transformed, x), expected, rtol=1e-11, atol=1e-13)


def test_transforms_compose_and_taylorize():
    model, x = tanh_mlp(), inputs(3)
    transformed = with_output(scaled(centered(model), 2.0), "softmax")
    np.testing.assert_allclose(jax.vmap(transformed)(x), 0.5, rtol=1e-14)
    linear = taylorize(transformed, 1)
    np.testing.assert_allclose(ntk(linear, x), ntk(transformed, x), rtol=1e-11, atol=1e-13)


def test_a_reparameterized_centered_model_is_the_same_function():
    model, x = centered(tanh_mlp()), inputs(3)
    moved = parameter_flow(model, x, jnp.ones((3, 2)), [2.0], loss=MeanSquaredError()).final
    np.testing.assert_allclose(
        jax.vmap(reparameterize(moved, STANDARD))(x), jax.vmap(moved)(x), rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_reparameterized_taylor_model_is_the_same_function(order):
    model, x = tanh_mlp(), inputs(3)
    moved = jax.tree.map(lambda p: 1.1 * p + 0.1, model)
    taylor = taylorize(moved, order, at=model)
    other = reparameterize(taylor, STANDARD)
    np.testing.assert_allclose(jax.vmap(other)(x), jax.vmap(taylor)(x), rtol=1e-12)
    assert other.model.body.layers[1].parameterization == STANDARD
    back = reparameterize(centered(other), NTK)
    np.testing.assert_allclose(jax.vmap(back)(x), 0, atol=1e-13)


def test_bad_arguments_are_named(unchecked):
    with pytest.raises(ValueError, match=r"`alpha` is 0\.0, expected a finite number > 0"):
        scaled(tanh_mlp(), 0.0)
    with pytest.raises(ValueError, match="`output` is 'relu6', expected one of 'softmax'"):
        with_output(tanh_mlp(), "relu6")
    with pytest.raises(TypeError, match=r"`model` is 3\.0, expected a callable PyTree"):
        centered(3.0)
