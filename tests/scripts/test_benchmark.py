import math
from pathlib import Path

import pytest

from scripts.benchmark import BenchmarkConfig
from scripts.benchmark.cases import PARTS
from scripts.benchmark.dynamics import PEER
from scripts.benchmark.timing import gemm_gflops, median_seconds


@pytest.mark.parametrize(
    "part",
    [name if name == "operators" else pytest.param(name, marks=pytest.mark.slow) for name in PARTS],
)
def test_every_part_runs_and_compares_like_with_like(part):
    for row in PARTS[part](1):
        assert row.ours > 0
        missing = part in ("kernels", "dynamics") and not Path(PEER[0]).exists()
        assert math.isnan(row.theirs) if missing else row.theirs > 0


def test_timing_counts_the_median_after_a_warm_up():
    calls = []
    median_seconds(lambda: calls.append(1), 5)
    assert len(calls) == 6
    assert gemm_gflops(1, size=64) > 0


def test_unknown_part_is_named():
    with pytest.raises(ValueError, match="`parts` is 'gpu', expected one of 'kernels'"):
        BenchmarkConfig(parts=("gpu",)).check()
