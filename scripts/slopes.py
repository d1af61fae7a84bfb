"""Powers of the width, and how few sizes and seeds say nothing of one."""

import numpy as np
import xarray as xr

FEWEST = 3
"""The fewest sizes that a power is fitted to, and the fewest seeds that an interval or a spread is
told of: through two points goes a line of any slope, and two draws have no spread to speak of.
"""


def slope_in_width(values: xr.DataArray) -> xr.DataArray:
    """The fitted slope of log value against log width, for each of the other coordinates.

    Values that are not finite and positive are left out; NaN where fewer than `FEWEST` remain.
    """

    def fit(values: np.ndarray, widths: np.ndarray) -> float:
        usable = np.isfinite(values) & (values > 0)
        if usable.sum() < FEWEST:
            return float("nan")
        return float(np.polyfit(np.log(widths[usable]), np.log(values[usable]), 1)[0])

    return xr.apply_ufunc(
        fit,
        values,
        values["width"],
        input_core_dims=[["width"], ["width"]],
        vectorize=True,
        output_dtypes=[float],
    )


def slope_interval(
    values: xr.DataArray, abscissa: str, *, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float, float]:
    """The slope of the mean log value over seeds against the log of a coordinate, with a bootstrap
    interval: seeds are drawn anew, each with all its values, since one key gives related networks.

    **Arguments:**

    - `values`: over the coordinate and "seed". Where a seed has no finite positive value, the size
      is fitted on the seeds that have.
    - `abscissa`: the coordinate.
    - `level`: of the interval, two-sided.
    - `resamples`: of the seeds.

    **Returns:** the slope, and the two ends of its interval; all NaN where fewer than `FEWEST`
    sizes remain, the ends where fewer seeds do.
    """
    usable = values.transpose(abscissa, "seed").where(np.isfinite(values) & (values > 0))
    logs = np.log(usable.dropna("seed", how="all").values)
    sizes = np.log(values[abscissa].values.astype(float))

    def fit(seeds: np.ndarray) -> np.ndarray:
        """The least-squares slope for each row of `seeds`, all rows at once."""
        drawn = logs[:, seeds]  # (size, draw, seed)
        counts = np.isfinite(drawn).sum(axis=-1)
        means = np.where(np.isfinite(drawn), drawn, 0).sum(axis=-1) / np.maximum(counts, 1)
        usable = counts > 0
        number = np.maximum(usable.sum(axis=0), 1)
        centred = sizes[:, None] - np.where(usable, sizes[:, None], 0).sum(axis=0) / number
        centred = np.where(usable, centred, 0)
        spread = (centred**2).sum(axis=0)
        fitted = usable.sum(axis=0) >= FEWEST
        slopes = (centred * means).sum(axis=0) / np.where(fitted, spread, 1)
        return np.where(fitted, slopes, np.nan)

    count = logs.shape[1]
    slope = float(fit(np.arange(count)[None])[0])
    if np.isnan(slope) or count < FEWEST:
        return slope, np.nan, np.nan
    draws = np.random.default_rng(0).integers(0, count, (resamples, count))
    tail = (1 - level) / 2
    low, high = np.nanquantile(fit(draws), [tail, 1 - tail])
    return slope, float(low), float(high)


def written(slope: float, low: float, high: float) -> str:
    """A slope with its interval, where there is one."""
    return f"{slope:.2f}" + (f" [{low:.2f}, {high:.2f}]" if np.isfinite([low, high]).all() else "")
