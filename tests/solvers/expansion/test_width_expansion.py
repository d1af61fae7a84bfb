"""The O(1/width) expansion: against its closed form, exact cases and real networks."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import scipy.linalg
from hypothesis import given, settings, strategies as st

from corrections import KinkWarning, ntk, o3, o4
from solvers import (
    ExpansionError,
    MeanSquaredError,
    RESULTS,
    train,
    ValidityWarning,
    width_expansion,
    width_expansion_descent,
)
from solvers.expansion.divided_differences import phi_1, w2
from solvers.expansion.quadrature import edges, gauss
from tests.models import inputs, tanh_mlp, TwoLayerLinear
from zoo import astype

large = pytest.mark.filterwarnings("ignore::solvers.ValidityWarning")


def corner(*nodes, t):
    """w_r of the nodes: the corner of the exponential of a bidiagonal matrix."""
    matrix = np.diag(-np.array(nodes)) + np.diag(np.ones(len(nodes) - 1), 1)
    return scipy.linalg.expm(t * matrix)[0, -1]


@pytest.mark.long
# SciPy takes differences of neighbours on the diagonal: they are equal here, or well apart.
@given(*[st.just(0.0) | st.floats(1e-2, 30)] * 2, st.floats(1e-3, 3))
@settings(max_examples=60, deadline=None)
def test_divided_differences_are_corners_of_exponentials(a, b, t):
    numbers = [jnp.asarray(value) for value in (a, b, t)]
    np.testing.assert_allclose(phi_1(numbers[0], numbers[2]), corner(0, a, t=t), rtol=1e-12)
    np.testing.assert_allclose(w2(*numbers), corner(0, a, a + b, t=t), rtol=3e-12)


def test_panels_hold_fast_and_slow_decay():
    """Products of what decays from the start and what decays to the end, over 10 decades."""
    for end, fast in ((0.5, 1.0), (3.0, 1.0), (1e5, 1.0), (1e3, 100.0)):
        nodes, weights, _ = (np.asarray(part) for part in gauss(jnp.dtype("float64")))
        found = np.zeros((4, 4))
        rates = fast * np.array([1.0, 0.3, 1e-3, 1e-5])
        for a, b in itertools.pairwise(edges(0.0, end, fast)):
            s = a + (b - a) * nodes
            left, right = np.exp(-np.outer(rates, s)), np.exp(-np.outer(rates, end - s))
            found += (b - a) * (left * weights) @ right.T
        exact = [[corner(p, q, t=end) for q in rates] for p in rates]
        np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-13 / fast)


def test_integrals_up_to_the_nodes_are_those_of_the_polynomial():
    nodes, _, upto = gauss(jnp.dtype("float64"))
    for power in range(16):
        np.testing.assert_allclose(
            upto @ nodes**power, nodes ** (power + 1) / (power + 1), atol=1e-14
        )


@pytest.mark.long
@large
def test_dense_and_matrix_free_are_the_closed_form():
    """That of docs/theory.md with divided differences, at any time and in the limit."""
    model, x, y, x_test = (
        tanh_mlp(width=12, out_size=1),
        inputs(3),
        inputs(3, 1, 4),
        inputs(2, 3, 7),
    )
    metric = 0.7
    ts = [0.0, 0.4, 3.0, 200.0, jnp.inf]
    options = {"x_test": x_test, "metric": metric}
    dense = width_expansion(model, x, y, ts, method="dense", **options)
    matrix_free = width_expansion(model, x, y, ts, kernel_pairs=(x, x), **options)

    points = jnp.concatenate([x, x_test])
    kernel = np.asarray(ntk(model, points, x, metric=metric)).reshape(5, 3)
    third = np.asarray(o3(model, points, x, x, metric=metric)).reshape(5, 3, 3)
    fourth = np.asarray(o4(model, points, x, x, x, metric=metric)).reshape(5, 3, 3, 3)
    lam, vectors = np.linalg.eigh(kernel[:3])
    outputs = np.asarray(jax.vmap(model)(points)).ravel()
    delta = vectors.T @ (outputs[:3] - np.asarray(y).ravel())
    third = np.einsum("xab,aj,bk->xjk", third, vectors, vectors)
    fourth = np.einsum("xabc,aj,bk,cl->xjkl", fourth, vectors, vectors, vectors)
    third_train, fourth_train = (
        np.einsum("x...,xi->i...", o[:3], vectors) for o in (third, fourth)
    )
    rows = kernel[3:] @ vectors
    every = list(itertools.product(range(3), repeat=3))
    pairs = list(itertools.product(range(3), repeat=2))
    for row, t in enumerate(ts[:-1]):
        tau = t / 3
        theta1 = -sum(third[:, :, k] * delta[k] * corner(0, lam[k], t=tau) for k in range(3)) + sum(
            fourth[:, :, k, m] * delta[k] * delta[m] * corner(0, lam[k], lam[k] + lam[m], t=tau)
            for k, m in pairs
        )

        def f1(o3_row, o4_row, *nodes, tau=tau):
            second = sum(
                o3_row[j, k] * delta[j] * delta[k] * corner(*nodes, lam[j], lam[j] + lam[k], t=tau)
                for j, k in pairs
            )
            return second - sum(
                o4_row[j, k, m] * delta[j] * delta[k] * delta[m]
                * corner(*nodes, lam[j], lam[j] + lam[k], lam[j] + lam[k] + lam[m], t=tau)
                for j, k, m in every
            )  # fmt: skip

        train1 = [f1(third_train[i], fourth_train[i], lam[i]) for i in range(3)]
        moved = [f1(third_train[i], fourth_train[i], 0.0, lam[i]) for i in range(3)]
        test1 = [f1(third[3 + p], fourth[3 + p], 0.0) - rows[p] @ moved for p in range(2)]
        for found in (dense, matrix_free):
            np.testing.assert_allclose(found.train1[row, :, 0], vectors @ train1, atol=1e-12)
            np.testing.assert_allclose(found.test1[row, :, 0], test1, atol=1e-12)
            np.testing.assert_allclose(
                found.kernel1[row].reshape(3, 3), theta1[:3] @ vectors.T, atol=1e-11
            )
            left = outputs[3:] - rows @ (delta * [corner(0, z, t=tau) for z in lam])
            np.testing.assert_allclose(found.test0[row, :, 0], left, atol=1e-12)

    hatted = [
        o[3:] - np.einsum("mi,i...->m...", rows / lam, of_train)
        for o, of_train in ((third, third_train), (fourth, fourth_train))
    ]
    limit = sum(
        hatted[0][:, j, k] * delta[j] * delta[k] / (lam[j] * (lam[j] + lam[k])) for j, k in pairs
    ) - sum(
        hatted[1][:, j, k, m] * delta[j] * delta[k] * delta[m]
        / (lam[j] * (lam[j] + lam[k]) * (lam[j] + lam[k] + lam[m]))
        for j, k, m in every
    )  # fmt: skip
    theta1 = -sum(third[:3, :, k] * delta[k] / lam[k] for k in range(3)) + sum(
        fourth[:3, :, k, m] * delta[k] * delta[m] / (lam[k] * (lam[k] + lam[m])) for k, m in pairs
    )
    ratio = np.linalg.norm(theta1 @ vectors.T, 2) / lam[0]
    for found, tolerance in ((dense, 1e-9), (matrix_free, 2e-3)):
        np.testing.assert_allclose(found.test1[-1, :, 0], limit, rtol=1e-9)
        np.testing.assert_allclose(found.train[-1], y, atol=1e-12)
        np.testing.assert_allclose(found.validity[-1], ratio, rtol=tolerance)
        assert found.validity[0] < found.validity[-1]  # that of an early time is its own
        assert found.successful


@pytest.mark.long
@large
def test_kernel_of_a_scalar_linear_network_is_exact_in_the_limit():
    """Of f = v.u / sqrt(n): Theta1 = 2 (y^2 - f_0^2) / (n Theta_0)."""
    width = 50
    model, x, y = TwoLayerLinear(width, key=jr.key(0)), jnp.ones((1, 1)), jnp.full((1, 1), 0.7)
    f, theta = float(model(x[0])[0]), float(ntk(model, x).squeeze())
    for options in ({"method": "dense"}, {"kernel_pairs": (x, x)}):
        found = width_expansion(model, x, y, [jnp.inf], **options)
        exact = 2 * (0.7**2 - f**2) / (width * theta)
        np.testing.assert_allclose(found.kernel1.squeeze(), exact, rtol=1e-11)
        np.testing.assert_allclose(found.kernel.squeeze(), theta + exact, rtol=1e-12)


@pytest.mark.long
@large
def test_one_step_of_a_quadratic_network_is_exact():
    """Its outputs are of second degree in the parameters, as its kernel: nothing is left out."""
    model, x, y, x_test = (
        TwoLayerLinear(6, 2, key=jr.key(1)),
        inputs(3, 2),
        inputs(3, 1),
        inputs(2, 2, 5),
    )
    options = {"steps": 1, "optimizer": optax.sgd(0.4)}
    trained = train(model, x, y, loss=MeanSquaredError(), **options).model
    for options in ({"method": "dense"}, {"kernel_pairs": (x, x)}):
        found = width_expansion_descent(
            model, x, y, [0, 1], learning_rate=0.4, x_test=x_test, **options
        )
        np.testing.assert_allclose(found.train[1], jax.vmap(trained)(x), atol=1e-13)
        np.testing.assert_allclose(found.test[1], jax.vmap(trained)(x_test), atol=1e-13)
        np.testing.assert_allclose(found.kernel[1], ntk(trained, x), atol=1e-13)
        np.testing.assert_array_equal(found.train1[0], 0)


@pytest.mark.long
@large
def test_descent_without_tensors_is_the_recursion_of_the_tensors():
    model, x, y, x_test = tanh_mlp(), inputs(3), inputs(3, 2, 4), inputs(2, 3, 7)
    steps, options = [0, 1, 2, 30], {"learning_rate": 0.2, "x_test": x_test, "metric": 0.7}
    dense = width_expansion_descent(model, x, y, steps, method="dense", **options)
    for more in ({"kernel_pairs": (x, x)}, {"kernel_pairs": (x, x), "batch_size": 2}):
        found = width_expansion_descent(model, x, y, steps, **options, **more)
        for name in ("train0", "train1", "test0", "test1", "kernel0", "kernel1"):
            np.testing.assert_allclose(getattr(found, name), getattr(dense, name), atol=1e-11)
        np.testing.assert_allclose(found.validity, dense.validity, rtol=2e-3)


@pytest.mark.long
@large
def test_small_steps_are_the_flow():
    """The difference falls like the learning rate."""
    model, x, y = tanh_mlp(width=64), inputs(2), inputs(2, 2, 4)
    flow = width_expansion(model, x, y, [0.5])
    gaps = [
        float(jnp.max(jnp.abs(one.train - flow.train)))
        for steps in (50, 100)
        for one in [width_expansion_descent(model, x, y, [steps], learning_rate=0.5 / steps)]
    ]
    assert gaps[1] < 0.01
    np.testing.assert_allclose(gaps[0] / gaps[1], 2, rtol=0.05)


@pytest.mark.long
def test_warns_of_large_steps_and_of_large_corrections():
    model, x, y = tanh_mlp(width=64), inputs(2), inputs(2, 2, 4)
    with pytest.warns(
        ValidityWarning, match=r"`learning_rate` 1 times lambda_max / n is .*descent"
    ):
        width_expansion(model, x, y, [0.1], learning_rate=1.0)
    narrow = tanh_mlp(width=4)
    with pytest.warns(ValidityWarning, match="The correction of the kernel is .* of its smallest"):
        width_expansion(narrow, x, 3 * y, [10.0])


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*smallest eigenvalue")
def test_kinks_warn():
    model = tanh_mlp(activation="relu")
    with pytest.warns(KinkWarning, match="`model` has the activation relu"):
        width_expansion(model, inputs(2), inputs(2, 2), [0.01])
    with pytest.warns(KinkWarning, match="`model` has the activation relu"):
        width_expansion_descent(model, inputs(2), inputs(2, 2), [1], learning_rate=0.01)


@pytest.mark.long
@large
def test_a_singular_kernel_has_no_limit_but_every_finite_time():
    model, y = tanh_mlp(width=32), inputs(3, 2, 4)
    x = inputs(2)[jnp.array([0, 1, 1])]
    found = width_expansion(model, x, y, [1.0, jnp.inf], throw=False)
    assert found.result == RESULTS.no_limit
    np.testing.assert_array_equal(found.valid, [True, False])
    assert jnp.all(jnp.isnan(found.train1[1]))
    np.testing.assert_array_equal(found.validity, np.inf)
    dense = width_expansion(model, x, y, [1.0], method="dense")
    np.testing.assert_allclose(found.train[0], dense.train[0], atol=1e-12)
    # Two like points with targets of their own: their outputs stay alike.
    np.testing.assert_allclose(found.train[0, 1], found.train[0, 2], atol=1e-12)
    with pytest.raises(ExpansionError, match=r"no limit here .* 1 of 2 times are valid") as failure:
        width_expansion(model, x, y, [1.0, jnp.inf])
    np.testing.assert_array_equal(failure.value.partial.valid, [True, False])


@pytest.mark.long
@large
def test_divergent_steps_are_marked():
    model, x, y = tanh_mlp(), inputs(2), inputs(2, 2, 4)
    found = width_expansion_descent(model, x, y, [1, 5000], learning_rate=10.0, throw=False)
    assert found.result == RESULTS.diverged
    np.testing.assert_array_equal(found.valid, [True, False])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "sparse"}, "`method` is 'sparse', expected one of 'matrix_free', 'dense'"),
        ({"ts": [1.0, 0.5]}, "`ts` is not sorted"),
        ({"ts": [jnp.inf, jnp.inf]}, "`ts` has 2 entries out of 2 that are not finite"),
        ({"y": inputs(2, 3)}, "`y` has shape (2, 3), expected (2, 2)"),
        ({"batch_size": 0}, "`batch_size` is 0, expected"),
        ({"method": "dense", "batch_size": 2}, '`batch_size` was given with `method="dense"`'),
        ({"learning_rate": -1.0}, "`learning_rate` is -1.0, expected"),
        ({"kernel_pairs": inputs(2)}, "expected two batches of examples (x1, x2)"),
    ],
)
def test_bad_arguments_are_named(unchecked, arguments, message):
    options = {"ts": [1.0]} | arguments
    with pytest.raises((ValueError, TypeError)) as failure:
        width_expansion(tanh_mlp(), inputs(2), options.pop("y", inputs(2, 2)), **options)
    assert message in str(failure.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": [0.5]}, "`steps` is [0.5], expected whole numbers >= 0"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0, expected"),
        ({"metric": -1.0}, "`metric`"),
    ],
)
def test_bad_arguments_of_descent_are_named(unchecked, arguments, message):
    options = {"steps": [1], "learning_rate": 0.1} | arguments
    with pytest.raises((ValueError, TypeError)) as failure:
        width_expansion_descent(tanh_mlp(), inputs(2), inputs(2, 2), **options)
    assert message in str(failure.value)


def test_is_not_for_compiled_functions():
    model, x, y = tanh_mlp(), inputs(2), inputs(2, 2)
    with pytest.raises(ValueError, match=r"inside `jax.jit`, expected concrete"):
        jax.jit(lambda y: width_expansion(model, x, y, [1.0]).train1)(y)


@pytest.mark.slow
@large
def test_a_float32_model_is_expanded_in_float32_where_the_default_is_float64():
    model, x, y = tanh_mlp(width=64), inputs(2), inputs(2, 2, 4)
    rough, x32, y32 = astype(model, "float32"), x.astype("float32"), y.astype("float32")
    exact = width_expansion(model, x, y, [1.0, jnp.inf], kernel_pairs=(x, x))
    for options in ({"method": "dense"}, {"kernel_pairs": (x32, x32)}):
        found = width_expansion(rough, x32, y32, [1.0, jnp.inf], **options)
        assert found.train1.dtype == found.kernel1.dtype == jnp.float32
        np.testing.assert_allclose(found.train1, exact.train1, atol=2e-5)
        np.testing.assert_allclose(found.kernel1, exact.kernel1, atol=2e-4)
    steps = width_expansion_descent(model, x, y, [0, 3], learning_rate=0.1)
    for options in ({"method": "dense"}, {}):
        found = width_expansion_descent(rough, x32, y32, [0, 3], learning_rate=0.1, **options)
        assert found.train1.dtype == jnp.float32
        np.testing.assert_allclose(found.train1, steps.train1, atol=2e-5)


def test_panels_end_where_rounding_can_no_longer_tell_times_apart():
    found = edges(0.25, 1.0, fastest=1e20)
    assert found[0] == 0.25
    assert found[-1] == 1.0
    assert np.all(np.diff(found) > 0)
    assert len(found) < 100
