"""Powers of the width."""

import numpy as np
import xarray as xr


def slope_in_width(values: xr.DataArray) -> xr.DataArray:
    """The fitted slope of log value against log width, for each of the other coordinates.

    Values that are not finite and positive are left out; NaN where fewer than two remain.
    """

    def fit(values: np.ndarray, widths: np.ndarray) -> float:
        usable = np.isfinite(values) & (values > 0)
        if usable.sum() < 2:
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

    **Returns:** the slope, and the two ends of its interval; NaN where fewer than two sizes remain.
    """
    drawn_at_all = values.transpose(abscissa, "seed").where(values > 0).dropna("seed", how="all")
    logs = np.log(drawn_at_all.values)
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
        fitted = usable.sum(axis=0) >= 2
        slopes = (centred * means).sum(axis=0) / np.where(fitted, spread, 1)
        return np.where(fitted, slopes, np.nan)

    count = logs.shape[1]
    draws = np.random.default_rng(0).integers(0, count, (resamples, count))
    tail = (1 - level) / 2
    low, high = np.nanquantile(fit(draws), [tail, 1 - tail])
    return float(fit(np.arange(count)[None])[0]), float(low), float(high)
