"""Friction, operators, the limit t = inf, weights, labels, and what stops a flow."""

import re

import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from scipy.linalg import expm

from corrections import ntk, NTKOperator
from solvers import (
    AtAccuracy,
    AtLoss,
    AtSteadyState,
    CrossEntropy,
    gradient_flow,
    KernelBlocks,
    MeanSquaredError,
    mse_flow,
    RESULTS,
    SolverError,
)
from solvers.flows.kernel_flow import KernelFlow, SlowestRate
from solvers.flows.stopping import accuracy
from solvers.frozen_kernel.frozen_kernel import StoredKernel
from solvers.losses import mean_loss
from tests.models import inputs, one_hot, tanh_mlp

N, M, K = 4, 2, 2
FEATURES = jr.normal(jr.key(0), (N + M, N + 2))
FULL = FEATURES @ FEATURES.T
KERNEL, KERNEL_TEST = FULL[:N, :N], FULL[N:, :N]
Y = one_hot(N, K)
F0, F0_TEST = jr.normal(jr.key(1), (N, K)), jr.normal(jr.key(2), (M, K))
TEST = {"kernel_test": KERNEL_TEST, "f0_test": F0_TEST}
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.smoke
def test_friction_is_the_damped_oscillator():
    """F' = Theta p, p' = -c p - (f - y) / n, by the matrix exponential."""
    c, t = 0.7, 3.0
    zero = jnp.zeros((M, N))
    generator = np.block(
        [
            [np.zeros((N, N + M)), np.asarray(KERNEL)],
            [np.zeros((M, N + M)), np.asarray(KERNEL_TEST)],
            [-np.eye(N) / N, np.asarray(zero.T), -c * np.eye(N)],
        ]
    )
    start = np.concatenate([F0 - Y, F0_TEST, np.zeros((N, K))])
    exact = expm(t * generator) @ start
    found = gradient_flow(
        KERNEL, Y, [t], loss=MeanSquaredError(), f0=F0, friction=c, **TEST, **TIGHT
    )
    np.testing.assert_allclose(found.train[0], exact[:N] + Y, atol=1e-8)
    np.testing.assert_allclose(found.test[0], exact[N : N + M], atol=1e-8)


def test_friction_restarts_and_notices_a_kernel_that_is_not_positive():
    options = {"loss": CrossEntropy(), "friction": 0.5}
    whole = gradient_flow(KERNEL, Y, [3.0], f0=F0, **options, **TIGHT)
    half = gradient_flow(KERNEL, Y, [1.0], f0=F0, **options, **TIGHT)
    rest = gradient_flow(KERNEL, Y, [2.0], start=half.final, **options, **TIGHT)
    np.testing.assert_allclose(rest.train, whole.train, atol=1e-8)
    indefinite = KERNEL - 2 * jnp.eye(N)
    with pytest.raises(SolverError, match="stopped being positive"):
        gradient_flow(indefinite, Y, [100.0], f0=F0, **options)


@pytest.mark.long
def test_an_operator_is_its_matrix():
    model = tanh_mlp()
    x, x_test = inputs(N), inputs(M, seed=1)
    options = {"loss": CrossEntropy(), "f0": F0, "f0_test": F0_TEST, **TIGHT}
    found = gradient_flow(
        NTKOperator(model, x), Y, [2.0], kernel_test=NTKOperator(model, x_test, x), **options
    )
    dense = gradient_flow(ntk(model, x), Y, [2.0], kernel_test=ntk(model, x_test, x), **options)
    np.testing.assert_allclose(found.train, dense.train, atol=1e-9)
    np.testing.assert_allclose(found.test, dense.test, atol=1e-9)
    tagged = lx.TaggedLinearOperator(
        0.5 * NTKOperator(model, x) + 0.5 * NTKOperator(model, x), lx.symmetric_tag
    )
    lineax = gradient_flow(tagged, Y, [2.0], f0=F0, **TIGHT, loss=CrossEntropy())
    np.testing.assert_allclose(lineax.train, dense.train, atol=1e-9)


@pytest.mark.long
def test_blocks_and_an_operator_on_single_outputs_are_the_kernel_of_each_output():
    options = {"loss": CrossEntropy(), "f0": F0, "f0_test": F0_TEST, **TIGHT}
    x, x_test = FEATURES[:N], FEATURES[N:]

    def kernel_fn(x1, x2):
        return x1 @ x2.T

    blocks = KernelBlocks(kernel_fn, x, batch_size=3)
    rows = KernelBlocks(kernel_fn, x_test, x, batch_size=3)
    exact = gradient_flow(KERNEL, Y, [2.0], kernel_test=KERNEL_TEST, **options)
    found = gradient_flow(blocks, Y, [2.0], kernel_test=rows, **options)
    single = gradient_flow(
        lx.MatrixLinearOperator(KERNEL, lx.positive_semidefinite_tag),
        Y,
        [2.0],
        kernel_test=lx.MatrixLinearOperator(KERNEL_TEST),
        **options,
    )
    for trajectory in (found, single):
        np.testing.assert_allclose(trajectory.train, exact.train, atol=1e-9)
        np.testing.assert_allclose(trajectory.test, exact.test, atol=1e-9)


@pytest.mark.parametrize("friction", [None, 0.3, 5.0])
def test_the_slowest_rate_is_that_of_the_spectrum(friction):
    """By the eigenvalues of the linear system; squared loss, whose Hessian is 1 / n."""
    kernel = jnp.diag(jnp.array([1.0, 0.5, 0.2, 0.1]))
    flow = KernelFlow(StoredKernel(kernel), Y, MeanSquaredError(), observes_kernel=False)
    c = None if friction is None else jnp.asarray(friction)
    found = SlowestRate(flow, jnp.asarray(0.1), c)((F0,))
    theta = np.asarray(kernel) / N
    generator = -theta
    if friction is not None:
        generator = np.block([[np.zeros((N, N)), np.eye(N)], [-theta, -friction * np.eye(N)]])
    slowest = np.min(-np.linalg.eigvals(generator).real)
    np.testing.assert_allclose(found, slowest, rtol=0.03)  # power iteration to a percent


def test_the_limit_with_friction_is_that_without():
    options = {"loss": MeanSquaredError(), "f0": F0, **TEST}
    found = gradient_flow(KERNEL, Y, [jnp.inf], friction=1.0, **options)
    exact = mse_flow(KERNEL, Y, [jnp.inf], f0=F0, **TEST)
    np.testing.assert_allclose(found.train, exact.train, atol=1e-4)
    np.testing.assert_allclose(found.test, exact.test, atol=1e-3)


@pytest.mark.long
def test_the_limit_of_squared_loss_is_the_closed_form():
    ts = [0.0, 1.0, jnp.inf]
    found = gradient_flow(KERNEL, Y, ts, loss=MeanSquaredError(), f0=F0, **TEST)
    exact = mse_flow(KERNEL, Y, ts, f0=F0, **TEST)
    np.testing.assert_array_equal(found.train[0], F0)
    np.testing.assert_allclose(found.train, exact.train, atol=1e-5)
    np.testing.assert_allclose(found.test, exact.test, atol=1e-4)
    assert found.valid.all()


@pytest.mark.long
def test_the_limit_of_smoothed_cross_entropy_reproduces_its_targets():
    """Theta > 0: softmax f = (1 - s) y + s / k, and Theta (x) I_k keeps the sum of the outputs."""
    found = gradient_flow(KERNEL, Y, [jnp.inf], loss=CrossEntropy(0.1), f0=F0)
    logits = jnp.log(0.9 * Y + 0.05)
    shift = (jnp.sum(F0, 1) - jnp.sum(logits, 1)) / K
    np.testing.assert_allclose(found.train[0], logits + shift[:, None], atol=1e-4)


@pytest.mark.long
def test_slow_outputs_have_the_time_to_reach_the_limit():
    """A gap of six decades between eigenvalues: the fast ones rest long before."""
    kernel = jnp.diag(jnp.array([1.0, 1.0, 1.0, 1e-6]))
    found = gradient_flow(kernel, Y, [jnp.inf], loss=MeanSquaredError(), f0=F0)
    np.testing.assert_allclose(found.train[0], Y, atol=1e-5)
    singular = jnp.diag(jnp.array([1.0, 1.0, 1.0, 0.0]))
    found = gradient_flow(singular, Y, [jnp.inf], loss=MeanSquaredError(), f0=F0)
    np.testing.assert_allclose(found.train[0, :3], Y[:3], atol=1e-5)
    np.testing.assert_array_equal(found.train[0, 3], F0[3])


def test_cross_entropy_of_separable_classes_has_no_limit():
    found = gradient_flow(KERNEL, Y, [1.0, jnp.inf], loss=CrossEntropy(), f0=F0, throw=False)
    assert found.result == RESULTS.no_limit
    assert found.valid.tolist() == [True, False]
    assert bool(jnp.all(jnp.isnan(found.train[1])))


def test_weights_count_points_as_often():
    weights = jnp.array([1.0, 0.0, 2.0, 1.0])
    options = {"loss": CrossEntropy(), **TIGHT}
    found = gradient_flow(KERNEL, Y, [2.0], f0=F0, weights=weights, **options)
    chosen = jnp.array([0, 2, 2, 3])
    repeated = gradient_flow(KERNEL[chosen][:, chosen], Y[chosen], [2.0], f0=F0[chosen], **options)
    np.testing.assert_allclose(found.train[0, chosen], repeated.train[0], atol=1e-9)


def test_integer_labels_are_one_hot_rows():
    labels = jnp.argmax(Y, axis=1)
    found = gradient_flow(KERNEL, labels, [1.0], loss=CrossEntropy(), f0=F0)
    rows = gradient_flow(KERNEL, Y, [1.0], loss=CrossEntropy(), f0=F0)
    np.testing.assert_array_equal(found.train, rows.train)
    three = gradient_flow(KERNEL, jnp.array([0, 2, 1, 0]), [1.0], loss=CrossEntropy())
    assert three.train.shape == (1, N, 3)
    with pytest.raises(ValueError, match=re.escape("`y` holds the label 2 (at index 1)")):
        gradient_flow(KERNEL, jnp.array([0, 2, 1, 0]), [1.0], loss=CrossEntropy(), f0=F0)


@pytest.mark.long
def test_stops_at_a_loss_at_its_very_time():
    loss = CrossEntropy()
    options = {"loss": loss, "f0": F0, **TIGHT}
    found = gradient_flow(KERNEL, Y, [0.5, 100.0], stop=AtLoss(0.2), **options)
    assert found.result == RESULTS.event_occurred
    assert bool(found.successful)
    np.testing.assert_allclose(mean_loss(loss, found.final[0], Y), 0.2, atol=1e-7)
    assert found.valid.tolist() == [True, False]
    there = gradient_flow(KERNEL, Y, [float(found.t_reached)], **options)
    np.testing.assert_allclose(there.train[0], found.final[0], atol=1e-6)
    at_once = gradient_flow(KERNEL, Y, [1.0], stop=AtLoss(100.0), **options)
    assert float(at_once.t_reached) == 0
    np.testing.assert_array_equal(at_once.final[0], F0)


@pytest.mark.long
def test_stops_at_an_accuracy_and_where_nothing_moves():
    options = {"f0": -3 * Y}
    found = gradient_flow(KERNEL, Y, [1e3], loss=CrossEntropy(), stop=AtAccuracy(1.0), **options)
    assert found.result == RESULTS.event_occurred
    right = jnp.argmax(found.final[0], 1) == jnp.argmax(Y, 1)
    assert bool(jnp.all(right))
    assert float(found.t_reached) < 1e3
    found = gradient_flow(
        KERNEL, Y, [1e9], loss=MeanSquaredError(), stop=AtSteadyState(), **options
    )
    assert found.result == RESULTS.event_occurred
    np.testing.assert_allclose(found.final[0], Y, atol=1e-5)


def test_accuracy_of_one_output_is_that_of_its_sign():
    f = jnp.array([[0.2], [-3.0], [1.0], [-0.1]])
    y = jnp.array([[1.0], [-1.0], [-1.0], [-1.0]])
    assert float(accuracy(f, y)) == 0.75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"friction": 0.0}, "`friction` is 0.0, expected a finite number > 0."),
        ({"weights": jnp.ones(3)}, "`weights` has shape (3,), expected (4,)"),
        ({"start": (F0,), "f0": F0}, "`start` was given with `f0`"),
        ({"start": (F0[:3],)}, "`start` has parts of shape [(3, 2)], expected [(4, 2)]"),
        ({"ts": [jnp.inf, 1.0]}, "`ts` has 1 entries out of 2 that are not finite"),
        ({"ts": [jnp.nan]}, "`ts` has 1 entries out of 1 that are not finite"),
        (
            {"kernel": NTKOperator(tanh_mlp(), inputs(N), inputs(N))},
            "`kernel` is an operator that is not known to be symmetric",
        ),
    ],
)
def test_bad_arguments_are_named(unchecked, arguments, message):
    defaults = {"kernel": KERNEL, "y": Y, "ts": [1.0], "loss": CrossEntropy()}
    with pytest.raises(ValueError, match=re.escape(message)):
        gradient_flow(**(defaults | arguments))


def test_what_stops_is_checked(unchecked):
    with pytest.raises(TypeError, match=re.escape("`stop` is 0.1, expected `AtLoss`")):
        gradient_flow(KERNEL, Y, [1.0], loss=CrossEntropy(), stop=0.1)
    with pytest.raises(ValueError, match="`value` is -1"):
        AtLoss(-1.0)
    with pytest.raises(ValueError, match="a share in"):
        AtAccuracy(1.5)
