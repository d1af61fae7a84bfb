"""A matplotlib figure as an SVG element that follows the page's light or dark theme."""

import io
import re

import matplotlib
from matplotlib.figure import Figure

from scripts.study import palette
from scripts.study.report.style import Key

VARIABLES = {
    palette.INK: "--ink",
    palette.FAINT: "--faint",
    palette.BLUE: "--blue",
    palette.ORANGE: "--orange",
    palette.GREEN: "--green",
    palette.VERMILION: "--vermilion",
    palette.PURPLE: "--purple",
    palette.SKY: "--sky",
    palette.BROWN: "--brown",
}
"""Which variable of the page's style sheet stands for a colour of the figures."""
_MARKS = {
    "": "",
    "o": '<circle cx="14" cy="6" r="3.5"/>',
    "s": '<path d="M10.5 2.5h7v7h-7z"/>',
    "D": '<path d="M14 1.5l4.5 4.5l-4.5 4.5l-4.5-4.5z"/>',
    "^": '<path d="M14 2l4 7h-8z"/>',
    "v": '<path d="M14 10l4-7h-8z"/>',
    "<": '<path d="M10 6l7-4v8z"/>',
    "P": '<path d="M12.5 2h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z"/>',
}


def inline(figure: Figure, prefix: str, label: str) -> str:
    """An `<svg>` element: colours are variables, its identifiers start with `prefix`.

    `label` is what a screen reader says. The same figure gives the same text.
    """
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "finite-width", "svg.fonttype": "path"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' d="[^"]*"', _rounded, svg)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    for colour, variable in VARIABLES.items():
        svg = re.sub(colour, f"var({variable})", svg, flags=re.IGNORECASE)
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', svg)
    svg = svg.replace(size[0], f'width="{size[1]}" height="{size[2]}"', 1) if size else svg
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def swatch(key: Key) -> str:
    """A key entry's line and marker as a small `<svg>` element."""
    dash = {"--": ' stroke-dasharray="5 3"', ":": ' stroke-dasharray="2 2"'}.get(key.line, "")
    line = f'<path d="M1 6H27" fill="none" stroke="currentColor" stroke-width="{key.width + 0.4:g}"'
    line = f"{line}{dash}/>" if key.line else ""
    colour = f"var({VARIABLES[key.colour]})"
    return (
        f'<svg class="swatch" viewBox="0 0 28 12" width="28" height="12" aria-hidden="true" '
        f'style="color: {colour}; opacity: {key.alpha:g}">'
        f'{line}<g fill="currentColor">{_MARKS[key.marker]}</g></svg>'
    )


def _rounded(path: re.Match[str]) -> str:
    """Coordinates to a hundredth of a point."""
    return re.sub(r"(\d+\.\d{2})\d+", r"\1", path[0])
