import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from scripts.slopes import slope_in_width
from scripts.study import prepare, read, run, runner, StudyConfig
from scripts.study.config import PREDICTIONS
from scripts.study.results import median_error, median_gain

ROOT = Path(__file__).resolve().parents[2]


def small(out, **options):
    defaults = {
        "name": "small",
        "out": out,
        "n_train": 6,
        "n_test": 6,
        "widths": (16, 32),
        "parameterizations": ("NTK",),
        "depth": 1,
        "seeds": (0,),
        "times": (0.3, 3.0),
    }
    return StudyConfig(**(defaults | options))


def quiet():
    return Console(file=io.StringIO(), width=80)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small study that ran to its end: its results, its folder, what it printed."""
    out = tmp_path_factory.mktemp("runs")
    console = quiet()
    dataset = run(small(out), console=console)
    return dataset, out / "small", console.file.getvalue()


@pytest.mark.smoke
def test_results_on_disk_are_the_results_returned(finished):
    dataset, folder, _ = finished
    assert read(folder).equals(dataset)
    assert bool(dataset["finished"].all())
    assert dataset.sizes["solve"] == 5
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["widths"] == [16, 32]
    assert set(config["provenance"]["versions"]) >= {"jax", "equinox", "diffrax"}


def test_errors_are_those_of_the_logits_and_small_at_the_start(finished):
    dataset, _, _ = finished
    logits = dataset["test_logits"]
    difference = logits - logits.sel(solve="network")
    rmse = np.sqrt((difference**2).mean(["test_point", "output"]))
    np.testing.assert_allclose(dataset["test_rmse"], rmse, rtol=1e-12)
    assert float(dataset["test_rmse"].sel(time=0).max()) < 1e-12
    assert float(dataset["train_loss"].diff("time").max()) < 0
    early = dataset["test_rmse"].sel(time=1.0)
    assert bool((early.sel(solve="O_3 hierarchy") < early.sel(solve="frozen NTK") / 4).all())


def test_the_table_holds_every_width_and_names_the_pictures(finished):
    _, folder, printed = finished
    text = (folder / "summary.txt").read_text()
    for part in ("NTK parameterization", "slope", " 16 ", " 32 "):
        assert part in text
        assert part in printed
    for name in ("error_in_time.png", "error_in_width.png"):
        assert (folder / "figures" / name).stat().st_size > 10_000
        assert name in printed
    assert "…" not in text + printed


def test_slope_of_a_power_law_is_its_exponent(finished):
    dataset, _, _ = finished
    errors = median_error(dataset)
    law = errors * 0 + 3 * errors["width"] ** -0.75
    np.testing.assert_allclose(slope_in_width(law).sel(time=1.0), -0.75, rtol=1e-10)
    assert list(errors["solve"].values) == list(PREDICTIONS)


def test_gain_is_the_median_of_each_seeds_ratio(finished):
    """A seed where O_3 stopped does not change which seeds the others are compared on."""
    dataset, _, _ = finished
    several = xr.concat([dataset, dataset, dataset], dim="seed").copy(deep=True)
    rmse = several["test_rmse"]
    for seed, (frozen, o3) in enumerate([(8.0, 2.0), (30.0, 3.0), (1000.0, np.nan)]):
        rmse[{"seed": seed, "solve": 1}] = frozen
        rmse[{"seed": seed, "solve": 2}] = o3
    gain = median_gain(several, "frozen NTK", "O_3 hierarchy")
    np.testing.assert_allclose(gain, (4.0 + 10.0) / 2)


def test_an_existing_folder_is_refused_and_untouched(finished):
    _, folder, _ = finished
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(FileExistsError, match=r"results folder .*small exists already \(it holds"):
        run(small(folder.parent), console=quiet())
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_interrupt_keeps_what_was_finished(tmp_path, monkeypatch):
    compute, calls = runner.compute, []

    def interrupted_at_the_second(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compute(*args)

    monkeypatch.setattr(runner, "compute", interrupted_at_the_second)
    console = quiet()
    with pytest.raises(KeyboardInterrupt):
        run(small(tmp_path), console=console)
    dataset = read(tmp_path / "small")
    assert int(dataset["finished"].sum()) == 1
    assert bool(dataset["test_rmse"].sel(width=16).notnull().all())
    assert bool(dataset["test_rmse"].sel(width=32).isnull().all())
    assert "Interrupted after 1 of 2 cells" in console.file.getvalue()
    assert (tmp_path / "small" / "figures" / "error_in_time.png").exists()


@pytest.mark.slow
def test_a_breakdown_is_reported_not_hidden(tmp_path):
    """Width 4, squared loss, late times: the truncated hierarchy breaks down."""
    console = quiet()
    config = small(
        tmp_path,
        widths=(4,),
        times=(1.0, 2000.0),
        loss="mean_squared_error",
        rtol=1e-5,
    )
    dataset = run(config, console=console)
    outcome = dataset["outcome"].sel(solve="O_3 hierarchy").item()
    assert "stopped being positive" in outcome
    assert np.isnan(dataset["test_rmse"].sel(solve="O_3 hierarchy", time=2000.0).item())
    assert "Solves that stopped early" in console.file.getvalue()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"times": (1.0, 0.5)}, "`times` is (1.0, 0.5), expected increasing times"),
        ({"times": (-1.0,)}, "`times` is -1.0, expected a finite number >= 0"),
        ({"dataset": "imagenet"}, "`dataset` is 'imagenet', expected one of 'digits'"),
        ({"parameterizations": ("muP",)}, "`parameterizations` is 'muP', expected one of 'NTK'"),
        ({"widths": ()}, "`widths` is (), expected different values, at least one"),
        ({"widths": (8, 8)}, "`widths` is (8, 8), expected different values"),
        ({"widths": (0,)}, "`widths` is 0, expected an integer >= 1"),
        ({"loss": "hinge"}, "`loss` is 'hinge', expected one of 'cross_entropy'"),
        ({"activation": "swish"}, "`activation` is 'swish'"),
        ({"classes": (0, 77)}, "`classes` is (0, 77), expected different labels"),
        ({"classes": (0,)}, "expected at least two labels"),
        ({"n_train": 10**6}, "expected at most"),
        ({"rtol": 0.0}, "`rtol` is 0.0, expected a finite number > 0"),
        ({"name": "a/b"}, "`name` is 'a/b', expected the name of a folder"),
        ({"seeds": (-1,)}, "`seeds` is -1, expected an integer >= 0"),
    ],
)
def test_bad_configs_are_refused_before_a_folder_is_made(tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare(small(tmp_path, **options))
    assert list(tmp_path.iterdir()) == []


def test_nan_in_the_data_is_refused(tmp_path, monkeypatch):
    load = runner.load

    def spoiled(*args, **kwargs):
        data = load(*args, **kwargs)
        object.__setattr__(data, "x_test", data.x_test.at[1, 0, 2, 3].set(np.nan))
        return data

    monkeypatch.setattr(runner, "load", spoiled)
    with pytest.raises(ValueError, match=r"`x_test` has 1 entries out of 384 that are not finite"):
        prepare(small(tmp_path))
    assert list(tmp_path.iterdir()) == []


def command_line(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "scripts", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_command_line_says_what_is_wrong_in_one_paragraph(tmp_path):
    out = ("--out", str(tmp_path))
    result = command_line("study", *out, "--times", "3", "1")
    assert result.returncode == 2
    assert result.stderr.startswith("error: `times` is (3.0, 1.0), expected increasing times.")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.smoke
def test_the_command_line_runs_a_study(tmp_path):
    arguments = "study --name cli --n-train 6 --n-test 6 --widths 8 --depth 1 --seeds 0 --times 1"
    result = command_line(*arguments.split(), "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "NTK parameterization" in result.stdout
    assert read(tmp_path / "cli")["finished"].all()
