"""The report as one HTML page that needs nothing but itself."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import xarray as xr
from jinja2 import Environment, StrictUndefined
from markupsafe import escape, Markup
from matplotlib.figure import Figure

from scripts.study.analysis import (
    completed,
    COMPUTED,
    Group,
    groups,
    has_classes,
    sessions,
    settings,
)
from scripts.study.report import figures
from scripts.study.report.answer import answers, QUESTION
from scripts.study.report.figures import Paper, PICTURES
from scripts.study.report.svg import inline, swatch
from scripts.study.report.tables import Table

TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class Shown:
    """A figure of the page: its panels and what their colours stand for."""

    title: str
    look_for: str
    panels: list[Markup]
    keys: list[tuple[Markup, str]]


def page(
    runs: Mapping[str, xr.Dataset],
    papers: Mapping[str, Mapping[str, Paper]],
    tables: Mapping[str, Sequence[Table]],
    comparison: Sequence[Table],
    rebuild: str,
) -> str:
    """The text of `report.html`.

    **Arguments:**

    - `runs`: the results by name.
    - `papers`: of each run, the figures for paper by stem, whose limits the panels share.
    - `tables`: of each run.
    - `comparison`: tables of the runs side by side.
    - `rebuild`: the command that builds the report again.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["typeset"] = typeset
    source = files("scripts.study.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    parts = [
        _part(f"run{i}", name, dataset, papers[name], tables[name])
        for i, (name, dataset) in enumerate(runs.items())
    ]
    return environment.from_string(source).render(
        title=" and ".join(runs),
        question=QUESTION,
        runs=parts,
        comparison=comparison,
        rebuild=rebuild,
    )


def typeset(text: object) -> Markup:
    """Escaped text with powers, indices and minus signs as they are printed, and numbers whole."""
    said = str(escape(text))
    said = re.sub(r"(?<![\w.&#])-(?=\d)", "\N{MINUS SIGN}", said)
    said = re.sub(r"(?<![\w.-])([\d.]*\d)e(-|\+)?(\d+)\b", _power, said)
    said = re.sub(r"width\^(\N{MINUS SIGN}?-?[\d.]*\d)", _raised, said)
    said = re.sub(r"\[(\S+), (\S+)\]", "[\\1,\N{NO-BREAK SPACE}\\2]", said)
    said = re.sub(r"\b(order|Taylor) (?=\d)", "\\1\N{NO-BREAK SPACE}", said)
    said = re.sub(r" / (?=[^\W\d])", "\N{NO-BREAK SPACE}/ ", said)
    said = re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", said)
    said = re.sub(r"\bt = (?=[\d.])", "t\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}", said)
    said = said.replace("/lambda_max", "/\N{WORD JOINER}lambda_max")
    said = said.replace("lambda_max", "λ<sub>max</sub>")
    return Markup(re.sub(r"\b([OΘ])_([34])\b", r"\1<sub>\2</sub>", said))


def _power(found: re.Match[str]) -> str:
    sign = "\N{MINUS SIGN}" if found[2] == "-" else ""
    return f"{found[1]}·10<sup>{sign}{found[3]}</sup>"


def _raised(found: re.Match[str]) -> str:
    return "width<sup>" + found[1].replace("-", "\N{MINUS SIGN}") + "</sup>"


def _part(
    prefix: str,
    name: str,
    dataset: xr.Dataset,
    papers: Mapping[str, Paper],
    tables: Sequence[Table],
) -> dict[str, Any]:
    done, planned = completed(dataset)
    return {
        "id": prefix,
        "name": name,
        "title": dataset.attrs.get("title", name),
        "done": done,
        "planned": planned,
        "answers": answers(dataset),
        "columns": figures.columns_of(dataset),
        "figures": _figures(prefix, dataset, papers),
        "tables": tables,
        "command": dataset.attrs.get("command", ""),
        "settings": [
            (key, _flat(value))
            for key, value in settings(dataset).items()
            if key != "classes" or has_classes(dataset)
        ],
        "sessions": [
            [
                (key.replace("_", " "), _flat(value))
                for key, value in session.items()
                if key != COMPUTED
            ]
            for session in sessions(dataset)
        ],
    }


def _figures(prefix: str, dataset: xr.Dataset, papers: Mapping[str, Paper]) -> list[Shown]:
    found = groups(dataset)
    shown = []
    for number, picture in enumerate(PICTURES):
        paper = papers[picture.stem]
        drawn = [figures.single(picture, group, paper.limits[group.label]) for group in found]
        shown.append(_shown(f"{prefix}-{number}", picture.caption.title, paper, found, drawn))
    drawn = [figures.ellipses([group]).figure for group in found]
    paper = papers[figures.ELLIPSES_STEM]
    return [*shown, _shown(f"{prefix}-ellipses", figures.ELLIPSES.title, paper, found, drawn)]


def _shown(
    prefix: str, title: str, paper: Paper, found: Sequence[Group], drawn: Sequence[Figure]
) -> Shown:
    """A figure of the page from its panels, a group each."""
    inner = [
        Markup(inline(figure, f"{prefix}-{i}", str(escape(f"{title}: {group.label}"))))
        for i, (figure, group) in enumerate(zip(drawn, found, strict=True))
    ]
    keys = [(Markup(swatch(key)), key.label) for key in paper.keys]
    return Shown(title, paper.text, inner, keys)


def _flat(value: object) -> str:
    """A setting or a version as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(held)}" for key, held in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_flat(held) for held in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
