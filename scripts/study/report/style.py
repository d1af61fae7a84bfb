"""How figures look: colours, lines and keys, the same on paper and on the page."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from scripts.study.palette import FAINT, INK

SIZE = 9.0
"""Of text, in points, in panels of `PANEL` inches."""
PANEL = (3.9, 3.1)
TIME = "time, in 1/$\\lambda_{\\max}$"


@dataclass(frozen=True)
class Key:
    """An entry of a figure's key: what a colour, a line or a marker stands for."""

    label: str
    colour: str = INK
    line: Literal["-", "--", ":", ""] = "-"
    marker: str = ""
    width: float = 1.6
    alpha: float = 1.0

    def handle(self) -> Line2D:
        """The same for a legend."""
        return Line2D(
            [],
            [],
            color=self.colour,
            linestyle=self.line,
            marker=self.marker,
            markersize=5,
            linewidth=self.width,
            alpha=self.alpha,
        )


def shade(position: int, count: int) -> float:
    """The opacity of the line at `position` of `count` widths: the widest is opaque."""
    return 1.0 if count < 2 else 0.4 + 0.6 * position / (count - 1)


def dress(axis: Axes) -> None:
    """Puts an axis in the style: quiet frame, faint grid, text of one size."""
    axis.set_facecolor("none")
    axis.grid(True, which="major", color=FAINT, alpha=0.3, linewidth=0.6)
    axis.tick_params(which="both", colors=INK, labelsize=SIZE - 1, length=3, width=0.6)
    axis.tick_params(which="minor", length=1.5)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(FAINT)
        spine.set_linewidth(0.8)
    for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
        text.set_color(INK)
        text.set_fontsize(SIZE)
    axis.title.set_fontweight("bold")


def readable_powers(axis: Axes) -> None:
    """Ticks of logarithmic axes: 1, 2, 5 where they span little, plain numbers where these are
    short. To be called once the limits are set.
    """
    for one, limits in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
        if one.get_scale() == "log" and isinstance(one.get_major_locator(), LogLocator):
            _readable(one, *sorted(limits))


def _readable(axis: Axis, low: float, high: float) -> None:
    decades = np.log10(high / low)
    if decades < 1.5:
        steps = (1.0, 2.0, 5.0) if decades > 0.5 else tuple(np.arange(1.0, 10.0))
        axis.set_major_locator(LogLocator(subs=steps))
    if decades < 1.5 or (low > 1e-3 and high < 1e4):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def ticks_at_widths(axis: Axes, widths: list[int]) -> None:
    """Names the widths themselves on a logarithmic horizontal axis."""
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xticks([], minor=True)


def label_ends(axis: Axes, x: float, labels: list[tuple[float, str, str]]) -> None:
    """Writes (y, text, colour) to the right of `x`, moved apart where they would overlap.

    The vertical axis is logarithmic and its limits are set; what lies beyond them has no label.
    """
    low, high = np.log(axis.get_ylim())
    apart = 0.062 * (high - low)
    logs = [(float(np.log(y)), text, colour) for y, text, colour in labels]
    placed = sorted(entry for entry in logs if low <= entry[0] <= high)
    heights = np.array([y for y, _, _ in placed])
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + apart)
    if len(heights):
        excess = heights[-1] - high
        for i in range(len(heights) - 1, -1, -1):
            ceiling = high if i == len(heights) - 1 else heights[i + 1] - apart
            heights[i] = min(heights[i], ceiling) if excess > 0 else heights[i]
    for height, (_, text, colour) in zip(heights, placed, strict=True):
        axis.annotate(
            text,
            (x, float(np.exp(height))),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=SIZE - 1,
            annotation_clip=False,
        )
