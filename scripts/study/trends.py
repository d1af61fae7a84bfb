"""What holds across the cells of a study: powers of the width, a ranking, ensembles."""

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from scripts.slopes import slope_interval
from scripts.study.analysis import (
    errors,
    Group,
    groups,
    predictions,
    relative_error,
    settings,
)
from scripts.study.config import FROZEN, NETWORK

ERROR = "error of "
"""What precedes a prediction's name in the quantities of `exponents`."""
KERNEL_CHANGE = "kernel change"
MEASURES = ("limit_distance", "o3_size", "o4_size", "kappa", "hessian_norm")
"""What is known of a cell at the start, of which an exponent in the width is fitted."""
SEEDS_OF_AN_ENSEMBLE = 3
"""The fewest seeds whose mean and spread are compared with the infinite ensemble's."""
AGREES = 1.96
"""In units of its sampling error: a difference that 95 % of the ensembles stay below."""


def sizes(group: Group) -> dict[str, xr.DataArray]:
    """What is fitted with a power of the width, each over width and seed.

    The error of each prediction at the reference time, the kernel change of the network at the
    end, and `MEASURES`.
    """
    data = group.data
    at = settings(data)["reference_time"]
    finished = data["finished"].astype(bool)
    found = errors(data).sel(time=at)
    result = {f"{ERROR}{name}": found.sel(solve=name) for name in predictions(data)}
    change = data["kernel_change"].sel(solve=NETWORK).isel(time=-1)
    result[KERNEL_CHANGE] = change.where(finished)
    return result | {name: data[name].where(finished) for name in MEASURES}


def exponents(group: Group, *, level: float = 0.95) -> xr.Dataset:
    """The fitted power of the width of each of `sizes`, with a bootstrap interval over seeds.

    Variables over "quantity": `exponent`, `low`, `high` (NaN with one seed; few seeds make the
    interval too short). NaN where fewer than two widths have a positive, finite value.
    """
    rows = {}
    for name, values in sizes(group).items():
        usable = values.where(np.isfinite(values) & (values > 0))
        if int(usable.notnull().any("seed").sum()) < 2:
            rows[name] = (np.nan,) * 3
            continue
        slope, low, high = slope_interval(usable, "width", level=level)
        several = int(usable.notnull().any("width").sum()) > 1
        rows[name] = (slope, low, high) if several else (slope, np.nan, np.nan)
    table = np.array(list(rows.values()))
    names = ("exponent", "low", "high")
    return xr.Dataset(
        {name: ("quantity", table[:, i]) for i, name in enumerate(names)},
        coords={"quantity": list(rows)},
    )


def linearity(dataset: xr.Dataset) -> xr.Dataset:
    """The groups, the most linear first, over "group".

    The order is that of `relative_error`: the frozen NTK's error at the reference time over how far
    training moved the logits, at the widest finished width of the group, the median over seeds. A
    network is as linear as its linearization is right; the other measures are there to compare
    with: `kappa`, `o3_size`, `kernel_change` (at the end).
    """
    found = groups(dataset)
    at = settings(dataset)["reference_time"]
    rows = []
    for group in found:
        data = group.data
        finished = data["finished"].astype(bool)
        widest = data["width"].values[-1]
        relative = np.nan
        if FROZEN in predictions(data):
            error = relative_error(data).sel(solve=FROZEN, time=at, width=widest)
            relative = float(error.median("seed"))
        change = data["kernel_change"].sel(solve=NETWORK).isel(time=-1)
        measured = [data["kappa"], data["o3_size"], change]
        medians = [m.where(finished).sel(width=widest).median("seed").item() for m in measured]
        rows.append((int(widest), relative, *medians))
    # An array sorts NaN last.
    order = np.argsort(np.array([row[1] for row in rows]), kind="stable")
    names = ("width", "relative_error", "kappa", "o3_size", KERNEL_CHANGE.replace(" ", "_"))
    return xr.Dataset(
        {name: ("group", [rows[i][column] for i in order]) for column, name in enumerate(names)},
        coords={"group": [found[i].label for i in order]},
    )


def foretold(dataset: xr.Dataset) -> xr.DataArray:
    """How well each of `MEASURES` orders the cells by the frozen NTK's relative error.

    Spearman's rank correlation over finished cells, at the reference time; NaN where fewer than
    three cells have both, or all have the same.
    """
    at = settings(dataset)["reference_time"]
    if FROZEN not in predictions(dataset):
        return xr.DataArray([np.nan] * len(MEASURES), coords={"measure": list(MEASURES)})
    error = relative_error(dataset).sel(solve=FROZEN, time=at).values.ravel()
    found = []
    for name in MEASURES:
        values = dataset[name].where(dataset["finished"].astype(bool)).values.ravel()
        both = np.isfinite(values) & ~np.isnan(error)
        pair = np.stack([rankdata(error[both]), rankdata(values[both])])
        varied = both.sum() >= 3 and (pair.std(axis=1) > 0).all()
        found.append(float(np.corrcoef(pair)[0, 1]) if varied else np.nan)
    return xr.DataArray(found, coords={"measure": list(MEASURES)})


def ensemble(group: Group) -> xr.Dataset:
    """Mean and spread over seeds of the network's test logits, against the infinite ensemble's.

    Over width and time, NaN with fewer than three seeds or where there is no infinite ensemble:

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
    enough = seeds >= SEEDS_OF_AN_ENSEMBLE
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
