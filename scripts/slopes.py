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
        fit, values, values["width"], input_core_dims=[["width"], ["width"]], vectorize=True
    )
