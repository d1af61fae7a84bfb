import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import nngp, ntk
from tests.models import inputs, tanh_mlp, TwoLayerLinear
from zoo import MLP, NTK, Sequential, STANDARD, with_output


def flat_gradients(model, x):
    """One reverse pass for each point and output: the slow way, nothing shared with `ntk`."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    k = model(x[0]).shape[0]

    def gradient(point, output):
        return jax.grad(lambda p: eqx.combine(p, static)(point)[output])(params)

    return [[gradient(point, output) for output in range(k)] for point in x]


def test_two_layer_linear_network_is_exact():
    """Theta_ab = (v.v G_ab + (U x_a).(U x_b)) / n."""
    model = TwoLayerLinear(5, 3, key=jr.key(0))
    x = inputs(4)
    u, v = np.asarray(model.u), np.asarray(model.v)
    expected = (v @ v * x @ x.T + (x @ u.T) @ (x @ u.T).T) / 5
    np.testing.assert_allclose(ntk(model, x)[:, 0, :, 0], expected, rtol=1e-13)


@pytest.mark.smoke
def test_equals_products_of_single_gradients_on_rectangular_sets():
    model, x1, x2 = tanh_mlp(), inputs(3), inputs(4, seed=11)
    metric = {"weight": 0.5, "bias": 2.0}
    metric = jax.tree.map(
        lambda p: metric["weight"] if p.ndim == 2 else metric["bias"],
        eqx.filter(model, eqx.is_inexact_array),
    )
    g1, g2 = flat_gradients(model, x1), flat_gradients(model, x2)
    expected = np.zeros((3, 2, 4, 2))
    for a in range(3):
        for k in range(2):
            for b in range(4):
                for j in range(2):
                    products = jax.tree.map(
                        lambda m, p, q: m * jnp.vdot(p, q), metric, g1[a][k], g2[b][j]
                    )
                    expected[a, k, b, j] = sum(jax.tree.leaves(products))
    np.testing.assert_allclose(ntk(model, x1, x2, metric=metric), expected, rtol=1e-12, atol=1e-14)


def test_output_modes_are_slices_and_means_of_the_full_kernel():
    model, x1, x2 = tanh_mlp(), inputs(3), inputs(4, seed=11)
    diagonal = jnp.einsum("akbk->abk", ntk(model, x1, x2))
    np.testing.assert_allclose(ntk(model, x1, x2, outputs="diagonal"), diagonal, rtol=1e-12)
    np.testing.assert_allclose(
        ntk(model, x1, x2, outputs="mean"), jnp.mean(diagonal, axis=-1), rtol=1e-12
    )


def test_metric_may_be_a_prefix_or_arrays():
    model, x = tanh_mlp(), inputs(3)
    params = eqx.filter(model, eqx.is_inexact_array)
    full = ntk(model, x)
    np.testing.assert_allclose(ntk(model, x, metric=3.0), 3 * full, rtol=1e-12)
    arrays = jax.tree.map(lambda p: jnp.full(p.shape, 3.0), params)
    np.testing.assert_allclose(ntk(model, x, metric=arrays), 3 * full, rtol=1e-12)
    frozen = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_array_equal(ntk(model, x, metric=frozen), 0 * full)


def test_standard_with_squared_multiplier_ratios_is_ntk():
    """Theory section 9: the metric of one parameterization in the other."""
    x = inputs(4)
    model = tanh_mlp(parameterization=NTK)
    standard = tanh_mlp(parameterization=STANDARD)
    metric = eqx.tree_at(
        lambda m: [leaf for layer in m.layers for leaf in (layer.weight, layer.bias)],
        eqx.filter(standard, eqx.is_inexact_array),
        [s**2 for layer in model.layers for s in (layer.weight_multiplier, layer.bias_multiplier)],
    )
    np.testing.assert_allclose(ntk(standard, x, metric=metric), ntk(model, x), rtol=1e-12)


def test_runs_under_jit_vmap_and_grad():
    x = inputs(3)
    models = eqx.filter_vmap(lambda key: TwoLayerLinear(4, 3, key=key))(jr.split(jr.key(0), 2))
    batched = eqx.filter_vmap(lambda m: ntk(m, x))(models)
    second = jax.tree.map(lambda leaf: leaf[1], models)
    np.testing.assert_allclose(batched[1], ntk(second, x), rtol=1e-13)
    jitted = eqx.filter_jit(lambda m, x: ntk(m, x))(second, x)
    np.testing.assert_allclose(jitted, ntk(second, x), rtol=1e-13)
    # trace Theta = (|v|^2 tr G + |U X|^2) / n, so its gradient in v is 2 v tr G / n
    gradient = eqx.filter_grad(lambda m: jnp.sum(ntk(m, x, outputs="mean") * jnp.eye(3)))(second)
    np.testing.assert_allclose(gradient.v, 2 * second.v * jnp.sum(x**2) / 4, rtol=1e-12)


def test_a_metric_keeps_the_dtype_of_the_model():
    single = jax.tree.map(
        lambda p: p.astype("float32") if eqx.is_inexact_array(p) else p, tanh_mlp()
    )
    x = inputs(3).astype("float32")
    kernel = ntk(single, x, metric=np.float64(0.5))
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(kernel, 0.5 * ntk(single, x), rtol=1e-6)


def test_other_numbers_of_outputs_are_refused(unchecked):
    class Squares(eqx.Module):
        p: jax.Array

        def __call__(self, x):
            return self.p * x * x

    with pytest.raises(ValueError, match="gives 2 outputs for an example of `x2`, expected 4"):
        ntk(Squares(jnp.array(1.5)), jnp.ones((2, 4)), jnp.ones((4, 2)))


def test_parameters_that_are_not_finite_are_named(unchecked):
    model = eqx.tree_at(lambda m: m.layers[1].bias, tanh_mlp(), jnp.full(8, jnp.nan))
    with pytest.raises(ValueError, match=r"`model.body.layers\[3\].bias` has 8 entries out"):
        ntk(model, inputs(3))


def test_float32_agrees_with_float64():
    model, x = tanh_mlp(width=64), inputs(6)
    single = jax.tree.map(lambda p: p.astype("float32") if eqx.is_inexact_array(p) else p, model)
    kernel = ntk(single, x.astype("float32"))
    assert kernel.dtype == jnp.float32
    full = ntk(model, x)
    np.testing.assert_allclose(kernel, full, atol=1e-5 * float(jnp.max(jnp.abs(full))))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x1": jnp.zeros((0, 3))}, ValueError, "`x1` has shape (0, 3), expected a batch of at"),
        ({"x1": jnp.ones((2, 4))}, ValueError, "`model` does not take an example of `x1`"),
        ({"x1": jnp.array([[1.0, jnp.nan, 0]])}, ValueError, "`x1` has 1 entries out of 3 that"),
        ({"x1": jnp.ones((2, 3), int)}, ValueError, "`x` has dtype int64, expected real floating"),
        ({"x1": jnp.ones((2, 3), complex)}, TypeError, "`x1` has dtype complex128, expected real"),
        ({"x1": "digits"}, TypeError, "`x1` is not an array: got str"),
        ({"x2": jnp.full((1, 3), jnp.inf)}, ValueError, "`x2` has 3 entries out of 3 that are not"),
        ({"outputs": "trace"}, ValueError, "`outputs` is 'trace', expected one of 'full', 'mean'"),
        ({"metric": -1.0}, ValueError, "`metric` has the entry -1.0, expected learning-rate"),
        ({"metric": [1.0, 2.0]}, ValueError, "`metric` does not match the parameters"),
        ({"metric": "fast"}, TypeError, "`metric` has the leaf 'fast', expected numbers or arrays"),
        ({"metric": jnp.ones((), complex)}, TypeError, "`metric` has a complex leaf"),
        ({"metric": jnp.ones(7)}, ValueError, "`metric` has a leaf whose shape is not that"),
        (
            {"model": jax.tree_util.Partial(lambda w, x: (w @ x, x), jnp.ones((2, 3)))},
            ValueError,
            "for one example of `x1`, expected one array of k outputs",
        ),
        ({"model": lambda x: x}, ValueError, "`model` has no parameters"),
    ],
)
def test_bad_arguments_are_named(unchecked, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ntk(**({"model": tanh_mlp(), "x1": inputs(3)} | arguments))


def test_a_kernel_that_cannot_fit_is_refused_before_any_work(unchecked):
    x = jnp.zeros((3_000_000, 3))
    message = r"has shape \(3000000, 2, 3000000, 2\) and would take .* TiB.*outputs='mean'"
    with pytest.raises(MemoryError, match=message):
        ntk(tanh_mlp(), x)


def test_nngp_is_the_covariance_of_the_outputs_over_readouts():
    """Over 40 000 readouts drawn anew, within 5 standard errors; the same where outputs follow."""
    model = MLP(3, 2, width=8, depth=2, activation="tanh", bias_std=0.4, key=jr.key(0))
    x1, x2 = inputs(4), inputs(3, seed=11)
    kernel = nngp(model, x1, x2)
    hidden = [jax.vmap(Sequential(model.body.layers[:-1]))(x) for x in (x1, x2)]
    readout = model.layers[-1]

    def outputs(key):
        w_key, b_key = jr.split(key)
        drawn = eqx.tree_at(
            lambda layer: (layer.weight, layer.bias),
            readout,
            (jr.normal(w_key, readout.weight.shape), jr.normal(b_key, readout.bias.shape)),
        )
        return tuple(jax.vmap(drawn)(a)[:, 0] for a in hidden)

    f1, f2 = jax.lax.map(outputs, jr.split(jr.key(1), 40_000), batch_size=1000)
    products = f1[:, :, None] * f2[:, None, :]
    error = products.std(axis=0) / 200
    assert bool(jnp.all(jnp.abs(products.mean(axis=0) - kernel) < 5 * error))
    np.testing.assert_allclose(nngp(with_output(model, "softmax"), x1, x2), kernel, rtol=1e-12)
    np.testing.assert_allclose(nngp(model, x1), nngp(model, x1, x1), rtol=1e-12)


def test_nngp_is_the_same_in_every_parameterization_that_keeps_the_variances():
    models = [tanh_mlp(parameterization=p) for p in (NTK, STANDARD)]
    kernels = [nngp(model, inputs(3)) for model in models]
    np.testing.assert_allclose(*kernels, rtol=1e-12)


def test_nngp_needs_a_readout(unchecked):
    attention = Sequential([eqx.nn.Linear(3, 4, key=jr.key(0)), lambda a: a[:2]])
    with pytest.raises(ValueError, match="`model` does not end in a dense layer that gives"):
        nngp(attention, inputs(3))
    linear = eqx.nn.MLP(3, 2, 5, 1, activation=jnp.tanh, key=jr.key(0))
    hidden = jnp.tanh(jax.vmap(linear.layers[0])(inputs(3)))
    np.testing.assert_allclose(nngp(linear, inputs(3)), hidden @ hidden.T / 5, rtol=1e-12)
