"""The report of a study: sentences, tables, files, and what is refused."""

import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from rich.console import Console

from scripts.study import report
from scripts.study.analysis import settings
from scripts.study.report import build, page, summary
from scripts.study.report.answer import (
    against_expectation,
    answers,
    breaking_down,
    corrections,
    ensembles,
    in_short,
    kernel_picture,
    ranking,
    reach,
    scope,
)
from scripts.study.report.build import ReportConfig, run_report
from scripts.study.report.comparison import compared
from scripts.study.report.figures import PICTURES
from scripts.study.report.formats import error, interval, latex, number, ratio, time
from scripts.study.report.page import typeset
from scripts.study.report.tables import tables
from tests.scripts.study_data import law, leave_out, stop, study_data

_CELL = {
    "architecture": "MLP-2",
    "activation": "tanh",
    "loss": "cross_entropy",
    "parameterization": "STANDARD",
    "width": 64,
}


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return study_data(seeds=4)


@pytest.fixture(scope="module")
def small() -> xr.Dataset:
    """One group: quick to report."""
    return study_data(architectures=("MLP-2",), parameterizations=("NTK",))


def save(data: xr.Dataset, folder: Path) -> Path:
    folder.mkdir()
    data.assign(outcome=data["outcome"].astype(str)).to_netcdf(
        folder / "results.nc", engine="h5netcdf"
    )
    return folder


def table(data: xr.Dataset, stem: str):
    return next(table for table in tables(data) if table.stem == stem)


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


# Sentences


def test_the_answer_has_the_numbers_of_the_laws(data):
    said = " ".join(kernel_picture(data).sentences)
    # 4 A / 64 of a movement of 2: 3.1 %; 4 A / 1024: 0.2 %; twice that at a quarter of the width.
    assert "MLP-2, NTK: 3.1 % at width 64 and 0.2 % at width 1024" in said
    assert "CNN-2, NTK: 25 % at width 16 and 1.6 % at width 256" in said
    assert said.count("it goes like width^-1.00 [-1.00, -1.00]") == 4
    added = " ".join(corrections(data).sentences)
    # 8 n^1/2 at widths 16 to 1024, and 10 n^1/2.
    assert "order 3 is closer to the network than the frozen NTK in 12 of 12 smooth cases" in added
    assert "32 to 256 times closer" in added
    assert "40 to 320 times closer" in added
    assert "Taylor 2 is 24 times as far from the network as order 3 in the median" in added


def test_the_short_answer_gathers_it(data):
    said = " ".join(in_short(data).sentences)
    assert "3.1 to 31 % of how far" in said
    assert "0.2 to 2 % at the widest" in said
    assert "The most linear is MLP-2, NTK, the least CNN-2, STANDARD" in said
    assert "No solve stopped before the last time, t = 20/lambda_max." in said


def test_that_there_is_no_exception_is_said(data):
    answer = against_expectation(data)
    assert answer.sentences == (
        "None with smooth activations: order 3 beats the frozen NTK and order 4 beats order 3 at "
        "t = 1/lambda_max in every finished case (medians over seeds).",
    )
    assert not answer.flagged


def test_an_exception_is_flagged_everywhere_it_is_looked_for():
    data = study_data()
    data["test_rmse"].loc[{**_CELL, "solve": "order 4"}] *= 160
    answer = against_expectation(data)
    assert answer.flagged
    assert "1 case says otherwise: MLP-2, STANDARD at width 64" in answer.sentences[0]
    assert "(gain 0.5)" in answer.sentences[0]
    assert "in 11 of 12" in " ".join(corrections(data).sentences)
    assert "0.5*" in set(table(data, "errors").shown["order 3 / order 4"])
    assert "no better" in table(data, "errors").note
    assert "0.5*" in summary.as_text(summary.summary(data))


def test_an_activation_that_is_not_smooth_is_no_broken_claim_but_is_named():
    data = study_data(activations=("tanh", "relu"))
    data["test_rmse"].loc[{**_CELL, "activation": "relu", "solve": "order 3"}] *= 1000
    answer = against_expectation(data)
    assert not answer.flagged
    assert answer.sentences[0].startswith("None with smooth activations")
    assert "MLP-2, relu, STANDARD at width 64" in answer.sentences[1]


def test_a_breakdown_is_told_with_its_time_and_reason():
    data = study_data()
    stop(data, "order 4", 5.0, "The kernel is not positive.", **_CELL, seed=1)
    stop(data, "order 4", 2.0, "The kernel is not positive.", **_CELL, seed=2)
    answer = breaking_down(data)
    assert answer.flagged
    assert answer.sentences == (
        "The kernel is not positive:",
        "order 4, MLP-2, STANDARD: 2 cells at width 64, the first at t = 2/lambda_max.",
    )
    assert "2 solves stopped early (order 4)." in in_short(data).sentences
    assert table(data, "breakdowns").numbers["time"].tolist() == [5.0, 2.0]


def test_without_a_breakdown_that_is_said(data):
    assert breaking_down(data).sentences[0].startswith("No solve stopped early")
    assert "breakdowns" not in {table.stem for table in tables(data)}


def test_an_unfinished_study_says_how_much_there_is():
    data = study_data()
    leave_out(data, architecture="CNN-2", width=[64, 256])
    assert scope(data).sentences[0] == "24 of 36 cells are finished."
    assert scope(data).flagged
    assert "with 24 of 36 cells finished" in in_short(data).sentences[0]
    assert "CNN-2 (widths 16)" in scope(data).sentences[1]


def test_the_ranking_is_in_order(data):
    said = ranking(data).sentences[0]
    places = [said.index(f"{i}. {label}") for i, label in enumerate(_ORDER, start=1)]
    assert places == sorted(places)


_ORDER = ("MLP-2, NTK", "MLP-2, STANDARD", "CNN-2, NTK", "CNN-2, STANDARD")


def test_the_time_of_each_prediction_is_said(data):
    said = " ".join(reach(data).sentences)
    # t^2 A 4 / n = 0.2: from A = 2.5, n = 16 to A = 1, n = 64; up to n = 1024.
    low, high = np.sqrt(0.2 * 16 / (2.5 * 4)), np.sqrt(0.2 * 64 / 4)
    assert f"frozen NTK: {low:.2g} to {high:.2g} at the narrowest widths" in said
    assert "> 20 at the widest widths" in said


def test_ensembles_agree_or_differ_and_few_seeds_are_owned_up_to(data):
    said = ensembles(data).sentences[1]
    assert "the mean is 0.50 sampling errors off" in said
    assert "they agree" in said
    shifted = data.assign(limit_mean=data["limit_mean"] + 10)
    assert "they differ" in ensembles(shifted).sentences[1]
    assert ensembles(study_data(seeds=2)).sentences == (
        "Not said: it takes at least 3 seeds, these results have 2.",
    )


def test_every_answer_works_on_a_single_cell_with_nothing_but_the_network():
    data = study_data(seeds=1)
    leave_out(data, architecture="CNN-2")
    leave_out(data, parameterization="STANDARD")
    leave_out(data, width=[256, 1024])
    data = data.sel(solve=["network"])
    topics = [answer.topic for answer in answers(data)]
    assert topics == [
        "In short",
        "What was compared",
        "Where do they break down?",
        "Do ensembles follow the infinite one?",
    ]
    assert "1 of 12 cells are finished." in summary.as_text(summary.summary(data))


# Terminal


def test_the_terminal_shows_all_of_it_in_100_columns(data):
    text = summary.as_text(summary.summary(data))
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "…" not in text
    assert re.search(
        r"64\s+6\.2e-2\s+0\.75\s+9\.8e-4\s+1\.2e-5\s+6\.2e-2\s+1\.6e-2\s+4\.9e-4\s+64\s+80", text
    )
    assert re.search(r"slope\s+-1\.00\s+-0\.50\s+-1\.50\s+-2\.00\s+-1\.00\s+-1\.00\s+-1\.50", text)
    assert all(label in text for label in _ORDER)


# Tables


def test_tables_hold_the_numbers_to_full_precision(data):
    found = pd.read_csv(io.StringIO(table(data, "errors").csv()))
    row = found[(found["group"] == "CNN-2, STANDARD") & (found["width"] == 64)].iloc[0]
    assert row["order 3"] == pytest.approx(law("order 3", "CNN-2", 64, 1.0, "STANDARD"), rel=1e-12)
    assert row["frozen NTK / order 3"] == pytest.approx(8 * np.sqrt(64), rel=1e-12)
    powers = pd.read_csv(io.StringIO(table(data, "exponents").csv()))
    assert powers["exponent"][powers["quantity"] == "error of order 4"].values == pytest.approx(-2)


def test_horizons_and_ensembles_are_tabulated(data):
    shown = table(data, "horizons").shown
    assert shown["frozen NTK"][0] == f"{np.sqrt(0.2 * 64 / 4):.2g}"
    assert shown["order 4"][2] == "> 20"
    shown = table(data, "ensembles").shown
    assert shown["in sampling errors"][0] == "0.50"
    assert set(shown["time"]) == {"1", "20"}


def test_latex_escapes_and_typesets():
    assert latex("50 % of O_3 & more") == r"50 \% of O\_3 \& more"
    assert latex("1.2e-3") == r"$1.2 \times 10^{-3}$"
    assert latex("-0.98 [-1.10, -0.90]") == "$-$0.98 [$-$1.10, $-$0.90]"
    assert latex("MLP-2") == "MLP-2"
    assert latex("> 20") == "$>$20"


@pytest.mark.parametrize(
    ("show", "value", "expected"),
    [
        (error, 0.0123, "1.2e-2"),
        (error, 0.123, "0.12"),
        (error, 3.0, "3.0"),
        (error, 31.2, "31"),
        (error, 1234.0, "1.2e3"),
        (error, np.inf, "stopped"),
        (error, np.nan, "–"),
        (ratio, 4.567, "4.57"),
        (ratio, 1.0, "1*"),
        (ratio, np.inf, "∞"),
        (number, 123.4, "123"),
        (number, 12345.0, "1.23e4"),
    ],
)
def test_numbers_are_written_short(show, value, expected):
    assert show(value) == expected


def test_times_and_intervals_are_written_with_their_bounds():
    assert time(np.inf, 20.0) == "> 20"
    assert time(3.14159, 20.0) == "3.1"
    assert interval(-0.98, -1.1, -0.9) == "-0.98 [-1.10, -0.90]"
    assert interval(-0.98, np.nan, np.nan) == "-0.98"


def test_the_page_typesets_and_escapes():
    assert typeset("1.2e-3 <b>") == "1.2·10<sup>−3</sup> &lt;b&gt;"
    assert typeset("width^-1.00 [-1.10, -0.90]") == "width<sup>−1.00</sup> [−1.10, −0.90]"
    assert typeset("t = 1/lambda_max, MLP-2") == "t = 1/λ<sub>max</sub>, MLP-2"
    assert typeset("size of O_3") == "size of O<sub>3</sub>"


def test_latex_tables_compile_to_as_many_cells_as_they_have_columns(data):
    for made in tables(data):
        lines = made.latex().splitlines()
        columns = re.fullmatch(r"\\begin\{tabular\}\{([lr]+)\}", lines[1])
        assert columns is not None
        assert lines[2] == r"\toprule"
        rows = [line for line in lines if line.endswith(r"\\")]
        assert len(rows) == len(made.shown) + 1
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns[1]) - 1


# Files


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
    assert "python -m scripts study --name synthetic" in text
    assert f"python -m scripts report {run}" in text
    assert "cpu:0 (cpu)" in text
    assert "0123abc" in text
    assert file.stat().st_size < 3e6


@pytest.fixture
def few_figures(monkeypatch) -> None:
    """Draws two of the figures only, where others are of no concern."""
    for module in (build, page):
        monkeypatch.setattr(module, "PICTURES", PICTURES[:2])


@pytest.mark.usefixtures("few_figures")
def test_text_is_escaped_and_what_is_made_no_more_is_removed(small, tmp_path):
    data = small.copy(deep=True)
    data.attrs["command"] = "python -m scripts study --name '<script>alert(1)</script>'"
    stop(data, "order 4", 5.0, "It <b>diverged</b>.", width=64, seed=0)
    text = report.write(tmp_path, {"<i>run</i>": data})[0].read_text(encoding="utf-8")
    assert not {"script", "b", "i"} & set(Outline(text).tags)
    assert "&lt;script&gt;" in text
    own = tmp_path / "figures" / "mine.pdf"
    own.write_bytes(b"mine")
    assert (tmp_path / "tables" / "breakdowns.csv").exists()
    report.write(tmp_path, {"run": small})
    assert not (tmp_path / "tables" / "breakdowns.csv").exists()
    assert own.read_bytes() == b"mine"


# Several runs


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


def test_a_case_that_one_run_lacks_is_missing_in_its_column(small):
    other = small.copy(deep=True)
    leave_out(other, width=1024)
    errors, _, _ = compared({"first": small, "second": other})
    wide = errors.shown[errors.shown["width"] == "1024"]
    assert set(wide["second"]) == {"–"}
    assert "–" not in set(wide["first"])


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


# Refusals


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
