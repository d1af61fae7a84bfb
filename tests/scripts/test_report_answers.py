"""What a report says: its sentences, and the terminal."""

import io
import re

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from scripts.study.report import summary
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
    without_derivatives,
)
from scripts.study.report.tables import tables
from tests.scripts.study_data import leave_out, stop, study_data, table

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


def test_the_answer_has_the_numbers_of_the_laws(data):
    said = " ".join(kernel_picture(data).sentences)
    # 4 A / 64 of a movement of 2: 3.1 %; 4 A / 1024: 0.2 %; twice that at a quarter of the width.
    assert "MLP-2, NTK: 3.1 % at width 64 and 0.2 % at width 1024" in said
    assert "CNN-2, NTK: 25 % at width 16 and 1.6 % at width 256" in said
    assert said.count("it goes like width^-1.00 [-1.00, -1.00]") == 4
    added = " ".join(corrections(data).sentences)
    # 8 n^1/2 at widths 16 to 1024, and 10 n^1/2.
    assert "order 3 is closer to the network than the frozen NTK in 48 of 48 cells" in added
    assert "32 to 256 times closer" in added
    assert "40 to 320 times closer" in added
    assert "Taylor 2 is 22.6 times as far from the network as order 3 in the mean of 48" in added


def test_the_short_answer_gathers_it(data):
    said = " ".join(in_short(data).sentences)
    assert "3.1 to 31 % of how far" in said
    assert "at the narrowest widths (16 to 64) and 0.2 to 2 % at the widest (256 to 1024)" in said
    assert "There order 4 is closer than order 3 in 48 of 48 cells with smooth activations" in said
    assert "At width 256 the most linear is MLP-2, NTK, the least CNN-2, STANDARD" in said
    assert "No solve stopped before the last time, t = 20/lambda_max." in said


def test_that_there_is_no_exception_is_said(data):
    answer = against_expectation(data)
    assert answer.sentences == (
        "None with smooth activations: at t = 1/lambda_max closer is order 3 than the frozen NTK "
        "in 48 of 48 cells and order 4 than order 3 in 48 of 48 cells.",
    )
    assert not answer.flagged


def test_nothing_is_claimed_of_cells_that_are_not_known():
    data = study_data(seeds=1)
    stop(data, "network", 0.5, "It diverged.", **_CELL)
    (said,) = against_expectation(data).sentences
    assert "order 4 than order 3 in 11 of 11 cells known (of 12)." in said
    for width in (16, 64, 256, 1024):
        stop(data, "network", 0.5, "It diverged.", width=width)
    assert against_expectation(data).sentences == ()


def test_networks_that_never_reach_the_end_are_said_to():
    data = study_data(seeds=1)
    for width in (16, 64, 256, 1024):
        stop(data, "network", 10.0, "It diverged.", width=width)
    said = " ".join(corrections(data).sentences)
    assert "At the end, t = 20/lambda_max: unknown, since no network came so far." in said
    assert len(answers(data)) > 5


def test_an_exception_is_flagged_everywhere_it_is_looked_for():
    """Order 4 loses in a seed, not in the mean of its width."""
    data = study_data(parameterizations=("STANDARD",))
    data["test_rmse"].loc[{**_CELL, "solve": "order 4", "seed": 2}] *= 160
    answer = against_expectation(data)
    assert answer.flagged
    opening, *cells = answer.sentences
    assert "order 4 is no closer than order 3 in 1 of 18 cells:" in opening
    (cell,) = cells
    assert cell.startswith("MLP-2 at width 64, seed 2: order 4 has error ")
    assert "in 17 of 18 cells" in " ".join(corrections(data).sentences)
    assert "in 17 of 18 cells" in " ".join(in_short(data).sentences)
    marked = [value for value in table(data, "errors").shown["order 3 / order 4"] if "*" in value]
    assert marked == [f"{80 / 160 ** (1 / 3):.3g}*"]
    assert "not in every seed" in table(data, "errors").note
    counted = table(data, "errors").numbers.query("width == 64")
    assert counted["seeds in which order 4 is closer"].tolist() == [2, 3]
    assert counted["seeds of order 3 / order 4"].tolist() == [3, 3]
    assert marked[0] in summary.as_text(summary.summary(data))


def test_a_mean_leaves_out_the_cells_in_which_a_solve_stopped_and_says_so():
    data = study_data()
    stop(data, "order 4", 0.7, "It diverged.", **_CELL, seed=1)
    said = " ".join(corrections(data).sentences)
    assert "in 35 of 36 cells with smooth activations: 0 (it stopped) to 320 times closer" in said
    assert "times in the mean of the 35 in which neither stopped" in said
    assert "order 4 has error stopped" in against_expectation(data).sentences[1]
    assert "stopped" in set(table(data, "errors").shown["order 4"])


def test_an_activation_that_is_not_smooth_is_no_broken_claim_but_is_named():
    data = study_data(activations=("tanh", "relu"))
    data["test_rmse"].loc[{**_CELL, "activation": "relu", "solve": "order 3"}] *= 1000
    answer = against_expectation(data)
    assert not answer.flagged
    assert answer.sentences[0].startswith("None with smooth activations")
    opening, *cells = without_derivatives(data).sentences
    assert "order 3 is no closer than the frozen NTK in 3 of 36 cells:" in opening
    assert [cell.split(":")[0] for cell in cells] == [
        f"MLP-2, relu, STANDARD at width 64, seed {seed}" for seed in range(3)
    ]
    assert without_derivatives(study_data()).sentences == ()


def test_two_seeds_and_two_widths_state_neither_intervals_nor_powers():
    """As preset `quick` has them."""
    one = {"architectures": ("MLP-2",), "parameterizations": ("NTK",)}
    data = study_data(seeds=2, **one).isel(width=[0, 1])
    text = summary.as_text(summary.summary(data))
    assert "No powers of the width are fitted: they take at least 3 widths." in text
    assert "No intervals and no spreads over seeds are told: they take at least 3 seeds." in text
    for word in ("goes like", "width^", "95 %", "slope", "Slope"):
        assert word not in text
    assert "exponents" not in {table.stem for table in tables(data)}
    more = summary.as_text(summary.summary(study_data(**one)))
    for word in ("goes like", "width^", "95 %", "slope", "Slope"):
        assert word in more
    assert "they take at least" not in more
    two_seeds = study_data(seeds=2, **one)
    assert "goes like" in kernel_picture(two_seeds).sentences[1]
    assert "95 %" not in " ".join(kernel_picture(two_seeds).sentences)
    assert "95 %" not in table(two_seeds, "exponents").note


def test_a_breakdown_is_told_with_its_time_and_reason():
    data = study_data()
    stop(data, "order 4", 5.0, "The kernel is not positive.", **_CELL, seed=1)
    stop(data, "order 4", 2.0, "The kernel is not positive.", **_CELL, seed=2)
    answer = breaking_down(data)
    assert answer.flagged
    assert answer.sentences == (
        "The kernel is not positive:",
        "order 4, MLP-2, STANDARD: 2 of 3 cells at width 64, the first at t = 2/lambda_max.",
    )
    assert "Solves that stopped early: order 4 in 2 of 36 cells." in in_short(data).sentences
    stopped = table(data, "breakdowns")
    assert stopped.numbers["time"].tolist() == [5.0, 2.0]
    assert set(stopped.shown["outcome"]) == {"The kernel is not positive"}


def test_without_a_breakdown_that_is_said(data):
    assert breaking_down(data).sentences[0].startswith("No solve stopped early")
    assert "breakdowns" not in {table.stem for table in tables(data)}


def test_an_unfinished_study_says_how_much_there_is():
    data = study_data()
    leave_out(data, architecture="CNN-2", width=[64, 256])
    assert scope(data).sentences[0] == "24 of 36 cells are finished; a cell is one network."
    assert scope(data).flagged
    assert "with 24 of 36 cells finished" in in_short(data).sentences[0]
    assert "CNN-2 (widths 16)" in scope(data).sentences[1]


def test_that_no_kernel_describes_feature_learning_is_said(data):
    assert not any("there is no prediction" in said for said in scope(data).sentences)
    data = study_data().assign_coords(parameterization=["NTK", "MUP"])
    said = scope(data).sentences[-1]
    assert said.startswith("In MUP parameterization the kernel moves at any width")


def test_the_ranking_is_in_order_at_a_common_width(data):
    said = ranking(data).sentences[1]
    assert said.startswith("Width 256: 1. ")
    places = [said.index(f"{i}. {label}") for i, label in enumerate(_ORDER, start=1)]
    assert places == sorted(places)
    assert "MLP-2, NTK (0.78 %, kappa " in said
    assert "Spearman's rank correlation): " in ranking(data).sentences[-1]
    assert "(48 cells)" in ranking(data).sentences[-1]


def test_the_ranking_leaves_out_what_was_not_measured():
    data = study_data()
    data["kappa"][:] = np.nan
    assert "MLP-2, NTK (0.78 %);" in ranking(data).sentences[1]


def test_architectures_of_unequal_width_are_not_ranked():
    data = study_data()
    leave_out(data, architecture="MLP-2", width=[64, 256])
    opening, *said = ranking(data).sentences
    assert "not ranked against each other" in opening
    assert said[0] == "Width 1024: 1. MLP-2, NTK (0.2 %, kappa 3.1e-2); 2. MLP-2, STANDARD " + (
        "(0.24 %, kappa 3.9e-2)."
    )
    assert said[1].startswith("Width 256: 1. CNN-2, NTK ")
    short = " ".join(in_short(data).sentences)
    assert "of each architecture: MLP-2, NTK (width 1024), CNN-2, NTK (width 256);" in short
    assert "the least" not in short


_ORDER = ("MLP-2, NTK", "MLP-2, STANDARD", "CNN-2, NTK", "CNN-2, STANDARD")


def test_the_time_of_each_prediction_is_said(data):
    said = " ".join(reach(data).sentences)
    # t^2 A 4 / n = 0.2: from A = 2.5, n = 16 to A = 1, n = 64; up to n = 1024.
    low, high = np.sqrt(0.2 * 16 / (2.5 * 4)), np.sqrt(0.2 * 64 / 4)
    # FACTORS of the seeds: 0.8, 1, 1.25, 1, whose geometric mean is 1.
    assert f"frozen NTK: {low:.2g} to {high:.2g} at the narrowest widths (16 to 64)" in said
    assert "> 20 at the widest (256 to 1024)" in said


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
    assert "1 of 12 cells are finished;" in summary.as_text(summary.summary(data))


@pytest.mark.parametrize("columns", [80, 100])
def test_the_terminal_shows_all_of_it(data, columns):
    screen = Console(file=io.StringIO(), width=columns)
    screen.print(summary.summary(data))
    text = screen.file.getvalue() if columns == 80 else summary.as_text(summary.summary(data))
    assert max(len(line) for line in text.splitlines()) <= columns
    assert "…" not in text
    assert re.search(
        r"64\s+6\.2e-2\s+0\.75\s+9\.8e-4\s+1\.2e-5\s+6\.2e-2\s+1\.6e-2\s+4\.9e-4\s+64\s+80", text
    )
    assert re.search(r"slope\s+-1\.00\s+-0\.50\s+-1\.50\s+-2\.00\s+-1\.00\s+-1\.00\s+-1\.50", text)
    assert all(label in text for label in _ORDER)
