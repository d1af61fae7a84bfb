"""Finite networks approach `zoo.limit` as their width grows."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import monte_carlo_kernels, nngp, ntk
from zoo import CNN, learning_rates, limit, MEAN_FIELD, MLP, MUP, NTK, STANDARD, WideResNet

X = jr.normal(jr.key(7), (3, 2, 4, 4))
OPTIONS = {"bias_std": 0.3, "readout_std": 0.8}


def mlp(width, **options):
    return functools.partial(MLP, 32, 1, width=width, depth=2, **(OPTIONS | options))


def cnn(width, **options):
    return functools.partial(CNN, (2, 4, 4), 1, channels=width, depth=2, **(OPTIONS | options))


def cnn_mean(width, **options):
    return cnn(width, readout="mean", **options)


def wide_resnet(width, **options):
    """`width` channels in the last group."""
    options = {"activation": "erf"} | OPTIONS | options
    return functools.partial(WideResNet, (2, 4, 4), 1, base_channels=width // 4, **options)


def layer_norm(width, **options):
    return wide_resnet(width, norm="layer", **options)


def rates(model):
    """NTK's trajectory for STANDARD; else those of the parameterization."""
    layer = model.body.layers[-1]
    other = NTK if layer.parameterization is STANDARD else None
    return learning_rates(model, equivalent_to=other)


def deviations(make, width, n_samples, parameterization):
    """Of tangent kernels, in standard errors; the averages and the limit."""
    model_fn = make(width, parameterization=parameterization)
    found = monte_carlo_kernels(
        lambda key: model_fn(key=key), X, n_samples=n_samples, key=jr.key(3), metric_fn=rates
    )
    model = model_fn(key=jr.key(0))
    equivalent_to = NTK if parameterization is STANDARD else None
    exact = limit(model, equivalent_to=equivalent_to).kernels(X)
    return (found.ntk - exact.ntk) / found.ntk_error, found, exact


@pytest.mark.long
def test_mean_and_errors_are_those_of_the_draws():
    make = mlp(8)
    draws = [make(key=key) for key in jr.split(jr.key(1), 3)]
    found = monte_carlo_kernels(lambda key: make(key=key), X, n_samples=3, key=jr.key(1))
    for kernel, mean, error, spread in (
        (nngp, found.nngp, found.nngp_error, found.nngp_spread),
        (functools.partial(ntk, outputs="mean"), found.ntk, found.ntk_error, found.ntk_spread),
    ):
        each = np.array([kernel(model, X) for model in draws])
        np.testing.assert_allclose(mean, each.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(spread, each.std(axis=0, ddof=1), rtol=1e-10)
        np.testing.assert_allclose(error, spread / 3**0.5, rtol=1e-12)
    part = monte_carlo_kernels(
        lambda key: make(key=key), X[:2], X[1:], n_samples=3, key=jr.key(1), batch_size=1
    )
    np.testing.assert_allclose(part.ntk, found.ntk[:2, 1:], rtol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize(
    "parameterization",
    [NTK, *(pytest.param(p, marks=pytest.mark.long) for p in (STANDARD, MEAN_FIELD, MUP))],
    ids=lambda p: p.name,
)
def test_wide_mlp_has_the_kernels_of_the_limit(parameterization):
    """Within 4 standard errors at width 2048, under its learning rates; errors are below 3 %."""
    z, found, exact = deviations(mlp, 2048, 12, parameterization)
    assert np.all(np.abs(z) < 4)
    assert np.all(found.ntk_error < 0.03 * jnp.max(exact.ntk))
    if parameterization in (NTK, STANDARD):
        assert np.all(np.abs(found.nngp - exact.nngp) < 4 * found.nngp_error)


@pytest.mark.slow
@pytest.mark.parametrize("parameterization", [NTK, STANDARD], ids=lambda p: p.name)
@pytest.mark.parametrize("make", [cnn, cnn_mean, wide_resnet, layer_norm])
def test_wide_networks_have_the_kernels_of_the_limit(make, parameterization):
    """Within 4 standard errors at width 2048."""
    z, found, exact = deviations(make, 2048, 12, parameterization)
    assert np.all(np.abs(z) < 4)
    assert np.all(found.ntk_error < 0.03 * jnp.max(exact.ntk))
    assert np.all(np.abs(found.nngp - exact.nngp) < 4 * found.nngp_error)


@pytest.mark.slow
@pytest.mark.parametrize("parameterization", [NTK, STANDARD], ids=lambda p: p.name)
@pytest.mark.parametrize("make", [mlp, cnn, cnn_mean, wide_resnet, layer_norm])
def test_one_draw_differs_from_the_limit_like_one_over_root_width(make, parameterization):
    """Slope -1/2 +- 0.1 of the spread of tangent kernels in width."""
    widths = (32, 64, 128, 256)
    spreads = []
    for width in widths:
        _, found, exact = deviations(make, width, 60, parameterization)
        spreads.append(float(jnp.sqrt(jnp.mean((found.ntk_spread / exact.ntk) ** 2))))
    slope = np.polyfit(np.log(widths), np.log(spreads), 1)[0]
    assert abs(slope + 0.5) < 0.1, (slope, spreads)


def test_bad_arguments_are_named(unchecked):
    make = mlp(4)
    with pytest.raises(ValueError, match=r"`n_samples` is 1, expected an integer >= 2"):
        monte_carlo_kernels(lambda key: make(key=key), X, n_samples=1, key=jr.key(0))
    with pytest.raises(TypeError, match=r"`model_fn` is 3, expected a function"):
        monte_carlo_kernels(3, X, n_samples=2, key=jr.key(0))


@pytest.mark.long
@pytest.mark.parametrize("architecture", ["MLP", "CNN"])
def test_standard_parameterization_at_its_own_rates_over_the_width(architecture):
    """At rate 1 / width the input layer stands still in the limit: its rate is 0 in the draws."""
    shape = (5,) if architecture == "MLP" else (1, 4, 4)
    x = jr.normal(jr.key(1), (3, *shape))

    def network(key):
        options = {"activation": "erf", "parameterization": STANDARD, "bias_std": 0.5, "key": key}
        if architecture == "MLP":
            return MLP(5, 1, width=256, depth=2, **options)
        return CNN(shape, 1, channels=96, depth=2, readout="flatten", **options)

    model = network(jr.key(0))
    leaves, structure = jax.tree.flatten(eqx.filter(model, eqx.is_inexact_array))
    width = model.body.layers[-1].fans["fan_in"]
    rates = [0.0 if leaf.ndim == 1 else 1 / width for leaf in leaves]
    rates = jax.tree.unflatten(structure, [0.0, *rates[1:]])
    found = monte_carlo_kernels(
        network, x, n_samples=60, key=jr.key(2), metric_fn=lambda model: rates
    )
    expected = limit(model, rate_power=-1).ntk(x)
    gap = jnp.abs(found.ntk - expected)
    assert bool(jnp.all(gap < 4 * found.ntk_error + 0.01 * jnp.max(expected)))
    assert float(found.ntk_error.max()) < 0.02 * float(expected.max())


def test_learning_rates_that_are_no_number_are_refused(unchecked):
    with pytest.raises(TypeError, match=r"`rate_power` is 'width', expected a finite number"):
        limit(MLP(5, 1, width=8, depth=1, key=jr.key(0)), rate_power="width")
