"""The tables of a study, each as numbers (CSV) and as it is shown (page, LaTeX)."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from scripts.study.analysis import (
    breakdowns,
    exceptions,
    gain,
    GROUPING,
    groups,
    median_error,
    median_horizon,
    pairs,
    predictions,
    settings,
)
from scripts.study.report.formats import (
    error,
    fraction,
    INFINITE,
    interval,
    latex,
    MISSING,
    NO_BETTER,
    number,
    quantity,
    ratio,
    time,
)
from scripts.study.trends import ensemble, exponents, linearity

STEMS = (
    *("errors", "exponents", "horizons", "accuracies", "linearity", "ensembles"),
    "breakdowns",
)
"""Of the files of `tables`."""


@dataclass(frozen=True)
class Table:
    """A table of the report.

    - `stem`: of its file names.
    - `title`, `note`: its caption, and how to read it.
    - `numbers`: as computed, a row a case.
    - `shown`: the same in words and rounded figures.
    """

    stem: str
    title: str
    note: str
    numbers: pd.DataFrame
    shown: pd.DataFrame

    def csv(self) -> str:
        """The numbers, comma separated, to full precision."""
        return self.numbers.to_csv(index=False, lineterminator="\n")

    @property
    def aligned(self) -> str:
        """A letter a column as shown: l for words, r for figures."""
        return "".join("l" if _in_words(list(self.shown[name])) else "r" for name in self.shown)

    def latex(self) -> str:
        """The table as shown, for LaTeX with the package booktabs."""
        rows = [list(self.shown.columns), *self.shown.itertuples(index=False)]
        lines = [" & ".join(latex(str(value)) for value in row) + r" \\" for row in rows]
        body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
        return (
            f"% {self.title}. {self.note}\n"
            f"\\begin{{tabular}}{{{self.aligned}}}\n{body}\n\\end{{tabular}}\n"
        )


def tables(dataset: xr.Dataset) -> list[Table]:
    """Those that have at least one row."""
    made = (
        error_table(dataset),
        exponent_table(dataset),
        horizon_table(dataset),
        accuracy_table(dataset),
        linearity_table(dataset),
        ensemble_table(dataset),
        breakdown_table(dataset),
    )
    return [table for table in made if len(table.numbers)]


def error_table(dataset: xr.Dataset) -> Table:
    """Errors at the reference time and gains, a row a group and width."""
    at = settings(dataset)["reference_time"]
    flagged = bool(exceptions(dataset))
    numbers = []
    for group in groups(dataset):
        errors = median_error(group.data).sel(time=at)
        gains = {
            f"{worse} / {better}": gain(group.data, worse, better).sel(time=at)
            for worse, better in pairs(dataset)
        }
        for width in group.widths:
            here = errors.sel(width=width)
            row = {"group": group.label, **group.key, "width": width}
            row |= {name: float(here.sel(solve=name)) for name in predictions(dataset)}
            row |= {name: float(values.sel(width=width)) for name, values in gains.items()}
            numbers.append(row)
    found = pd.DataFrame(numbers)
    shown = dict.fromkeys(predictions(dataset), error) | {
        f"{worse} / {better}": ratio for worse, better in pairs(dataset)
    }
    mark = f" {NO_BETTER}: the higher order is no better." if flagged else ""
    return Table(
        "errors",
        f"Errors at t = {at:g}/lambda_max",
        "Test-logit RMSE of each prediction against the network, median over seeds; the last "
        "columns say how many times closer the higher order is, the median over seeds of each "
        f"seed's ratio ({INFINITE}: only the higher order came so far).{mark}",
        found,
        _shown(found, {"width": str} | shown),
    )


def exponent_table(dataset: xr.Dataset) -> Table:
    """Powers of the width with their intervals, a row a group and quantity."""
    numbers = []
    for group in groups(dataset):
        fitted = exponents(group)
        for name in fitted["quantity"].values:
            row = {"group": group.label, **group.key, "quantity": quantity(str(name))}
            row |= {key: float(fitted[key].sel(quantity=name)) for key in fitted.data_vars}
            if np.isfinite(row["exponent"]):
                numbers.append(row)
    columns = ["group", *GROUPING, "quantity", "exponent", "low", "high"]
    found = pd.DataFrame(numbers, columns=columns)
    wide = {}
    for row in numbers:
        said = interval(row["exponent"], row["low"], row["high"])
        wide.setdefault(row["group"], {})[row["quantity"]] = said
    shown = pd.DataFrame(wide).T.fillna(MISSING).rename_axis("group").reset_index()
    return Table(
        "exponents",
        "Exponents in the width",
        "Fitted power of the width, with the 95 % bootstrap interval over seeds (none with one "
        "seed; too short with few), of the seeds in which the solve came so far. Errors are at the "
        "reference time, the kernel change at the end, the rest at the start.",
        found,
        shown,
    )


def horizon_table(dataset: xr.Dataset) -> Table:
    """How long each prediction stays good, a row a group and width."""
    share, end = settings(dataset)["tolerance"], float(dataset["time"].values[-1])
    numbers = []
    for group in groups(dataset):
        median = median_horizon(group.data)
        for width in group.widths:
            here = median.sel(width=width)
            row = {"group": group.label, **group.key, "width": width}
            numbers.append(
                row | {name: float(here.sel(solve=name)) for name in predictions(dataset)}
            )
    found = pd.DataFrame(numbers)
    shown = {name: lambda value: time(value, end) for name in predictions(dataset)}
    return Table(
        "horizons",
        f"Time until an error exceeds {100 * share:g} % of the movement",
        "In 1/lambda_max, median over seeds (of two in the middle the shorter): until then the "
        f"test-logit RMSE stays below {100 * share:g} % of how far (RMS) the network's test logits "
        "have moved by the last "
        f"time, t = {end:g}. A prediction that stopped while still good counts to where it "
        "stopped; where the network stopped first nothing is known.",
        found,
        _shown(found, {"width": str} | shown),
    )


def accuracy_table(dataset: xr.Dataset) -> Table:
    """Test accuracies at the end, a row a group and width."""
    end = float(dataset["time"].values[-1])
    numbers = []
    for group in groups(dataset):
        finished = group.data["finished"].astype(bool)
        last = group.data["test_accuracy"].isel(time=-1).where(finished).median("seed")
        for width in group.widths:
            here = {
                str(name): float(last.sel(width=width, solve=name)) for name in last["solve"].values
            }
            numbers.append({"group": group.label, **group.key, "width": width, **here})
    found = pd.DataFrame(numbers)
    return Table(
        "accuracies",
        f"Test accuracy at the end, t = {end:g}/lambda_max",
        "Median over the seeds that reached it.",
        found,
        _shown(found, {"width": str} | {str(n): fraction for n in dataset["solve"].values}),
    )


def linearity_table(dataset: xr.Dataset) -> Table:
    """The groups, the most linear first."""
    found = linearity(dataset).to_dataframe().reset_index()
    names = {
        "relative_error": "frozen NTK's relative error",
        "kappa": "kappa",
        "o3_size": "size of O_3",
        "kernel_change": "kernel change",
    }
    shown = _shown(found, {"width": str} | dict.fromkeys(names, error)).rename(columns=names)
    return Table(
        "linearity",
        "Linearity, most linear first",
        "Each at its widest finished width, medians over seeds. Ordered by the frozen NTK's error "
        "at the reference time over how far the network's test logits move in the whole run; "
        "kappa and the relative speed of the kernel (size of O_3, per 1/lambda_max) are of the "
        "start, the kernel change is of the end.",
        found,
        shown,
    )


def ensemble_table(dataset: xr.Dataset) -> Table:
    """Ensembles of finite networks against the infinite one."""
    at = settings(dataset)["reference_time"]
    numbers = []
    for group in groups(dataset):
        found = ensemble(group)
        for moment in dict.fromkeys((at, float(dataset["time"].values[-1]))):
            for width in group.widths:
                here = found.sel(time=moment, width=width)
                row = {"group": group.label, **group.key, "width": width, "time": moment}
                row |= {str(name): float(here[name]) for name in found.data_vars}
                if np.isfinite(row["mean_z"]):
                    numbers.append(row)
    names = {
        "seeds": ("seeds", lambda value: f"{value:.0f}"),
        "mean_distance": ("mean: distance / std", fraction),
        "mean_z": ("in sampling errors", fraction),
        "std_ratio": ("std: ratio", fraction),
        "std_z": ("off 1, in sampling errors", fraction),
    }
    columns = ["group", *GROUPING, "width", "time", *names]
    table = pd.DataFrame(numbers, columns=columns)
    shown = _shown(
        table,
        {"width": str, "time": lambda t: f"{t:g}"} | {n: show for n, (_, show) in names.items()},
    )
    return Table(
        "ensembles",
        "Ensembles of networks against the infinite ensemble",
        "Mean and standard deviation over seeds of the test logits, against those of infinitely "
        "wide networks (RMS over points and outputs). With S seeds the mean's sampling error is "
        "std / sqrt(S), the ratio's at most 1 / sqrt(2 (S - 1)); beyond 1.96 of them is a "
        "difference.",
        table,
        shown.rename(columns={n: label for n, (label, _) in names.items()}),
    )


def breakdown_table(dataset: xr.Dataset) -> Table:
    """The solves that stopped early, a row each."""
    found = pd.DataFrame(
        [
            {
                "group": one.group.label,
                **one.group.key,
                "width": one.width,
                "seed": one.seed,
                "solve": one.solve,
                "time": one.time,
                "outcome": one.outcome,
            }
            for one in breakdowns(dataset)
        ]
    )
    written = {"width": str, "seed": str, "solve": str, "time": number, "outcome": _first_clause}
    return Table(
        "breakdowns",
        "Solves that stopped early",
        "Time in 1/lambda_max.",
        found,
        _shown(found, written) if len(found) else found,
    )


def _shown(numbers: pd.DataFrame, columns: Mapping[str, Callable[..., str]]) -> pd.DataFrame:
    """The named columns in words, after the group."""
    shown = {"group": numbers["group"].astype(str)}
    for name, show in columns.items():
        shown[name] = pd.Series([show(value) for value in numbers[name]], dtype=object)
    return pd.DataFrame(shown)


def _first_clause(outcome: str) -> str:
    """The reason alone: the answer has it in full."""
    return outcome.split(":")[0].rstrip(".")


def _in_words(column: list[object]) -> bool:
    """Whether most of a column's cells are no figures."""
    figures = [bool(re.match(r"^[->+\d–]", str(value))) for value in column]
    return sum(figures) * 2 < len(figures)
