"""What is printed where the encoding lacks signs of it: they are replaced, and nothing fails."""

import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from rich.console import Console

from scripts.__main__ import main
from scripts.benchmark import benchmark, BenchmarkConfig, runner as benchmark_runner
from scripts.benchmark.timing import Comparison
from scripts.console import ready
from scripts.reproduce import (
    coordinate_check,
    CoordinateCheckConfig,
    infinite_width,
    InfiniteWidthConfig,
    linearity,
    LinearityConfig,
)
from scripts.run_folder import write_text
from scripts.study import report, run
from scripts.study.report import ReportConfig, run_report
from scripts.study.report.summary import as_text
from tests.scripts.studies import small

ROOT = Path(__file__).resolve().parents[2]
NAME = "runs to \N{INFINITY}"


def stream(encoding, errors="strict"):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors, write_through=True)


def printed(to):
    return to.buffer.getvalue().decode(to.encoding)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_an_encoding_lacks_is_replaced(encoding, errors):
    to = stream(encoding, errors)
    ready(Console(file=to)).print("from 1 to \N{INFINITY}", highlight=False)
    assert printed(to) == "from 1 to ?\n"


def test_what_an_encoding_has_and_what_its_owner_chose_stay():
    to = stream("utf-8")
    ready(Console(file=to)).print("\N{INFINITY}")
    assert printed(to) == "\N{INFINITY}\n"
    to = stream("ascii", "xmlcharrefreplace")
    ready(Console(file=to)).print("\N{INFINITY}")
    assert printed(to) == "&#8734;\n"


def test_text_files_are_in_utf8_and_take_what_is_no_text(tmp_path):
    """A path of bytes that are no UTF-8 has surrogates in their place."""
    write_text(tmp_path / "file.txt", "\N{INFINITY} \udcff")
    assert (tmp_path / "file.txt").read_bytes() == "\N{INFINITY} \\udcff".encode()


def test_a_summary_does_not_depend_on_the_terminal(monkeypatch):
    """Lines of tables do, on a console."""
    from rich.table import Table

    def table():
        made = Table("\N{INFINITY}")
        made.add_row("1")
        return made

    expected = as_text(table())
    monkeypatch.setattr(sys, "stdout", stream("ascii"))
    assert as_text(table()) == expected
    assert "\N{INFINITY}" in expected


@pytest.mark.long
def test_a_study_and_a_report_end_where_signs_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write", lambda folder, runs: [])
    to = stream("ascii")
    run(small(tmp_path, name=NAME), console=Console(file=to, width=100))
    assert "runs to ?/results.nc" in printed(to).replace("\n", "")
    monkeypatch.undo()
    monkeypatch.setattr(
        "scripts.study.report.build.write", lambda folder, *_, **__: [folder / "report.html"]
    )
    to = stream("ascii")
    run_report(ReportConfig((tmp_path / NAME,)), Console(file=to, width=100))
    assert "runs to ?/report.html" in printed(to).replace("\n", "")


TINY = {"widths": (4, 6, 8), "seeds": 1}


@pytest.mark.parametrize(
    ("command", "config_type", "options"),
    [
        (
            infinite_width,
            InfiniteWidthConfig,
            {"n_train": 20, "n_test": 20, "architectures": ("mlp",), "depth": 1},
        ),
        pytest.param(
            coordinate_check,
            CoordinateCheckConfig,
            {**TINY, "steps": 1, "n_train": 10},
            marks=pytest.mark.long,
        ),
        pytest.param(
            linearity,
            LinearityConfig,
            {
                **TINY,
                "alphas": (4.0, 8.0, 16.0),
                "n_train": 3,
                "n_hessian": 1,
                "bottleneck_seeds": 1,
            }
            | {"alpha_width": 8, "time": 1.0},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_reproductions_end_where_signs_are_missing(tmp_path, command, config_type, options):
    to = stream("ascii")
    config = config_type(out=tmp_path, name=NAME, **options)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integers in
        command(config, console=Console(file=to, width=100))
    assert "runs to ?/config.json" in printed(to).replace("\n", "")


def test_the_benchmark_ends_where_signs_are_missing(monkeypatch):
    rows = [Comparison(f"kernel of width {NAME}", 1.0, "nothing", 2.0)]
    monkeypatch.setattr(benchmark_runner, "PARTS", {"kernels": lambda repeats: rows})
    for limit in ("gemm_gflops", "bandwidth_gb_per_second"):
        monkeypatch.setattr(benchmark_runner, limit, lambda repeats: 1.0)
    to = stream("ascii")
    monkeypatch.setattr(sys, "stdout", to)
    benchmark(BenchmarkConfig(parts=("kernels",)))
    assert "runs to ?" in printed(to)


def test_commands_say_what_can_be_chosen_where_signs_are_missing(monkeypatch, tmp_path):
    """Through the parser, which prints by itself."""
    to, errors = stream("ascii"), stream("ascii")
    monkeypatch.setattr(sys, "stdout", to)
    monkeypatch.setattr(sys, "stderr", errors)
    assert main(["report", str(tmp_path / NAME)]) == 2
    assert "runs to ?, which is no folder" in " ".join(printed(errors).split())
    assert main(["study", "--out", str(tmp_path / NAME), "--dry-run"]) == 0
    assert to.errors == "replace"


@pytest.mark.long
def test_a_study_in_a_locale_of_ascii_writes_what_it_writes_elsewhere(tmp_path):
    words = [sys.executable, "-m", "scripts", "study", "--out", os.fsencode(tmp_path) + b"/\xff"]
    fields = "--name small --n-train 6 --n-test 6 --architectures MLP --widths 16 32 --depths 1"
    fields += " --parameterizations NTK --seeds 0 --orders 2 --measures --devices 1"
    fields += " --no-predicted-kernels --no-infinite-width --times 0.3 3 --taylor-orders"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "100"}
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONIOENCODING"}
    done = subprocess.run(
        [*words, *fields.split()],
        cwd=ROOT,
        env={**inherited, **locale},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"?: a stopped before" in done.stdout
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff/small"))
    assert "\N{INFINITY}: a stopped before" in (folder / "summary.txt").read_text(encoding="utf-8")
    assert "\\udcff" in (folder / "report.html").read_text(encoding="utf-8")
