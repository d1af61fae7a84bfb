"""Learning rates at the edge, and the catapult in its two variables."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import ntk, NTKOperator
from solvers import catapult_map, max_learning_rate, training_phase
from tests.models import inputs, tanh_mlp, TwoLayerLinear
from tests.solvers.flows.test_kernel_flow import kernel_of


def largest_error(kernel, rate, momentum, nesterov, steps=4000):
    """After many steps of descent on L = |f|^2 / (2 n) in function space."""
    n = len(kernel)
    f, velocity = np.ones(n), np.zeros(n)
    for _ in range(steps):
        at = f + momentum * velocity if nesterov else f
        velocity = momentum * velocity - rate * kernel @ at / n
        f = f + velocity
        if np.abs(f).max() > 1e6:
            break
    return np.abs(f).max()


@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.5, True), (0.9, True)]
)
def test_descent_converges_below_and_not_above(momentum, nesterov):
    kernel = np.asarray(kernel_of(4))
    edge = float(max_learning_rate(kernel, momentum=momentum, nesterov=nesterov))
    start = 1.0
    assert largest_error(kernel, 0.98 * edge, momentum, nesterov) < 2 * start
    assert largest_error(kernel, 1.02 * edge, momentum, nesterov) > 1e3 * start


@pytest.mark.long
def test_all_forms_of_a_kernel():
    model, x = tanh_mlp(), inputs(4)
    kernel = ntk(model, x)
    rate = max_learning_rate(kernel)
    top = jnp.linalg.eigvalsh(kernel.reshape(8, 8))[-1]
    np.testing.assert_allclose(rate, 2 * 4 / top, rtol=1e-12)
    np.testing.assert_allclose(max_learning_rate(NTKOperator(model, x)), rate, rtol=1e-6)
    np.testing.assert_allclose(max_learning_rate(kernel, n=8), 2 * rate, rtol=1e-12)
    each = ntk(model, x, outputs="diagonal")
    tops = [jnp.linalg.eigvalsh(each[..., k])[-1] for k in range(2)]
    np.testing.assert_allclose(max_learning_rate(each), 8 / max(map(float, tops)), rtol=1e-12)


@pytest.mark.parametrize("factor", [1.5, 3.0, 5.0])
def test_map_is_descent_of_the_network_itself(factor):
    """Lazy, catapult and divergent, step by step."""
    width = 12
    model, x = TwoLayerLinear(width, 1, key=jr.key(0)), jnp.ones(1)
    kernel = ntk(model, x[None])[0, 0, 0, 0]
    rate = factor / float(kernel)
    found = catapult_map(
        float(model(x)[0]), float(kernel), width=width, learning_rate=rate, steps=20
    )
    outputs, kernels = [], []
    for _ in range(21):
        outputs.append(model(x)[0])
        kernels.append((jnp.sum(model.u**2) + jnp.sum(model.v**2)) / width)
        gradient = jax.grad(lambda m: 0.5 * m(x)[0] ** 2)(model)
        model = jax.tree.map(lambda p, g: p - rate * g, model, gradient)
    same = jnp.isfinite(jnp.stack(outputs)) & (jnp.abs(jnp.stack(outputs)) < 1e6)
    np.testing.assert_allclose(found.f[same], jnp.stack(outputs)[same], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(found.kernel[same], jnp.stack(kernels)[same], rtol=1e-7)
    expected = {1.5: "lazy", 3.0: "catapult", 5.0: "divergent"}[factor]
    longer = catapult_map(
        float(found.f[0]), float(kernel), width=width, learning_rate=rate, steps=400
    )
    with np.errstate(over="ignore", invalid="ignore"):
        assert training_phase(np.asarray(longer.f) ** 2 / 2) == expected


def test_phases_of_a_history():
    assert training_phase([1.0, 0.5, 0.1]) == "lazy"
    assert training_phase([1.0, 5.0, 0.1]) == "catapult"
    assert training_phase([1.0, 5.0, 50.0]) == "divergent"
    assert training_phase([1.0, 5.0, np.inf]) == "divergent"
    assert training_phase([1.0, 1.0 + 1e-9, 1.0]) == "lazy"


def test_bad_arguments_are_named(unchecked):
    with pytest.raises(ValueError, match=r"`kernel` has shape \(2, 3\), expected \(n, n\)"):
        max_learning_rate(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"`momentum` is 1\.5, expected a number in"):
        max_learning_rate(jnp.eye(2), momentum=1.5)
    with pytest.raises(ValueError, match=r"`kernel` is -1\.0, expected a finite number > 0"):
        catapult_map(1.0, -1.0, width=4, learning_rate=0.1, steps=3)
    with pytest.raises(ValueError, match="`losses` starts at nan, expected a finite number"):
        training_phase([np.nan, 1.0])
    with pytest.raises(ValueError, match=r"`losses` has shape \(1,\), expected a vector"):
        training_phase([1.0])
