"""The answer of a study for a terminal: sentences, then a table for each group."""

import io

import xarray as xr
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group as Stack, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from scripts.study.analysis import (
    gain,
    Group,
    groups,
    mean_error,
    pairs,
    predictions,
    settings,
    tally_by_width,
)
from scripts.study.predictions import named as solve_named
from scripts.study.report.answer import Answer, answers, QUESTION
from scripts.study.report.formats import error, fraction, ratio
from scripts.study.trends import ERROR, exponents

_COLUMNS = 100


def summary(dataset: xr.Dataset) -> RenderableType:
    """The question, the answers, and per group the errors at the reference time by width."""
    at = settings(dataset)["reference_time"]
    parts: list[RenderableType] = [Text(QUESTION, style="italic"), ""]
    for answer in answers(dataset):
        parts += [_said(answer), ""]
    found = groups(dataset)
    slopes = [exponents(group)["exponent"] for group in found]
    told = " Slope: the fitted power of the width." if _any_known(*slopes) else ""
    parts.append(
        Text(
            f"Errors at t = {at:g}/lambda_max: RMSE of the test logits against the network, "
            "geometric mean over seeds. a/b: how many times closer b is than a (*: not in every "
            f"seed; ∞: a stopped before).{told}"
        )
    )
    for group, powers in zip(found, slopes, strict=True):
        parts += ["", _table(group, powers, at)]
    return Stack(*parts)


def as_text(renderable: RenderableType) -> str:
    """The same as plain text, 100 columns wide."""
    held = io.StringIO()  # not the terminal, whose encoding would choose the lines of tables
    console = Console(
        file=held, width=_COLUMNS, no_color=True, force_terminal=False, highlight=False
    )
    console.print(renderable)
    return "\n".join(line.rstrip() for line in held.getvalue().splitlines()) + "\n"


def _said(answer: Answer) -> RenderableType:
    title = Text(answer.topic + (" (!)" if answer.flagged else ""), style="bold")
    return Stack(title, *(Padding(Text(line), (0, 0, 0, 2)) for line in answer.sentences))


def _table(group: Group, slopes: xr.DataArray, at: float) -> Table:
    errors = mean_error(group.data).sel(time=at)
    names = [name for name in predictions(group.data) if _any_known(errors.sel(solve=name))]
    compared = [pair for pair in pairs(group.data) if set(pair) <= set(names)]
    table = Table(
        title=group.label,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=0,  # ten columns fit into 80, a space between them
    )
    table.add_column("width", justify="right", no_wrap=True)
    for name in names:
        table.add_column(_short(name).replace(" ", "\n"), justify="right", no_wrap=True)
    for worse, better in compared:
        table.add_column(f"{_short(worse)}/\n{_short(better)}", justify="right", no_wrap=True)
    gains = [_gains(group, pair, at) for pair in compared]
    for i, width in enumerate(group.widths):
        here = errors.sel(width=width)
        table.add_row(
            str(width),
            *(error(float(here.sel(solve=name))) for name in names),
            *(of_pair[i] for of_pair in gains),
        )
    if _any_known(slopes):
        table.add_section()
        table.add_row(
            "slope", *(fraction(float(slopes.sel(quantity=f"{ERROR}{name}"))) for name in names)
        )
    return table


def _gains(group: Group, pair: tuple[str, str], at: float) -> list[str]:
    values = gain(group.data, *pair).sel(time=at).values
    tallies = tally_by_width(group, *pair, at)
    return [ratio(float(v), everywhere=t.everywhere) for v, t in zip(values, tallies, strict=True)]


def _any_known(*values: xr.DataArray) -> bool:
    return any(bool(one.notnull().any()) for one in values)


def _short(name: str) -> str:
    return solve_named(name).short or name
