import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from scripts.__main__ import COMMANDS
from scripts.architectures import ARCHITECTURES
from scripts.study import from_file, PRESETS, StudyConfig
from scripts.study.cells import groups
from scripts.study.command import parse
from scripts.study.config import (
    ACTIVATIONS,
    DATASETS,
    PARAMETERIZATIONS,
)
from scripts.study.examples import by_name
from scripts.study.plan import estimates, of_cells
from tests.scripts.studies import small

ROOT = Path(__file__).resolve().parents[2]


def test_the_choices_are_those_of_the_zoo():
    """They stand in the config on their own so that checking one needs no JAX."""
    assert set(ACTIVATIONS) == set(zoo.ACTIVATIONS)
    assert DATASETS == zoo.DATASETS
    assert set(PARAMETERIZATIONS) == set(zoo.PARAMETERIZATIONS)
    assert all(hasattr(zoo, name) for name in ARCHITECTURES)


def test_presets_make_sense_and_grow():
    for config in PRESETS.values():
        config.check()
        assert set(config.architectures) == set(ARCHITECTURES)
        assert {"NTK", "STANDARD"} <= set(config.parameterizations)
    planned = [estimates(config, by_name(config)) for config in PRESETS.values()]
    cells = [sum(one.cells for one in found) for found in planned]
    assert cells == sorted(cells)
    for width in ("widths", "channels", "base_channels"):
        assert len(getattr(PRESETS["quick"], width)) >= 2
        assert len(getattr(PRESETS["default"], width)) >= 4
    assert len(PRESETS["default"].seeds) == 3


BAD = [
    ({"times": (1.0, 0.5)}, "`times` is (1.0, 0.5), expected increasing values"),
    ({"times": (-1.0,)}, "`times` is -1.0, expected a finite number >= 0"),
    ({"times": ()}, "`times` is (), expected different values, at least one"),
    ({"dataset": "imagenet"}, "`dataset` is 'imagenet', expected one of 'digits'"),
    ({"parameterizations": ("muP",)}, "`parameterizations` is 'muP', expected one of 'NTK'"),
    ({"architectures": ("ViT",)}, "`architectures` is 'ViT', expected one of 'MLP', 'CNN', 'Wide"),
    ({"widths": ()}, "`widths` is (), expected different values, at least one"),
    ({"widths": (8, 8)}, "`widths` is (8, 8), expected different values"),
    ({"widths": (0,)}, "`widths` is 0, expected an integer >= 1"),
    ({"channels": (8.0,)}, "`channels` is 8.0, expected an integer >= 1"),
    ({"resnet_depths": (12,)}, "`resnet_depths` is 12, expected 6 n + 4: 10, 16, 22"),
    ({"losses": ("focal",)}, "`losses` is 'focal', expected one of 'cross_entropy'"),
    ({"activations": ("swish",)}, "`activations` is 'swish', expected one of 'relu'"),
    ({"orders": (5,)}, "`orders` is 5, expected one of 2, 3, 4"),
    ({"taylor_orders": (4,)}, "`taylor_orders` is 4, expected one of 1, 2, 3"),
    ({"classes": (0,)}, "`classes` is (0,), expected at least two labels"),
    ({"rtol": 0.0}, "`rtol` is 0.0, expected a finite number > 0"),
    ({"tolerance": float("nan")}, "`tolerance` is nan, expected a finite number > 0"),
    ({"name": "a/b"}, "`name` is 'a/b', expected the name of a folder"),
    ({"name": "-x"}, "`name` is '-x', expected the name of a folder: no path, no '-' in front"),
    ({"name": "None"}, "`name` is 'None', expected the name of a folder"),
    ({"name": 3}, "`name` is 3, expected the name of a folder"),
    ({"root": 3}, "`root` is 3, expected the path of a folder"),
    ({"seeds": ([0],)}, "`seeds` is ([0],), expected different values"),
    ({"kernel_points": 1}, "`kernel_points` is 1, expected an integer >= 2"),
    ({"n_train": 1}, "`n_train` is 1, expected an integer >= 2"),
    ({"seeds": (-1,)}, "`seeds` is -1, expected an integer >= 0"),
    ({"seeds": (0, 2**32)}, "`seeds` is 4294967296, expected an integer below 2^32"),
    ({"data_seed": 2**32}, "`data_seed` is 4294967296, expected an integer below 2^32"),
    ({"devices": 0}, "`devices` is 0, expected an integer >= 1"),
    ({"precision": "bfloat16"}, "`precision` is 'bfloat16', expected one of 'float32', 'float64'"),
    (
        {"orders": (), "infinite_width": False},
        "`orders` and `taylor_orders` are empty and `infinite_width` is False, expected at least",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_what_makes_no_sense_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        small(tmp_path, **options).check()


@pytest.mark.parametrize("suffix", [".toml", ".yaml"])
def test_a_file_starts_from_its_preset(tmp_path, suffix):
    lines = {
        ".toml": 'preset = "quick"\nwidths = [8, 16]\nloss_scale = 1\nout = "here"\n',
        ".yaml": "preset: quick\nwidths: [8, 16]\nloss_scale: 1\nout: here\n",
    }[suffix]
    file = tmp_path / f"study{suffix}"
    file.write_text(lines)
    with pytest.raises(ValueError, match=r"`loss_scale` in .* is no field of a study, expected"):
        from_file(file)
    file.write_text("\n".join(line for line in lines.splitlines() if "loss_scale" not in line))
    found = from_file(file)
    assert found == dataclasses.replace(PRESETS["quick"], widths=(8, 16), out=Path("here"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "width = [8]", "`width` in .*a.toml is no field.*Did you mean `widths`"),
        ("a.toml", "widths = 8", "`widths` is 8, expected a list of values"),
        ("a.toml", "widths = [", "`config` is .*a.toml, expected TOML"),
        ("a.toml", 'preset = "huge"', "`preset` is 'huge', expected one of 'quick', 'default'"),
        ("a.toml", 'preset = ["quick"]', r"`preset` is \['quick'\], expected one of 'quick'"),
        ("a.toml", "seeds = [[0]]", r"`seeds` is \(\[0\],\), expected different values"),
        ("a.yaml", "name: 3", "`name` is 3, expected the name of a folder"),
        ("a.yaml", "- 8", "`config` is .*a.yaml, expected a mapping of fields to values"),
        ("a.yaml", "a: [", "`config` is .*a.yaml, expected YAML"),
        ("a.json", "{}", "`config` is .*a.json, expected a file that ends in .toml, .yaml"),
        ("a.yml", "seeds: [0.5]", "`seeds` is 0.5, expected an integer >= 0"),
    ],
)
def test_files_that_make_no_sense_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        from_file(tmp_path / name)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"which cannot be read: .*No such file"):
        from_file(tmp_path / "none.toml")


def test_the_command_line_stands_above_the_file_and_the_file_above_the_preset(tmp_path):
    file = tmp_path / "study.toml"
    file.write_text('seeds = [4]\nparameterizations = ["MUP"]')
    arguments = [
        "--preset",
        "quick",
        "--file",
        str(file),
        "--seeds",
        "7",
        "8",
        "--measures",
    ]
    found = parse(arguments).config
    assert found == dataclasses.replace(
        PRESETS["quick"], seeds=(7, 8), parameterizations=("MUP",), measures=()
    )


def test_a_preset_on_the_command_line_stands_in_place_of_the_files(tmp_path):
    file = tmp_path / "study.toml"
    file.write_text('preset = "default"\nseeds = [4]')
    expected = dataclasses.replace(PRESETS["quick"], seeds=(4,))
    assert parse(["--preset", "quick", "--file", str(file)]).config == expected
    assert parse(["--file", str(file)]).config == StudyConfig(seeds=(4,))


def test_whole_numbers_in_place_of_floats_are_the_same_study():
    config = StudyConfig(times=(1, 3), weight_std=2, budget_minutes=100)
    assert config == StudyConfig(times=(1.0, 3.0), weight_std=2.0, budget_minutes=100.0)
    assert config.folder == StudyConfig(times=(1.0, 3.0), weight_std=2.0).folder


@pytest.mark.parametrize("preset", list(PRESETS))
def test_the_command_of_a_study_is_that_study(preset):
    config = dataclasses.replace(
        PRESETS[preset],
        name="mine",
        out=Path("all my runs"),
        root=Path("it's here"),
        bias_std=0.5,
        infinite_width=False,
        times=(1, 3),
    )
    words = shlex.split(config.command())
    assert words[:2] == ["finite-width", "study"]
    assert parse(words[2:]).config == config


def test_a_name_by_default_says_which_choices_they_are():
    config = StudyConfig()
    assert re.fullmatch(r"digits-[0-9a-f]{8}", config.folder.name)
    same = dataclasses.replace(config, devices=3, budget_minutes=1e9, out=Path("elsewhere"))
    assert same.folder.name == config.folder.name
    assert dataclasses.replace(config, seeds=(0, 1)).folder.name != config.folder.name


def test_differences_are_those_that_change_what_is_found():
    config = StudyConfig()
    there = json.loads(json.dumps(dataclasses.replace(config, widths=(8,), devices=2).choices()))
    there.pop("rtol")
    assert config.differences(there) == [
        "`widths`: [8] there, [32, 64, 128, 256] now",
        "`rtol`: nothing there, 1e-07 now",
    ]


def test_what_exceeds_a_budget_names_the_field_and_what_fits():
    with pytest.raises(ValueError, match=r"`base_channels` holds 4096: WideResNet-10 .* GiB then"):
        parse(["--base-channels", "8", "4096", "--budget-gib", "2"])
    with pytest.raises(ValueError, match=r"`budget_gib` is 2, expected one of 8, which fit"):
        parse(["--base-channels", "8", "4096", "--budget-gib", "2"])
    with pytest.raises(ValueError, match=r"`budget_minutes` is 1, but the study is estimated to"):
        parse(["--budget-minutes", "1"])
    assert parse(["--budget-minutes", "1", "--dry-run"]).is_dry_run
    together = r"`devices` is 6: that many networks at once, .* expected `devices` of at most [1-5]"
    with pytest.raises(ValueError, match=together):
        parse(["--devices", "6", "--budget-gib", "6"])


def test_the_size_of_a_file_of_examples_is_not_guessed():
    arguments = ["--dataset", "vectors.npz", "--channels", "4096", "--budget-gib", "2"]
    assert parse(arguments).config.channels == (4096,)
    with pytest.raises(ValueError, match=r"`channels` holds 4096"):
        parse(["--dataset", "cifar10", *arguments[2:]])


def test_what_a_study_that_goes_on_is_estimated_at_is_what_is_missing():
    config = PRESETS["quick"]
    every = groups(config)
    found = estimates(config, by_name(config))
    assert of_cells(found, every) == found
    (one,) = of_cells(found, [every[-1][:2]])
    assert (one.label, one.width, one.cells) == ("WideResNet-10", 8, 2)


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--times 3 1", "`times` is (3.0, 1.0), expected increasing values."),
        ("--preset fast", "`preset` is 'fast', expected one of 'quick', 'default', 'paper'."),
        ("--widht 3", "--widths"),
        ("--architectures ViT", "WideResNet"),
        ("--base-channels 100000", "`base_channels` holds 100000"),
    ],
)
def test_the_command_line_says_what_is_wrong_before_jax_is_there(tmp_path, arguments, message):
    """In a process that cannot import JAX at all: what is wrong is said without it."""
    (tmp_path / "jax.py").write_text("raise AssertionError('JAX was imported')\n")
    out = tmp_path / "runs"
    result = command_line(
        "study", *arguments.split(), "--out", str(out), PYTHONPATH=f"{tmp_path}:{ROOT}"
    )
    assert result.returncode == 2
    assert message in " ".join((result.stderr + result.stdout).split())
    assert "Traceback" not in result.stderr
    assert not out.exists()


def test_a_dry_run_lists_the_cells_and_writes_nothing(tmp_path):
    result = command_line("study", "--dry-run", "--out", str(tmp_path / "runs"), COLUMNS="100")
    assert result.returncode == 0, result.stderr
    said = " ".join(result.stdout.split())
    for part in ("WideResNet-10", "72 cells", "minutes on", "finite-width study"):
        assert part in said
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_exceeds_the_budget():
    result = command_line("study", "--dry-run", "--budget-gib", "1.25", COLUMNS="100")
    assert result.returncode == 0
    assert "over budget" in result.stdout


def test_an_unknown_command_is_answered_with_the_choices():
    result = command_line("studdy")
    assert result.returncode == 2
    assert "study, report, benchmark" in result.stderr.replace("'", "")


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_says_what_can_be_chosen(command):
    result = command_line(command, "--help")
    assert result.returncode == 0, result.stderr
    assert f"usage: finite-width {command}" in result.stdout
