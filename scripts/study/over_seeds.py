"""Means over seeds: one kind for whatever is compared by ratios, one for ensembles.

A value is NaN where nothing is known of a seed, which is left out, and infinite where a solve
stopped, which makes the mean infinite: a prediction is not praised for the seeds that it survived.
"""

import numpy as np
import xarray as xr

from scripts.slopes import FEWEST


def mean(values: xr.DataArray) -> xr.DataArray:
    """The geometric mean over seeds of what is not negative.

    The ratio of two means is the mean of the seeds' ratios, and the fitted powers of the width are
    of the same mean.
    """
    with np.errstate(divide="ignore"):
        logs = xr.apply_ufunc(np.log, values)
    found = xr.apply_ufunc(np.exp, logs.where(np.isfinite(values)).mean("seed"))
    return found.where(~(values == np.inf).any("seed"), np.inf)


def ensemble_mean(values: xr.DataArray) -> xr.DataArray:
    """The arithmetic mean over seeds, as the infinite ensemble has it: of losses, accuracies."""
    return values.mean("seed")


def ensemble_deviation(values: xr.DataArray) -> xr.DataArray:
    """The standard deviation over seeds; NaN where fewer than `FEWEST` are known and finite."""
    known = values.where(np.isfinite(values))
    count = known.notnull().sum("seed")
    variance = ((known - known.mean("seed")) ** 2).sum("seed") / (count - 1).clip(min=1)
    return (variance**0.5).where(count >= FEWEST)
