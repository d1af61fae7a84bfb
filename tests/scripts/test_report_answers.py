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


def test_nothing_is_claimed_of_cases_that_are_not_known():
    data = study_data(seeds=1)
    stop(data, "network", 0.5, "It diverged.", **_CELL)
    (said,) = against_expectation(data).sentences
    assert "order 4 beats order 3 at t = 1/lambda_max in all 11 of 12 cases known" in said
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
    stopped = table(data, "breakdowns")
    assert stopped.numbers["time"].tolist() == [5.0, 2.0]
    assert set(stopped.shown["outcome"]) == {"The kernel is not positive"}


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


def test_that_no_kernel_describes_feature_learning_is_said(data):
    assert not any("there is no prediction" in said for said in scope(data).sentences)
    data = study_data().assign_coords(parameterization=["NTK", "MUP"])
    said = scope(data).sentences[-1]
    assert said.startswith("In MUP parameterization the kernel moves at any width")


def test_the_ranking_is_in_order(data):
    said = ranking(data).sentences[0]
    places = [said.index(f"{i}. {label}") for i, label in enumerate(_ORDER, start=1)]
    assert places == sorted(places)
    assert "(width 1024, 0.2 %, kappa " in said


def test_the_ranking_leaves_out_what_was_not_measured():
    data = study_data()
    data["kappa"][:] = np.nan
    assert "MLP-2, NTK (width 1024, 0.2 %);" in ranking(data).sentences[0]


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
