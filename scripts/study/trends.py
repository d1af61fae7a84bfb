"""What holds across the cells of a study: powers of the width, a ranking, ensembles."""

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from scripts.slopes import FEWEST, slope_interval
from scripts.study import over_seeds
from scripts.study.analysis import (
    errors,
    Group,
    groups,
    predictions,
    relative_error,
    settings,
)
from scripts.study.predictions import FROZEN, NETWORK

ERROR = "error of "
"""What precedes a prediction's name in the quantities of `exponents`."""
KERNEL_CHANGE = "kernel change"
MEASURES = ("limit_distance", "o3_size", "o4_size", "kappa", "hessian_norm")
"""What is known of a cell at the start, of which an exponent in the width is fitted."""
AGREES = 1.96
"""In units of its sampling error: a difference that 95 % of the ensembles stay below."""


def sizes(group: Group) -> dict[str, xr.DataArray]:
    """What is fitted with a power of the width, each over width and seed.

    The error of each prediction at the reference time, but for widths at which it stopped in some
    seed, the kernel change of the network at the end, and `MEASURES`.
    """
    data = group.data
    at = settings(data)["reference_time"]
    finished = data["finished"].astype(bool)
    found = errors(data).sel(time=at)
    found = found.where(~(found == np.inf).any("seed"))
    result = {f"{ERROR}{name}": found.sel(solve=name) for name in predictions(data)}
    change = data["kernel_change"].sel(solve=NETWORK).isel(time=-1)
    result[KERNEL_CHANGE] = change.where(finished)
    return result | {name: data[name].where(finished) for name in MEASURES}


def exponents(group: Group, *, level: float = 0.95) -> xr.Dataset:
    """The fitted power of the width of each of `sizes`, with a bootstrap interval over seeds.

    Variables over "quantity": `exponent`, `low`, `high`; which of them are NaN for want of widths
    or seeds: `slope_interval`.
    """
    rows = {
        name: slope_interval(values, "width", level=level) for name, values in sizes(group).items()
    }
    table = np.array(list(rows.values()))
    names = ("exponent", "low", "high")
    return xr.Dataset(
        {name: ("quantity", table[:, i]) for i, name in enumerate(names)},
        coords={"quantity": list(rows)},
    )


def linearity(dataset: xr.Dataset) -> xr.Dataset:
    """The groups, the most linear first, over "group": only what is of one width is ranked.

    A network is as linear as its linearization is right: the order is that of `relative_error` of
    the frozen NTK at the reference time, the mean over seeds. Where all groups have a width in
    common, `among` is "all" and they are ranked at the widest such; else the groups of each
    architecture (`among`) are, at the widest that they have in common. `rank` counts from 1; NaN
    where there is no other group of that width or the error is not known. The other measures are
    there to compare with: `kappa`, `o3_size`, `kernel_change` (at the end).
    """
    rows = []
    for among, found, width in _comparable(groups(dataset)):
        measured = [_linearity(group, width or group.widths[-1]) for group in found]
        errors = np.array([row["relative_error"] for row in measured])
        comparable = width is not None
        # An array sorts NaN last.
        order = np.argsort(errors, kind="stable") if comparable else range(len(found))
        ranked = comparable and (~np.isnan(errors)).sum() > 1
        for place, i in enumerate(order, start=1):
            rank = place if ranked and not np.isnan(errors[i]) else np.nan
            rows.append({"among": among, "rank": rank, "label": found[i].label} | measured[i])
    names = ("among", "rank", "width", "relative_error", "kappa", "o3_size", "kernel_change")
    return xr.Dataset(
        {name: ("group", [row[name] for row in rows]) for name in names},
        coords={"group": [row["label"] for row in rows]},
    )


def _comparable(found: list[Group]) -> list[tuple[str, list[Group], int | None]]:
    """Groups that are ranked with each other, with their widest common width (None: there is none).

    All of them; else those of each architecture.
    """
    if (width := _common_width(found)) is not None:
        return [("all", found, width)]
    alike: dict[str, list[Group]] = {}
    for group in found:
        alike.setdefault(group.key["architecture"], []).append(group)
    return [(name, those, _common_width(those)) for name, those in alike.items()]


def _common_width(found: list[Group]) -> int | None:
    return max(set.intersection(*(set(group.widths) for group in found)), default=None)


def _linearity(group: Group, width: int) -> dict[str, float]:
    """The width, the frozen NTK's relative error there, and what else tells of linearity."""
    data = group.data
    at = settings(data)["reference_time"]
    relative = np.nan
    if FROZEN in predictions(data):
        error = relative_error(data).sel(solve=FROZEN, time=at, width=width)
        relative = float(over_seeds.mean(error))
    measured = {
        "kappa": data["kappa"],
        "o3_size": data["o3_size"],
        "kernel_change": data["kernel_change"].sel(solve=NETWORK).isel(time=-1),
    }
    finished = data["finished"].astype(bool)
    return {"width": width, "relative_error": relative} | {
        name: float(over_seeds.mean(values.where(finished).sel(width=width)))
        for name, values in measured.items()
    }


def foretold(dataset: xr.Dataset) -> xr.Dataset:
    """How well each of `MEASURES` orders the cells by the frozen NTK's relative error.

    Over "measure": `correlation`, Spearman's rank correlation over finished cells, at the reference
    time, and `cells`, how many have both. NaN where fewer than three have, or all have the same.
    """
    at = settings(dataset)["reference_time"]
    rows = [(np.nan, 0)] * len(MEASURES)
    if FROZEN in predictions(dataset):
        error = relative_error(dataset).sel(solve=FROZEN, time=at).values.ravel()
        finished = dataset["finished"].astype(bool)
        rows = [
            _rank_correlation(error, dataset[n].where(finished).values.ravel()) for n in MEASURES
        ]
    names = ("correlation", "cells")
    return xr.Dataset(
        {name: ("measure", [row[i] for row in rows]) for i, name in enumerate(names)},
        coords={"measure": list(MEASURES)},
    )


def _rank_correlation(error: np.ndarray, values: np.ndarray) -> tuple[float, int]:
    both = np.isfinite(values) & ~np.isnan(error)
    count = int(both.sum())
    pair = np.stack([rankdata(error[both]), rankdata(values[both])])
    varied = count >= 3 and (pair.std(axis=1) > 0).all()
    return (float(np.corrcoef(pair)[0, 1]) if varied else np.nan), count


def ensemble(group: Group) -> xr.Dataset:
    """Mean and spread over seeds of the network's test logits, against the infinite ensemble's.

    Over width and time, NaN with fewer than `FEWEST` seeds or where there is no infinite ensemble:

    - `seeds`: S, the networks of each width that came so far.
    - `mean_distance`: RMS of (mean over seeds - infinite mean) / RMS of the infinite standard
      deviation. With S draws from the infinite ensemble its square is 1/S on average.
    - `mean_z`: the same over 1/sqrt(S), its sampling error.
    - `std_ratio`: RMS of the standard deviation over seeds / RMS of the infinite one.
    - `std_z`: (std_ratio - 1) sqrt(2 (S - 1)), in units of the sampling error that it would have if
      all logits moved together; it is smaller where they do not.

    `mean_z` below and `std_z` within `AGREES` is agreement as far as the seeds can tell.
    """
    data = group.data
    over = ["test_point", "output"]
    logits = data["test_logits"].sel(solve=NETWORK).where(data["finished"].astype(bool))
    seeds = logits.notnull().all(over).sum("seed")
    enough = seeds >= FEWEST
    spread = _rms(data["limit_std"], over)
    spread = spread.where(spread > 0)
    distance = (_rms(logits.mean("seed") - data["limit_mean"], over) / spread).where(enough)
    variance = ((logits - logits.mean("seed")) ** 2).sum("seed") / (seeds - 1).clip(min=1)
    variance = variance.where(logits.notnull().any("seed"))
    ratio = (variance.mean(over, skipna=False) ** 0.5 / spread).where(enough)
    return xr.Dataset(
        {
            "seeds": seeds,
            "mean_distance": distance,
            "mean_z": distance * seeds**0.5,
            "std_ratio": ratio,
            "std_z": (ratio - 1) * (2 * (seeds - 1).clip(min=1)) ** 0.5,
        }
    )


def _rms(values: xr.DataArray, over: list[str]) -> xr.DataArray:
    return (values**2).mean(over, skipna=False) ** 0.5
