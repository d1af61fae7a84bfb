"""What the studies of the presets claim on real digits; the README shows the small one."""

import dataclasses

import pytest

from scripts.study import PRESETS, run
from scripts.study.analysis import exceptions, groups
from scripts.study.trends import exponents
from tests.scripts.studies import quiet


@pytest.mark.slow
def test_each_order_is_closer_than_the_one_below_and_the_frozen_kernel_improves_with_width(
    tmp_path,
):
    """The part of the default study that minutes can hold: tanh MLPs, at t = 1/lambda_max."""
    config = dataclasses.replace(
        PRESETS["default"],
        out=tmp_path,
        architectures=("MLP",),
        taylor_orders=(),
        measures=(),
        predicted_kernels=False,
        times=(0.3, 1.0),
    )
    dataset = run(config, console=quiet())
    assert bool(dataset["finished"].all())
    found = groups(dataset)
    assert [group.label for group in found] == ["NTK", "STANDARD"]
    assert exceptions(dataset) == []
    for group in found:
        slope = exponents(group)["exponent"].sel(quantity="error of frozen NTK")
        assert -1.5 <= float(slope) <= -0.2
        # Kernels at the start scatter about their limit like width^-1/2.
        distance = group.data["limit_distance"].mean("seed")
        assert float(distance.sel(width=256)) < 0.6 * float(distance.sel(width=32))
