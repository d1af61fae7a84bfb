"""The answer of a study as a table and in sentences."""

import numpy as np
import xarray as xr
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table

from scripts.slopes import slope_in_width
from scripts.study.config import StudyConfig
from scripts.study.results import completed, GAINS, median_error, median_gain
from solvers.comparison import NETWORK

_SHORT = {
    NETWORK: "net",
    "frozen NTK": "frozen",
    "O_3 hierarchy": "O_3",
    "O_4 hierarchy": "O_4",
    "Taylor 2": "Taylor",
}


def summary(dataset: xr.Dataset, config: StudyConfig) -> RenderableType:
    """Two tables a parameterization (errors, accuracies; a row a width), then what they say."""
    done, total = completed(dataset)
    seen = f"{done} of {total} cells; " if done < total else ""
    seeds = f"{len(config.seeds)} seed" + ("s" if len(config.seeds) > 1 else "")
    header = (
        f"{config.dataset} {config.classes}, {config.activation} MLP of depth {config.depth}, "
        f"{config.loss.replace('_', ' ')}; {seen}medians over {seeds}.\n"
        f"Error: RMSE of the {config.n_test} x {len(config.classes)} test logits against the real "
        f"network's at t = {config.reference_time:g}/lambda_max. Acc.: test accuracy at the end, "
        f"t = {config.solved_times[-1]:g}/lambda_max (net: the network itself). "
        "Slope: of log error against log width."
    )
    parts: list[RenderableType] = [header, ""]
    for parameterization in config.parameterizations:
        chosen = dataset.sel(parameterization=parameterization)
        if bool(chosen["finished"].any()):
            parts.append(_errors(chosen, config, parameterization))
            parts.append(_accuracies(chosen, config))
            parts.append(_sentence(chosen, config, parameterization))
            parts.append("")
    stopped = _stopped(dataset)
    if stopped:
        parts.append(
            "Solves that stopped early (medians leave out what they did not reach):\n" + stopped
        )
    return Group(*parts)


def as_text(renderable: RenderableType) -> str:
    """The same as plain text, 100 columns wide."""
    console = Console(width=100, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def _errors(dataset: xr.Dataset, config: StudyConfig, title: str) -> Table:
    errors = median_error(dataset).sel(time=config.reference_time)
    gains = [median_gain(dataset, *pair).sel(time=config.reference_time) for pair in _pairs(config)]
    table = _by_width(f"{title} parameterization")
    for name in config.predictions:
        table.add_column(f"error\n{_SHORT[name]}", justify="right")
    for worse, better in _pairs(config):
        table.add_column(f"{_SHORT[worse]}\n/ {_SHORT[better]}", justify="right")
    for width in _widths(dataset):
        table.add_row(
            str(width),
            *(_number(errors.sel(width=width, solve=name)) for name in config.predictions),
            *(f"{float(gain.sel(width=width)):.1f}" for gain in gains),
        )
    table.add_section()
    slopes = slope_in_width(errors)
    table.add_row("slope", *(_fraction(slopes.sel(solve=name)) for name in config.predictions))
    return table


def _accuracies(dataset: xr.Dataset, config: StudyConfig) -> Table:
    accuracy = dataset["test_accuracy"].isel(time=-1).median("seed")
    table = _by_width()
    for name in config.solves:
        table.add_column(f"acc.\n{_SHORT[name]}", justify="right")
    for width in _widths(dataset):
        found = accuracy.sel(width=width)
        table.add_row(str(width), *(_fraction(found.sel(solve=name)) for name in config.solves))
    return table


def _by_width(title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("width", justify="right")
    return table


def _widths(dataset: xr.Dataset) -> np.ndarray:
    return dataset["width"].values[dataset["finished"].any("seed").values]


def _sentence(dataset: xr.Dataset, config: StudyConfig, title: str) -> str:
    errors = median_error(dataset).sel(time=config.reference_time)
    slopes = slope_in_width(errors)
    slope = float(slopes.sel(solve="frozen NTK")) if "frozen NTK" in slopes["solve"] else np.nan
    falls = "" if np.isnan(slope) else f" The frozen NTK's error goes like width^{slope:.2f}."
    said = []
    for worse, better in _pairs(config):
        gain = median_gain(dataset, worse, better)
        said.append(
            f"the {better} is {_range(gain.sel(time=config.reference_time))} times closer to the "
            f"network than the {worse} ({_range(gain.isel(time=-1))} times at "
            f"t = {config.solved_times[-1]:g}/lambda_max)"
        )
    if not said:
        return falls.strip()
    at = f"{title}: at t = {config.reference_time:g}/lambda_max "
    return at + ", and ".join(said) + "." + falls


def _pairs(config: StudyConfig) -> list[tuple[str, str]]:
    return [pair for pair in GAINS if set(pair) <= set(config.predictions)]


def _range(gain: xr.DataArray) -> str:
    values = gain.values[np.isfinite(gain.values)]
    if not values.size:
        return "(no valid number)"
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}"


def _stopped(dataset: xr.Dataset) -> str:
    lines = []
    outcomes = dataset["outcome"].stack(at=dataset["outcome"].dims)
    for outcome in outcomes:
        if outcome.item():
            where = outcome["at"].item()
            lines.append(f"- {' '.join(str(part) for part in where)}: {outcome.item()}")
    return "\n".join(lines)


def _number(value: xr.DataArray) -> str:
    return "-" if np.isnan(value) else f"{float(value):.1e}".replace("e-0", "e-")


def _fraction(value: xr.DataArray) -> str:
    return "-" if np.isnan(value) else f"{float(value):.2f}"
