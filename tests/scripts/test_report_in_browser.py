"""The report in a browser: figures are painted, nothing is asked of the network, nothing overflows.

Skipped where there is no chromium or no playwright.
"""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from scripts.study import report
from tests.scripts.study_data import stop, study_data

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
_CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
pytestmark = pytest.mark.skipif(_CHROMIUM is None, reason="chromium is not installed")

_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_SCREENS = {"wide": (1920, 1080), "desktop": (1440, 900), "phone": (390, 844)}
_GROUPS = 2
_PANELS = _GROUPS * 7  # figures


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    data = study_data(seeds=4, architectures=("MLP-2",))
    stop(data, "order 4", 5.0, "It diverged.", width=64, seed=1)
    return report.write(tmp_path_factory.mktemp("report"), {"synthetic": data})[0]


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=list(_ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(
    params=[(screen, scheme) for screen in _SCREENS for scheme in ("light", "dark")],
    ids="-".join,
)
def opened(request, browser, page_file) -> Iterator[tuple]:
    """The page, its theme, and what it complained of and asked for."""
    screen, scheme = request.param
    width, height = _SCREENS[screen]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    complaints, asked = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    page.wait_for_load_state("networkidle")
    yield page, scheme, complaints, asked
    context.close()


def colours(page, locator) -> list[tuple[int, tuple[int, int, int]]]:
    """Of the pixels of an element, the most frequent first."""
    image = Image.open(io.BytesIO(locator.screenshot())).convert("RGB")
    found = image.getcolors(maxcolors=image.width * image.height)
    return sorted(found, reverse=True)


def brightness(colour: tuple[int, int, int]) -> float:
    return sum(colour) / 3 / 255


def test_every_figure_is_painted_quietly_alone_and_within_the_screen(opened):
    page, scheme, complaints, asked = opened
    assert complaints == []
    assert [url for url in asked if not url.startswith("data:")] == [page.url]
    overflow = page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert overflow <= 0
    panels = page.locator(".panel svg")
    assert panels.count() == _PANELS
    screen = page.viewport_size["width"]
    for i in range(_PANELS):
        box = panels.nth(i).bounding_box()
        assert box["width"] >= 250
        assert box["height"] >= 80
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= screen
    # One panel of each figure: the ground is the theme's, and coloured lines are on it.
    for i in range(0, _PANELS, _GROUPS):
        found = colours(page, panels.nth(i))
        ground = brightness(found[0][1])
        assert ground < 0.25 if scheme == "dark" else ground > 0.9
        total = sum(count for count, _ in found)
        drawn = [
            (count, colour) for count, colour in found if abs(brightness(colour) - ground) > 0.2
        ]
        vivid = [(count, colour) for count, colour in found if max(colour) - min(colour) > 60]
        assert sum(count for count, _ in drawn) > 0.01 * total
        assert sum(count for count, _ in vivid) > 0.002 * total


def test_text_of_figures_is_large_enough_to_read(opened):
    """Ticks are set in 8 points of a panel of 3.9 inches: at least 9 px on any screen."""
    page, *_ = opened
    panel = page.locator(".panel svg").first
    scale = panel.bounding_box()["width"] / (3.9 * 72)
    assert 8 * scale >= 9


def test_tables_fit_the_screen_without_scrolling(opened):
    """On a phone a row is a card, each of whose figures has its name beside it."""
    page, *_ = opened
    boxes = page.locator(".scroll")
    assert boxes.count() >= 5
    screen = page.viewport_size["width"]
    for i in range(boxes.count()):
        box = boxes.nth(i).bounding_box()
        assert box["x"] + box["width"] <= screen
        hidden = boxes.nth(i).evaluate(
            """box => [box, ...box.querySelectorAll('th, td')].map(
              part => part.scrollWidth - part.clientWidth)"""
        )
        assert max(hidden) <= 0
    named = page.locator(".scroll td .name").first.is_visible()
    assert named == (screen < 500)
    assert page.locator(".scroll thead").first.is_visible() != named


def test_a_wide_screen_is_used_to_its_right_end(opened):
    """Answers, figures, tables and what reproduces them each reach into the last quarter."""
    page, *_ = opened
    screen = page.viewport_size["width"]
    for part in (".answers p", ".panel svg", ".table table", ".beside pre, .beside summary"):
        ends = page.locator(part).evaluate_all(
            "parts => parts.map(part => part.getBoundingClientRect().right)"
        )
        assert max(ends) > 0.75 * screen, part
        assert max(ends) <= screen


def test_text_contrasts_with_its_ground(opened):
    """The ratio of WCAG 2, at least 4.5 for text."""
    page, *_ = opened
    found = page.evaluate(
        """() => {
          const luminance = colour => {
            const parts = colour.match(/[0-9.]+/g).slice(0, 3).map(v => {
              v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 });
            return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] };
          const ground = luminance(getComputedStyle(document.body).backgroundColor);
          return ['p', 'figcaption', 'td', 'a', '.flagged h3', 'dt'].map(selector => {
            const text = luminance(getComputedStyle(document.querySelector(selector)).color);
            const [low, high] = [ground, text].sort((a, b) => a - b);
            return (high + 0.05) / (low + 0.05) }) }"""
    )
    assert min(found) >= 4.5


def test_a_page_that_would_ask_the_network_is_caught(browser, tmp_path):
    """The guard itself: the same listeners see a request that leaves, and the policy stops it."""
    file = tmp_path / "leaky.html"
    file.write_text(
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
        "<img src='http://127.0.0.1:9/x.png'>"
    )
    page = browser.new_page()
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(file.as_uri())
    page.wait_for_load_state("networkidle")
    assert len(complaints) >= 1
    page.close()
