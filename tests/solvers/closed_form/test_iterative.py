"""Kernels that are not formed against stored ones; what Krylov methods claim against the truth."""

import re
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

from corrections import ntk, NTKOperator
from corrections.symmetric.layouts import RoundingWarning
from solvers.closed_form.iterative import learned_at, solve
from solvers.closed_form.mse import mse_flow
from solvers.closed_form.mse_operator import mse_flow_operator
from solvers.frozen_kernel.kernel_blocks import KernelBlocks
from solvers.result import RESULTS, SolverError
from tests.models import inputs, one_hot, tanh_mlp

N, M, K = 30, 5, 2
X = inputs(N + M, 4, seed=1)
Y = inputs(N, K, seed=2)
TIMES = [0.0, 1.0, 100.0, 1e4, jnp.inf]
LEARNED, SOLVE = eqx.filter_jit(learned_at), eqx.filter_jit(solve)
OPTIONS = {"damping": jnp.asarray(0.0), "rtol": jnp.asarray(1e-8), "max_iterations": 100}


def rbf(x1, x2):
    """A kernel whose condition number here is 5e4."""
    return jnp.exp(-jnp.sum((x1[:, None] - x2[None]) ** 2, axis=-1) / 8)


def spectrum(values, seed=3):
    """A matrix of these eigenvalues."""
    basis = jnp.linalg.qr(jr.normal(jr.key(seed), 2 * (len(values),)))[0]
    matrix = (basis * values[None]) @ basis.T
    return (matrix + matrix.T) / 2


def stored(matrix):
    """A stored kernel as an operator on (n,)."""
    return lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag)


def relative_errors(found, exact, scale):
    return np.linalg.norm(np.asarray(found - exact), axis=(1, 2)) / np.linalg.norm(scale)


@pytest.fixture(scope="module")
def blocks():
    return KernelBlocks(rbf, X[:N], batch_size=8)


@pytest.mark.smoke
def test_blocks_are_the_kernel(blocks):
    """Square and rectangular, with last tiles that are not full, in any number of columns."""
    dense = rbf(X, X[:N])
    across = KernelBlocks(rbf, X[N:], X[:N], batch_size=7)
    np.testing.assert_allclose(blocks.mv(Y), dense[:N] @ Y, atol=1e-12)
    np.testing.assert_allclose(across.mv(Y), dense[N:] @ Y, atol=1e-12)
    np.testing.assert_allclose(across.T.mv(Y[:M]), dense[N:].T @ Y[:M], atol=1e-12)
    assert across.T.in_structure().shape == (M,)
    assert blocks.T is blocks
    np.testing.assert_allclose(blocks.mv(Y[:, 0]), dense[:N] @ Y[:, 0], atol=1e-12)
    assert lx.is_positive_semidefinite(blocks)
    assert not lx.is_symmetric(across)


def test_blocks_evaluate_small_tiles_once_and_only_above_the_diagonal():
    calls, shapes = [], set()

    def counted(x1, x2):
        shapes.add((len(x1), len(x2)))
        jax.debug.callback(lambda: calls.append(1))
        return rbf(x1, x2)

    operator = KernelBlocks(counted, X[:N], batch_size=8)
    jax.effects_barrier()
    calls.clear()
    jax.block_until_ready(operator.mv(Y))
    jax.effects_barrier()
    assert shapes == {(8, 8)}
    assert len(calls) == 4 * 5 // 2


@pytest.mark.smoke
def test_flow_of_blocks_is_that_of_the_stored_kernel(blocks):
    dense = rbf(X, X[:N])
    across = KernelBlocks(rbf, X[N:], X[:N], batch_size=8)
    start = {"f0": Y[::-1] / 3, "f0_test": Y[:M] / 2}
    exact = mse_flow(dense[:N], Y, TIMES, kernel_test=dense[N:], **start)
    found = mse_flow_operator(blocks, Y, TIMES, kernel_test=across, rtol=1e-8, **start)
    gap = Y - start["f0"]
    assert bool(found.successful)
    assert relative_errors(found.train, exact.train, gap).max() < 1e-8
    assert relative_errors(found.test, exact.test, gap).max() < 1e-6
    np.testing.assert_array_equal(found.train[0], start["f0"])
    image = dense[:N] @ found.final
    np.testing.assert_allclose(found.train[-1], start["f0"] + image, atol=1e-10)


@pytest.mark.long
def test_flow_of_a_network_is_that_of_its_stored_kernel():
    """Outputs are coupled here: one Krylov space for all of them."""
    model, x, x_test, times = tanh_mlp(depth=1), inputs(6), inputs(3, seed=4), [2.0, 50.0]
    y, f0 = one_hot(6, 2), jax.vmap(model)(inputs(6))
    test = {"kernel_test": ntk(model, x_test, x), "f0_test": jax.vmap(model)(x_test)}
    exact = mse_flow(ntk(model, x), y, times, f0=f0, **test)
    test["kernel_test"] = NTKOperator(model, x_test, x)
    found = mse_flow_operator(NTKOperator(model, x), y, times, f0=f0, **test)
    np.testing.assert_allclose(found.train, exact.train, atol=1e-6)
    np.testing.assert_allclose(found.test, exact.test, atol=1e-5)


def test_flow_of_condition_number_1e6_reaches_its_tolerance():
    """At finite times and in the limit; a decay with no gap is the worst for Krylov methods."""
    kernel = spectrum(jnp.logspace(0, -6, N))
    times = [1e6, jnp.inf]
    exact = mse_flow(kernel, Y, times)
    found = mse_flow_operator(stored(kernel), Y, times)
    errors = relative_errors(found.train, exact.train, Y)
    assert errors.max() < 1e-6
    assert np.all(errors <= np.asarray(found.stats["error"]) + 1e-9)


@pytest.mark.parametrize("steps", [2, 12])
def test_error_of_lanczos_is_a_bound(steps):
    """Cut short, at times over six decades; and it is no more than 100 times too large."""
    values = jnp.logspace(0, -4, 40)
    kernel, b = spectrum(values), inputs(40, 1, seed=7)
    ts = jnp.array([0.1, 10.0, 1e3, 1e5])
    options = {"damping": jnp.asarray(0.0), "rtol": jnp.asarray(1e-12)}
    found = LEARNED(stored(kernel), b, ts, max_iterations=steps, **options)
    values, vectors = np.linalg.eigh(kernel)
    for u, bound, t in zip(found.solution, found.error, ts, strict=True):
        exact = vectors @ (-np.expm1(-values[:, None] * float(t)) * (vectors.T @ b))
        error = np.linalg.norm(kernel @ u - exact) / np.linalg.norm(b)
        assert error <= bound + 1e-14
        assert bound < 100 * error + 1e-13


def test_ridge_and_singular_kernel():
    """A point that is there twice: with equal targets it is fitted, with others a ridge is."""
    x = jnp.concatenate([X[: N - 1], X[:1]])
    kernel, y, times = rbf(x, x), Y.at[-1].set(Y[0]), [1e3, jnp.inf]
    with pytest.warns(RoundingWarning, match="1 directions"):
        exact = mse_flow(kernel, y, times)
    found = mse_flow_operator(stored(kernel), y, times)
    np.testing.assert_allclose(found.train, exact.train, atol=1e-5)
    other = y.at[-1].add(1.0)
    failed = mse_flow_operator(stored(kernel), other, times, throw=False)
    assert failed.result == RESULTS.max_steps_reached
    np.testing.assert_array_equal(failed.valid, [True, False])
    np.testing.assert_allclose(failed.train[0], mse_flow(kernel, other, [1e3]).train[0], atol=1e-5)
    exact = mse_flow(kernel, other, times, diag_reg=0.01)
    found = mse_flow_operator(stored(kernel), other, times, diag_reg=0.01)
    np.testing.assert_allclose(found.train, exact.train, atol=1e-5)


def test_products_are_counted():
    calls = []
    kernel = spectrum(jnp.logspace(0, -3, N))

    def mv(vector):
        jax.debug.callback(lambda: calls.append(1))
        return kernel @ vector

    structure = jax.ShapeDtypeStruct((N, 1), Y.dtype)
    operator = lx.FunctionLinearOperator(mv, structure, lx.positive_semidefinite_tag)
    found = mse_flow_operator(operator, Y[:, :1], [jnp.inf], preconditioner_rank=5)
    jax.block_until_ready(found.train)
    jax.effects_barrier()
    assert len(calls) == int(found.stats["num_products"])


def test_preconditioner_saves_products():
    """Of a kernel of fast decay and a ridge, all of whose large eigenvalues it knows."""
    operator = stored(spectrum(jnp.logspace(0, -9, N)))
    options = OPTIONS | {"damping": jnp.asarray(1e-5)}
    found = [SOLVE(operator, Y, preconditioner_rank=rank, **options) for rank in (0, 32)]
    assert int(found[1].products) < int(found[0].products) - 20
    np.testing.assert_allclose(found[0].image, found[1].image, atol=1e-6)


def test_columns_share_products():
    """K (x) I: each output has its own Krylov space, at no further evaluations of the kernel."""
    kernel, ts = spectrum(jnp.logspace(0, -3, N)), jnp.array([1e2])
    options = OPTIONS | {"rtol": jnp.asarray(1e-6)}
    separate = LEARNED(stored(kernel), Y, ts, **options)
    coupled = lx.FunctionLinearOperator(
        lambda v: kernel @ v, jax.ShapeDtypeStruct(Y.shape, Y.dtype), lx.symmetric_tag
    )
    together = LEARNED(coupled, Y.reshape(-1, 1), ts, **options)
    np.testing.assert_allclose(separate.image[0], together.image[0].reshape(Y.shape), atol=1e-5)
    assert int(separate.products) <= int(together.products)


def test_kernel_is_never_formed(blocks):
    """No array of the whole computation has n^2 entries."""

    def run(x, y):
        operator = eqx.tree_at(lambda op: op.x1, blocks, x)
        options = {"max_iterations": 8, "preconditioner_rank": 4, "throw": False}
        return mse_flow_operator(operator, y, [1.0, jnp.inf], **options).train

    text = str(jax.make_jaxpr(run)(X[:N], Y))
    shapes = [[int(d) for d in s.split(",") if d] for s in re.findall(r"f64\[([\d,]+)\]", text)]
    assert max(np.prod(s) for s in shapes) < N * N
    assert [8, 8] in shapes


def test_solves_that_are_cut_short_are_loud():
    kernel, times = stored(spectrum(jnp.logspace(0, -3, N))), [0.0, 1e4, jnp.inf]
    with pytest.raises(SolverError, match="came to relative errors") as error:
        mse_flow_operator(kernel, Y, times, max_iterations=2)
    cut = mse_flow_operator(kernel, Y, times, max_iterations=2, throw=False)
    assert cut.result == RESULTS.max_steps_reached
    np.testing.assert_array_equal(cut.valid, [True, False, False])
    np.testing.assert_array_equal(jnp.isnan(cut.train).all(axis=(1, 2)), ~cut.valid)
    assert bool(jnp.isnan(cut.final).all())
    partial = error.value.partial
    np.testing.assert_array_equal(partial.valid, cut.valid)
    assert bool(jnp.isfinite(partial.train).all())


def test_negative_eigenvalue_is_met():
    kernel = spectrum(jnp.concatenate([jnp.array([-0.01]), jnp.linspace(0.1, 1, N - 1)]))
    found = mse_flow_operator(stored(kernel), Y, [1e3, jnp.inf], throw=False)
    assert found.result == RESULTS.kernel_not_positive
    assert not bool(found.valid.any())
    with pytest.raises(SolverError, match="positive semidefinite"):
        mse_flow_operator(stored(kernel), Y, [1e3, jnp.inf])
    learned = SOLVE(stored(kernel), Y, preconditioner_rank=32, **OPTIONS)
    assert not bool(learned.positive)


def wrong_kernels():
    kernel = spectrum(jnp.linspace(0.5, 1, N))
    return kernel + 0.1 * jnp.triu(jnp.ones((N, N)), 1), kernel.at[3, 3].set(jnp.nan)


def test_kernel_that_is_not_symmetric_or_not_finite_is_not_believed():
    """Where an operator carries a tag that is not true."""
    for wrong in wrong_kernels():
        like = jax.ShapeDtypeStruct((N,), wrong.dtype)
        operator = lx.FunctionLinearOperator(partial(jnp.matmul, wrong), like, lx.symmetric_tag)
        found = mse_flow_operator(operator, Y, [3.0, jnp.inf], throw=False)
        assert not bool(found.successful)
        assert not bool(found.valid.any())


def test_matrix_that_is_not_symmetric_or_not_finite_is_refused():
    for wrong in wrong_kernels():
        with pytest.raises(ValueError, match=r"`kernel` (is not symmetric|has 1 entries)"):
            mse_flow_operator(stored(wrong), Y, [3.0])


def test_flow_in_32_bits():
    kernel = spectrum(jnp.logspace(0, -2, N)).astype("float32")
    y = Y.astype("float32")
    found = mse_flow_operator(stored(kernel), y, [10.0, jnp.inf], rtol=1e-4)
    assert found.train.dtype == jnp.float32
    exact = mse_flow(kernel.astype(float), Y, [10.0, jnp.inf])
    assert relative_errors(found.train, exact.train.astype("float32"), y).max() < 1e-4


def test_zero_column_is_solved_by_zero():
    b = Y.at[:, 0].set(0.0)
    kernel = spectrum(jnp.linspace(0.1, 1, N))
    found = SOLVE(stored(kernel), b, preconditioner_rank=32, **OPTIONS)
    np.testing.assert_array_equal(found.solution[:, 0], 0)
    np.testing.assert_allclose(kernel @ found.solution, b, atol=1e-7)


def test_bad_arguments_are_named(unchecked, blocks):
    across = KernelBlocks(rbf, X[N:], X[:N], batch_size=8)
    with pytest.raises(ValueError, match="`kernel` is an operator that is not known"):
        mse_flow_operator(across, Y, [1.0])
    with pytest.raises(ValueError, match="`kernel` is an operator that is not known"):
        mse_flow_operator(lx.MatrixLinearOperator(jnp.eye(N)), Y, [1.0])
    with pytest.raises(TypeError, match=r"`kernel` is of type .*, expected an operator"):
        mse_flow_operator(jnp.eye(N), Y, [1.0])
    with pytest.raises(TypeError, match=r"`kernel_test` is of type .*, expected an operator"):
        mse_flow_operator(blocks, Y, [1.0], kernel_test=jnp.ones((M, N)))
    with pytest.raises(ValueError, match=r"`kernel_test` goes from \(5,.*expected it to take"):
        mse_flow_operator(blocks, Y, [1.0], kernel_test=across.T)
    with pytest.raises(ValueError, match=r"`y` has shape \(3, 2\), expected"):
        mse_flow_operator(blocks, Y[:3], [1.0])
    with pytest.raises(ValueError, match="`f0_test` was given without `kernel_test`"):
        mse_flow_operator(blocks, Y, [1.0], f0_test=Y[:M])
    with pytest.raises(ValueError, match=r"`f0` has shape \(5, 2\), expected \(30, 2\)"):
        mse_flow_operator(blocks, Y, [1.0], f0=Y[:M])
    with pytest.raises(ValueError, match="`max_iterations` is 0, expected an integer"):
        mse_flow_operator(blocks, Y, [1.0], max_iterations=0)
    with pytest.raises(ValueError, match="`rtol` is 0, expected a finite number > 0"):
        mse_flow_operator(blocks, Y, [1.0], rtol=0)
    three = jax.ShapeDtypeStruct((2, 2, 2), Y.dtype)
    identity = lx.FunctionLinearOperator(lambda v: v, three, lx.symmetric_tag)
    with pytest.raises(ValueError, match=r"acts on .*expected vectors"):
        mse_flow_operator(identity, Y, [1.0])


def test_bad_blocks_are_named(unchecked, blocks):
    with pytest.raises(ValueError, match="`batch_size` is 0, expected an integer >= 1"):
        KernelBlocks(rbf, X, batch_size=0)
    with pytest.raises(TypeError, match="`kernel_fn` is of type int, expected a function"):
        KernelBlocks(3, X, batch_size=2)
    with pytest.raises(
        ValueError, match=r"`kernel_fn\(x1, x2\)` has shape \(2,\), expected \(2, 2"
    ):
        KernelBlocks(lambda a, b: jnp.ones(len(a)), X, batch_size=2)
    with pytest.raises(ValueError, match=r"`kernel_fn\(x1, x2\)` is not symmetric"):
        KernelBlocks(lambda a, b: a @ jnp.triu(jnp.ones((4, 4))) @ b.T, X, batch_size=9)
    with pytest.raises(ValueError, match=r"`kernel_fn\(x1, x2\)` has 4 entries out of 4 that are"):
        KernelBlocks(lambda a, b: rbf(a, b) * jnp.nan, X, batch_size=2)
    with pytest.raises(ValueError, match=r"`vector` has shape \(5, 2\), expected \(30, k\)"):
        blocks.mv(Y[:M])


@pytest.mark.parametrize("times", [[1.0, 30.0], [jnp.inf]], ids=["finite", "limit"])
def test_forward_derivatives_under_jit_are_those_of_the_closed_form(times):
    """Of a kernel whose Krylov spaces end early: eigenvalues of what stands for them coincide."""
    kernel = rbf(X[:6], X[:6])
    options = {"diag_reg": 0.1}

    def iterative(scale):
        operator = lx.MatrixLinearOperator(scale * kernel, lx.positive_semidefinite_tag)
        return mse_flow_operator(operator, Y[:6], times, **options).train

    def exact(scale):
        return mse_flow(scale * kernel, Y[:6], times, **options).train

    def slope(fn):
        return jax.jit(lambda s: jax.jvp(fn, (s,), (jnp.ones(()),))[1])(jnp.ones(()))

    np.testing.assert_allclose(slope(iterative), slope(exact), atol=1e-6)
