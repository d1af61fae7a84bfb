"""What the default study claims on real digits; the README shows its table."""

import io

import numpy as np
import pytest
from rich.console import Console

from scripts.slopes import slope_in_width
from scripts.study import run, StudyConfig
from scripts.study.results import median_error


@pytest.mark.slow
def test_o3_is_four_times_closer_and_the_frozen_kernel_improves_with_width(tmp_path):
    """tanh, NTK parameterization, cross-entropy, widths 64 .. 1024, at t = 1/lambda_max."""
    config = StudyConfig(out=tmp_path, parameterizations=("NTK",), times=(0.3, 1.0))
    dataset = run(config, console=Console(file=io.StringIO()))
    errors = median_error(dataset).sel(parameterization="NTK", time=1.0)
    gain = errors.sel(solve="frozen NTK") / errors.sel(solve="O_3 hierarchy")
    assert float(gain.min()) >= 4
    slope = float(slope_in_width(errors).sel(solve="frozen NTK"))
    assert -1.2 <= slope <= -0.6
    assert np.isfinite(errors.sel(solve="Taylor 2")).all()
