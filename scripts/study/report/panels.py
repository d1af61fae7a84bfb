"""What a panel of each figure shows of one group, and the key that explains it.

Each function draws into an axis and tells whether there was anything to draw.
"""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from scripts.slopes import slope_in_width
from scripts.study.analysis import (
    displacement,
    errors,
    Group,
    median_error,
    ORDER_3,
    ORDER_4,
    predictions,
    settings,
)
from scripts.study.config import NETWORK
from scripts.study.report.style import (
    BLUE,
    COLOURS,
    FAINT,
    INK,
    Key,
    label_ends,
    MARKERS,
    ORANGE,
    shade,
    ticks_at_widths,
    TIME,
    VERMILION,
)

_WIDTHS_SHOWN = 4
_DASHED = (0, (4, 2))


def error_in_time(axis: Axes, group: Group) -> bool:
    """Median error of each prediction, at the widest (solid) and the narrowest (dashed) width."""
    median = _positive(median_error(group.data))
    tolerated = settings(group.data)["tolerance"] * displacement(group.data).median("seed")
    for width, line, thickness in _extremes(group):
        for name in predictions(group.data):
            _solve_in_time(axis, name, median.sel(width=width, solve=name), thickness, line)
        axis.axhline(float(tolerated.sel(width=width)), color=FAINT, linestyle=line, linewidth=0.8)
    axis.axvline(settings(group.data)["reference_time"], color=FAINT, linewidth=0.8, linestyle=":")
    axis.set_xlabel(TIME)
    axis.set_ylabel("test-logit RMSE")
    return _drawn(median)


def error_in_time_keys(dataset: xr.Dataset) -> list[Key]:
    """A colour a prediction, a line a width."""
    return [
        *(Key(name, COLOURS[name]) for name in predictions(dataset)),
        *_extreme_keys(dataset),
        Key("tolerance", FAINT, width=0.8),
    ]


def error_ceiling(dataset: xr.Dataset) -> float:
    """Ten times the farthest that any network went: an error beyond is of no interest."""
    return 10 * float(displacement(dataset).max())


def error_in_width(axis: Axes, group: Group) -> bool:
    """Errors at the reference time, of each seed and their median, with the fitted power."""
    at = settings(group.data)["reference_time"]
    each = _positive(errors(group.data)).sel(time=at)
    median = _positive(median_error(group.data)).sel(time=at)
    for name in predictions(group.data):
        for seed in group.data["seed"].values:
            axis.loglog(
                group.widths,
                each.sel(solve=name, seed=seed),
                MARKERS[name],
                color=COLOURS[name],
                markersize=3,
                alpha=0.35,
                markeredgewidth=0,
            )
        values = median.sel(solve=name)
        axis.loglog(group.widths, values, MARKERS[name], color=COLOURS[name], markersize=5.5)
    for name, line, _ in _fits(group):
        axis.loglog(group.widths, line, color=COLOURS[name], linewidth=1.2)
    ticks_at_widths(axis, group.widths)
    axis.set_xlabel("width")
    axis.set_ylabel(f"test-logit RMSE at t = {at:g}/$\\lambda_{{\\max}}$")
    return _drawn(median)


def error_in_width_labels(axis: Axes, group: Group) -> None:
    """The fitted exponents, at the right end of their lines."""
    labels = [
        (line[-1], f"{slope:.2f}".replace("-", "\N{MINUS SIGN}"), COLOURS[name])
        for name, line, slope in _fits(group)
    ]
    label_ends(axis, group.widths[-1], labels)


def error_in_width_keys(dataset: xr.Dataset) -> list[Key]:
    """A colour and a marker a prediction."""
    names = predictions(dataset)
    return [Key(name, COLOURS[name], marker=MARKERS[name], width=1.2) for name in names]


def kernel_evolution(axis: Axes, group: Group) -> bool:
    """Relative change of the kernel: network, order 3, order 4."""
    change = group.data["kernel_change"].where(group.data["finished"].astype(bool))
    median = _positive(change.median("seed"))
    for width, line, thickness in _extremes(group):
        for name in _with_kernel(group.data):
            _solve_in_time(axis, name, median.sel(width=width, solve=name), thickness, line)
    axis.set_xlabel(TIME)
    axis.set_ylabel("relative change of $\\Theta$")
    return _drawn(median)


def kernel_evolution_keys(dataset: xr.Dataset) -> list[Key]:
    """A colour a solve that shows its kernel, a line a width."""
    return [*(Key(name, COLOURS[name]) for name in _with_kernel(dataset)), *_extreme_keys(dataset)]


def kernel_ceiling(dataset: xr.Dataset) -> float:
    """Ten times the largest change of a network's kernel."""
    return 10 * float(dataset["kernel_change"].sel(solve=NETWORK).max())


def spectra(axis: Axes, group: Group) -> bool:
    """Eigenvalues of the kernel at the start over the largest, by width, and of infinite width."""
    finished = group.data["finished"].astype(bool)
    spectrum = group.data["spectrum"] / group.data["lambda_max"]
    median = _positive(spectrum.where(finished).median("seed"))
    mode = np.arange(1, median.sizes["mode"] + 1)
    for i, width in enumerate(group.widths):
        axis.loglog(
            mode,
            median.sel(width=width),
            color=BLUE,
            alpha=shade(i, len(group.widths)),
            linewidth=1.4,
        )
    limit = _positive(group.data["limit_spectrum"])
    axis.loglog(mode, limit, color=INK, linestyle=_DASHED, linewidth=1.4)
    axis.set_xlabel("mode")
    axis.set_ylabel("eigenvalue of $\\Theta$ / the largest")
    return _drawn(median)


def spectra_keys(dataset: xr.Dataset) -> list[Key]:
    """A shade a width, and the limit."""
    limit = Key("infinite width", INK, "--", width=1.4)
    has_limit = bool(dataset["limit_spectrum"].notnull().any())
    return [*_shade_keys(), *([limit] if has_limit else [])]


def learning_curves(axis: Axes, group: Group) -> bool:
    """Training loss, mean and standard deviation over seeds, and of the infinite ensemble."""
    data = group.data
    loss = data["train_loss"].sel(solve=NETWORK).where(data["finished"].astype(bool))
    _band(axis, data["limit_loss_mean"], data["limit_loss_std"], ORANGE, 0.3, 1.8)
    for i, width in enumerate(group.widths):
        chosen, opacity = loss.sel(width=width), shade(i, len(group.widths))
        _band(axis, chosen.mean("seed"), _deviation(chosen), BLUE, 0.18 * opacity, 1.4, opacity)
    axis.set_xlabel(TIME)
    axis.set_ylabel("training loss")
    return _drawn(loss)


def learning_curves_keys(dataset: xr.Dataset) -> list[Key]:
    """A shade a width, and the infinite ensemble."""
    has_limit = bool(dataset["limit_loss_mean"].notnull().any())
    infinite = Key("infinite width", ORANGE, width=1.8)
    return [*_shade_keys(), *([infinite] if has_limit else [])]


def loss_ceiling(dataset: xr.Dataset) -> float:
    """Three times the largest loss of a network."""
    both = [dataset[name].sel(solve=NETWORK).max() for name in ("train_loss", "test_loss")]
    return 3 * float(max(both))


def loss_on_test_points(axis: Axes, group: Group) -> bool:
    """Test loss of each solve at the narrowest width, with the network's band."""
    data = group.data.isel(width=0)
    loss = data["test_loss"].where(data["finished"].astype(bool))
    network = loss.sel(solve=NETWORK)
    _band(axis, network.mean("seed"), _deviation(network), COLOURS[NETWORK], 0.15, 1.8)
    for name in predictions(data):
        _solve_in_time(axis, name, _positive(loss.sel(solve=name).mean("seed")), 1.3)
    axis.set_xlabel(TIME)
    axis.set_ylabel(f"test loss at width {group.widths[0]}")
    return _drawn(loss)


def loss_on_test_points_keys(dataset: xr.Dataset) -> list[Key]:
    """A colour a solve."""
    return [Key(str(name), COLOURS[str(name)]) for name in dataset["solve"].values]


def some_widths(group: Group) -> list[int]:
    """At most four of a group's widths, the narrowest and the widest among them."""
    count = min(len(group.widths), _WIDTHS_SHOWN)
    chosen = np.linspace(0, len(group.widths) - 1, count).round().astype(int)
    return [group.widths[i] for i in chosen]


def ellipse_reach(group: Group) -> float:
    """The half side of a square that holds almost every ellipse of a group."""
    ends = _kernels(group).isel(time=[0, -1])
    limit = group.data["limit_two_point_kernel"]
    networks, limits = (
        np.sqrt(np.concatenate([kernel.isel(row=i, column=i).values.ravel() for i in (0, 1)]))
        for kernel in (ends, limit)
    )
    known = networks[np.isfinite(networks)]
    largest = [np.quantile(known, 0.99)] if known.size else []
    largest += list(limits[np.isfinite(limits)])
    return 1.08 * float(max(largest)) if largest else 1.0


def ellipse(axis: Axes, group: Group, width: int, reach: float) -> None:
    """The two-point kernel at one width: start, end (each seed) and the limit."""
    kernels = _kernels(group).sel(width=width)
    for position, colour in ((0, BLUE), (-1, VERMILION)):
        for kernel in kernels.isel(time=position).transpose("seed", "row", "column").values:
            axis.plot(*_outline(kernel), color=colour, linewidth=0.9, alpha=0.8)
    limit = group.data["limit_two_point_kernel"].transpose("row", "column").values
    axis.plot(*_outline(limit), color=INK, linewidth=1.8, linestyle=_DASHED)
    axis.set_aspect("equal")
    axis.set_xlim(-reach, reach)
    axis.set_ylim(-reach, reach)
    axis.set_xticks([0], [""])
    axis.set_yticks([0], [""])
    axis.set_title(f"width {width}")


def ellipse_keys(dataset: xr.Dataset) -> list[Key]:
    """Start, end and limit."""
    end = float(dataset["time"].values[-1])
    has_limit = bool(dataset["limit_two_point_kernel"].notnull().any())
    return [
        Key("start of training", BLUE),
        Key(f"end of training, t = {end:g}", VERMILION),
        *([Key("infinite width", INK, "--", width=1.8)] if has_limit else []),
    ]


def _kernels(group: Group) -> xr.DataArray:
    kernels = group.data["two_point_kernel"].sel(solve=NETWORK)
    return kernels.where(group.data["finished"].astype(bool))


def _outline(kernel: np.ndarray) -> np.ndarray:
    """Points of {v : v^T K^-1 v = 1}, which is K^1/2 times the unit circle, (2, points).

    NaN where K is not positive semidefinite or not known.
    """
    angle = np.linspace(0, 2 * np.pi, 73)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    if not np.isfinite(kernel).all():
        return np.full_like(circle, np.nan)
    values, vectors = np.linalg.eigh((kernel + kernel.T) / 2)
    if values[0] < 0:
        return np.full_like(circle, np.nan)
    return (vectors * np.sqrt(values)) @ vectors.T @ circle


def _fits(group: Group) -> list[tuple[str, np.ndarray, float]]:
    """Of each prediction with a fitted power: name, its line at the widths, the exponent.

    The power is that of the mean over seeds of the log error, as in `trends.exponents`.
    """
    at = settings(group.data)["reference_time"]
    logs = xr.apply_ufunc(np.log, _positive(errors(group.data)).sel(time=at))
    centre = xr.apply_ufunc(np.exp, logs.mean("seed"))
    slopes = slope_in_width(centre)
    widths = np.array(group.widths, dtype=float)
    found = []
    for name in predictions(group.data):
        slope = float(slopes.sel(solve=name))
        if np.isfinite(slope):
            size = float((centre.sel(solve=name) * widths**-slope).pipe(np.log).mean())
            found.append((name, np.exp(size) * widths**slope, slope))
    return found


def _solve_in_time(
    axis: Axes, name: str, values: xr.DataArray, thickness: float, line: object = "-"
) -> None:
    """A solve's line in its colour.

    Predictions lie on the network, and Taylor 1 is the frozen NTK: these two are wider and below,
    so that a line that coincides leaves them visible.
    """
    halo = 1.6 if name in (NETWORK, "Taylor 1") else 0.0
    axis.loglog(
        values["time"],
        values,
        color=COLOURS[name],
        linestyle=line,
        linewidth=thickness + halo,
        zorder=2 - 0.1 * halo,
    )


def _extremes(group: Group) -> list[tuple[int, object, float]]:
    """Width, line and thickness of the narrowest and of the widest."""
    widest = (group.widths[-1], "-", 1.6)
    return [(group.widths[0], _DASHED, 1.0), widest] if len(group.widths) > 1 else [widest]


def _extreme_keys(dataset: xr.Dataset) -> list[Key]:
    if dataset.sizes["width"] == 1:
        return []
    return [Key("widest", FAINT), Key("narrowest", FAINT, "--", width=1.0)]


def _shade_keys() -> list[Key]:
    return [
        Key("narrowest", BLUE, width=1.4, alpha=shade(0, 2)),
        Key("widest", BLUE, width=1.4),
    ]


def _with_kernel(dataset: xr.Dataset) -> list[str]:
    return [n for n in (NETWORK, ORDER_3, ORDER_4) if n in dataset["solve"].values]


def _deviation(values: xr.DataArray) -> xr.DataArray:
    """Standard deviation over seeds; NaN with one."""
    count = values.notnull().sum("seed")
    variance = ((values - values.mean("seed")) ** 2).sum("seed") / (count - 1).clip(min=1)
    return (variance**0.5).where(count > 1)


def _band(
    axis: Axes,
    mean: xr.DataArray,
    deviation: xr.DataArray,
    colour: str,
    filled: float,
    thickness: float,
    opacity: float = 1.0,
) -> None:
    """A mean in time as a line, with a band of one standard deviation to either side."""
    mean, deviation = (values.sel(time=values["time"] > 0) for values in (mean, deviation))
    axis.loglog(mean["time"], mean, color=colour, linewidth=thickness, alpha=opacity)
    low, high = np.maximum(mean - deviation, mean / 10), mean + deviation
    axis.fill_between(mean["time"], low, high, color=colour, alpha=filled, linewidth=0)


def _positive(values: xr.DataArray) -> xr.DataArray:
    """What a logarithmic axis can show: NaN elsewhere, and without the time 0."""
    shown = values.where(np.isfinite(values) & (values > 0))
    return shown.sel(time=shown["time"] > 0) if "time" in shown.dims else shown


def _drawn(values: xr.DataArray) -> bool:
    return bool(values.notnull().any())
