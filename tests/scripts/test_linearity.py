import io
import json

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from scripts.reproduce import linearity, LinearityConfig
from scripts.slopes import slope_in_width, slope_interval, written


def run(tmp_path, **options):
    out = io.StringIO()
    config = LinearityConfig(out=tmp_path, **options)
    found = linearity(config, console=Console(file=out, width=100))
    return found, out.getvalue()


BANDS = {
    "|H|, linear output": (-0.6, -0.4),
    "|H|, tanh output": (-0.15, 0.15),
    "|H|, bottleneck": (-0.15, 0.15),
    "kernel change, linear output": (-1.15, -0.85),
    "kernel change, tanh output": (-0.15, 0.15),
    "kernel change, bottleneck": (-0.15, 0.15),
    "kappa, NTK, two hidden layers": (-0.62, -0.38),
    "kappa, STANDARD, one hidden layer": (-1.12, -0.88),
    "kernel change, alpha (f - f_0)": (-1.1, -0.9),
}


@pytest.mark.slow
def test_laws_hold_at_their_full_size(tmp_path):
    """The whole run of `finite-width linearity`, some minutes."""
    found, _ = run(tmp_path)
    slopes = {}
    for name, values in found.data_vars.items():
        drawn = 200 if "bottleneck" in name else 20
        assert float(np.isfinite(values).sum(dim="seed").min()) > 0.95 * drawn
        slopes[name] = slope_interval(values, values.dims[0])[0]
    outside = {n: s for n, s in slopes.items() if not BANDS[n][0] <= s <= BANDS[n][1]}
    assert set(slopes) == set(BANDS)
    assert not outside


@pytest.mark.slow
def test_a_small_run_leaves_its_files(tmp_path):
    options = {
        "widths": (4, 6, 8),
        "alphas": (4.0, 8.0, 16.0),
        "seeds": 2,
        "n_train": 3,
        "n_hessian": 1,
    }
    options["bottleneck_seeds"] = 3
    found, printed = run(tmp_path, alpha_width=8, time=1.0, **options)
    assert set(found.data_vars) == set(BANDS)
    alpha = found["kernel change, alpha (f - f_0)"]
    assert slope_interval(alpha, "alpha")[0] == pytest.approx(-1, abs=0.3)
    folder = tmp_path / "linearity"
    on_disk = xr.load_dataset(folder / "linearity.nc", engine="h5netcdf")
    xr.testing.assert_equal(on_disk, found)
    assert json.loads((folder / "config.json").read_text())["config"]["widths"] == [4, 6, 8]
    assert (folder / "linearity.png").stat().st_size > 10_000
    assert "STANDARD, one hidden layer" in printed


def test_slope_of_a_power_law_with_its_interval():
    """Exact where there is no noise; seeds that failed are left out."""
    sizes, seeds = np.array([2.0, 4.0, 8.0]), np.array([1.0, 3.0, 10.0, 2.0])
    values = xr.DataArray(
        sizes[:, None] ** -0.7 * seeds, dims=("width", "seed"), coords={"width": sizes}
    )
    np.testing.assert_allclose(slope_interval(values, "width"), -0.7, rtol=1e-12)
    noise = np.exp(np.random.default_rng(0).normal(scale=0.3, size=(3, 3)))
    slope, low, high = slope_interval(values[:, :3] * noise, "width")
    assert low < slope < high
    assert low < -0.7 < high
    assert written(slope, low, high) == f"{slope:.2f} [{low:.2f}, {high:.2f}]"
    one_failed = values.copy()
    one_failed[:, 1] = np.nan
    np.testing.assert_allclose(slope_interval(one_failed, "width"), -0.7, rtol=1e-12)


def test_two_sizes_have_no_slope_and_two_seeds_no_interval():
    sizes = np.array([2.0, 4.0, 8.0])
    values = xr.DataArray(
        sizes[:, None] ** -0.7 * np.array([1.0, 3.0, 10.0]),
        dims=("width", "seed"),
        coords={"width": sizes},
    )
    assert np.isnan(slope_interval(values[:2], "width")).all()
    assert np.isnan(slope_in_width(values[:2])).all()
    without_last = values.where(values["width"] < 8)
    assert np.isnan(slope_interval(without_last, "width")).all()
    slope, *ends = slope_interval(values[:, :2], "width")
    np.testing.assert_allclose(slope, -0.7, rtol=1e-12)
    assert np.isnan(ends).all()
    assert written(slope, *ends) == "-0.70"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"widths": (8,)},
            "`widths` has 1 of the sizes that a slope is fitted to, expected at least 3",
        ),
        ({"alphas": (1.0, 1.0)}, r"`alphas` is \(1.0, 1.0\), expected different values"),
        ({"seeds": 0}, "`seeds` is 0, expected an integer >= 1"),
        ({"n_hessian": 9}, "`n_hessian` is 9, expected at most `n_train` 8"),
        ({"activation": "swish2"}, "`activation` is 'swish2', expected one of"),
        ({"time": -1.0}, r"`time` is -1.0, expected a finite number > 0"),
        ({"name": "a/b"}, "`name` is 'a/b', expected the name of a folder"),
    ],
)
def test_bad_configs_are_named_before_any_work(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []
