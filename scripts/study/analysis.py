"""The numbers of a study: errors of predictions, gains of an order on the one below, horizons.

Every function takes the results (`scripts.study.read`) or the part of them that is one
group, with dimensions kept by name, and returns labelled arrays. What is counted are cells, each
one network: a group, a width and a seed. Means are geometric, over the seeds that are finished
(`over_seeds`). A prediction that stopped early while the network went on has an infinite error from
there on: worse than any number, in its cell and in the mean.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from scripts.study import over_seeds
from scripts.study.predictions import NETWORK, PAIRS
from zoo import ACTIVATIONS

COMPUTED = "computed"
"""What a session's provenance calls the list of its cells."""
GROUPING = ("architecture", "activation", "loss", "parameterization")
"""The coordinates that a width is compared within."""
_DERIVATIVES = 3  # that order 4 takes


@dataclass(frozen=True)
class Group:
    """The finished widths of one architecture, activation, loss and parameterization.

    - `label`: the coordinates in which the study's groups differ, or the architecture.
    - `data`: its part of the results, over width and seed.
    """

    label: str
    data: xr.Dataset

    @property
    def key(self) -> dict[str, str]:
        """Its four coordinates."""
        return {name: str(self.data[name].item()) for name in GROUPING}

    @property
    def widths(self) -> list[int]:
        """The widths with a finished cell, increasing."""
        return [int(width) for width in self.data["width"].values]

    @property
    def smooth(self) -> bool:
        """Whether the activation has the derivatives that the orders 3 and 4 take."""
        activation = ACTIVATIONS.get(self.key["activation"])
        smoothness = None if activation is None else activation.smoothness
        return smoothness is not None and smoothness >= _DERIVATIVES


@dataclass(frozen=True)
class Exceptional:
    """A cell in which an order is no closer to the network than the one below.

    `errors` are those of the order below and of the order.
    """

    group: Group
    width: int
    seed: int
    worse: str
    better: str
    errors: tuple[float, float]


@dataclass(frozen=True)
class Tally:
    """In how many cells one prediction is closer to the network than another.

    - `gains`: of each cell in which the network is known, how many times closer.
    - `cells`: finished, those among them in which the network stopped before.
    """

    gains: np.ndarray
    cells: int

    @property
    def known(self) -> int:
        """The cells in which the two can be compared."""
        return len(self.gains)

    @property
    def closer(self) -> int:
        """The cells in which the one is closer."""
        return int((self.gains > 1).sum())

    @property
    def everywhere(self) -> bool:
        """Whether it is in all that can be compared."""
        return self.closer == self.known

    @property
    def of_both(self) -> np.ndarray:
        """The gains of the cells in which neither stopped."""
        return self.gains[np.isfinite(self.gains) & (self.gains > 0)]

    @property
    def mean(self) -> float:
        """The geometric mean of `of_both`; NaN where there is none."""
        return float(np.exp(np.log(self.of_both).mean())) if self.of_both.size else np.nan


@dataclass(frozen=True)
class Breakdown:
    """A solve that stopped early: where, when (NaN where the time is not known) and why."""

    group: Group
    width: int
    seed: int
    solve: str
    time: float
    outcome: str


def settings(dataset: xr.Dataset) -> dict[str, Any]:
    """The choices of the study."""
    return json.loads(dataset.attrs["config"])


def sessions(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """The computing sessions of the study: versions, devices, wall time."""
    return json.loads(dataset.attrs.get("provenance", "[]"))


def completed(dataset: xr.Dataset) -> tuple[int, int]:
    """How many cells are finished, and of how many that are planned."""
    planned = dataset["planned"].astype(bool)
    return int((dataset["finished"].astype(bool) & planned).sum()), int(planned.sum())


def has_classes(dataset: xr.Dataset) -> bool:
    """Whether the targets are those of classes; else they are numbers."""
    return bool(dataset["train_label"].notnull().all())


def predictions(dataset: xr.Dataset) -> list[str]:
    """The solves that predict the network."""
    return [str(name) for name in dataset["solve"].values if name != NETWORK]


def pairs(dataset: xr.Dataset) -> list[tuple[str, str]]:
    """The orders that can be compared, each with the one below."""
    names = predictions(dataset)
    return [pair for pair in PAIRS if set(pair) <= set(names)]


def groups(dataset: xr.Dataset) -> list[Group]:
    """The groups with at least one finished cell, in the order of the coordinates."""
    return list(_groups(dataset))


def _groups(dataset: xr.Dataset) -> Iterator[Group]:
    told_apart = [name for name in GROUPING if dataset.sizes[name] > 1] or ["architecture"]
    finished = dataset["finished"].astype(bool)
    for index in np.ndindex(*(dataset.sizes[name] for name in GROUPING)):
        at = dict(zip(GROUPING, index, strict=True))
        widths = finished.isel(at).any("seed").values
        if widths.any():
            data = dataset.isel({**at, "width": np.flatnonzero(widths)})
            names = [str(data[name].item()) for name in told_apart]
            yield Group(", ".join(name.replace("_", " ") for name in names), data)


def in_finished(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """A variable over solves and times: NaN in cells that are not finished, and infinite where a
    solve stopped while the network went on.
    """
    values = dataset[name].where(dataset["finished"].astype(bool))
    stopped = dataset["breakdown_time"].notnull() & values.isnull()
    known = dataset[name].sel(solve=NETWORK, drop=True).notnull()
    return values.where(~(stopped & known), np.inf)


def errors(dataset: xr.Dataset) -> xr.DataArray:
    """Test-logit RMSE of each prediction, by cell and time.

    Infinite where the prediction stopped while the network went on; NaN where there is nothing to
    compare.
    """
    return in_finished(dataset, "test_rmse").sel(solve=predictions(dataset))


def mean_error(dataset: xr.Dataset) -> xr.DataArray:
    """`errors`, the mean over seeds."""
    return over_seeds.mean(errors(dataset))


def displacement(dataset: xr.Dataset) -> xr.DataArray:
    """RMS over test points and outputs of how far the network's logits went, by cell.

    From t = 0 to the last time that the network reached.
    """
    logits = dataset["test_logits"].sel(solve=NETWORK, drop=True)
    moved = logits - logits.isel(time=0, drop=True)
    size = (moved**2).mean(["test_point", "output"], skipna=False) ** 0.5
    return _last_known(size.where(dataset["finished"].astype(bool)))


def relative_error(dataset: xr.Dataset) -> xr.DataArray:
    """`errors` over `displacement`, by cell: without units, comparable between architectures."""
    return errors(dataset) / displacement(dataset)


def gain(dataset: xr.Dataset, worse: str, better: str) -> xr.DataArray:
    """How many times closer to the network one prediction is than another: the ratio of their
    `mean_error`, which is the mean of the seeds' ratios; NaN where both stopped in some seed.
    """
    found = mean_error(dataset)
    return _ratio(found.sel(solve=worse, drop=True), found.sel(solve=better, drop=True))


def gains(dataset: xr.Dataset, worse: str, better: str) -> xr.DataArray:
    """The ratio of two predictions' errors in each cell: 0 where the better one stopped, infinite
    where the worse one did, 1 where both did.
    """
    found = errors(dataset)
    above, below = found.sel(solve=worse, drop=True), found.sel(solve=better, drop=True)
    return _ratio(above, below).where(above != below, 1.0)


def tally(found: Sequence[Group], worse: str, better: str, time: float) -> Tally:
    """In how many cells of some groups one prediction is closer to the network than another."""
    each = [one for group in found for one in tally_by_width(group, worse, better, time)]
    joined = [one.gains for one in each]
    return Tally(np.concatenate(joined or [np.zeros(0)]), sum(one.cells for one in each))


def tally_by_width(group: Group, worse: str, better: str, time: float) -> list[Tally]:
    """The same for each width of a group."""
    ratios = gains(group.data, worse, better).sel(time=time).transpose("width", "seed").values
    cells = group.data["finished"].astype(bool).sum("seed").values
    return [Tally(row[~np.isnan(row)], int(n)) for row, n in zip(ratios, cells, strict=True)]


def exceptions(dataset: xr.Dataset) -> list[Exceptional]:
    """The cells in which order 3 does not beat the frozen NTK, or order 4 order 3, at the
    reference time; activations that are not smooth are among them (`Group.smooth` tells).
    """
    at = settings(dataset)["reference_time"]
    found = []
    for group in groups(dataset):
        error = errors(group.data).sel(time=at)
        for worse, better in pairs(dataset):
            ratios = gains(group.data, worse, better).sel(time=at).transpose("width", "seed")
            for w, s in np.argwhere(ratios.values <= 1):
                both = error.isel(width=w, seed=s).sel(solve=[worse, better]).values
                found.append(
                    Exceptional(
                        group,
                        width=group.widths[w],
                        seed=int(group.data["seed"][s]),
                        worse=worse,
                        better=better,
                        errors=(float(both[0]), float(both[1])),
                    )
                )
    return found


def horizons(dataset: xr.Dataset) -> xr.DataArray:
    """The time up to which a prediction's error stays below a tolerance, by cell and prediction.

    The tolerance is `tolerance` of the settings times `displacement`: a tenth, say, of how far
    training moved the network's logits. Between two times the error is taken to be a power of the
    time. Infinite where the error stays below to the last time, the time of the breakdown where a
    prediction that was still good stopped, NaN where there is nothing to compare: where the network
    stopped first, too.
    """
    tolerated = settings(dataset)["tolerance"] * displacement(dataset)
    stopped = dataset["breakdown_time"].sel(solve=predictions(dataset))
    return xr.apply_ufunc(
        _horizon,
        errors(dataset),
        tolerated,
        stopped,
        dataset["time"],
        input_core_dims=[["time"], [], [], ["time"]],
        vectorize=True,
        output_dtypes=[float],
    )


def mean_horizon(dataset: xr.Dataset) -> xr.Dataset:
    """`horizons` over seeds:

    - `time`: the mean, in which a prediction that is good beyond the last time counts with that.
    - `beyond`: the number of seeds in which it is; where there is one the mean is a lower bound.
    """
    found = horizons(dataset)
    last = float(dataset["time"].values[-1])
    beyond = found == np.inf
    return xr.Dataset({"time": over_seeds.mean(found.clip(max=last)), "beyond": beyond.sum("seed")})


def breakdowns(dataset: xr.Dataset) -> list[Breakdown]:
    """The solves that stopped early in a finished cell, the network's among them."""
    found = []
    for group in groups(dataset):
        data = group.data
        finished = data["finished"].astype(bool).values
        outcomes = data["outcome"].transpose("width", "seed", "solve").values
        times = data["breakdown_time"].transpose("width", "seed", "solve").values
        for w, s, k in np.ndindex(*outcomes.shape):
            if finished[w, s] and (str(outcomes[w, s, k]) or np.isfinite(times[w, s, k])):
                found.append(
                    Breakdown(
                        group,
                        width=int(data["width"][w]),
                        seed=int(data["seed"][s]),
                        solve=str(data["solve"][k].item()),
                        time=float(times[w, s, k]),
                        outcome=str(outcomes[w, s, k]),
                    )
                )
    return found


def attempted(dataset: xr.Dataset) -> xr.DataArray:
    """The finished cells in which each solve was tried."""
    begun = dataset["test_logits"].isel(time=0, drop=True).notnull().any(["test_point", "output"])
    stopped = dataset["breakdown_time"].notnull() | (dataset["outcome"] != "")
    return (begun | stopped) & dataset["finished"].astype(bool)


def _last_known(values: xr.DataArray) -> xr.DataArray:
    """The value at the last time that is not NaN; NaN where there is none."""
    position = xr.DataArray(np.arange(values.sizes["time"]), dims="time")
    last = xr.where(values.notnull(), position, 0).max("time")
    return values.isel(time=last.astype(int)).drop_vars("time")


def _ratio(above: xr.DataArray, below: xr.DataArray) -> xr.DataArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return above / below


def _horizon(error: np.ndarray, tolerated: float, stopped: float, times: np.ndarray) -> float:
    """The first time at which `error` (over `times`) exceeds `tolerated`."""
    if not tolerated > 0 or np.isnan(error).all():
        return np.nan
    beyond = np.flatnonzero(error > tolerated)
    if not beyond.size:
        return np.nan if np.isnan(error).any() else np.inf
    i = int(beyond[0])
    if i == 0:
        return 0.0
    if np.isinf(error[i]):
        return float(stopped)
    t0, t1, e0, e1 = times[i - 1], times[i], error[i - 1], error[i]
    if t0 > 0 and e0 > 0:
        return float(t0 * (t1 / t0) ** (np.log(tolerated / e0) / np.log(e1 / e0)))
    return float(t0 + (t1 - t0) * (tolerated - e0) / (e1 - e0))
