"""The tables of a report, and how numbers are written in it."""

import io
import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from scripts.study.report.formats import error, latex, number, ratio, time
from scripts.study.report.page import typeset
from scripts.study.report.tables import tables
from tests.scripts.study_data import law, stop, study_data, table


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return study_data(seeds=4)


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


def test_columns_that_hold_nothing_go():
    """Of a study that measured no curvature, had no infinite width and let order 4 stop at once."""
    one = {"architectures": ("MLP-2",), "parameterizations": ("NTK",)}
    data = study_data(**one)
    for name in ("kappa", "hessian_norm"):
        data[name] = data[name] * np.nan
    data["test_rmse"].loc[{"solve": "infinite NTK"}] = np.nan
    stop(data, "order 4", 0.0, "It diverged.")
    for made in tables(data):
        assert not [name for name in made.shown if set(made.shown[name]) == {"–"}], made.stem
        assert not [name for name in made.numbers if made.numbers[name].isna().all()], made.stem
    assert "kappa" not in table(data, "linearity").shown
    assert "infinite NTK" not in table(data, "errors").shown
    assert set(table(data, "errors").shown["order 4"]) == {"stopped"}
    assert "order 4" not in table(data, "accuracies").shown
    assert "kappa" in table(study_data(**one), "linearity").shown


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
        (partial(ratio, everywhere=True), 4.567, "4.57"),
        (partial(ratio, everywhere=False), 1.0, "1*"),
        (partial(ratio, everywhere=True), np.inf, "∞"),
        (number, 123.4, "123"),
        (number, 12345.0, "1.23e4"),
    ],
)
def test_numbers_are_written_short(show, value, expected):
    assert show(value) == expected


def test_times_are_written_with_their_bounds():
    assert time(20.0, 3) == "> 20"
    assert time(3.14159, 0) == "3.1"
    assert time(150.0, 1) == "> 150"
    assert time(np.nan, 0) == "–"


def test_the_page_typesets_and_escapes():
    assert typeset("1.2e-3 <b>") == "1.2·10<sup>−3</sup> &lt;b&gt;"
    assert typeset("size of O_3") == "size of O<sub>3</sub>"
    assert typeset("digits-0f4a1e07") == "digits-0f4a1e07"
    assert typeset("digits-12e34567") == "digits-12e34567"


def test_lines_of_the_page_do_not_break_within_a_number():
    space, joiner = "\N{NO-BREAK SPACE}", "\N{WORD JOINER}"
    time = f"t{space}={space}1/{joiner}λ<sub>max</sub>, MLP-2"
    assert typeset("t = 1/lambda_max, MLP-2") == time
    assert typeset("1.5 % of") == f"1.5{space}% of"
    power = f"width<sup>−1.00</sup> [−1.10,{space}−0.90]"
    assert typeset("width^-1.00 [-1.10, -0.90]") == power
    assert typeset("frozen NTK / order 3") == f"frozen NTK{space}/ order{space}3"


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
