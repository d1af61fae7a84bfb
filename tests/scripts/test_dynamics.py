import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import softmax

from scripts.benchmark import dynamics
from scripts.benchmark.dynamics import (
    Case,
    compare,
    digits,
    measure,
    measured,
    OURS,
    PEER,
    reference,
    relative_error,
    Setting,
    work,
)
from solvers import CrossEntropy, gradient_flow

_N, _M, _K = 6, 2, 3
_CASE = Case(0.1, 50.0)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(_N + _M, 8))
    kernel = features @ features.T
    kernel = kernel * (_N / np.linalg.eigvalsh(kernel[:_N, :_N])[-1])
    outputs = rng.normal(size=(_N + _M, _K))
    return {
        "kernel": kernel[:_N, :_N],
        "y": np.eye(_K)[np.arange(_N) % _K],
        "f0": outputs[:_N],
        "kernel_test": kernel[_N:, :_N],
        "f0_test": outputs[_N:],
    }


@pytest.fixture(scope="module")
def exact(problem):
    """By an implicit method of SciPy, from the equation written anew."""
    rows = np.concatenate([problem["kernel"], problem["kernel_test"]])
    targets = 0.9 * problem["y"] + 0.1 / _K

    def velocity(t, f):
        train = f.reshape(-1, _K)[:_N]
        return -(rows @ (softmax(train, axis=1) - targets) / _N).ravel()

    start = np.concatenate([problem["f0"], problem["f0_test"]]).ravel()
    solution = solve_ivp(velocity, (0, _CASE.end), start, "Radau", _CASE.ts, rtol=1e-10, atol=1e-12)
    return solution.y.T.reshape(len(_CASE.ts), _N + _M, _K)


@pytest.fixture
def setting(problem, exact, tmp_path):
    np.savez(tmp_path / "problem.npz", **problem)
    return Setting(tmp_path, _CASE, 1, exact)


@pytest.mark.smoke
def test_reference_is_the_solution(problem, exact):
    assert relative_error(reference(problem, _CASE), exact) < 1e-8


def test_measurement_is_of_the_solution_with_the_defaults(problem, exact, tmp_path):
    request = {
        "smoothing": _CASE.smoothing,
        "ts": _CASE.ts,
        "tolerances": {},
        "repeats": 2,
        "outputs": str(tmp_path / "outputs.npy"),
        "limit": 600.0,
        "late": 3,
    }
    seconds = measure(problem, request)
    assert 0 < seconds["again"] < seconds["first"]
    assert seconds["work"].endswith("right-hand sides")
    assert relative_error(np.load(tmp_path / "outputs.npy"), exact) < 1e-5


def test_digits_have_a_kernel_of_largest_eigenvalue_n_in_the_default_type(float32):
    problem = digits(20, 5)
    shapes = {name: array.shape for name, array in problem.items()}
    assert shapes == {
        "kernel": (20, 20),
        "y": (20, 10),
        "f0": (20, 10),
        "kernel_test": (5, 20),
        "f0_test": (5, 10),
    }
    assert {array.dtype.name for array in problem.values()} == {"float32"}
    values = np.linalg.eigvalsh(problem["kernel"].astype(np.float64))
    np.testing.assert_allclose(values[-1], 20.0, rtol=1e-6)
    assert values[0] > 0


def test_error_is_in_units_of_the_largest_output_at_its_worst_time():
    exact = np.array([[[2.0, -4.0]], [[10.0, 1.0]]])
    assert relative_error(exact + np.array([[[0.2, 0.0]], [[0.0, 0.2]]]), exact) == pytest.approx(
        0.05
    )


def test_failed_solve_says_so_and_where(problem):
    trajectory = gradient_flow(
        ts=_CASE.ts,
        loss=CrossEntropy(),
        max_steps=1,
        throw=False,
        **jax.tree.map(jnp.asarray, problem),
    )
    assert "FAILED at t = " in work(trajectory)
    assert "maximum number of solver steps was reached" in work(trajectory)


def test_process_that_fails_or_is_late_is_reported_as_such(setting, monkeypatch):
    failed = measured((sys.executable, "-c", "raise SystemExit('no such thing')"), setting)
    assert failed.report == "failed: no such thing"
    assert np.isnan([failed.first, failed.again, failed.compiled]).all()
    monkeypatch.setattr(dynamics, "LIMIT", 0.01)
    late = measured(OURS, setting)
    assert late.report == "stopped after 0.01 s"
    assert late.first == late.again == late.compiled == 0.01


@pytest.mark.slow
def test_both_sides_solve_the_same_problem(problem):
    rows = list(compare(problem, (_CASE,), 1))
    assert len(rows) == 5
    assert "error " in rows[0].task
    assert all(row.ours > 0 for row in rows)
    assert rows[4].ours < rows[3].ours  # programs are found again
    if Path(PEER[0]).exists():
        assert all(row.theirs > 0 for row in rows)
        error = float(rows[0].reference.split("error ")[1].split(",")[0])
        assert error < 1e-6
