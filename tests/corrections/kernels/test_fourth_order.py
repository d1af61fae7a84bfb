"""O_4 and what it is made of: exact cases, the definition, the decomposition."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import ddntk, ntk, o3, o4
from corrections.contraction import blocked_products
from corrections.kernels import curvature, ntk as tangent_kernels
from tests import oracles
from tests.corrections.contraction.test_gradient_factors import (
    batches,
    close,
    MODELS,
    random_metric,
)
from tests.models import inputs, tanh_mlp, TwoLayerLinear
from zoo import memory_limit
from zoo.common import tiles


def test_scalar_two_layer_linear_network_is_exact():
    """O_4 = 4 Theta / n (theory, section 6)."""
    model, x = TwoLayerLinear(7, key=jr.key(0)), jnp.ones((1, 1))
    np.testing.assert_allclose(jnp.squeeze(o4(model, x)), jnp.squeeze(4 * ntk(model, x) / 7))


@pytest.mark.smoke
def test_two_layer_linear_network_is_exact_on_four_different_sets():
    """O_4(a, b, c, d) = (2 Theta_cd G_ab + Theta_ad G_bc + Theta_bd G_ac) / n."""
    n = 6
    model = TwoLayerLinear(n, 3, key=jr.key(0))
    a, b, c, d = (inputs(size, seed=size) for size in (2, 3, 4, 5))

    def theta(x, y):
        return np.asarray(ntk(model, x, y))[:, 0, :, 0]

    expected = (
        2 * np.einsum("cd,ab->abcd", theta(c, d), a @ b.T)
        + np.einsum("ad,bc->abcd", theta(a, d), b @ c.T)
        + np.einsum("bd,ac->abcd", theta(b, d), a @ c.T)
    ) / n
    result = o4(model, a, b, c, d)
    assert result.shape == (2, 1, 3, 1, 4, 1, 5, 1)
    close(result[:, 0, :, 0, :, 0, :, 0], expected)


def sets(shape):
    return (*batches(shape), jnp.flip(next(batches(shape)), 0)[:1])


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {},
        *(
            pytest.param(o, marks=pytest.mark.long)
            for o in ({"batch_size": 2}, {"method": "jacobian"})
        ),
    ],
)
def test_is_its_definition(options):
    model, xs = tanh_mlp(), sets((3,))
    metric = random_metric(model)
    close(o4(model, *xs, metric=metric, **options), oracles.fourth(model, *xs, metric))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_is_its_definition_for_every_kind_of_model(name):
    make, shape, _ = MODELS[name]
    model, xs = make(), sets(shape)
    metric = random_metric(model)
    expected = oracles.fourth(model, *xs, metric)
    close(o4(model, *xs, metric=metric), expected)
    close(o4(model, *xs, metric=metric, method="jacobian", batch_size=2), expected)


@pytest.fixture
def smallest_tiles(monkeypatch):
    """One direction and one example at a time."""
    for module in (curvature, tangent_kernels, tiles, blocked_products):
        monkeypatch.setattr(module, "working_bytes", lambda: 1)
    jax.clear_caches()
    with memory_limit(1):
        yield
    jax.clear_caches()


@pytest.mark.slow
def test_the_smallest_tiles_give_the_same(smallest_tiles):
    model, xs = tanh_mlp(), sets((3,))
    close(ntk(model, xs[0]), oracles.kernel(model, xs[0], xs[0]))
    close(ntk(model, *xs[:2]), oracles.kernel(model, *xs[:2]))
    close(o3(model, *xs[:3]), oracles.third(model, *xs[:3]))
    close(o4(model, *xs), oracles.fourth(model, *xs))


@pytest.mark.slow
def test_missing_sets_are_the_first_one():
    model, x, other = tanh_mlp(), inputs(2), inputs(1, seed=11)
    close(o4(model, x), oracles.fourth(model, x, x, x, x))
    close(o4(model, x, None, other), oracles.fourth(model, x, x, other, x))
    close(o4(model, x, other, None, other), oracles.fourth(model, x, other, x, other))


def test_only_the_first_two_slots_are_exchangeable():
    kernel = o4(tanh_mlp(), inputs(2))[:, 0, :, 0, :, 0, :, 0]
    scale = float(jnp.max(jnp.abs(kernel)))
    for i, j in itertools.combinations(range(4), 2):
        difference = float(jnp.max(jnp.abs(kernel - jnp.swapaxes(kernel, i, j))))
        assert (difference < 1e-13 * scale) == ((i, j) == (0, 1)), (i, j)


@pytest.mark.slow
def test_is_made_of_the_differentials_of_the_kernel():
    """And those have the symmetries of what they are: T_1 in its last three slots, and so on."""
    model, (a, b, c, d) = tanh_mlp(), sets((3,))
    first = ddntk(model, a, b, c, d, kind="I")
    close(first, jnp.transpose(ddntk(model, a, c, b, d, kind="I"), (0, 1, 4, 5, 2, 3, 6, 7)))
    close(first, jnp.transpose(ddntk(model, a, b, d, c, kind="I"), (0, 1, 2, 3, 6, 7, 4, 5)))
    second = ddntk(model, a, b, c, d, kind="II")
    close(second, jnp.transpose(ddntk(model, b, a, d, c, kind="II"), (2, 3, 0, 1, 6, 7, 4, 5)))

    def both(x, y, order):
        """I(1; ...) + II(1, 2; 3, 4) + II(1, 3; 2, 4), axes in the order of the sets."""
        found = ddntk(model, x, y, c, d, kind="I") + ddntk(model, x, y, c, d, kind="II")
        found += jnp.swapaxes(jnp.swapaxes(ddntk(model, x, c, y, d, kind="II"), 2, 4), 3, 5)
        return jnp.transpose(found, order)

    total = both(a, b, range(8)) + both(b, a, (2, 3, 0, 1, 4, 5, 6, 7))
    close(o4(model, a, b, c, d), total)


@pytest.mark.long
def test_is_the_rate_at_which_o3_moves():
    """By central differences along M grad f_4."""
    model, (a, b, c, d) = tanh_mlp(width=6), sets((3,))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    gradient = jax.grad(lambda p: eqx.combine(p, static)(d[0])[1])(params)

    def moved(step):
        shifted = jax.tree.map(lambda p, g: p + step * g, params, gradient)
        return o3(eqx.combine(shifted, static), a, b, c)

    rate = (moved(1e-4) - moved(-1e-4)) / 2e-4
    close(rate, o4(model, a, b, c, d)[..., 0, 1], 1e-6)


def test_bad_arguments_are_named(unchecked):
    x = inputs(2)
    with pytest.raises(ValueError, match="`model` does not take an example of `x4`"):
        o4(tanh_mlp(), x, None, None, inputs(2, d=4))
    with pytest.raises(ValueError, match="`kind` is 'III', expected one of 'I', 'II'"):
        ddntk(tanh_mlp(), x, kind="III")
    with pytest.raises(ValueError, match="`x3` has 1 entries out of 6 that are not finite"):
        o4(tanh_mlp(), x, x3=x.at[0, 0].set(jnp.nan))
    with pytest.raises(MemoryError, match=r"the kernel of 2000 x 2000 x 2000 x 2000 examples has"):
        o4(tanh_mlp(), inputs(2000))
