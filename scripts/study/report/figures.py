"""The figures of a study: a function for each, for paper and, panel by panel, for the page.

A figure has a panel for each group (architecture, activation, loss, parameterization) of the
results that it is given, on shared axes. Drawn with matplotlib's objects, without its global state.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.study.analysis import Group, groups
from scripts.study.palette import INK
from scripts.study.predictions import FIRST_CORRECTION
from scripts.study.report import panels
from scripts.study.report.panels import Drawn
from scripts.study.report.style import dress, Key, PANEL, readable_powers, SIZE

Limits = tuple[tuple[float, float], tuple[float, float]]
"""Of the horizontal and of the vertical axis."""


@dataclass(frozen=True)
class Caption:
    """A figure's title, and what to see in it.

    - `title`, `always`: said of every such figure.
    - `where_drawn`: sentences that presuppose something, by its label in the key.
    """

    title: str
    always: str
    where_drawn: tuple[tuple[str, str], ...] = ()

    def text(self, keys: list[Key]) -> str:
        """What holds of a figure with these entries in its key."""
        labels = {key.label for key in keys}
        told = [sentence for label, sentence in self.where_drawn if label in labels]
        return " ".join([self.always, *told])


@dataclass(frozen=True)
class Picture:
    """What a figure shows.

    - `stem`: of its file names.
    - `caption`: what it says.
    - `draw`: draws a group into an axis and returns what there was to draw.
    - `ceiling`: the highest that the vertical axis goes.
    - `decades`: how many it spans at most.
    - `label`: writes into a panel once its limits are set.
    """

    stem: str
    caption: Caption
    draw: Callable[[Axes, Group], Drawn]
    ceiling: Callable[[xr.Dataset], float] | None = None
    label: Callable[[Axes, Group], None] | None = None
    decades: int = 8


@dataclass(frozen=True)
class Paper:
    """A figure for paper.

    - `figure`: it has a panel for each group.
    - `keys`: what its colours and lines stand for, of what is within the axes.
    - `text`: what to see in it.
    - `limits`: of the axes of each group, by its label.
    """

    figure: Figure
    keys: list[Key]
    text: str
    limits: dict[str, Limits]


_DEVIATIONS = (panels.DEVIATION.label, "Bands are one standard deviation to either side.")
_WIDER = ("widest width", "The wider the network, the more opaque.")
PICTURES = (
    Picture(
        "error_in_time",
        Caption(
            "Error of each prediction in time",
            "Test-logit RMSE against the network, geometric mean over seeds: the lower, the "
            "better. A line ends where its solve stopped in some seed.",
        ),
        panels.error_in_time,
        panels.error_ceiling,
    ),
    Picture(
        "error_in_width",
        Caption(
            "Error of each prediction in width",
            "Test-logit RMSE at the reference time: a faint mark for each seed, a full one for "
            "their geometric mean.",
            ((panels.FITTED.label, "The steeper a line falls, the better."),),
        ),
        panels.error_in_width,
        panels.error_ceiling,
        panels.error_in_width_labels,
        decades=14,
    ),
    Picture(
        "kernel_evolution",
        Caption(
            "Evolution of the tangent kernel",
            "Relative change of the kernel on the training points, geometric mean over seeds. The "
            "frozen NTK has none.",
            (
                (
                    FIRST_CORRECTION,
                    f"Where {FIRST_CORRECTION} leaves the network's line, the change is no longer "
                    "what the start predicts.",
                ),
            ),
        ),
        panels.kernel_evolution,
        panels.kernel_ceiling,
    ),
    Picture(
        "spectra",
        Caption(
            "Spectra of the initial tangent kernel",
            "Eigenvalues on the training points over the largest, geometric mean over seeds.",
            (_WIDER, (panels.LIMIT.label, "Wide networks are close to infinite width.")),
        ),
        panels.spectra,
    ),
    Picture(
        "learning_curves",
        Caption(
            "Learning curves of ensembles",
            "Training loss, arithmetic mean over seeds.",
            (
                _WIDER,
                (panels.LIMIT_ENSEMBLE.label, "Of infinite width: the mean of its ensemble."),
                _DEVIATIONS,
            ),
        ),
        panels.learning_curves,
        panels.loss_ceiling,
    ),
    Picture(
        "test_loss",
        Caption(
            "Test loss of the network and of its predictions",
            "Arithmetic mean over seeds at the narrowest width, where they differ most. A line ends"
            " where its solve stopped in some seed.",
            ((panels.DEVIATION.label, "The band is one standard deviation of the network's."),),
        ),
        panels.loss_on_test_points,
        panels.loss_ceiling,
    ),
)
ELLIPSES_STEM = "ellipses"
ELLIPSES = Caption(
    "Two-point kernel, as an ellipse",
    "The tangent kernel K of two training points (of different classes, where there are any), "
    "drawn as the ellipse of the v with vᵀK⁻¹v = 1, in units of lambda_max, from the narrowest to "
    "the widest network; a thin "
    "line a seed.",
    ((panels.LIMIT.label, "Narrow networks scatter and move, wide ones sit on the limit."),),
)


def grid(picture: Picture, dataset: xr.Dataset) -> Paper:
    """A figure for paper: a panel for each group, the key below."""
    shown = groups(dataset)
    columns = columns_of(dataset)
    rows = math.ceil(len(shown) / columns)
    figure = _figure(columns * PANEL[0], rows * PANEL[1] + 0.7)
    axes = figure.subplots(rows, columns, sharex=False, sharey=True, squeeze=False)
    drawn: list[Drawn] = []
    for i, axis in enumerate(axes.flat):
        if i >= len(shown):
            axis.remove()
            continue
        drawn.append(_panel(picture, axis, shown[i]))
        if i % columns:
            axis.set_ylabel("")
    _frame(picture, figure.axes[0], dataset)
    for axis, group in zip(figure.axes, shown, strict=True):
        readable_powers(axis)
        if picture.label is not None:
            picture.label(axis, group)
    keys = _within(figure.axes, drawn)
    _explain(figure, keys)
    limits = {
        group.label: (axis.get_xlim(), axis.get_ylim())
        for group, axis in zip(shown, figure.axes, strict=True)
    }
    return Paper(figure, keys, picture.caption.text(keys), limits)


def _explain(figure: Figure, keys: list[Key]) -> None:
    """Writes the key below, in as many columns as the figure is wide enough for."""
    for columns in range(len(keys), 0, -1):
        legend = figure.legend(
            [key.handle() for key in keys],
            [key.label for key in keys],
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=SIZE,
            labelcolor=INK,
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def columns_of(dataset: xr.Dataset) -> int:
    """At most three, such that a row holds the parameterizations of an architecture."""
    count, per_row = len(groups(dataset)), dataset.sizes["parameterization"]
    return per_row if count > 3 and per_row in (2, 3) else min(count, 3)


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


def ellipses(shown: list[Group]) -> Paper:
    """The two-point kernel of each width at the start and at the end of training.

    A row for each group, a column for each width (at most four, from the narrowest to the widest).
    Ellipses are {v : v^T K^-1 v = 1}, in units of sqrt(lambda_max): a thin one for each seed, a
    thick one for infinite width.
    """
    chosen = [panels.some_widths(group) for group in shown]
    columns = max(len(widths) for widths in chosen)
    side = PANEL[0] / 4 + 0.05
    figure = _figure(max(columns, 4) * side, len(shown) * (side + 0.55))
    axes = figure.subplots(len(shown), columns, squeeze=False)
    drawn: list[Drawn] = []
    for row, group, widths in zip(axes, shown, chosen, strict=True):
        reach = panels.ellipse_reach(group)
        for i, axis in enumerate(row):
            if i >= len(widths):
                axis.remove()
                continue
            drawn.append(panels.ellipse(axis, group, widths[i], reach))
            dress(axis)
            axis.title.set_fontweight("normal")
            axis.grid(False)
        if len(shown) > 1:
            row[0].set_ylabel(group.label.replace(", ", "\n"), fontweight="bold")
        else:
            figure.suptitle(group.label, fontweight="bold", fontsize=SIZE, color=INK)
    keys = _within(figure.axes, drawn)
    return Paper(figure, keys, ELLIPSES.text(keys), {})


def _within(axes: Sequence[Axes], drawn: Sequence[Drawn]) -> list[Key]:
    """The entries of which something lies within the axes that it is drawn into."""
    found: dict[Key, None] = {}
    for axis, entries in zip(axes, drawn, strict=True):
        low, high = axis.get_ylim()
        for key, heights in entries:
            known = heights[np.isfinite(heights)]
            if known.size and known.min() <= high and known.max() >= low:
                found[key] = None
    return list(found)


def _panel(picture: Picture, axis: Axes, group: Group) -> Drawn:
    drawn = picture.draw(axis, group)
    if not any(np.isfinite(heights).any() for _, heights in drawn):
        axis.text(0.5, 0.5, "nothing to show", transform=axis.transAxes, ha="center", color=INK)
    axis.set_title(group.label)
    dress(axis)
    return drawn


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
