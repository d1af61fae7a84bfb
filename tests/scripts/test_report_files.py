"""The files of a report: the page, figures, tables, several runs, and what is refused."""

import io
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from scripts.study import report
from scripts.study.analysis import settings
from scripts.study.report import build, page
from scripts.study.report.build import ReportConfig, run_report
from scripts.study.report.comparison import compared
from scripts.study.report.figures import PICTURES
from tests.scripts.study_data import law, leave_out, save, stop, study_data


@pytest.fixture(scope="module")
def small() -> xr.Dataset:
    """One group: quick to report."""
    return study_data(architectures=("MLP-2",), parameterizations=("NTK",))


class Outline(HTMLParser):
    """Tags, identifiers and headings of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.identifiers: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        held = dict(attrs)
        self.tags.append(tag)
        self.identifiers += [held["id"]] if "id" in held else []
        self.links += [held[key] for key in ("href", "src", "xlink:href") if key in held]


@pytest.fixture(scope="module")
def reported(small, tmp_path_factory) -> tuple[Path, list[Path]]:
    """The folder of a run and the files of its report, which lies in it."""
    run = save(small, tmp_path_factory.mktemp("runs") / "run")
    return run, run_report(ReportConfig((run,)), Console(file=io.StringIO()))


def test_a_report_is_a_page_with_its_figures_and_tables(reported):
    run, files = reported
    names = [str(file.relative_to(run)) for file in files]
    assert names[0] == "report.html"
    assert {"figures/error_in_time.pdf", "figures/ellipses.pdf"} <= set(names)
    assert {"tables/errors.csv", "tables/errors.tex", "tables/exponents.csv"} <= set(names)
    assert not list(run.rglob("*.draft"))
    assert all(file.read_bytes()[:4] == b"%PDF" for file in files if file.suffix == ".pdf")


@pytest.mark.long
def test_the_same_results_give_the_same_bytes_in_another_process(reported):
    """Order in sets and hashes differ between processes."""
    run, files = reported
    before = {file: file.read_bytes() for file in files}
    os.utime(files[0], (0, 0))
    code = (
        "from pathlib import Path\nfrom scripts.study.report import ReportConfig, run_report\n"
        f"run_report(ReportConfig((Path({str(run)!r}),)))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
    assert files[0].stat().st_mtime > 0
    assert [file.name for file in files if file.read_bytes() != before[file]] == []


def test_the_page_stands_alone(reported):
    run, (file, *_) = reported
    text = file.read_text(encoding="utf-8")
    outline = Outline(text)
    assert "Content-Security-Policy" in text
    assert "script" not in outline.tags
    assert all(link.startswith(("#", "data:")) for link in outline.links)
    assert len(outline.identifiers) == len(set(outline.identifiers))
    inner = {link.removeprefix("#") for link in outline.links if link.startswith("#")}
    assert inner <= set(outline.identifiers)
    assert outline.tags.count("figure") == 7
    assert outline.tags.count("h1") == 1
    assert "finite-width study --name synthetic" in text
    assert f"finite-width report {run}" in text
    assert "cpu:0 (cpu)" in text
    assert "0123abc" in text
    assert file.stat().st_size < 3e6


@pytest.fixture
def few_figures(monkeypatch) -> None:
    """Draws two of the figures only, where others are of no concern."""
    for module in (build, page):
        monkeypatch.setattr(module, "PICTURES", PICTURES[:2])


@pytest.mark.long
@pytest.mark.usefixtures("few_figures")
def test_text_is_escaped_and_what_is_made_no_more_is_removed(small, tmp_path):
    data = small.copy(deep=True)
    data.attrs["command"] = "finite-width study --name '<script>alert(1)</script>'"
    stop(data, "order 4", 5.0, "It <b>diverged</b>.", width=64, seed=0)
    text = report.write(tmp_path, {"<i>run</i>": data})[0].read_text(encoding="utf-8")
    assert not {"script", "b", "i"} & set(Outline(text).tags)
    assert "&lt;script&gt;" in text
    own = tmp_path / "figures" / "archive" / "error_in_width.pdf"
    own.parent.mkdir()
    own.write_bytes(b"mine")
    assert (tmp_path / "tables" / "breakdowns.csv").exists()
    report.write(tmp_path, {"run": small})
    assert not (tmp_path / "tables" / "breakdowns.csv").exists()
    assert own.read_bytes() == b"mine"


def test_runs_are_compared_side_by_side(small):
    other = small.copy(deep=True)
    other["test_rmse"] = other["test_rmse"] * 2
    other.attrs["config"] = other.attrs["config"].replace('"tolerance": 0.1', '"tolerance": 0.2')
    errors, exponents, changed = compared({"first": small, "second": other})
    np.testing.assert_allclose(errors.numbers["second"], 2 * errors.numbers["first"], rtol=1e-12)
    assert errors.numbers["first"][0] == pytest.approx(law("frozen NTK", "MLP-2", 64, 1.0))
    np.testing.assert_allclose(exponents.numbers["second"], exponents.numbers["first"], atol=1e-9)
    assert changed.shown.values.tolist() == [["tolerance", "0.1", "0.2"]]
    assert settings(other)["tolerance"] == 0.2


def test_exponents_are_compared_only_where_there_are_some(small):
    two = small.isel(width=[0, 1])
    stems = [table.stem for table in compared({"first": two, "second": two})]
    assert stems == ["compared_errors", "compared_settings"]
    _, exponents, _ = compared({"first": small, "second": two})
    assert list(exponents.shown) == ["group", "quantity", "first"]


def test_a_case_that_one_run_lacks_is_missing_in_its_column(small):
    other = small.copy(deep=True)
    leave_out(other, width=1024)
    errors, _, _ = compared({"first": small, "second": other})
    wide = errors.shown[errors.shown["width"] == "1024"]
    assert set(wide["second"]) == {"–"}
    assert "–" not in set(wide["first"])


@pytest.mark.long
@pytest.mark.usefixtures("few_figures")
def test_a_report_of_two_runs_has_both_and_their_comparison(small, tmp_path):
    first, second = save(small, tmp_path / "first"), save(small, tmp_path / "second")
    screen = io.StringIO()
    files = run_report(ReportConfig((first, second)), Console(file=screen, width=200))
    assert files[0] == tmp_path / "first+second" / "report.html"
    assert str(files[0]) in screen.getvalue()
    names = {str(file.relative_to(files[0].parent)) for file in files}
    assert {"tables/compared_errors.csv", "tables/1-first/errors.tex"} <= names
    assert "figures/2-second/error_in_width.pdf" in names
    text = files[0].read_text(encoding="utf-8")
    outline = Outline(text)
    assert len(outline.identifiers) == len(set(outline.identifiers))
    assert "Comparison of 2 runs" in text
    assert outline.tags.count("figure") == 2 * 3


def test_runs_of_the_same_name_are_told_apart_by_their_paths(small, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    runs = (save(small, tmp_path / "a" / "run"), save(small, tmp_path / "b" / "run"))
    assert ReportConfig(runs).names == [str(run) for run in runs]


def test_the_report_of_one_run_goes_into_its_folder(small, tmp_path):
    run = save(small, tmp_path / "run")
    config = ReportConfig((run,))
    config.check()
    assert config.folder == run


def test_what_is_no_run_is_refused(small, tmp_path):
    with pytest.raises(ValueError, match=r"`runs` is empty, expected at least one folder"):
        ReportConfig(()).check()
    with pytest.raises(ValueError, match=r"`runs` has .*nowhere, which is no folder, expected"):
        ReportConfig((tmp_path / "nowhere",)).check()
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("")
    with pytest.raises(
        ValueError, match=r"a folder without results.nc \(it holds notes.txt\), expected"
    ):
        ReportConfig((empty,)).check()
    run = save(small, tmp_path / "run")
    with pytest.raises(ValueError, match=r"`runs` has .*run more than once, expected each run"):
        ReportConfig((run, tmp_path / "empty" / ".." / "run")).check()
    with pytest.raises(ValueError, match=r"`out` is .*notes.txt, which is a file, expected"):
        ReportConfig((run,), out=empty / "notes.txt").check()
    nothing = small.copy(deep=True)
    leave_out(nothing, width=[64, 256, 1024])
    bare = save(nothing, tmp_path / "bare")
    with pytest.raises(ValueError, match=r"`runs` has .*bare, whose results.nc holds no finished"):
        ReportConfig((bare,)).check()
    with pytest.raises(ValueError, match=r"`runs` has 'x' without a finished cell"):
        report.write(tmp_path / "out", {"x": nothing})
    with pytest.raises(ValueError, match=r"`runs` is empty"):
        report.write(tmp_path / "out", {})
    assert not (tmp_path / "out").exists()
