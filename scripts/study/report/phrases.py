"""The turns of phrase of a report's answers: counts with what they are of, ranges, lists."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from scripts.study import over_seeds
from scripts.study.analysis import (
    attempted,
    Breakdown,
    breakdowns,
    Exceptional,
    Group,
    relative_error,
    settings,
    Tally,
)
from scripts.study.predictions import FROZEN, named as solve_named
from scripts.study.report.formats import error, number


def of_frozen(group: Group) -> np.ndarray:
    """The mean relative error of the frozen NTK at the reference time, for each width."""
    at = settings(group.data)["reference_time"]
    return over_seeds.mean(relative_error(group.data).sel(solve=FROZEN, time=at)).values


def of_cells(found: Tally) -> str:
    """In how many cells, of how many."""
    of = f"{found.closer} of {counted(found.known, 'cell')}"
    return of if found.known == found.cells else f"{of} known (of {found.cells})"


def mean_of(found: Tally) -> str:
    """How many times closer in the mean, and of how many cells where a solve stopped in some."""
    if not found.of_both.size:
        return "and in each a solve stopped"
    some = found.of_both.size < found.known
    where = f" of the {found.of_both.size} in which neither stopped" if some else ""
    return f"{number(found.mean)} times in the mean{where}"


def failures(tallies: dict[tuple[str, str], Tally]) -> str:
    """In how many cells, of how many, orders are no closer."""
    failed = [(pair, one) for pair, one in tallies.items() if not one.everywhere]
    return " and ".join(
        f"{better} is no closer than {with_article(worse)} in {one.known - one.closer} of "
        f"{counted(one.known, 'cell')}"
        for (worse, better), one in failed
    )


def exceptional(one: Exceptional) -> str:
    """A cell in which an order is no closer, with both errors."""
    below, above = (error(value) for value in one.errors)
    return (
        f"{one.group.label} at width {one.width}, seed {one.seed}: {one.better} has error {above}, "
        f"{one.worse} {below}."
    )


def most_linear(table: xr.Dataset) -> list[str]:
    """Of each set of groups that is ranked, the first; of all groups the last too."""
    first = table.isel(group=np.flatnonzero(table["rank"].values == 1))
    names = [
        f"{group} (width {width})"
        for group, width in zip(first["group"].values, first["width"].values, strict=True)
    ]
    if not names:
        return []
    if set(table["among"].values) == {"all"}:
        last = table["group"].values[np.nanargmax(table["rank"].values)]
        width = first["width"].values[0]
        return [
            f"At width {width} the most linear is {first['group'].values[0]}, the least {last}."
        ]
    return [
        f"The most linear of each architecture: {', '.join(names)}; architectures have no width in "
        "common, and are not ranked against each other."
    ]


def stopped_early(dataset: xr.Dataset) -> str:
    """Each solve that stopped early in some cell, in how many of those that it was tried in."""
    count: dict[str, int] = {}
    for one in breakdowns(dataset):
        count[one.solve] = count.get(one.solve, 0) + 1
    tried = attempted(dataset)
    return ", ".join(
        f"{solve} in {count[solve]} of {counted(int(tried.sel(solve=solve).sum()), 'cell')}"
        for solve in sorted(count)
    )


def stopped_cells(solve: str, label: str, cases: Sequence[Breakdown]) -> str:
    """Of a group, the cells in which a solve stopped early, and the first time."""
    widths = sorted({case.width for case in cases})
    tried = int(attempted(cases[0].group.data).sel(solve=solve, width=widths).sum())
    times = [case.time for case in cases if np.isfinite(case.time)]
    first = f", the first at t = {number(min(times))}/lambda_max" if times else ""
    return (
        f"{solve}, {label}: {len(cases)} of {counted(tried, 'cell')} at width"
        f"{'s' if len(widths) > 1 else ''} {listed(widths)}{first}."
    )


def range_of(gains: np.ndarray) -> str:
    """The least and the largest gain."""
    low, high = number(float(gains.min())), number(float(gains.max()))
    low = f"{low} (it stopped)" if gains.min() == 0 else low
    return low if gains.min() == gains.max() else f"{low} to {high}"


def widths_at(found: Sequence[Group], position: int) -> str:
    """The widths at an end of the groups' widths, as a range."""
    widths = [group.widths[position] for group in found]
    low, high = min(widths), max(widths)
    return str(low) if low == high else f"{low} to {high}"


def without_limit(found: Sequence[Group]) -> dict[str, list[str]]:
    """Why some groups have no limit of infinite width, each reason with the groups' labels."""
    labels: dict[str, list[str]] = {}
    for group in found:
        if why := str(group.data["no_limit"].item()):
            labels.setdefault(why, []).append(group.label)
    return labels


def several_widths(found: Sequence[Group]) -> bool:
    """Whether some group has more than one."""
    return any(len(group.widths) > 1 for group in found)


def per_cents(values: Sequence[float]) -> str:
    """The range of relative errors in per cent."""
    known = [float(value) for value in values if not np.isnan(value)]
    if not known:
        return "unknown"
    low, high = per_cent(min(known)), per_cent(max(known))
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def powers_of(values: np.ndarray) -> str:
    """What follows "width^": the least and the largest exponent."""
    low, high = f"{values.min():.2f}", f"{values.max():.2f}"
    return low if low == high else f"{low} to width^{high}"


def with_article(name: str) -> str:
    """A prediction within a sentence."""
    return solve_named(name).in_a_sentence


def per_cent(value: float) -> str:
    """A relative error in per cent."""
    if np.isinf(value):
        return "stopped"
    return (
        "unknown"
        if np.isnan(value)
        else f"{100 * value:.3g} %"
        if value >= 1
        else f"{100 * value:.2g} %"
    )


def widths_of(found: Sequence[Group], architecture: str) -> list[int]:
    """The finished widths of an architecture, increasing."""
    here = [group.widths for group in found if group.key["architecture"] == architecture]
    return sorted({width for widths in here for width in widths})


def named(dataset: xr.Dataset, coordinate: str) -> str:
    """The values of a coordinate in words."""
    return listed([str(value).replace("_", " ") for value in dataset[coordinate].values])


def listed(values: Sequence[object]) -> str:
    """One after the other."""
    return ", ".join(str(value) for value in values)


def counted(count: int, noun: str) -> str:
    """A number of things."""
    return f"{count} {noun}" + ("" if count == 1 else "s")
