"""The figures of a study: error against time, and error against width."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from scripts.slopes import slope_in_width
from scripts.study.config import PREDICTIONS, StudyConfig
from scripts.study.results import median_error

# Okabe & Ito's colours, told apart with any kind of colour vision.
_COLOURS = dict(zip(PREDICTIONS, ("#0072B2", "#D55E00", "#CC79A7", "#009E73"), strict=True))
_MARKERS = dict(zip(PREDICTIONS, "os^D", strict=True))
_ERROR = "test-logit RMSE"


def draw(dataset: xr.Dataset, config: StudyConfig, folder: Path) -> list[Path]:
    """Draws what is finished into `folder`/figures; returns the files."""
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    shown = [
        name
        for name in config.parameterizations
        if bool(dataset["finished"].sel(parameterization=name).any())
    ]
    files = []
    for stem, draw_panel in (("error_in_time", _in_time), ("error_in_width", _in_width)):
        figure, axes = plt.subplots(
            1,
            len(shown),
            figsize=(5.2 * len(shown), 4.2),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, name in zip(axes[0], shown, strict=True):
            draw_panel(axis, median_error(dataset.sel(parameterization=name)), config)
            axis.set_title(f"{name} parameterization")
            axis.grid(True, which="major", alpha=0.3)
        axes[0, 0].set_ylabel(f"{_ERROR} against the network")
        file = target / f"{stem}.png"
        figure.savefig(file, dpi=150)
        plt.close(figure)
        files.append(file)
    return files


def _in_time(axis: Axes, errors: xr.DataArray, config: StudyConfig) -> None:
    """A colour a prediction; the wider the network, the darker the line."""
    errors = errors.sel(time=errors["time"] > 0).dropna("width", how="all")
    widths = errors["width"].values
    for name in config.predictions:
        for i, width in enumerate(widths):
            axis.loglog(
                errors["time"],
                errors.sel(solve=name, width=width),
                color=_COLOURS[name],
                alpha=0.25 + 0.75 * (i + 1) / len(widths),
                linewidth=1 + (i + 1) / len(widths),
                label=name if i == len(widths) - 1 else None,
            )
    axis.axvline(config.reference_time, color="0.5", linewidth=0.8, linestyle=":")
    axis.set_xlabel("time of gradient flow, in 1/$\\lambda_{\\max}$")
    several = f"widths {widths[0]} (light) to {widths[-1]} (dark)"
    axis.legend(
        title=several if len(widths) > 1 else f"width {widths[0]}", frameon=False, fontsize=9
    )


def _in_width(axis: Axes, errors: xr.DataArray, config: StudyConfig) -> None:
    """Medians at the reference time, with the fitted power of the width."""
    errors = errors.sel(time=config.reference_time).dropna("width", how="all")
    widths = errors["width"].values
    slopes = slope_in_width(errors)
    for name in config.predictions:
        values = errors.sel(solve=name).values
        slope = float(slopes.sel(solve=name))
        label = name if np.isnan(slope) else f"{name}, slope {slope:.2f}"
        axis.loglog(widths, values, _MARKERS[name], color=_COLOURS[name], label=label)
        if np.isfinite(slope):
            centre = np.exp(np.nanmean(np.log(values)) - slope * np.mean(np.log(widths)))
            axis.loglog(widths, centre * widths**slope, color=_COLOURS[name], linewidth=1)
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.minorticks_off()
    axis.set_xlabel("width")
    title = f"t = {config.reference_time:g}/$\\lambda_{{\\max}}$"
    axis.legend(title=title, frameon=False, fontsize=9)
