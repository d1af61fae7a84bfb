"""What infinitely wide networks predict on digits."""

import io
import json

import jax
import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from scripts.reproduce import infinite_width, InfiniteWidthConfig


def run(tmp_path, **options):
    out = io.StringIO()
    config = InfiniteWidthConfig(out=tmp_path, **options)
    with jax.numpy_dtype_promotion("standard"):
        found = infinite_width(config, console=Console(file=out, width=100))
    return found, out.getvalue()


@pytest.mark.long
def test_infinite_networks_read_digits(tmp_path):
    """Chance is 0.1; on disk is what was returned."""
    found, printed = run(tmp_path, n_train=60, n_test=60, architectures=("mlp",), depth=1)
    row = found.sel(architecture="mlp")
    for name in ("gaussian_process", "ensemble", "cross_entropy"):
        assert float(row[name]) > 0.75
    assert 0 < float(row["spread"]) < 1
    folder = tmp_path / "infinite-width"
    on_disk = xr.load_dataset(folder / "accuracies.nc", engine="h5netcdf")
    np.testing.assert_array_equal(on_disk["ensemble"], found["ensemble"])
    assert json.loads((folder / "config.json").read_text())["config"]["n_train"] == 60
    assert "mlp" in printed


@pytest.mark.slow
def test_all_architectures_read_digits(tmp_path):
    found, _ = run(tmp_path, n_train=100, n_test=100)
    assert float(found["ensemble"].min()) > 0.88
    assert float(found["gaussian_process"].min()) > 0.88


def test_bad_configs_are_named_before_work(tmp_path):
    for options, text in (
        ({"architectures": ("vit",)}, "`architectures` is 'vit', expected one of 'mlp', "),
        ({"noise": 0.0}, "`noise` is 0.0, expected a finite number > 0"),
        ({"dataset": "svhn"}, "`dataset` is 'svhn', expected one of"),
        ({"depth": 0}, "`depth` is 0, expected an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=text):
            run(tmp_path, **options)
    assert not list(tmp_path.iterdir())
