"""The answer of a study in sentences with numbers."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from scripts.slopes import FEWEST, written
from scripts.study.analysis import (
    Breakdown,
    breakdowns,
    completed,
    exceptions,
    groups,
    has_classes,
    mean_horizon,
    pairs,
    predictions,
    settings,
    tally,
)
from scripts.study.config import KERNEL_REGIME
from scripts.study.losses import LOSSES
from scripts.study.predictions import FIRST_CORRECTION, FROZEN, INFINITE, of_kind
from scripts.study.report.formats import error, number, quantity, time
from scripts.study.report.phrases import (
    counted,
    exceptional,
    failures,
    listed,
    mean_of,
    most_linear,
    named,
    of_cells,
    of_frozen,
    per_cent,
    per_cents,
    powers_of,
    range_of,
    several_widths,
    stopped_cells,
    stopped_early,
    widths_at,
    widths_of,
    with_article,
    without_limit,
)
from scripts.study.trends import AGREES, ensemble, ERROR, exponents, foretold, linearity

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
        without_derivatives(dataset),
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
        relative = [of_frozen(group) for group in found]
        narrow, wide = (per_cents([values[i] for values in relative]) for i in (0, -1))
        fitted = [
            float(exponents(group)["exponent"].sel(quantity=f"{ERROR}{FROZEN}")) for group in found
        ]
        powers = np.array([slope for slope in fitted if np.isfinite(slope)])
        falls = f", and goes like width^{powers_of(powers)}" if powers.size else ""
        said.append(
            f"At t = {at:g}/lambda_max the frozen NTK's error is {narrow} of how far training "
            f"moves the test logits at the narrowest widths ({widths_at(found, 0)})"
            + (
                f" and {wide} at the widest ({widths_at(found, -1)}){falls}."
                if several_widths(found)
                else ", the only ones."
            )
        )
    smooth = [group for group in found if group.smooth]
    for worse, better in pairs(dataset):
        won = tally(smooth, worse, better, at)
        if won.known:
            said.append(
                f"There {better} is closer than {with_article(worse)} in {of_cells(won)} with "
                f"smooth activations, {mean_of(won)}."
            )
    said += most_linear(linearity(dataset))
    stopped = stopped_early(dataset)
    said.append(
        f"Solves that stopped early: {stopped}."
        if stopped
        else f"No solve stopped before the last time, t = {end:g}/lambda_max."
    )
    return Answer("In short", tuple(said), flagged=done < planned)


def scope(dataset: xr.Dataset) -> Answer:
    """What was compared, and how much of it is finished."""
    config = settings(dataset)
    done, planned = completed(dataset)
    end = float(dataset["time"].values[-1])
    classes = config.get("classes", ()) if has_classes(dataset) else ()
    counts = f"{config['n_train']} training and {config['n_test']} test points"
    found = groups(dataset)
    each = [
        f"{architecture} (widths {listed(widths_of(found, architecture))})"
        for architecture in dict.fromkeys(group.key["architecture"] for group in found)
    ]
    said = [
        f"{done} of {planned} cells are finished; a cell is one network.",
        f"Networks: {', '.join(each)}; {named(dataset, 'activation')}; "
        f"{named(dataset, 'loss')}; {named(dataset, 'parameterization')} parameterization; "
        f"{counted(dataset.sizes['seed'], 'seed')}. Means over seeds are geometric.",
        f"Data: {config['dataset']}, {counts}"
        + (f" of the classes {listed(classes)}." if classes else "."),
        f"Every network is trained by gradient flow to t = {end:g}/lambda_max, lambda_max the "
        "largest eigenvalue of its initial tangent kernel over the number of points, and compared "
        "with its predictions on the test points.",
    ]
    if max((len(group.widths) for group in found), default=0) < FEWEST:
        said.append(f"No powers of the width are fitted: they take at least {FEWEST} widths.")
    if dataset.sizes["seed"] < FEWEST:
        said.append(
            f"No intervals and no spreads over seeds are told: they take at least {FEWEST} seeds."
        )
    others = [str(p) for p in dataset["parameterization"].values if p not in KERNEL_REGIME]
    if INFINITE in predictions(dataset) and others:
        said.append(
            f"In {listed(others)} parameterization the kernel moves at any width, in training: "
            "there is no prediction of infinite width."
        )
    known = [LOSSES[name] for name in map(str, dataset["loss"].values) if name in LOSSES]
    said += [loss.note for loss in known if loss.note]
    said += [
        f"No kernel of infinite width for {' or '.join(labels)}: {why}."
        for why, labels in without_limit(found).items()
    ]
    return Answer("What was compared", tuple(said), flagged=done < planned)


def kernel_picture(dataset: xr.Dataset) -> Answer:
    """How far the frozen NTK is from the network, and how that falls with the width."""
    if FROZEN not in predictions(dataset):
        return Answer("Does the kernel picture hold?", ())
    at = settings(dataset)["reference_time"]
    said, intervals = [], False
    for group in groups(dataset):
        relative = of_frozen(group)
        ends = [(group.widths[0], relative[0]), (group.widths[-1], relative[-1])]
        errors = " and ".join(
            f"{per_cent(value)} at width {width}" for width, value in dict(ends).items()
        )
        fitted = exponents(group).sel(quantity=f"{ERROR}{FROZEN}")
        slope, low, high = (float(fitted[name]) for name in ("exponent", "low", "high"))
        intervals |= np.isfinite(low)
        power = "" if np.isnan(slope) else f"; it goes like width^{written(slope, low, high)}"
        said.append(f"{group.label}: {errors}{power}.")
    opening = (
        f"Error of the frozen NTK at t = {at:g}/lambda_max, in % of how far training moves the "
        "network's test logits (mean over seeds"
        + ("; 95 % intervals of the powers):" if intervals else "):")
    )
    return Answer("Does the kernel picture hold?", (opening, *said))


def corrections(dataset: xr.Dataset) -> Answer:
    """What each order adds to the one below, over smooth cells, and Taylor models beside them."""
    at, end = settings(dataset)["reference_time"], float(dataset["time"].values[-1])
    smooth = [group for group in groups(dataset) if group.smooth]
    said = []
    for worse, better in pairs(dataset):
        found, at_end = (tally(smooth, worse, better, moment) for moment in (at, end))
        if found.known:
            later = (
                f"in {of_cells(at_end)}, {range_of(at_end.gains)} times"
                if at_end.known
                else "unknown, since no network came so far"
            )
            said.append(
                f"At t = {at:g}/lambda_max {better} is closer to the network than "
                f"{with_article(worse)} in {of_cells(found)} with smooth activations: "
                f"{range_of(found.gains)} times closer, {mean_of(found)}. At the end, "
                f"t = {end:g}/lambda_max: {later}."
            )
    for name in (solve.name for solve in of_kind("taylor")):
        if {name, FIRST_CORRECTION} <= set(predictions(dataset)):
            found = tally(smooth, name, FIRST_CORRECTION, at)
            if found.of_both.size:
                said.append(
                    f"{name} is {number(found.mean)} times as far from the network as "
                    f"{FIRST_CORRECTION} in the mean of {counted(found.of_both.size, 'cell')} "
                    f"({range_of(found.of_both)})."
                )
    return Answer("What do the corrections add?", tuple(said))


def against_expectation(dataset: xr.Dataset) -> Answer:
    """Every cell in which a higher order is no closer, named; or that there is none."""
    compared = pairs(dataset)
    at = settings(dataset)["reference_time"]
    smooth = [group for group in groups(dataset) if group.smooth]
    tallies = {pair: tally(smooth, *pair, at) for pair in compared}
    found = [one for one in exceptions(dataset) if one.group.smooth]
    if not any(one.known for one in tallies.values()):
        return Answer("Exceptions", ())
    where = f"at t = {at:g}/lambda_max"
    if found:
        opening = f"With smooth activations, {where}, {failures(tallies)}:"
        return Answer("Exceptions", (opening, *map(exceptional, found)), flagged=True)
    each = " and ".join(
        f"{better} than {with_article(worse)} in {of_cells(tallies[worse, better])}"
        for worse, better in compared
    )
    return Answer("Exceptions", (f"None with smooth activations: {where} closer is {each}.",))


def without_derivatives(dataset: xr.Dataset) -> Answer:
    """The same cells with activations that lack the derivatives which the orders presuppose."""
    at = settings(dataset)["reference_time"]
    rough = [group for group in groups(dataset) if not group.smooth]
    found = [one for one in exceptions(dataset) if not one.group.smooth]
    topic = "Activations without the derivatives"
    if not found:
        return Answer(topic, ())
    tallies = {pair: tally(rough, *pair, at) for pair in pairs(dataset)}
    opening = (
        "With activations that lack the derivatives which the orders 3 and 4 presuppose, at "
        f"t = {at:g}/lambda_max, {failures(tallies)}:"
    )
    return Answer(topic, (opening, *map(exceptional, found)))


def reach(dataset: xr.Dataset) -> Answer:
    """How long each prediction stays below the tolerance, at the narrowest and widest widths."""
    share, end = settings(dataset)["tolerance"], float(dataset["time"].values[-1])
    found = groups(dataset)
    held = [mean_horizon(group.data) for group in found]
    places = [
        (f" at the narrowest widths ({widths_at(found, 0)})", 0),
        (f" at the widest ({widths_at(found, -1)})", -1),
    ]
    if not several_widths(found):
        places = [("", 0)]
    said = []
    for name in predictions(dataset):
        ends = []
        for where, position in places:
            here = [one.sel(solve=name).isel(width=position) for one in held]
            times = sorted((float(one["time"]), int(one["beyond"])) for one in here)
            known = [pair for pair in times if not np.isnan(pair[0])]
            if known:
                low, high = time(*known[0]), time(*known[-1])
                ends.append(f"{low if low == high else f'{low} to {high}'}{where}")
        if ends:
            said.append(f"{name}: {', '.join(ends)}.")
    if not said:
        return Answer("How long do they hold?", ())
    opening = (
        f"Time, in 1/lambda_max, until the error exceeds {100 * share:g} % of how far (RMS) the "
        f"network's test logits move to t = {end:g}: means over seeds, over "
        f"{counted(len(found), 'group')}, > where some lie beyond the last time:"
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
        said += [stopped_cells(solve, label, cases) for (solve, label), cases in by_group.items()]
    if not said:
        said = ["No solve stopped early: every prediction reached the last time in every cell."]
    return Answer("Where do they break down?", tuple(said), flagged=bool(found))


def ranking(dataset: xr.Dataset) -> Answer:
    """The groups by linearity, those of one width, and which measure of the start foretells it."""
    table = linearity(dataset)
    ranked = table.isel(group=np.flatnonzero(table["rank"].notnull().values))
    topic = "Which networks are the most linear?"
    said = []
    for among in dict.fromkeys(str(name) for name in ranked["among"].values):
        rows = ranked.isel(group=np.flatnonzero(ranked["among"].values == among))
        order = []
        for i in range(rows.sizes["group"]):
            row = rows.isel(group=i)
            about = [per_cent(row["relative_error"].item())]
            if not np.isnan(row["kappa"].item()):
                about.append(f"kappa {error(row['kappa'].item())}")
            order.append(f"{row['rank'].item():.0f}. {row['group'].item()} ({', '.join(about)})")
        said.append(f"Width {rows['width'].values[0]}: {'; '.join(order)}.")
    if not said:
        return Answer(topic, ())
    opening = "By the frozen NTK's error at the reference time over how far the logits move, " + (
        "at the widest width in common:"
        if set(table["among"].values) == {"all"}
        else "the groups of each architecture at their widest width in common; architectures "
        "have none, and are not ranked against each other:"
    )
    measures = foretold(dataset).dropna("measure", subset=["correlation"])
    measures = measures.sortby("correlation", ascending=False)
    if measures.sizes["measure"]:
        parts = [
            f"{quantity(str(name))} {correlation:.2f} ({counted(int(cells), 'cell')})"
            for name, correlation, cells in zip(
                *(measures[n].values for n in ("measure", "correlation", "cells")), strict=True
            )
        ]
        said.append(
            "How well what is known at the start orders finished cells by that error (Spearman's "
            f"rank correlation): {', '.join(parts)}."
        )
    return Answer(topic, (opening, *said))


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
    if dataset.sizes["seed"] < FEWEST and bool(dataset["limit_mean"].notnull().any()):
        few = f"Not said: it takes at least {FEWEST} seeds, these results have "
        return Answer(topic, (f"{few}{dataset.sizes['seed']}.",))
    return Answer(topic, ())
