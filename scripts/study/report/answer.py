"""The answer of a study in sentences with numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from scripts.study.analysis import (
    Breakdown,
    breakdowns,
    completed,
    Exceptional,
    exceptions,
    gain,
    Group,
    groups,
    median_horizon,
    ORDER_3,
    pairs,
    predictions,
    relative_error,
    settings,
)
from scripts.study.config import FROZEN, INFINITE, KERNEL_REGIME
from scripts.study.report.formats import error, interval, number, quantity, time
from scripts.study.trends import (
    AGREES,
    ensemble,
    ERROR,
    exponents,
    foretold,
    linearity,
    SEEDS_OF_AN_ENSEMBLE,
)

QUESTION = (
    "For which architectures, parameterizations and widths does the kernel picture of training "
    "hold; what do the corrections of finite width add to it; and where do they break down?"
)


@dataclass(frozen=True)
class Answer:
    """What is said on one part of the question; `flagged` where it must not be missed."""

    topic: str
    sentences: tuple[str, ...]
    flagged: bool = False


def answers(dataset: xr.Dataset) -> list[Answer]:
    """The answer, part by part; parts on which these results say nothing are left out."""
    said = (
        in_short(dataset),
        scope(dataset),
        kernel_picture(dataset),
        corrections(dataset),
        against_expectation(dataset),
        reach(dataset),
        breaking_down(dataset),
        ranking(dataset),
        ensembles(dataset),
    )
    return [answer for answer in said if answer.sentences]


def in_short(dataset: xr.Dataset) -> Answer:
    """The whole answer in a few sentences."""
    config = settings(dataset)
    at, end = config["reference_time"], float(dataset["time"].values[-1])
    done, planned = completed(dataset)
    found = groups(dataset)
    said = [f"So far, with {done} of {planned} cells finished:"] if done < planned else []
    if FROZEN in predictions(dataset):
        relative = [
            relative_error(group.data).sel(solve=FROZEN, time=at).median("seed").values
            for group in found
        ]
        narrow, wide = (_shares([values[i] for values in relative]) for i in (0, -1))
        fitted = [
            float(exponents(group)["exponent"].sel(quantity=f"{ERROR}{FROZEN}")) for group in found
        ]
        powers = np.array([slope for slope in fitted if np.isfinite(slope)])
        falls = f", and goes like width^{_span(powers)}" if powers.size else ""
        said.append(
            f"At t = {at:g}/lambda_max the frozen NTK's error is {narrow} of how far training "
            f"moves the test logits at the narrowest widths"
            + (
                f" and {wide} at the widest{falls}."
                if _several_widths(found)
                else ", the only ones."
            )
        )
    for worse, better in pairs(dataset):
        won = _gains([group for group in found if group.smooth], worse, better, at)
        if won.size:
            said.append(
                f"There {better} is closer than {_the(worse)} in {int((won > 1).sum())} of "
                f"{_counted(won.size, 'case')} with smooth activations, "
                f"{number(np.median(won))} times in the median."
            )
    order = linearity(dataset).dropna("group", subset=["relative_error"])
    if order.sizes["group"] > 1:
        first, last = (str(order["group"].values[i]) for i in (0, -1))
        said.append(f"The most linear is {first}, the least {last}, each at its widest.")
    stopped = sorted({one.solve for one in breakdowns(dataset)})
    total = len(breakdowns(dataset))
    said.append(
        f"{_counted(total, 'solve')} stopped early ({_listed(stopped)})."
        if total
        else f"No solve stopped before the last time, t = {end:g}/lambda_max."
    )
    return Answer("In short", tuple(said), flagged=done < planned)


def scope(dataset: xr.Dataset) -> Answer:
    """What was compared, and how much of it is finished."""
    config = settings(dataset)
    done, planned = completed(dataset)
    classes, end = config.get("classes", ()), float(dataset["time"].values[-1])
    counts = f"{config['n_train']} training and {config['n_test']} test points"
    found = groups(dataset)
    each = [
        f"{architecture} (widths {_listed(_widths_of(found, architecture))})"
        for architecture in dict.fromkeys(group.key["architecture"] for group in found)
    ]
    said = [
        f"{done} of {planned} cells are finished.",
        f"Networks: {', '.join(each)}; {_named(dataset, 'activation')}; "
        f"{_named(dataset, 'loss')}; {_named(dataset, 'parameterization')} parameterization; "
        f"{_counted(dataset.sizes['seed'], 'seed')}.",
        f"Data: {config['dataset']}, {counts}"
        + (f" of the classes {_listed(classes)}." if classes else "."),
        f"Every network is trained by gradient flow to t = {end:g}/lambda_max, lambda_max the "
        "largest eigenvalue of its initial tangent kernel over the number of points, and compared "
        "with its predictions on the test points.",
    ]
    others = [str(p) for p in dataset["parameterization"].values if p not in KERNEL_REGIME]
    if INFINITE in predictions(dataset) and others:
        said.append(
            f"In {_listed(others)} parameterization the kernel moves at any width, in training: "
            "there is no prediction of infinite width."
        )
    return Answer("What was compared", tuple(said), flagged=done < planned)


def kernel_picture(dataset: xr.Dataset) -> Answer:
    """How far the frozen NTK is from the network, and how that falls with the width."""
    if FROZEN not in predictions(dataset):
        return Answer("Does the kernel picture hold?", ())
    at = settings(dataset)["reference_time"]
    said = []
    for group in groups(dataset):
        relative = relative_error(group.data).sel(solve=FROZEN, time=at).median("seed").values
        ends = [(group.widths[0], relative[0]), (group.widths[-1], relative[-1])]
        errors = " and ".join(
            f"{_share(value)} at width {width}" for width, value in dict(ends).items()
        )
        fitted = exponents(group).sel(quantity=f"{ERROR}{FROZEN}")
        slope = [float(fitted[name]) for name in ("exponent", "low", "high")]
        power = "" if np.isnan(slope[0]) else f"; it goes like width^{interval(*slope)}"
        said.append(f"{group.label}: {errors}{power}.")
    opening = (
        f"Error of the frozen NTK at t = {at:g}/lambda_max, in % of how far training moves the "
        "network's test logits (median over seeds; 95 % intervals of the powers):"
    )
    return Answer("Does the kernel picture hold?", (opening, *said))


def corrections(dataset: xr.Dataset) -> Answer:
    """What each order adds to the one below, over smooth cells, and Taylor models beside them."""
    at, end = settings(dataset)["reference_time"], float(dataset["time"].values[-1])
    smooth = [group for group in groups(dataset) if group.smooth]
    said = []
    for worse, better in pairs(dataset):
        found = _gains(smooth, worse, better, at)
        if found.size:
            at_end = _gains(smooth, worse, better, end)
            won = int((found > 1).sum())
            later = (
                f"in {int((at_end > 1).sum())} of {at_end.size}, {_range(at_end)} times"
                if at_end.size
                else "unknown, since no network came so far"
            )
            said.append(
                f"At t = {at:g}/lambda_max {better} is closer to the network than "
                f"{_the(worse)} in {won} of {_counted(found.size, 'smooth case')} (a group and "
                f"width, medians over seeds): {_range(found)} times closer, "
                f"{number(np.median(found))} in the median. At the end, t = {end:g}/lambda_max: "
                f"{later}."
            )
    for name in predictions(dataset):
        if name.startswith("Taylor") and ORDER_3 in predictions(dataset):
            found = _gains(smooth, name, ORDER_3, at)
            if found.size:
                said.append(
                    f"{name} is {number(np.median(found))} times as far from the network as "
                    f"order 3 in the median ({_range(found)})."
                )
    return Answer("What do the corrections add?", tuple(said))


def against_expectation(dataset: xr.Dataset) -> Answer:
    """Every case in which a higher order is no better, named; or that there is none."""
    compared = pairs(dataset)
    if not compared:
        return Answer("Exceptions", ())
    found = exceptions(dataset)
    smooth = [one for one in found if one.group.smooth]
    rough = [one for one in found if not one.group.smooth]
    at = settings(dataset)["reference_time"]
    claim = " and ".join(f"{better} beats {_the(worse)}" for worse, better in compared)
    said = []
    if smooth:
        said.append(
            f"It is not so everywhere that {claim} at t = {at:g}/lambda_max. With smooth "
            f"activations {_counted(len(smooth), 'case')} "
            f"{'says' if len(smooth) == 1 else 'say'} otherwise: {_cases(smooth)}."
        )
    else:
        known, cases = _known_cases(dataset)
        of_them = "every finished case" if known == cases else f"all {known} of {cases} cases known"
        if known:
            said.append(
                f"None with smooth activations: {claim} at t = {at:g}/lambda_max in {of_them} "
                "(medians over seeds)."
            )
    if rough:
        said.append(
            "With activations that lack the derivatives, which the orders 3 and 4 presuppose: "
            f"{_cases(rough)}."
        )
    return Answer("Exceptions", tuple(said), flagged=bool(smooth))


def reach(dataset: xr.Dataset) -> Answer:
    """How long each prediction stays below the tolerance, at the narrowest and widest widths."""
    share, end = settings(dataset)["tolerance"], float(dataset["time"].values[-1])
    found = [(group, median_horizon(group.data)) for group in groups(dataset)]
    places = [(" at the narrowest widths", 0), (" at the widest widths", -1)]
    if not _several_widths([group for group, _ in found]):
        places = [("", 0)]
    said = []
    for name in predictions(dataset):
        ends = []
        for where, position in places:
            values = np.array([float(h.sel(solve=name)[position]) for _, h in found])
            values = values[~np.isnan(values)]
            if values.size:
                low, high = time(values.min(), end), time(values.max(), end)
                said_range = low if low == high else f"{low} to {high}"
                ends.append(f"{said_range}{where}")
        if ends:
            said.append(f"{name}: {', '.join(ends)}.")
    if not said:
        return Answer("How long do they hold?", ())
    opening = (
        f"Time, in 1/lambda_max, until the error exceeds {100 * share:g} % of how far (RMS) the "
        f"network's test logits move to t = {end:g}, medians over seeds, over all groups:"
    )
    return Answer("How long do they hold?", (opening, *said))


def breaking_down(dataset: xr.Dataset) -> Answer:
    """The solves that stopped early, gathered by reason, solve and group."""
    found = breakdowns(dataset)
    gathered: dict[str, dict[tuple[str, str], list[Breakdown]]] = {}
    for one in found:
        reason = one.outcome.rstrip(".") or "For a reason that is not known"
        cases = gathered.setdefault(reason, {})
        cases.setdefault((one.solve, one.group.label), []).append(one)
    said = []
    for reason, by_group in gathered.items():
        said.append(f"{reason}:")
        said += [_stopped(solve, label, cases) for (solve, label), cases in by_group.items()]
    if not said:
        said = ["No solve stopped early: every prediction reached the last time in every cell."]
    return Answer("Where do they break down?", tuple(said), flagged=bool(found))


def ranking(dataset: xr.Dataset) -> Answer:
    """The groups by linearity, and which measure of the start foretells it."""
    table = linearity(dataset)
    known = table.isel(group=np.flatnonzero(table["relative_error"].notnull().values))
    if known.sizes["group"] < 2:
        return Answer("Which architecture is the most linear?", ())
    order = []
    for i in range(known.sizes["group"]):
        row = known.isel(group=i)
        about = [f"width {row['width'].item()}", _share(row["relative_error"].item())]
        if not np.isnan(row["kappa"].item()):
            about.append(f"kappa {error(row['kappa'].item())}")
        order.append(f"{i + 1}. {row['group'].item()} ({', '.join(about)})")
    said = [
        "By the frozen NTK's error at the reference time over how far the logits move, each at its "
        "widest width: " + "; ".join(order) + "."
    ]
    correlations = foretold(dataset).dropna("measure").sortby("measure")
    if correlations.size:
        ordered = sorted(correlations["measure"].values, key=lambda m: -_of(correlations, m))
        parts = [f"{quantity(str(m))} {_of(correlations, m):.2f}" for m in ordered]
        said.append(
            "How well what is known at the start orders all finished cells by that error "
            f"(Spearman's rank correlation): {', '.join(parts)}."
        )
    return Answer("Which architecture is the most linear?", tuple(said))


def ensembles(dataset: xr.Dataset) -> Answer:
    """Mean and spread over seeds against the infinite ensemble, at the widest widths."""
    at = settings(dataset)["reference_time"]
    said = []
    for group in groups(dataset):
        found = ensemble(group).sel(time=at)
        known = np.flatnonzero(found["mean_z"].notnull().values)
        if known.size:
            here = found.isel(width=known[-1])
            mean, spread = float(here["mean_z"]), float(here["std_z"])
            agreed = mean <= AGREES and abs(spread) <= AGREES
            said.append(
                f"{group.label}, width {int(here['width'])}, {int(here['seeds'])} seeds: the mean "
                f"is {mean:.2f} sampling errors off, the standard deviation "
                f"{float(here['std_ratio']):.2f} times the infinite one; "
                + ("as far as these seeds can tell they agree." if agreed else "they differ.")
            )
    topic = "Do ensembles follow the infinite one?"
    if said:
        opening = f"Test logits at t = {at:g}/lambda_max, RMS over points and outputs:"
        return Answer(topic, (opening, *said))
    if dataset.sizes["seed"] < SEEDS_OF_AN_ENSEMBLE and bool(dataset["limit_mean"].notnull().any()):
        return Answer(
            topic,
            (
                f"Not said: it takes at least {SEEDS_OF_AN_ENSEMBLE} seeds, these results have "
                f"{dataset.sizes['seed']}.",
            ),
        )
    return Answer(topic, ())


def _gains(found: Sequence[Group], worse: str, better: str, at: float) -> np.ndarray:
    """The median gain of each group and width where both are known."""
    values = [gain(group.data, worse, better).sel(time=at).values for group in found]
    joined = np.concatenate(values) if values else np.zeros(0)
    return joined[~np.isnan(joined)]


def _known_cases(dataset: xr.Dataset) -> tuple[int, int]:
    """Of the cases (a smooth group and width), those in which the networks came to the reference
    time in some seed; and all.
    """
    at = settings(dataset)["reference_time"]
    known, cases = 0, 0
    for group in (group for group in groups(dataset) if group.smooth):
        gains = [gain(group.data, *pair).sel(time=at).values for pair in pairs(dataset)]
        missing = np.isnan(np.stack(gains)).any(axis=0)
        known += int((~missing).sum())
        cases += len(group.widths)
    return known, cases


def _cases(found: Sequence[Exceptional]) -> str:
    return "; ".join(
        f"{one.group.label} at width {one.width}: {one.better} has error {error(one.errors[1])}, "
        f"{one.worse} {error(one.errors[0])} (gain {number(one.gain)})"
        for one in found
    )


def _stopped(solve: str, label: str, cases: Sequence[Breakdown]) -> str:
    widths = sorted({case.width for case in cases})
    times = [case.time for case in cases if np.isfinite(case.time)]
    first = f", the first at t = {number(min(times))}/lambda_max" if times else ""
    return (
        f"{solve}, {label}: {_counted(len(cases), 'cell')} at width"
        f"{'s' if len(widths) > 1 else ''} {_listed(widths)}{first}."
    )


def _range(gains: np.ndarray) -> str:
    low, high = number(float(gains.min())), number(float(gains.max()))
    low = f"{low} (it stopped)" if gains.min() == 0 else low
    return low if gains.min() == gains.max() else f"{low} to {high}"


def _several_widths(found: Sequence[Group]) -> bool:
    return any(len(group.widths) > 1 for group in found)


def _shares(values: Sequence[float]) -> str:
    """The range of relative errors in per cent."""
    known = [float(value) for value in values if not np.isnan(value)]
    if not known:
        return "unknown"
    low, high = _share(min(known)), _share(max(known))
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def _span(values: np.ndarray) -> str:
    low, high = f"{values.min():.2f}", f"{values.max():.2f}"
    return low if low == high else f"{low} to width^{high}"


def _the(name: str) -> str:
    return f"the {name}" if name.endswith("NTK") else name


def _share(value: float) -> str:
    """A relative error in per cent."""
    if np.isinf(value):
        return "stopped"
    return (
        "unknown"
        if np.isnan(value)
        else f"{100 * value:.3g} %"
        if value >= 1
        else f"{100 * value:.2g} %"
    )


def _widths_of(found: Sequence[Group], architecture: str) -> list[int]:
    here = [group.widths for group in found if group.key["architecture"] == architecture]
    return sorted({width for widths in here for width in widths})


def _named(dataset: xr.Dataset, coordinate: str) -> str:
    return _listed([str(value).replace("_", " ") for value in dataset[coordinate].values])


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _of(values: xr.DataArray, measure: object) -> float:
    return float(values.sel(measure=measure))
