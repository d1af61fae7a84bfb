"""Several runs side by side."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import xarray as xr

from scripts.study.analysis import groups, mean_error, predictions, settings
from scripts.study.report.formats import error, fraction, quantity
from scripts.study.report.tables import made, Table
from scripts.study.trends import exponents

STEMS = ("compared_errors", "compared_exponents", "compared_settings")
"""Of the files of `compared`."""


def compared(runs: Mapping[str, xr.Dataset]) -> list[Table]:
    """Several runs side by side: errors, exponents, and the settings in which they differ."""
    beside = [
        _side_by_side(
            STEMS[0],
            "Errors of the runs",
            "Test-logit RMSE at each run's reference time, geometric mean over seeds.",
            ("group", "width", "quantity"),
            {run: _long_errors(dataset) for run, dataset in runs.items()},
            error,
        ),
        _side_by_side(
            STEMS[1],
            "Exponents of the runs",
            "Fitted power of the width.",
            ("group", "quantity"),
            {run: _long_exponents(dataset) for run, dataset in runs.items()},
            fraction,
        ),
    ]
    return [*(table for table in beside if len(table.numbers)), difference_table(runs)]


def difference_table(runs: Mapping[str, xr.Dataset]) -> Table:
    """The settings in which runs differ."""
    chosen = {run: settings(dataset) for run, dataset in runs.items()}
    names = dict.fromkeys(name for config in chosen.values() for name in config)
    rows = []
    for name in names:
        values = {run: _written(config.get(name)) for run, config in chosen.items()}
        if len(set(values.values())) > 1:
            rows.append({"setting": name, **values})
    found = pd.DataFrame(rows, columns=["setting", *chosen])
    return Table(STEMS[2], "Settings in which the runs differ", "", found, found)


def _long_errors(dataset: xr.Dataset) -> dict[tuple[str, ...], float]:
    at = settings(dataset)["reference_time"]
    found = {}
    for group in groups(dataset):
        errors = mean_error(group.data).sel(time=at)
        where = ", ".join(group.key.values()).replace("_", " ")
        for width in group.widths:
            for name in predictions(dataset):
                value = float(errors.sel(width=width, solve=name))
                found[where, str(width), name] = value
    return found


def _long_exponents(dataset: xr.Dataset) -> dict[tuple[str, ...], float]:
    found = {}
    for group in groups(dataset):
        fitted = exponents(group)["exponent"]
        where = ", ".join(group.key.values()).replace("_", " ")
        for name in fitted["quantity"].values:
            value = float(fitted.sel(quantity=name))
            if np.isfinite(value):
                label = quantity(str(name))
                found[where, label] = value
    return found


def _side_by_side(
    stem: str,
    title: str,
    note: str,
    names: tuple[str, ...],
    runs: Mapping[str, dict[tuple[str, ...], float]],
    show: Callable[[float], str],
) -> Table:
    """A row a case (its coordinates: `names`) that any run has, a column a run."""
    cases = dict.fromkeys(case for found in runs.values() for case in found)
    rows = [
        dict(zip(names, case, strict=True))
        | {run: found.get(case, np.nan) for run, found in runs.items()}
        for case in cases
    ]
    numbers = pd.DataFrame(rows, columns=[*names, *runs])
    shown = numbers.astype(object)
    for run in runs:
        shown[run] = pd.Series([show(value) for value in numbers[run]], dtype=object)
    return made(stem, title, note, numbers, shown)


def _written(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
