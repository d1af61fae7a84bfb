"""What a study will take: cells, time and memory, estimated without running anything.

The estimates are those of a CPU with two cores, to a factor of two or three. Times are

    compilation of each program, once a family and width    +    operations / rate

Most of a small study is compilation.
"""

import dataclasses
import itertools
import os
from collections import Counter
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from scripts.architectures import Layer
from scripts.study.cells import Cell, families
from scripts.study.config import StudyConfig
from scripts.study.examples import Examples
from scripts.study.predictions import Cost

_START = Cost(2.0, 2.5)
"""What every network costs before anything is solved."""
_MEASURES = {
    "kappa": Cost(1.6, 3.0, 2000),
    "hessian_norm": Cost(0.8, 1.4, 1000),
    "rates": Cost(0.8, 1.3),
}
"""Of these the gradients are those of the whole measure."""
_KERNEL = Cost(1.0, 1.5)
"""That of each kernel which is shown, beside its solve's."""
_FAST = 0.6
"""Of the seconds of compilation, with fast compilation."""
_VELOCITIES = 350
"""Right-hand sides of a solve."""
_RATE = {"float64": 8e9, "float32": 16e9}
"""Operations a second that a small network sees of two cores."""
_BASE_GIB = 1.2
"""Python, JAX and its compiler at work."""
MOST_PROCESSES = 8
"""Of the cores of a CPU, how many are taken where nothing is said."""


@dataclass(frozen=True)
class Estimate:
    """What the networks of one family and width take together.

    - `label`, `activation`, `width`: of the networks.
    - `field`: of the study, that says the width.
    - `cells`: how many there are.
    - `compile_s`, `cell_s`: seconds of compilation, and of each network then.
    - `gib`: memory while one is computed.
    """

    label: str
    activation: str
    width: int
    field: str
    cells: int
    compile_s: float
    cell_s: float
    gib: float

    @property
    def seconds(self) -> float:
        """Of all of them, on one device."""
        return self.compile_s + self.cells * self.cell_s


def estimates(config: StudyConfig, examples: Examples) -> list[Estimate]:
    """An estimate for each family and width."""
    cells = len(config.losses) * len(config.seeds) * len(config.parameterizations)
    found = []
    for family in families(config):
        architecture = config.network(family.architecture)
        for width in config.widths_of(family.architecture):
            size = {"width": width, "depth": family.depth, "activation": family.activation}
            layers = architecture.costs(examples.shape, examples.outputs, **size)
            found.append(
                Estimate(
                    label=family.label,
                    activation=family.activation,
                    width=width,
                    field=architecture.widths,
                    cells=cells,
                    compile_s=_compile_seconds(config, layers),
                    cell_s=_cell_seconds(config, layers, examples.outputs),
                    gib=_gib(config, layers, examples.outputs),
                )
            )
    return found


def of_cells(found: list[Estimate], groups: list[list[Cell]]) -> list[Estimate]:
    """The estimates of these cells alone."""
    cells = itertools.chain.from_iterable(groups)
    counts = Counter((cell.family.label, cell.family.activation, cell.width) for cell in cells)
    return [
        dataclasses.replace(one, cells=counts[one.label, one.activation, one.width])
        for one in found
        if counts[one.label, one.activation, one.width]
    ]


def total_minutes(found: list[Estimate], devices: int) -> float:
    """Of the whole study on so many devices, each of which takes whole groups of networks."""
    every = [one.seconds for one in found]
    return max(sum(every) / devices, max(every)) / 60


def device_count(config: StudyConfig) -> int:
    """The devices that the estimates count with: of a CPU, its cores (8 at most)."""
    return config.devices or min(os.cpu_count() or 1, MOST_PROCESSES)


def peak_gib(found: list[Estimate], devices: int) -> float:
    """Memory while the largest networks are computed at once, one a device in its own process."""
    return sum(sorted((one.gib for one in found), reverse=True)[:devices])


def results_gib(config: StudyConfig, outputs: int) -> float:
    """Memory that the results take, a copy of them among it while they are written."""
    own = families(config)
    widths = {width for family in own for width in config.widths_of(family.architecture)}
    cells = len(own) * len(config.losses) * len(config.parameterizations)
    cells *= len(widths) * len(config.seeds)
    a_time = (config.n_train + config.n_test) * outputs + 12
    numbers = len(config.solves) * len(config.solved_times) * a_time
    return 2 * 8 * cells * numbers / 2**30


def table(config: StudyConfig, examples: Examples) -> RenderableType:
    """What a study would compute, and what exceeds its budget."""
    found, devices = estimates(config, examples), device_count(config)
    limit = config.budget_gib if config.budget_gib is not None else machine_gib()
    rows = Table(box=SIMPLE_HEAD)
    for name in ("networks", "activation", "width", "cells", "minutes", "GiB", ""):
        rows.add_column(name, justify="left" if name in ("networks", "activation", "") else "right")
    for one in found:
        over = limit is not None and one.gib > limit
        rows.add_row(
            one.label,
            one.activation,
            str(one.width),
            str(one.cells),
            f"{one.seconds / 60:.1f}",
            f"{one.gib:.2f}",
            "over budget" if over else "",
        )
    minutes = total_minutes(found, devices)
    together = peak_gib(found, devices) + results_gib(config, examples.outputs)
    cells = sum(one.cells for one in found)
    of_cells = ", ".join(
        f"{len(values)} {name}"
        for name, values in (
            ("losses", config.losses),
            ("parameterizations", config.parameterizations),
            ("seeds", config.seeds),
        )
    )
    said = (
        f"{cells} cells ({of_cells} for each row), {len(config.solves)} solves each. Estimated: "
        f"{minutes:.0f} minutes on {devices} devices, {together:.1f} GiB, to a factor of two or "
        "three; of a CPU with two cores, nothing compiled yet."
    )
    if limit is not None and together > limit:
        said += f" This exceeds the {limit:.3g} GiB that there are."
    if config.budget_minutes is not None and minutes > config.budget_minutes:
        said += f" This exceeds the budget of {config.budget_minutes:g} minutes."
    return Group(rows, said, "", "The command:", config.command())


def machine_gib() -> float | None:
    """The memory of this machine, where it says."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, ValueError, OSError):
        return None


def check_budget(config: StudyConfig, found: list[Estimate], devices: int, outputs: int) -> None:
    """**Raises:** `ValueError` where these cells are estimated to exceed the study's budget; it
    names the field that makes it so, and what fits.
    """
    limit = config.budget_gib if config.budget_gib is not None else machine_gib()
    said = "`budget_gib` is" if config.budget_gib is not None else "this machine has"
    for one in found:
        if limit is not None and one.gib > limit:
            fitting = [
                str(other.width)
                for other in found
                if (other.label, other.activation) == (one.label, one.activation)
                and other.gib <= limit
            ]
            fit = f"one of {', '.join(fitting)}, which fit" if fitting else "smaller ones"
            raise ValueError(
                f"`{one.field}` holds {one.width}: {one.label} is estimated to take {one.gib:.1f} "
                f"GiB then, and {said} {limit:.3g}, expected {fit}."
            )
    results = results_gib(config, outputs)
    together = peak_gib(found, devices) + results
    if limit is not None and found and together > limit:
        fewer = [n for n in range(1, devices) if peak_gib(found, n) + results <= limit]
        fit = f"`devices` of at most {max(fewer)}" if fewer else "fewer cells or times"
        raise ValueError(
            f"`devices` is {devices}: that many networks at once, with the results, are estimated "
            f"to take {together:.1f} GiB, and {said} {limit:.3g}, expected {fit}."
        )
    if config.budget_minutes is None or not found:
        return
    minutes = total_minutes(found, devices)
    if minutes > config.budget_minutes:
        worst = max(found, key=lambda one: one.seconds)
        raise ValueError(
            f"`budget_minutes` is {config.budget_minutes:g}, but the study is estimated to take "
            f"{minutes:.0f} minutes on {devices} device{'s' * (devices > 1)} (the most: "
            f"{worst.label} of width {worst.width}, {worst.seconds / 60:.0f}), expected fewer "
            "widths, seeds, architectures or predictions (`--dry-run` lists what each takes)."
        )


def _compile_seconds(config: StudyConfig, layers: list[Layer]) -> float:
    shown = config.predicted_kernels * sum(solve.predicts_its_kernel for solve in config.solves)
    costs = [_START, *(solve.cost for solve in config.solves), *[_KERNEL] * (1 + shown)]
    costs += [_MEASURES[name] for name in config.measures]
    seconds = 15 + sum(getattr(cost, layer.kind) for layer in layers for cost in costs)
    return seconds * (_FAST if config.fast_compilation else 1)


def _cell_seconds(config: StudyConfig, layers: list[Layer], outputs: int) -> float:
    products = sum(layer.parameters * layer.positions for layer in layers)
    points = config.n_train
    gradients = _VELOCITIES * sum(solve.cost.gradients for solve in config.solves)
    gradients += sum(_MEASURES[name].gradients for name in config.measures)
    slower = 2 if config.fast_compilation else 1
    count = min(config.n_train, config.kernel_points) * outputs
    kernels = 4.0 * count * sum(layer.parameters for layer in layers) * len(config.solved_times)
    operations = 6.0 * products * points * gradients + kernels * count
    return 0.5 + slower * operations / _RATE[config.precision]


def _gib(config: StudyConfig, layers: list[Layer], outputs: int) -> float:
    size = 8 if config.precision == "float64" else 4
    parameters = sum(layer.parameters for layer in layers)
    values = sum(layer.positions * layer.outputs for layer in layers)
    highest = max([*config.orders, *[order + 1 for order in config.taylor_orders], 2])
    points = config.n_train + config.n_test
    states = 12 * (highest - 1) * parameters  # stages and steps of the solver
    passes = 40 * points * values * outputs
    kernel = points * config.n_train * outputs**2
    return _BASE_GIB + size * (states + passes + 3 * kernel) / 2**30
