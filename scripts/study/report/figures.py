"""The figures of a study: one function a figure, for paper and, panel by panel, for the page.

A figure has a panel for each group (architecture, activation, loss, parameterization) of the
results that it is given, on shared axes. Drawn with matplotlib's objects, without its global state.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.study.analysis import Group, groups
from scripts.study.report import panels
from scripts.study.report.style import dress, INK, Key, PANEL, readable_powers, SIZE

ELLIPSES_TITLE = "Two-point kernel, as an ellipse"
ELLIPSES_LOOK_FOR = (
    "The tangent kernel K of two training points of different classes, drawn as the ellipse of the "
    "v with vᵀK⁻¹v = 1, in units of lambda_max, from the narrowest to the widest network; a thin "
    "line a seed. Narrow networks scatter and move, wide ones sit on the limit."
)
Limits = tuple[tuple[float, float], tuple[float, float]]
"""Of the horizontal and of the vertical axis."""


@dataclass(frozen=True)
class Picture:
    """What a figure shows.

    - `stem`: of its file names.
    - `title`, `look_for`: its caption, and what to see in it.
    - `draw`: draws a group into an axis; false where there is nothing to draw.
    - `keys`: what its colours and lines stand for.
    - `ceiling`: the highest that the vertical axis goes.
    - `decades`: how many it spans at most.
    - `label`: writes into a panel once its limits are set.
    """

    stem: str
    title: str
    look_for: str
    draw: Callable[[Axes, Group], bool]
    keys: Callable[[xr.Dataset], list[Key]]
    ceiling: Callable[[xr.Dataset], float] | None = None
    label: Callable[[Axes, Group], None] | None = None
    decades: int = 8


PICTURES = (
    Picture(
        "error_in_time",
        "Error of each prediction in time",
        "Test-logit RMSE against the network, median over seeds, at the widest (solid) and the "
        "narrowest width (dashed). The lower a line, the better; the horizontal lines are the "
        "tolerance at either width, the vertical one the reference time.",
        panels.error_in_time,
        panels.error_in_time_keys,
        panels.error_ceiling,
    ),
    Picture(
        "error_in_width",
        "Error of each prediction in width",
        "Test-logit RMSE at the reference time: a faint mark for each seed, a full one for the "
        "median, and the fitted power of the width with its exponent. Steeper is better.",
        panels.error_in_width,
        panels.error_in_width_keys,
        panels.error_ceiling,
        panels.error_in_width_labels,
        decades=14,
    ),
    Picture(
        "kernel_evolution",
        "Evolution of the tangent kernel",
        "Relative change of the kernel on the training points, median over seeds, at the widest "
        "(solid) and the narrowest width (dashed). The frozen NTK has none; where order 3 leaves "
        "the network's line, the change is no longer what the start predicts.",
        panels.kernel_evolution,
        panels.kernel_evolution_keys,
        panels.kernel_ceiling,
    ),
    Picture(
        "spectra",
        "Spectra of the initial tangent kernel",
        "Eigenvalues on the training points over the largest, median over seeds, more opaque for "
        "wider networks; dashed: the kernel of infinite width. The wider, the closer to it.",
        panels.spectra,
        panels.spectra_keys,
    ),
    Picture(
        "learning_curves",
        "Learning curves of ensembles",
        "Training loss of the network, mean and standard deviation over seeds (band), more "
        "opaque for wider networks; orange: mean and standard deviation of infinitely wide ones.",
        panels.learning_curves,
        panels.learning_curves_keys,
        panels.loss_ceiling,
    ),
    Picture(
        "test_loss",
        "Test loss of the network and of its predictions",
        "Mean over seeds at the narrowest width, where they differ most; the band is the "
        "standard deviation of the network's. A line ends where its solve stopped in every seed.",
        panels.loss_on_test_points,
        panels.loss_on_test_points_keys,
        panels.loss_ceiling,
    ),
)


def grid(picture: Picture, dataset: xr.Dataset) -> Figure:
    """A figure for paper: a panel a group, the key below."""
    shown = groups(dataset)
    columns = columns_of(dataset)
    rows = math.ceil(len(shown) / columns)
    figure = _figure(columns * PANEL[0], rows * PANEL[1] + 0.7)
    axes = figure.subplots(rows, columns, sharex=False, sharey=True, squeeze=False)
    for i, axis in enumerate(axes.flat):
        if i >= len(shown):
            axis.remove()
            continue
        _panel(picture, axis, shown[i])
        if i % columns:
            axis.set_ylabel("")
    _frame(picture, figure.axes[0], dataset)
    for axis, group in zip(figure.axes, shown, strict=True):
        readable_powers(axis)
        if picture.label is not None:
            picture.label(axis, group)
    keys = picture.keys(dataset)
    figure.legend(
        [key.handle() for key in keys],
        [key.label for key in keys],
        loc="outside lower center",
        ncols=min(len(keys), 3 * columns),
        frameon=False,
        fontsize=SIZE,
        labelcolor=INK,
    )
    return figure


def columns_of(dataset: xr.Dataset) -> int:
    """At most three, such that a row holds the parameterizations of an architecture."""
    count, per_row = len(groups(dataset)), dataset.sizes["parameterization"]
    return per_row if count > 3 and per_row in (2, 3) else min(count, 3)


def limits(figure: Figure, dataset: xr.Dataset) -> dict[str, Limits]:
    """The limits of each group's axes in a `grid`: the vertical ones shared by all."""
    return {
        group.label: (axis.get_xlim(), axis.get_ylim())
        for group, axis in zip(groups(dataset), figure.axes, strict=True)
    }


def single(picture: Picture, group: Group, within: Limits) -> Figure:
    """One panel of a figure, without a key, on given limits."""
    figure = _figure(*PANEL, layout=None)
    axis = figure.subplots()
    right = 0.97 if picture.label is None else 0.87
    figure.subplots_adjust(left=0.17, right=right, bottom=0.15, top=0.91)
    _panel(picture, axis, group)
    axis.set_xlim(within[0])
    axis.set_ylim(within[1])
    readable_powers(axis)
    if picture.label is not None:
        picture.label(axis, group)
    return figure


def ellipses(shown: list[Group]) -> Figure:
    """The two-point kernel of each width at the start and at the end of training.

    A row a group, a column a width (at most four, from the narrowest to the widest); each ellipse
    is {v : v^T K^-1 v = 1}, in units of sqrt(lambda_max): thin a seed, thick the infinite width's.
    """
    chosen = [panels.some_widths(group) for group in shown]
    columns = max(len(widths) for widths in chosen)
    side = PANEL[0] / 4 + 0.05
    figure = _figure(max(columns, 4) * side, len(shown) * (side + 0.55))
    axes = figure.subplots(len(shown), columns, squeeze=False)
    for row, group, widths in zip(axes, shown, chosen, strict=True):
        reach = panels.ellipse_reach(group)
        for i, axis in enumerate(row):
            if i >= len(widths):
                axis.remove()
                continue
            panels.ellipse(axis, group, widths[i], reach)
            dress(axis)
            axis.title.set_fontweight("normal")
            axis.grid(False)
        if len(shown) > 1:
            row[0].set_ylabel(group.label.replace(", ", "\n"), fontweight="bold")
        else:
            figure.suptitle(group.label, fontweight="bold", fontsize=SIZE, color=INK)
    return figure


def _panel(picture: Picture, axis: Axes, group: Group) -> None:
    if not picture.draw(axis, group):
        axis.text(0.5, 0.5, "nothing to show", transform=axis.transAxes, ha="center", color=INK)
    axis.set_title(group.label)
    dress(axis)


def _frame(picture: Picture, axis: Axes, dataset: xr.Dataset) -> None:
    """Keeps a prediction that explodes, or rounding at the start, from flattening the rest."""
    if picture.ceiling is None:
        return
    highest = picture.ceiling(dataset)
    if np.isfinite(highest) and highest > 0:
        low, high = axis.get_ylim()
        top = min(high, highest)
        axis.set_ylim(max(low, top / 10**picture.decades), top)


def _figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    figure = Figure(figsize=(width, height), layout=layout, facecolor="none")
    figure.patch.set_alpha(0)
    return figure
