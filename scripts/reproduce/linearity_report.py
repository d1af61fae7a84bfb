"""The table and the figure of `scripts.reproduce.linearity`."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table

from scripts.slopes import slope_interval, written

_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def table(found: xr.Dataset) -> RenderableType:
    """The slope of each law with its interval, beside the one that is expected."""
    shown = Table(
        box=SIMPLE_HEAD,
        caption="Slope of mean log value against log size, with its 95 % bootstrap interval over "
        "seeds where there are three.",
        caption_justify="left",
    )
    for heading in ("quantity", "network", "against"):
        shown.add_column(heading)
    for heading in ("slope", "theory"):
        shown.add_column(heading, justify="right")
    for values in found.data_vars.values():
        against = _abscissa(values)
        shown.add_row(
            values.attrs["quantity"],
            values.attrs["network"],
            against,
            written(*slope_interval(values, against)),
            f"{values.attrs['slope']:g}",
        )
    return shown


def draw(found: xr.Dataset, file: Path) -> None:
    """One panel for each quantity and abscissa, one line for each network."""
    panels: dict[tuple[str, str], list[xr.DataArray]] = {}
    for values in found.data_vars.values():
        panels.setdefault((values.attrs["quantity"], _abscissa(values)), []).append(values)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3.8), layout="constrained", squeeze=False
    )
    for axis, ((quantity, against), lines) in zip(axes[0], panels.items(), strict=True):
        for values, color in zip(lines, _COLORS, strict=False):
            sizes = values[against].values
            measured = values.transpose(against, "seed").where(values > 0)
            mean = np.exp(np.nanmean(np.log(measured.values), axis=1))
            label = f"{values.attrs['network']}: {written(*slope_interval(values, against))}"
            axis.loglog(sizes, mean, "o-", color=color, label=label)
            axis.loglog(
                sizes, measured.values, ".", color=color, alpha=0.25, markersize=4, zorder=1
            )
            theory = mean[0] * (sizes / sizes[0]) ** values.attrs["slope"]
            axis.loglog(sizes, theory, "--", color=color, alpha=0.6, linewidth=1)
        axis.set_title({"|H|": "norm of the output's Hessian"}.get(quantity, quantity))
        axis.set_xlabel(against)
        axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axis.minorticks_off()
        axis.grid(True, which="major", alpha=0.3)
        axis.margins(y=0.25)
        axis.legend(frameon=False, fontsize=7, loc="lower left")
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _abscissa(values: xr.DataArray) -> str:
    (against,) = (str(name) for name in values.dims if name != "seed")
    return against
