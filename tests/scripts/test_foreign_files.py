"""Folders from somebody else, and damaged ones: what they say is checked first."""

import json
import shutil

import numpy as np
import pytest
from rich.console import Console

from scripts.run_folder import is_draft, write_text
from scripts.study import prepare, read, report, results, run
from scripts.study.report import build, ReportConfig
from scripts.study.report.build import MANIFEST
from scripts.study.report.tables import STEMS, tables
from scripts.study.storage import begin, JOURNAL, OtherStudyError, Store
from tests.scripts.studies import quiet, small, vectors
from tests.scripts.study_data import save, stop, study_data


@pytest.fixture(scope="module")
def data():
    """Results of a group that nobody ran."""
    return study_data(architectures=("MLP-2",), parameterizations=("NTK",))


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without figures and with an empty page: of concern here is what is written where."""
    monkeypatch.setattr(build, "page", lambda *parts: "")
    monkeypatch.setattr(build, "_papers", lambda dataset: {})


def contents(folder):
    """Every file below a folder, links too."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What a report removes


@pytest.mark.usefixtures("undrawn")
def test_a_report_removes_nothing_but_its_own_figures_and_tables(data, tmp_path):
    run_folder = save(data, tmp_path / "run")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "1-old").mkdir(parents=True)
    (run_folder / "figures" / "1-gone").mkdir(parents=True)
    (run_folder / "tables").mkdir()
    kept = [
        tmp_path / "thesis.tex",
        elsewhere / "errors.csv",
        elsewhere / "1-old" / "ellipses.pdf",
        run_folder / "config.json",
        run_folder / "study.log",
        run_folder / "figures" / "own.pdf",
        run_folder / "figures" / "1-gone" / "own.pdf",
        run_folder / "figures" / "error_in_time.png",
        run_folder / "tables" / "own.csv",
        run_folder / "errors.csv",
    ]
    for file in kept:
        file.write_text("mine")
    (run_folder / "figures" / "2-linked").symlink_to(elsewhere / "1-old")
    (run_folder / "tables" / "breakdowns.tex").symlink_to(elsewhere / "errors.csv")
    own = [
        run_folder / "figures" / "1-gone" / "ellipses.pdf",
        run_folder / "tables" / "breakdowns.csv",
    ]
    for file in own:
        file.write_text("of a report before")
    listed = [
        str(file.relative_to(run_folder)) for file in (*kept, *own) if run_folder in file.parents
    ]
    listed += ["../thesis.tex", str(kept[0]), "results.nc", "figures/../results.nc", "", ".", "/"]
    listed += ["figures", "figures/../../thesis.tex", "figures/1-x/../../results.nc"]
    listed += ["figures/2-linked/ellipses.pdf", "../elsewhere/errors.csv", "tables/breakdowns.tex"]
    listed += ["tables/\0.csv", "tables/errors.csv\n", "figures\\..\\results.nc"]
    (run_folder / MANIFEST).write_text(json.dumps(listed))
    before = contents(tmp_path)
    report.write(run_folder, {"run": data})
    after = contents(tmp_path)
    assert set(before) - set(after) == set(own)
    assert all(after[file] == b"mine" for file in kept)
    assert after[run_folder / "results.nc"] == before[run_folder / "results.nc"]


@pytest.mark.parametrize(
    "manifest",
    [
        b'{"figures/own.pdf": 1}',
        b'"tables/breakdowns.csv"',
        b'[["tables/breakdowns.csv"], {"a": 1}, 3, null]',
        b"null",
        b"no JSON",
        b'["\xff"]',
        b"[" * 100_000,
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_a_manifest_that_is_none_lists_nothing(data, tmp_path, manifest):
    file = tmp_path / "tables" / "breakdowns.csv"
    file.parent.mkdir()
    file.write_text("mine")
    (tmp_path / MANIFEST).write_bytes(manifest)
    files = report.write(tmp_path, {"run": data})
    assert file.read_text() == "mine"
    names = json.loads((tmp_path / MANIFEST).read_text())
    assert names == [file.relative_to(tmp_path).as_posix() for file in files]


def test_every_table_is_known_as_one_of_a_report(data):
    stopped = data.copy(deep=True)
    stop(stopped, "order 4", 5.0, "It diverged.", width=64, seed=0)
    assert tuple(table.stem for table in tables(stopped)) == STEMS


@pytest.mark.parametrize("name", ["figures", "tables", "figures/1-first"])
def test_a_report_writes_through_no_link(data, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "ellipses.pdf").write_text("mine")
    folder = tmp_path / "report"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(FileExistsError, match=rf"{name} is a link to .*elsewhere, expected"):
        report.write(folder, {"first": data, "second": data})
    assert contents(elsewhere) == {elsewhere / "ellipses.pdf": b"mine"}
    assert not (folder / "report.html").exists()


# What a study takes as its own


@pytest.mark.parametrize("name", [".lock", "study.log", "unfinished", "figures", "tables"])
def test_a_study_writes_through_no_link(tmp_path, name):
    config = small(tmp_path)
    begin(prepare(config).folder, config, prepare(config).data)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.npz").write_text("mine")
    (config.folder / name).unlink(missing_ok=True)
    (config.folder / name).symlink_to(tmp_path / "mine")
    with pytest.raises(FileExistsError, match=rf"{name} is a link to .*mine, expected nothing"):
        prepare(config)
    assert (tmp_path / "mine" / "a.npz").read_text() == "mine"


def test_only_drafts_of_runs_are_cleared_away(tmp_path):
    config = small(tmp_path)
    begin(prepare(config).folder, config, prepare(config).data)
    (config.folder / ".summary.txt.12.draft").write_text("half")
    (config.folder / ".thesis.draft").write_text("mine")
    begin(config.folder, config, prepare(config).data)
    assert not (config.folder / ".summary.txt.12.draft").exists()
    assert (config.folder / ".thesis.draft").read_text() == "mine"
    assert not is_draft(config.folder / "a.1.draft")


def test_a_draft_that_is_a_link_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("mine")
    monkeypatch.setattr("os.getpid", lambda: 12)
    (tmp_path / ".file.txt.12.draft").symlink_to(tmp_path / "mine")
    write_text(tmp_path / "file.txt", "text")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "file.txt").read_text() == "text"
    assert not (tmp_path / "file.txt").is_symlink()


def finished_by(config, examples):
    """Results that say that everything is finished."""
    dataset = results.empty(config, examples)
    dataset["finished"][:] = True
    return dataset


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"weight_std": 1.0}, r"`weight_std`: 1.0 there, 1.4142"),
        (
            {"rtol": 1e-3, "cnn_readout": "mean"},
            r"`cnn_readout`: 'mean' there.*\n.*`rtol`: 0.001 t",
        ),
        ({"tolerance": 0.2}, "`tolerance`: 0.2 there, 0.1 now"),
    ],
)
def test_results_of_other_choices_are_refused_and_untouched(tmp_path, other, said):
    """With the same axes: by their shape they could be those of this study."""
    config = small(tmp_path)
    study = prepare(config)
    begin(study.folder, config, study.data)
    results.write(study.folder, finished_by(small(tmp_path, **other), study.data))
    before = contents(study.folder)
    with pytest.raises(
        OtherStudyError, match=rf"results.nc holds a study of other choices:\n.*{said}"
    ):
        run(config, console=quiet())
    assert contents(study.folder) == before


def test_results_of_other_data_are_refused_and_untouched(tmp_path):
    file = tmp_path / "vectors.npz"
    config = small(tmp_path / "runs", dataset=str(file), classes=(0, 1))
    vectors(file, seed=1)
    others = finished_by(config, prepare(config).data)
    vectors(file, seed=0)
    study = prepare(config)
    begin(study.folder, config, study.data)
    results.write(study.folder, others)
    before = contents(study.folder)
    with pytest.raises(OtherStudyError, match=r"results.nc holds a study of other data: the exam"):
        run(config, console=quiet())
    assert contents(study.folder) == before


def test_results_with_other_axes_than_their_choices_are_refused(tmp_path):
    config = small(tmp_path)
    study = prepare(config)
    begin(study.folder, config, study.data)
    results.write(study.folder, finished_by(config, study.data).assign_coords(width=[16, 48]))
    with pytest.raises(ValueError, match=r"results.nc cannot be read \(its axis `width` is not th"):
        prepare(config)


@pytest.mark.parametrize(
    "text", ["[]", "null", '{"config": {}}', '{"config": [], "data": ""}', "[" * 100_000, "{"]
)
def test_choices_of_another_shape_are_said(tmp_path, text):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json cannot be read .*expected the choices of a"):
        prepare(small(tmp_path))


def with_config(data, **changes):
    held = json.loads(data.attrs["config"]) | changes
    return data.assign_attrs(config=json.dumps(held))


DAMAGES = {
    "no variable": lambda d: d.drop_vars("train_rmse"),
    "no outcome": lambda d: d.drop_vars("outcome").assign(outcome=("width", ["", "", ""])),
    "other axes": lambda d: d.assign(test_rmse=d["test_rmse"].transpose("time", ...)),
    "words": lambda d: d.assign(test_rmse=d["test_rmse"].astype(str)),
    "no labels": lambda d: d.drop_vars("width"),
    "labels twice": lambda d: d.assign_coords(width=[64, 64, 1024]),
    "widths in words": lambda d: d.assign_coords(width=["a", "b", "c"]),
    "solves in numbers": lambda d: d.assign_coords(solve=range(8)),
    "no config": lambda d: d.drop_attrs(),
    "a list": lambda d: d.assign_attrs(config="[1, 2]"),
    "no JSON": lambda d: d.assign_attrs(config="{"),
    "no text": lambda d: d.assign_attrs(config=3),
    "deep": lambda d: d.assign_attrs(config="[" * 20_000),
    "no tolerance": lambda d: d.assign_attrs(config='{"reference_time": 1.0, "n_train": 4}'),
    "a time in words": lambda d: with_config(d, reference_time="late"),
    "a time that is not there": lambda d: with_config(d, reference_time=1.5),
    "a number for classes": lambda d: with_config(d, classes=3),
    "a loss of tolerance": lambda d: with_config(d, tolerance=[0.1]),
    "sessions that are none": lambda d: d.assign_attrs(provenance='{"cells": 1}'),
    "sessions without a time": lambda d: d.assign_attrs(provenance='[{"cells": 1}]'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_results_of_another_shape_are_said(data, tmp_path, damage):
    run_folder = save(damage(data.copy(deep=True)), tmp_path / "run")
    said = r"results.nc cannot be read \(.*\), expected the results of a study"
    with pytest.raises(ValueError, match=said):
        read(run_folder)
    with pytest.raises(ValueError, match=said):
        ReportConfig((run_folder,)).check()


# The journal


@pytest.fixture(scope="module")
def journalled(tmp_path_factory):
    """A study with its two cells in the journal, and none in its results; and what it found."""
    config = small(tmp_path_factory.mktemp("runs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda folder, runs: [])
        patch.setattr(Store, "write", lambda self: None)
        found = run(config, console=quiet())
    results.write(config.folder, results.empty(config, prepare(config).data))
    assert len(list((config.folder / JOURNAL).iterdir())) == 2
    return config.folder, found


@pytest.fixture
def copied(journalled, tmp_path):
    """A copy of it: its config, the journal's first file, and what it found."""
    folder, found = journalled
    shutil.copytree(folder, tmp_path / "small")
    return small(tmp_path), min((tmp_path / "small" / JOURNAL).iterdir()), found


def changed(file, change):
    """Writes a file of the journal anew, with some arrays changed."""
    with np.load(file) as arrays:
        held = dict(arrays)
    np.savez(file, **change(held))


def without(name):
    return lambda held: {key: value for key, value in held.items() if key != name}


def having(name, value):
    return lambda held: held | {name: np.asarray(value)}


BROKEN = {
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("no archive"),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "one array": lambda file: file.write_bytes(b"\x93NUMPY" + bytes(100)),
    "objects": lambda file: changed(file, having("value:spectrum", np.array([{}, None], object))),
    "no outcome": lambda file: changed(file, without("value:outcome")),
    "no provenance": lambda file: changed(file, without("provenance")),
    "provenance": lambda file: changed(file, having("provenance", '{"wall_time_s": 1}')),
    "no seed": lambda file: changed(file, without("at:seed")),
    "another width": lambda file: changed(file, having("at:width", 48)),
    "shape": lambda file: changed(file, having("value:test_loss", np.zeros(3))),
    "words": lambda file: changed(file, having("value:lambda_max", "large")),
    "no variable": lambda file: changed(file, having("value:finished", True)),
    "another study": lambda file: changed(file, having("study", "0" * 64)),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_a_damaged_cell_is_named_and_stops_nothing(copied, damage):
    config, file, _ = copied
    damage(file)
    content = file.read_bytes()
    with pytest.warns(UserWarning, match=rf"{file.name} cannot be read as a finished ce") as said:
        found = read(config.folder)
    assert "allow_pickle" not in "".join(str(one.message) for one in said)
    assert int(found["finished"].sum()) == 1
    store = Store(config.folder, config, prepare(config).data)
    assert int(store.dataset["finished"].sum()) == 1
    assert file.read_bytes() == content  # nothing is renamed by looking
    (aside,) = store.set_damaged_aside()
    assert aside.name == f"{file.name}.damaged"
    assert aside.read_bytes() == content
    assert not file.exists()
    assert store.set_damaged_aside() == []


def test_a_damaged_cell_is_computed_again(copied, monkeypatch):
    monkeypatch.setattr(report, "write", lambda folder, runs: [])
    config, file, expected = copied
    file.write_bytes(b"half of the resu")
    console = Console(file=quiet().file, width=400)
    found = run(config, console=console)
    assert found.equals(expected)
    said = console.file.getvalue()
    assert f"{file.name} of {file.parent} cannot be read as a finished cell of this study" in said
    assert "1 of 2 cells of" in said
    assert [left.name for left in file.parent.iterdir()] == [f"{file.name}.damaged"]
    assert read(config.folder).equals(expected)


def test_a_report_of_a_run_with_a_damaged_cell_is_made(copied, monkeypatch):
    monkeypatch.setattr(build, "write", lambda folder, runs, rebuild: [folder / "report.html"])
    config, file, _ = copied
    file.write_bytes(b"half of the resu")
    with pytest.warns(UserWarning, match="the command of the study computes the cell again"):
        files = build.run_report(ReportConfig((config.folder,)), quiet())
    assert files == [config.folder / "report.html"]
    assert file.exists()
