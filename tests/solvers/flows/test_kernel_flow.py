import re

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.special import softmax

from solvers import CrossEntropy, gradient_flow, MeanSquaredError, RESULTS, SolverError
from tests.models import inputs, one_hot

N, M, K = 4, 3, 2


def kernel_of(n, m=0, rank=None, seed=0):
    """A random positive semidefinite kernel on n + m points, as its first n columns."""
    features = jr.normal(jr.key(seed), (n + m, n + m if rank is None else rank))
    return features @ features[:n].T


@pytest.fixture
def full():
    """A full kernel (n + m, k, n, k), targets, and outputs at t = 0."""
    kernel = kernel_of((N + M) * K).reshape(N + M, K, N + M, K)[:, :, :N]
    return kernel, one_hot(N, K), inputs(N + M, K)


@pytest.mark.smoke
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_scipy(full, smoothing):
    kernel, y, f0 = full
    ts = np.array([0.0, 0.3, 1.0, 4.0, 20.0])
    flat = np.asarray(kernel).reshape((N + M) * K, N * K)
    target = (1 - smoothing) * np.asarray(y) + smoothing / K

    def velocity(t, f):
        g = (softmax(f.reshape(N + M, K)[:N], axis=1) - target) / N
        return -flat @ g.reshape(-1)

    reference = solve_ivp(
        velocity, (0, 20), np.ravel(f0), method="DOP853", t_eval=ts, rtol=1e-12, atol=1e-12
    )
    assert reference.success
    expected = reference.y.T.reshape(-1, N + M, K)
    solved = gradient_flow(
        kernel[:N],
        y,
        ts,
        loss=CrossEntropy(label_smoothing=smoothing),
        f0=f0[:N],
        kernel_test=kernel[N:],
        f0_test=f0[N:],
        rtol=1e-9,
        atol=1e-9,
    )
    np.testing.assert_allclose(solved.train, expected[:, :N], atol=1e-6)
    np.testing.assert_allclose(solved.test, expected[:, N:], atol=1e-6)
    assert bool(solved.successful)
    assert bool(jnp.all(solved.valid))
    assert float(solved.t_reached) == 20


def test_default_tolerances_reach_1e_5(full):
    kernel, y, f0 = full
    ts = [0.5, 2.0, 10.0]
    loose = gradient_flow(kernel[:N], y, ts, loss=CrossEntropy(), f0=f0[:N])
    tight = gradient_flow(kernel[:N], y, ts, loss=CrossEntropy(), f0=f0[:N], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(loose.train, tight.train, atol=1e-5)


@pytest.mark.smoke
def test_squared_loss_equals_the_matrix_exponential(full):
    """f(t) = y + e^{-Theta t / n} (f_0 - y), test points by the same exponential."""
    kernel, y, f0 = full
    ts = np.array([0.0, 0.1, 1.0, 10.0])
    flat = np.asarray(kernel).reshape((N + M) * K, N * K)
    whole = np.zeros(((N + M) * K, (N + M) * K))
    whole[:, : N * K] = flat / N
    target = np.concatenate([np.ravel(y), np.zeros(M * K)])
    expected = np.stack([expm(-whole * t) @ (np.ravel(f0) - target) + target for t in ts])
    solved = gradient_flow(
        kernel[:N],
        y,
        ts,
        loss=MeanSquaredError(),
        f0=f0[:N],
        kernel_test=kernel[N:],
        f0_test=f0[N:],
        rtol=1e-11,
        atol=1e-11,
    )
    both = jnp.concatenate([solved.train, solved.test], axis=1).reshape(len(ts), -1)
    np.testing.assert_allclose(both, expected, atol=1e-8)


@pytest.mark.parametrize("method", [diffrax.Tsit5(), diffrax.Dopri8(), diffrax.Kvaerno5()])
def test_every_solver_gives_the_same(method):
    kernel, y = kernel_of(N), one_hot(N, K)
    solved = gradient_flow(
        kernel, y, [3.0], loss=MeanSquaredError(), solver=method, rtol=1e-9, atol=1e-10
    )
    expected = np.asarray(y) - expm(-3 * np.asarray(kernel) / N) @ np.asarray(y)
    np.testing.assert_allclose(solved.train[0], expected, atol=1e-7)


@pytest.mark.long
def test_compact_kernels_stand_for_block_diagonal_ones():
    """(n, n) is Theta (x) I_k; (n, n, k) is one kernel for each output."""
    each = jnp.stack([kernel_of(N, M, seed=s) for s in range(K)], axis=-1)
    y, f0, ts = one_hot(N, K), inputs(N + M, K), [0.0, 1.0, 5.0]

    def solve(kernel):
        return gradient_flow(
            kernel[:N],
            y,
            ts,
            loss=CrossEntropy(),
            f0=f0[:N],
            kernel_test=kernel[N:],
            f0_test=f0[N:],
        )

    for compact, expanded in (
        (each, jnp.einsum("abk,kl->akbl", each, jnp.eye(K))),
        (each[..., 0], jnp.einsum("ab,kl->akbl", each[..., 0], jnp.eye(K))),
    ):
        a, b = solve(compact), solve(expanded)
        np.testing.assert_allclose(a.train, b.train, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(a.test, b.test, rtol=1e-12, atol=1e-12)


def test_starts_at_f0_and_defaults_to_zero():
    kernel, y, f0 = kernel_of(N), one_hot(N, K), inputs(N, K)
    still = gradient_flow(kernel, y, [0.0], loss=CrossEntropy(), f0=f0)
    np.testing.assert_array_equal(still.train[0], f0)
    assert bool(still.successful)
    np.testing.assert_array_equal(
        gradient_flow(kernel, y, [0.0, 1.0], loss=CrossEntropy()).train[0], 0
    )


def test_restart_from_the_final_state_equals_one_long_run():
    kernel, y = kernel_of(N), one_hot(N, K)
    options = {"loss": CrossEntropy(), "rtol": 1e-10, "atol": 1e-12}
    long = gradient_flow(kernel, y, [1.0, 3.0], **options)
    first = gradient_flow(kernel, y, [1.0], **options)
    second = gradient_flow(kernel, y, [2.0], f0=first.final[0], **options)
    np.testing.assert_allclose(second.train[-1], long.train[-1], atol=1e-8)


def test_a_singular_kernel_leaves_its_null_space_alone():
    """A duplicated point with other targets: the outputs settle at their mean, no NaN."""
    features = jnp.array([[1.0, 0.5], [1.0, 0.5], [-0.3, 1.0]])
    kernel = features @ features.T
    y = jnp.array([[1.0], [0.0], [2.0]])
    solved = gradient_flow(kernel, y, [500.0], loss=MeanSquaredError())
    np.testing.assert_allclose(solved.train[0, :2, 0], 0.5, atol=1e-5)
    assert bool(solved.successful)


def test_permuting_the_points_permutes_the_solution():
    kernel, y, order = kernel_of(N), one_hot(N, K), jnp.array([2, 0, 3, 1])
    solved = gradient_flow(kernel, y, [2.0], loss=CrossEntropy(), rtol=1e-10)
    permuted = gradient_flow(
        kernel[order][:, order], y[order], [2.0], loss=CrossEntropy(), rtol=1e-10
    )
    np.testing.assert_allclose(permuted.train[0], solved.train[0][order], atol=1e-8)


def test_a_users_loss_is_any_function():
    kernel, y = kernel_of(N), one_hot(N, K)
    mine = gradient_flow(
        kernel, y, [1.0], loss=lambda f, y: 0.5 * jnp.sum((f - y) ** 2), rtol=1e-10
    )
    ours = gradient_flow(kernel, y, [1.0], loss=MeanSquaredError(), rtol=1e-10)
    np.testing.assert_allclose(mine.train, ours.train, rtol=1e-12)


def test_an_indefinite_kernel_is_marked_never_returned_as_numbers():
    """f_1 - 1 = 4 e^{-t/2} and f_2 - 1 = 0.1 e^{t/2}: the loss falls until e^t = 40."""
    kernel, y = jnp.diag(jnp.array([1.0, -1.0])), jnp.array([[1.0], [1.0]])
    ts, f0 = [0.0, 0.5, 9.0], jnp.array([[5.0], [1.1]])
    with pytest.raises(SolverError, match="stopped being positive on the training set") as caught:
        gradient_flow(kernel, y, ts, loss=MeanSquaredError(), f0=f0)
    for marked in (
        caught.value.partial,
        gradient_flow(kernel, y, ts, loss=MeanSquaredError(), f0=f0, throw=False),
    ):
        assert bool(marked.result == RESULTS.kernel_not_positive)
        np.testing.assert_array_equal(marked.valid, [True, True, False])
        assert bool(jnp.all(jnp.isnan(marked.train[2])))
        expected = [1 + 4 * np.exp(-0.25), 1 + 0.1 * np.exp(0.25)]
        np.testing.assert_allclose(marked.train[1, :, 0], expected, rtol=1e-5)
        assert np.log(40) < float(marked.t_reached) < 9


@pytest.mark.parametrize(
    ("eigenvalue", "end", "options"),
    [
        (-0.05, 800.0, {"rtol": 1e-2}),
        (-3e-4, 6e4, {}),
        (-5e-6, 4e6, {"solver": diffrax.Kvaerno5()}),
    ],
)
def test_a_slow_rise_of_the_loss_is_marked_at_any_tolerance(eigenvalue, end, options):
    kernel, y = jnp.diag(jnp.array([1.0, eigenvalue])), jnp.ones((2, 1))
    marked = gradient_flow(
        kernel, y, [1.0, end], loss=MeanSquaredError(), f0=2 * y, throw=False, **options
    )
    assert bool(marked.result == RESULTS.kernel_not_positive)
    assert float(marked.t_reached) < end
    assert bool(jnp.all(jnp.isnan(marked.train[1])))


def test_a_velocity_that_is_not_finite_is_marked_at_once():
    kernel, y = kernel_of(N), one_hot(N, K)
    marked = gradient_flow(
        kernel, y, [0.0, 1.0], loss=lambda f, y: jnp.sum(jnp.sqrt(f - 1 - y)), throw=False
    )
    assert bool(marked.result == RESULTS.diverged)
    assert not bool(jnp.any(marked.valid))
    assert int(marked.stats["num_steps"]) == 0
    with pytest.raises(SolverError, match="The solution or its velocity is not finite"):
        gradient_flow(kernel, y, [1.0], loss=lambda f, y: jnp.sum(jnp.log(f - 1 - y)))


def test_too_few_steps_are_marked():
    kernel, y = 1e3 * kernel_of(N), one_hot(N, K)
    marked = gradient_flow(
        kernel, y, [0.0, 1e-3, 10.0], loss=MeanSquaredError(), max_steps=20, throw=False
    )
    assert bool(marked.result == RESULTS.max_steps_reached)
    np.testing.assert_array_equal(marked.valid, [True, True, False])
    assert 1e-3 < float(marked.t_reached) < 10
    with pytest.raises(SolverError, match=r"Try increasing `max_steps`.*Reached t = .* of 10"):
        gradient_flow(kernel, y, [0.0, 10.0], loss=MeanSquaredError(), max_steps=20)


@pytest.mark.long
def test_runs_under_jit_and_vmap():
    kernels = jnp.stack([kernel_of(N, seed=s) for s in range(3)])
    y, ts = one_hot(N, K), jnp.array([0.0, 2.0])

    def solve(kernel):
        return gradient_flow(kernel, y, ts, loss=CrossEntropy()).train

    batched = jax.vmap(solve)(kernels)
    np.testing.assert_allclose(jax.jit(solve)(kernels[1]), solve(kernels[1]), atol=1e-12)
    np.testing.assert_allclose(batched[2], solve(kernels[2]), atol=1e-6)


def test_forward_derivatives_go_through_the_solve():
    """In the scale s of the kernel: f(t; s Theta) = f(s t; Theta), df/ds = t df/dt at s = 1."""
    kernel, y, t = kernel_of(N), one_hot(N, K), 2.0

    def solve(scale):
        options = {"loss": CrossEntropy(), "rtol": 1e-10, "atol": 1e-12}
        return gradient_flow(scale * kernel, y, [t], **options).train[-1]

    f, slope = jax.jvp(solve, (1.0,), (1.0,))
    expected = -t * kernel @ (jax.nn.softmax(f) - y) / N
    np.testing.assert_allclose(slope, expected, atol=1e-8)


@pytest.mark.parametrize("field", ["train", "final", "t_reached"])
def test_a_failure_under_jit_still_raises(field):
    y = jnp.array([[1.0], [1.0]])

    @jax.jit
    def solve(kernel):
        solved = gradient_flow(kernel, y, jnp.array([9.0]), loss=MeanSquaredError(), f0=2 * y)
        return getattr(solved, field)

    with pytest.raises(Exception, match="stopped being positive on the training set"):
        jax.block_until_ready(solve(jnp.diag(jnp.array([1.0, -1.0]))))


def test_float32(float32):
    kernel, y = kernel_of(N), one_hot(N, K).astype("float32")
    solved = gradient_flow(kernel, y, [0.0, 3.0], loss=MeanSquaredError())
    assert solved.train.dtype == jnp.float32
    exact = np.asarray(kernel, "float64")
    expected = np.asarray(y) - expm(-3 * exact / N) @ np.asarray(y)
    np.testing.assert_allclose(solved.train[1], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ts": [0.0, 2.0, 1.0]}, "`ts` is not sorted: ts[1] = 2.0 is followed by ts[2] = 1.0"),
        ({"ts": [0.0, 1.0, 1.0]}, "`ts` is not sorted"),
        ({"ts": [-1.0, 2.0]}, "`ts` has the negative time -1.0 (at index 0)"),
        ({"ts": [0.0, np.nan]}, "`ts` has 1 entries out of 2 that are not finite"),
        ({"ts": []}, "`ts` has shape (0,), expected a vector of times"),
        ({"ts": 1.0}, "`ts` has shape (), expected a vector of times"),
        (
            {"y": jnp.ones((4, 1))},
            "`y` has shape (4, 1), expected a column for each of at least two",
        ),
        ({"kernel": jnp.ones((4, 3))}, "`kernel` has shape (4, 3), expected (4, 4)"),
        ({"kernel": jnp.ones(4)}, "`kernel` has shape (4,), expected (n, n), (n, n, k) or"),
        ({"kernel": jnp.full((4, 4), jnp.nan)}, "`kernel` has 16 entries out of 16 that are not"),
        ({"kernel": jnp.triu(jnp.ones((4, 4)))}, "`kernel` is not symmetric"),
        ({"f0": jnp.ones((4, 3))}, "`f0` has shape (4, 3), expected (4, 2)"),
        ({"f0_test": jnp.ones((4, 2))}, "`f0_test` was given without `kernel_test`"),
        ({"kernel_test": jnp.ones((3, 5))}, "`kernel_test` has shape (3, 5), expected (m, 4)"),
        ({"rtol": 0.0}, "`rtol` is 0.0, expected a finite number > 0"),
        ({"atol": -1.0}, "`atol` is -1.0, expected a finite number > 0"),
        ({"max_steps": 0}, "`max_steps` is 0, expected an integer >= 1"),
    ],
)
def test_bad_arguments_are_named(unchecked, arguments, message):
    defaults = {"kernel": jnp.eye(4), "y": one_hot(4, 2), "ts": [0.0, 1.0], "loss": CrossEntropy()}
    with pytest.raises(ValueError, match=re.escape(message)):
        gradient_flow(**(defaults | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "Tsit5"}, "`solver` is 'Tsit5', expected a diffrax AbstractAdaptiveSolver"),
        ({"solver": diffrax.Euler()}, "`solver` is Euler(), expected a diffrax AbstractAdaptive"),
        ({"ts": None}, "`ts` is not an array: got NoneType"),
        ({"ts": "now"}, "`ts` is not an array: got str"),
        ({"loss": lambda f, y: (f - y) ** 2}, "`loss(f, y)` gives ShapeDtypeStruct(shape=(2,)"),
        ({"loss": CrossEntropy}, "`loss` does not take the outputs and the target of one example"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(unchecked, arguments, message):
    defaults = {"kernel": jnp.eye(2), "y": one_hot(2, 2), "ts": [1.0], "loss": CrossEntropy()}
    with pytest.raises(TypeError, match=re.escape(message)):
        gradient_flow(**(defaults | arguments))
