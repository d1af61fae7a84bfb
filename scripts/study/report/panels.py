"""What a panel of each figure shows of one group, and the key that explains it.

Each function draws into an axis and returns what it drew, from which the figure's key is made: what
is not drawn, or lies outside the axes, has no entry in it.
"""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from scripts.study import over_seeds
from scripts.study.analysis import (
    displacement,
    errors,
    Group,
    in_finished,
    mean_error,
    predictions,
    settings,
)
from scripts.study.palette import BLUE, FAINT, INK, ORANGE, VERMILION
from scripts.study.predictions import named, NETWORK, SOLVES
from scripts.study.report.style import (
    Key,
    label_ends,
    shade,
    ticks_at_widths,
    TIME,
)
from scripts.study.trends import ERROR, exponents, sizes

Drawn = list[tuple[Key, np.ndarray]]
"""What a panel shows: entries of the figure's key, each with the heights at which it is drawn."""
TOLERANCE = Key("tolerance", FAINT, width=0.8)
REFERENCE = Key("reference time", FAINT, ":", width=0.8)
FITTED = Key("fitted power, with its exponent", FAINT, width=1.2)
DEVIATION = Key("one standard deviation", FAINT, width=7.0, alpha=0.5)
LIMIT = Key("infinite width", INK, "--", width=1.4)
LIMIT_ENSEMBLE = Key("infinite width", ORANGE, width=1.8)
_NARROWEST = Key("narrowest width", FAINT, "--", width=1.0)
_WIDEST = Key("widest width", FAINT)
_WIDTHS_SHOWN = 4
_DASHED = (0, (4, 2))


def error_in_time(axis: Axes, group: Group) -> Drawn:
    """Mean error of each prediction, at the widest (solid) and the narrowest (dashed) width."""
    mean = _positive(mean_error(group.data))
    drawn = _in_time(axis, group, predictions(group.data), mean)
    tolerated = settings(group.data)["tolerance"] * over_seeds.mean(displacement(group.data))
    for width, extreme in _extremes(group):
        tolerance = float(tolerated.sel(width=width))
        axis.axhline(tolerance, color=FAINT, linestyle=_line(extreme), linewidth=0.8)
        drawn.append((TOLERANCE, np.array([tolerance])))
    at = settings(group.data)["reference_time"]
    axis.axvline(at, color=FAINT, linewidth=0.8, linestyle=":")
    drawn.append((REFERENCE, mean.values))
    axis.set_xlabel(TIME)
    axis.set_ylabel("test-logit RMSE")
    return drawn


def error_ceiling(dataset: xr.Dataset) -> float:
    """Ten times the farthest that any network went: an error beyond is of no interest."""
    return 10 * float(displacement(dataset).max())


def error_in_width(axis: Axes, group: Group) -> Drawn:
    """Errors at the reference time, of each seed and their mean, with the fitted power."""
    at = settings(group.data)["reference_time"]
    each = _positive(errors(group.data)).sel(time=at)
    mean = _positive(mean_error(group.data)).sel(time=at)
    drawn: Drawn = []
    for name in predictions(group.data):
        solve = named(name)
        marker = {"marker": solve.marker, "color": solve.colour, "linestyle": ""}
        for seed in group.data["seed"].values:
            values = each.sel(solve=name, seed=seed)
            axis.loglog(group.widths, values, **marker, markersize=3, alpha=0.35, markeredgewidth=0)
        values = mean.sel(solve=name)
        axis.loglog(group.widths, values, **marker, markersize=5.5)
        drawn.append((Key(name, solve.colour, "", solve.marker), values.values))
    for name, line, _ in _fits(group):
        axis.loglog(group.widths, line, color=named(name).colour, linewidth=1.2)
        drawn.append((FITTED, line))
    ticks_at_widths(axis, group.widths)
    axis.set_xlabel("width")
    axis.set_ylabel(f"test-logit RMSE at t = {at:g}/$\\lambda_{{\\max}}$")
    return drawn


def error_in_width_labels(axis: Axes, group: Group) -> None:
    """The fitted exponents, at the right end of their lines."""
    labels = [
        (line[-1], f"{slope:.2f}".replace("-", "\N{MINUS SIGN}"), named(name).colour)
        for name, line, slope in _fits(group)
    ]
    label_ends(axis, group.widths[-1], labels)


def kernel_evolution(axis: Axes, group: Group) -> Drawn:
    """Relative change of the kernel: of the network, and of what predicts it."""
    mean = _positive(over_seeds.mean(in_finished(group.data, "kernel_change")))
    moving = [NETWORK, *(solve.name for solve in SOLVES if solve.predicts_its_kernel)]
    names = [name for name in moving if name in group.data["solve"].values]
    drawn = _in_time(axis, group, names, mean)
    axis.set_xlabel(TIME)
    axis.set_ylabel("relative change of $\\Theta$")
    return drawn


def kernel_ceiling(dataset: xr.Dataset) -> float:
    """Ten times the largest change of a network's kernel."""
    return 10 * float(dataset["kernel_change"].sel(solve=NETWORK).max())


def spectra(axis: Axes, group: Group) -> Drawn:
    """Eigenvalues of the kernel at the start over the largest, by width, and of infinite width."""
    finished = group.data["finished"].astype(bool)
    spectrum = group.data["spectrum"] / group.data["lambda_max"]
    mean = over_seeds.mean(_positive(spectrum.where(finished)))
    mode = np.arange(1, mean.sizes["mode"] + 1)
    drawn: Drawn = []
    for i, width in enumerate(group.widths):
        values = mean.sel(width=width)
        opacity = shade(i, len(group.widths))
        axis.loglog(mode, values, color=BLUE, alpha=opacity, linewidth=1.4)
        drawn += _shaded(group, i, values.values)
    limit = _positive(group.data["limit_spectrum"])
    axis.loglog(mode, limit, color=INK, linestyle=_DASHED, linewidth=1.4)
    drawn.append((LIMIT, limit.values))
    axis.set_xlabel("mode")
    axis.set_ylabel("eigenvalue of $\\Theta$ / the largest")
    return drawn


def learning_curves(axis: Axes, group: Group) -> Drawn:
    """Training loss, mean and standard deviation over seeds, and of the infinite ensemble."""
    data = group.data
    loss = in_finished(data, "train_loss").sel(solve=NETWORK)
    limit, spread = data["limit_loss_mean"], data["limit_loss_std"]
    bands = _band(axis, limit, spread, ORANGE, 0.3, 1.8)
    drawn: Drawn = [(LIMIT_ENSEMBLE, limit.values)]
    for i, width in enumerate(group.widths):
        chosen, opacity = loss.sel(width=width), shade(i, len(group.widths))
        mean, deviation = _moments(chosen)
        bands += _band(axis, mean, deviation, BLUE, 0.18 * opacity, 1.4, opacity)
        drawn += _shaded(group, i, mean.values)
    axis.set_xlabel(TIME)
    axis.set_ylabel("training loss")
    return drawn + bands


def loss_ceiling(dataset: xr.Dataset) -> float:
    """Three times the largest loss of a network."""
    both = [dataset[name].sel(solve=NETWORK).max() for name in ("train_loss", "test_loss")]
    return 3 * float(max(both))


def loss_on_test_points(axis: Axes, group: Group) -> Drawn:
    """Test loss of each solve at the narrowest width, with the network's band."""
    data = group.data.isel(width=0)
    loss = in_finished(data, "test_loss")
    mean, deviation = _moments(loss.sel(solve=NETWORK))
    bands = _band(axis, mean, deviation, named(NETWORK).colour, 0.15, 1.8)
    drawn: Drawn = [(Key(NETWORK, named(NETWORK).colour), mean.values)]
    for name in predictions(data):
        values = _positive(over_seeds.ensemble_mean(loss.sel(solve=name)))
        drawn.append(_solve_in_time(axis, name, values, _WIDEST))
    axis.set_xlabel(TIME)
    axis.set_ylabel(f"test loss at width {group.widths[0]}")
    return drawn + bands


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


def ellipse(axis: Axes, group: Group, width: int, reach: float) -> Drawn:
    """The two-point kernel at one width: start, end (each seed) and the limit."""
    kernels = _kernels(group).sel(width=width)
    end = float(group.data["time"].values[-1])
    drawn: Drawn = []
    for position, key in (
        (0, Key("start of training", BLUE, width=0.9)),
        (-1, Key(f"end of training, t = {end:g}", VERMILION, width=0.9)),
    ):
        for kernel in kernels.isel(time=position).transpose("seed", "row", "column").values:
            outline = _outline(kernel)
            axis.plot(*outline, color=key.colour, linewidth=key.width, alpha=0.8)
            drawn.append((key, outline[1]))
    limit = _outline(group.data["limit_two_point_kernel"].transpose("row", "column").values)
    axis.plot(*limit, color=INK, linewidth=1.8, linestyle=_DASHED)
    drawn.append((LIMIT, limit[1]))
    axis.set_aspect("equal")
    axis.set_xlim(-reach, reach)
    axis.set_ylim(-reach, reach)
    axis.set_xticks([0], [""])
    axis.set_yticks([0], [""])
    axis.set_title(f"width {width}")
    return drawn


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

    The power is that of `trends.exponents`, through the middle of the mean errors.
    """
    fitted, values = exponents(group)["exponent"], sizes(group)
    widths = np.array(group.widths, dtype=float)
    found = []
    for name in predictions(group.data):
        slope = float(fitted.sel(quantity=f"{ERROR}{name}"))
        if np.isfinite(slope):
            mean = _positive(over_seeds.mean(values[f"{ERROR}{name}"])).values
            size = np.nanmean(np.log(mean * widths**-slope))
            found.append((name, np.exp(size) * widths**slope, slope))
    return found


def _in_time(axis: Axes, group: Group, names: list[str], values: xr.DataArray) -> Drawn:
    """Solves at the widest and at the narrowest width, over time."""
    solves: Drawn = []
    manners: Drawn = []
    for width, extreme in _extremes(group):
        here = [values.sel(width=width, solve=name) for name in names]
        lines = zip(names, here, strict=True)
        solves += [_solve_in_time(axis, name, line, extreme) for name, line in lines]
        if len(group.widths) > 1:
            manners += [(extreme, line.values) for line in here]
    return solves + manners


def _solve_in_time(
    axis: Axes, name: str, values: xr.DataArray, extreme: Key
) -> tuple[Key, np.ndarray]:
    """A solve's line in its colour, in the manner of the widest or the narrowest width.

    What others may coincide with is wider and below, so that it stays visible.
    """
    solve = named(name)
    halo = 1.6 if solve.beneath else 0.0
    axis.loglog(
        values["time"],
        values,
        color=solve.colour,
        linestyle=_line(extreme),
        linewidth=extreme.width + halo,
        zorder=2 - 0.1 * halo,
    )
    return Key(name, solve.colour), values.values


def _extremes(group: Group) -> list[tuple[int, Key]]:
    """The narrowest and the widest, each with the manner of its lines."""
    ends = [(group.widths[0], _NARROWEST)] if len(group.widths) > 1 else []
    return [*ends, (group.widths[-1], _WIDEST)]


def _line(extreme: Key) -> object:
    return _DASHED if extreme.line == "--" else "-"


def _shaded(group: Group, position: int, values: np.ndarray) -> Drawn:
    """The entry of a line whose opacity tells its width; none between the ends."""
    last = len(group.widths) - 1
    if 0 < position < last:
        return []
    label = "widest width" if position == last else "narrowest width"
    return [(Key(label, BLUE, width=1.4, alpha=shade(position, len(group.widths))), values)]


def _moments(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Mean and deviation of an ensemble; NaN where a solve stopped in some seed."""
    mean, deviation = over_seeds.ensemble_mean(values), over_seeds.ensemble_deviation(values)
    return mean.where(np.isfinite(mean)), deviation.where(np.isfinite(mean))


def _band(
    axis: Axes,
    mean: xr.DataArray,
    deviation: xr.DataArray,
    colour: str,
    filled: float,
    thickness: float,
    opacity: float = 1.0,
) -> Drawn:
    """A mean in time as a line, with a band of one standard deviation to either side."""
    mean = _positive(mean)  # the line of a loss ends where it is 0
    deviation = deviation.sel(time=deviation["time"] > 0)
    axis.loglog(mean["time"], mean, color=colour, linewidth=thickness, alpha=opacity)
    low, high = np.maximum(mean - deviation, mean / 10), mean + deviation
    axis.fill_between(mean["time"], low, high, color=colour, alpha=filled, linewidth=0)
    return [(DEVIATION, high.values)]


def _positive(values: xr.DataArray) -> xr.DataArray:
    """What a logarithmic axis can show: NaN elsewhere, and without the time 0."""
    shown = values.where(np.isfinite(values) & (values > 0))
    return shown.sel(time=shown["time"] > 0) if "time" in shown.dims else shown
