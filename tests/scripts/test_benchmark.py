import math
from pathlib import Path

import jax.numpy as jnp
import pytest

from scripts.benchmark import BenchmarkConfig, limits
from scripts.benchmark.cases import PARTS
from scripts.benchmark.dynamics import PEER
from scripts.benchmark.solves import solves
from scripts.benchmark.timing import cholesky_gflops, Comparison, gemm_gflops, median_seconds


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(name, marks=pytest.mark.long if name == "operators" else pytest.mark.slow)
        for name in PARTS
    ],
)
def test_every_part_runs_and_compares_like_with_like(part):
    for row in PARTS[part](1):
        assert row.ours > 0
        missing = part in ("kernels", "dynamics", "limits") and not Path(PEER[0]).exists()
        assert math.isnan(row.theirs) if missing else row.theirs > 0


@pytest.mark.long
def test_infinite_limits_are_measured_in_a_process_of_their_own(monkeypatch):
    monkeypatch.setattr(limits, "PEER", ("no-such-python",))
    case = limits.Case("CNN", "CNN", {"width": 2, "depth": 1, "out_size": 1}, (3, 2, 4, 4))
    again, first = limits.compare((case,), 1)
    assert 0 < again.ours < first.ours < math.inf
    assert again.reference == first.reference == "neural-tangents (not here: make peer)"
    assert math.isnan(again.theirs)
    assert math.isnan(first.theirs)


@pytest.mark.long
def test_solves_are_timed_with_their_errors_beside_those_of_programs():
    rows = list(solves(1, sizes=(12,)))
    solved = [row.task for row in rows if row.kind == "seconds"]
    names = {task.split(",")[0] for task in solved}
    assert names == {"posterior", "ensemble", "mse_flow", "kernel_regression"}
    assert {task.split(", ")[1] for task in solved} == {"clusters", "RBF"}
    for row in rows:
        if row.kind == "seconds":
            whole = row.task.endswith("dropped 0")
        else:  # in units of what they are relative to
            assert 0 < row.ours < (1e-4 if whole else 2e-3)
            assert row.ours < 10 * max(row.theirs, 1e-6) or not whole
    assert len(rows) > 2 * len(solved)
    assert jnp.result_type(float) == jnp.float64


def test_comparisons_are_shown_in_their_units():
    assert Comparison("a", 2e-3, "b", 1e-3).shown() == ("a", "2.0 ms", "b", "1.0 ms", "2")
    assert Comparison("a", 2e-6, "b", 0.0, "error").shown() == ("a", "2.0e-06", "b", "0.0e+00", "-")
    assert Comparison("a", 2e-3, "b", math.nan).shown() == ("a", "2.0 ms", "b", "-", "-")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ()}, r"`sizes` is \(\), expected different values"),
        ({"sizes": (0,)}, "`sizes` is 0, expected an integer >= 1"),
        ({"root": Path("no such folder")}, "`root` is 'no such folder', expected a folder"),
    ],
)
def test_bad_settings_of_solves_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        BenchmarkConfig(**options).check()


def test_timing_counts_the_median_after_a_warm_up():
    calls = []
    median_seconds(lambda: calls.append(1), 5)
    assert len(calls) == 6
    assert gemm_gflops(1, size=64) > 0
    assert cholesky_gflops(1, size=64) > 0


def test_unknown_part_is_named():
    with pytest.raises(ValueError, match="`parts` is 'gpu', expected one of 'kernels'"):
        BenchmarkConfig(parts=("gpu",)).check()
