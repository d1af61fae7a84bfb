import hashlib
import io
import json
import sys

import jax
import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from scripts.reproduce import coordinate_check, CoordinateCheckConfig
from scripts.slopes import slope_in_width


def run(tmp_path, **options):
    out = io.StringIO()
    config = CoordinateCheckConfig(out=tmp_path, **options)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers in
        changes = coordinate_check(config, console=Console(file=out, width=100))
    return changes, out.getvalue()


@pytest.mark.slow
def test_mup_is_flat_in_width_and_standard_is_not(tmp_path):
    """Widths 64 to 1024. MUP's hidden layers within 0.1; its outputs, 0.2, still settle at 64.

    STANDARD: SGD moves layer l > 1 and the outputs by up to the width's first power, Adam too.
    """
    changes, printed = run(tmp_path, seeds=3, widths=(64, 256, 1024))
    slopes = slope_in_width(changes.mean("seed"))
    for optimizer in ("sgd", "adam"):
        mup = slopes.sel(parameterization="MUP", optimizer=optimizer)
        assert float(np.abs(mup.drop_sel(layer="outputs")).max()) < 0.1
        assert float(np.abs(mup.sel(layer="outputs"))) < 0.2
        standard = slopes.sel(parameterization="STANDARD", optimizer=optimizer)
        assert float(standard.sel(layer="layer 2")) > 0.35
        assert float(standard.sel(layer="outputs")) > 0.6
    folder = tmp_path / "coordinate-check"
    on_disk = xr.load_dataarray(folder / "changes.nc", engine="h5netcdf")
    np.testing.assert_array_equal(on_disk, changes)
    assert json.loads((folder / "config.json").read_text())["config"]["seeds"] == 3
    assert (folder / "coordinate_check.png").stat().st_size > 10_000
    assert "0 is flat" in printed


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "depth"), [("CNN", 1), ("WideResNet", 10)])
def test_other_architectures_run(tmp_path, architecture, depth):
    options = {"widths": (4, 8), "steps": 1, "seeds": 1, "n_train": 10, "bias_std": 0.1}
    changes, _ = run(tmp_path, architecture=architecture, depth=depth, **options)
    assert bool(np.isfinite(changes).all())
    assert bool((changes.sel(layer="outputs") > 0).all())


SOURCE = """
import math

import jax
import zoo


def mlp(in_shape, out_size, **options):
    return zoo.MLP(math.prod(in_shape), out_size, **options)


def table(in_shape, out_size, **options):
    return jax.tree_util.Partial(lambda w, x: w @ x.ravel(), jax.numpy.ones((out_size, 64)))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "runs"
    sys.modules.pop("own_networks", None)


@pytest.mark.long
def test_an_architecture_of_one_s_own(own):
    options = {"depth": 1, "widths": (4, 8), "steps": 1, "seeds": 2, "n_train": 10}
    changes, _ = run(own, architecture="own_networks:mlp", name="own", **options)
    expected, _ = run(own, readout_std=2**0.5, name="zoo", **options)
    np.testing.assert_allclose(changes, expected, rtol=1e-5)
    choices = json.loads((own / "own" / "config.json").read_text())["config"]
    assert choices["architecture"] == "own_networks:mlp"
    assert choices["source"] == hashlib.sha256(SOURCE.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("own_networks:cnn", "`architecture` has own_networks:cnn: .* has no such one, expected"),
        ("own_networks:table", "`architecture` is own_networks:table, which calls no `zoo.Dense`"),
    ],
)
def test_architectures_without_layers_are_refused_before_any_work(own, architecture, message):
    with pytest.raises(ValueError, match=message):
        run(own, architecture=architecture)
    assert not own.exists() or list(own.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "vit"}, "`architecture` is 'vit', expected one of 'MLP', 'CNN'"),
        ({"widths": ()}, r"`widths` is \(\), expected different values, at least one"),
        ({"parameterizations": ("NTK",)}, "has NTK, which does not say what Adam's learning rates"),
        ({"steps": 0}, "`steps` is 0, expected an integer >= 1"),
        ({"architecture": "WideResNet"}, r"`depth` is 3, expected 6 n \+ 4"),
        ({"name": "a/b"}, "`name` is 'a/b', expected the name of a folder"),
    ],
)
def test_bad_configs_are_named_before_any_work(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_never_overwritten(tmp_path):
    (tmp_path / "coordinate-check").mkdir()
    with pytest.raises(FileExistsError, match="exists already, expected a new one"):
        run(tmp_path)
