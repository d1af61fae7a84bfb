import math
from pathlib import Path

import pytest

from scripts.benchmark import BenchmarkConfig, limits
from scripts.benchmark.cases import PARTS
from scripts.benchmark.dynamics import PEER
from scripts.benchmark.timing import gemm_gflops, median_seconds


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


def test_infinite_limits_are_measured_in_a_process_of_their_own(monkeypatch):
    monkeypatch.setattr(limits, "PEER", ("no-such-python",))
    case = limits.Case("CNN", "CNN", {"channels": 2, "depth": 1, "out_size": 1}, (3, 2, 4, 4))
    again, first = limits.compare((case,), 1)
    assert 0 < again.ours < first.ours < math.inf
    assert again.reference == first.reference == "neural-tangents (not here: make peer)"
    assert math.isnan(again.theirs)
    assert math.isnan(first.theirs)


def test_timing_counts_the_median_after_a_warm_up():
    calls = []
    median_seconds(lambda: calls.append(1), 5)
    assert len(calls) == 6
    assert gemm_gflops(1, size=64) > 0


def test_unknown_part_is_named():
    with pytest.raises(ValueError, match="`parts` is 'gpu', expected one of 'kernels'"):
        BenchmarkConfig(parts=("gpu",)).check()
