"""The tables of a study, each as numbers (CSV) and as it is shown (page, LaTeX)."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from scripts.slopes import written
from scripts.study import over_seeds
from scripts.study.analysis import (
    breakdowns,
    gain,
    GROUPING,
    groups,
    has_classes,
    in_finished,
    mean_error,
    mean_horizon,
    pairs,
    predictions,
    settings,
    tally_by_width,
)
from scripts.study.report.formats import (
    error,
    fraction,
    INFINITE,
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


def made(stem: str, title: str, note: str, numbers: pd.DataFrame, shown: pd.DataFrame) -> Table:
    """A table without the columns that hold nothing."""
    if not len(shown):
        return Table(stem, title, note, numbers, shown)
    empty = [name for name in shown if set(shown[name]) == {MISSING}]
    numbers = numbers.dropna(axis="columns", how="all")
    return Table(stem, title, note, numbers, shown.drop(columns=empty))


def tables(dataset: xr.Dataset) -> list[Table]:
    """Those that have at least one row; without classes there are no accuracies."""
    every = (
        error_table(dataset),
        exponent_table(dataset),
        horizon_table(dataset),
        *([accuracy_table(dataset)] if has_classes(dataset) else []),
        linearity_table(dataset),
        ensemble_table(dataset),
        breakdown_table(dataset),
    )
    return [table for table in every if len(table.numbers)]


def error_table(dataset: xr.Dataset) -> Table:
    """Errors at the reference time and gains, a row for each group and width."""
    at = settings(dataset)["reference_time"]
    numbers, shown, flagged = [], [], False
    for group in groups(dataset):
        errors = mean_error(group.data).sel(time=at)
        compared = [
            (*pair, gain(group.data, *pair).sel(time=at).values, tally_by_width(group, *pair, at))
            for pair in pairs(dataset)
        ]
        for i, width in enumerate(group.widths):
            known = {name: float(errors.sel(solve=name)[i]) for name in predictions(dataset)}
            row = {"group": group.label, **group.key, "width": width, **known}
            seen = {"group": group.label, "width": str(width)}
            seen |= {name: error(value) for name, value in known.items()}
            for worse, better, gains, tallies in compared:
                closer, won = float(gains[i]), tallies[i]
                row |= {
                    f"{worse} / {better}": closer,
                    f"seeds of {worse} / {better}": won.known,
                    f"seeds in which {better} is closer": won.closer,
                }
                seen[f"{worse} / {better}"] = ratio(closer, everywhere=won.everywhere)
                flagged |= not won.everywhere
            numbers.append(row)
            shown.append(seen)
    mark = f" {NO_BETTER}: not in every seed, see the exceptions." if flagged else ""
    how = (
        "; the last columns say how many times closer the higher order is, which is the mean of "
        f"the seeds' ratios ({INFINITE}: only the higher order came so far).{mark}"
        if pairs(dataset)
        else "."
    )
    return made(
        "errors",
        f"Errors at t = {at:g}/lambda_max",
        "Test-logit RMSE of each prediction against the network, geometric mean over seeds "
        f'("stopped": in at least one){how}',
        pd.DataFrame(numbers),
        pd.DataFrame(shown),
    )


def exponent_table(dataset: xr.Dataset) -> Table:
    """Powers of the width with their intervals, a row for each group and quantity.

    Shown with the groups or the quantities in the columns, whichever are fewer.
    """
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
        said = written(row["exponent"], row["low"], row["high"])
        wide.setdefault(row["group"], {})[row["quantity"]] = said
    by_quantity = pd.DataFrame(wide).fillna(MISSING)
    few_groups = by_quantity.shape[1] < by_quantity.shape[0]
    shown = (
        by_quantity.rename_axis("quantity") if few_groups else by_quantity.T.rename_axis("group")
    ).reset_index()
    intervals = (
        ", with the 95 % bootstrap interval over seeds (too short with few)"
        if bool(found["low"].notnull().any())
        else ""
    )
    return made(
        "exponents",
        "Exponents in the width",
        f"Fitted power of the width{intervals}, of the widths at which the solve came so far in "
        "every seed. Errors are at the reference time, the kernel change at the end, the rest at "
        "the start.",
        found,
        shown,
    )


def horizon_table(dataset: xr.Dataset) -> Table:
    """How long each prediction stays good, a row for each group and width."""
    share, end = settings(dataset)["tolerance"], float(dataset["time"].values[-1])
    numbers, shown = [], []
    for group in groups(dataset):
        held = mean_horizon(group.data)
        for width in group.widths:
            row = {"group": group.label, **group.key, "width": width}
            seen = {"group": group.label, "width": str(width)}
            for name in predictions(dataset):
                here = held.sel(width=width, solve=name)
                value, beyond = float(here["time"]), int(here["beyond"])
                row |= {name: value, f"seeds beyond the end: {name}": beyond}
                seen[name] = time(value, beyond)
            numbers.append(row)
            shown.append(seen)
    return made(
        "horizons",
        f"Time until an error exceeds {100 * share:g} % of the movement",
        "In 1/lambda_max, geometric mean over seeds: until then the test-logit RMSE stays below "
        f"{100 * share:g} % of how far (RMS) the network's test logits have moved by the last "
        f"time, t = {end:g}. >: in some seeds it stays below to the last time, which they count "
        "with. A prediction that stopped while still good counts to where it stopped; where the "
        "network stopped first nothing is known.",
        pd.DataFrame(numbers),
        pd.DataFrame(shown),
    )


def accuracy_table(dataset: xr.Dataset) -> Table:
    """Test accuracies at the end, a row for each group and width."""
    end = float(dataset["time"].values[-1])
    numbers = []
    for group in groups(dataset):
        each = in_finished(group.data, "test_accuracy").isel(time=-1)
        last = over_seeds.ensemble_mean(each).where(~(each == np.inf).any("seed"))
        for width in group.widths:
            here = {
                str(name): float(last.sel(width=width, solve=name)) for name in last["solve"].values
            }
            numbers.append({"group": group.label, **group.key, "width": width, **here})
    found = pd.DataFrame(numbers)
    return made(
        "accuracies",
        f"Test accuracy at the end, t = {end:g}/lambda_max",
        f"Arithmetic mean over seeds; {MISSING} where a solve stopped in some seed.",
        found,
        _shown(found, {"width": str} | {str(n): fraction for n in dataset["solve"].values}),
    )


def linearity_table(dataset: xr.Dataset) -> Table:
    """The groups, the most linear first among those of one width."""
    found = linearity(dataset).to_dataframe().reset_index()
    names = {
        "relative_error": "frozen NTK's relative error",
        "kappa": "kappa",
        "o3_size": "size of O_3",
        "kernel_change": "kernel change",
    }
    words = {"rank": lambda rank: MISSING if np.isnan(rank) else f"{rank:.0f}", "width": str}
    shown = _shown(found, words | dict.fromkeys(names, error)).rename(columns=names)
    alike = (
        "all have in common"
        if set(found["among"]) == {"all"}
        else "the groups of an architecture have in common; architectures, which have none in "
        "common, are not ranked against each other"
    )
    return made(
        "linearity",
        "Linearity at equal width, most linear first",
        f"Each at the widest finished width that {alike}; geometric means over seeds. Ordered by "
        "the frozen NTK's error at the reference time over how far the network's test logits move "
        "in the whole run; kappa and the relative speed of the kernel (size of O_3, per "
        "1/lambda_max) are of the start, the kernel change is of the end.",
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
    return made(
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
    return made(
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
