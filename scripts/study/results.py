"""A study's results: one labelled data set, on disk after every cell, whole or not at all."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from scripts.study.cell import Cell, CellResult
from scripts.study.config import LOSSES, StudyConfig
from solvers import RESULTS
from solvers.comparison import NETWORK
from solvers.losses import mean_loss
from zoo import Dataset

FILE = "results.nc"

GAINS = (("frozen NTK", "O_3 hierarchy"), ("O_3 hierarchy", "O_4 hierarchy"))
"""What each order of the hierarchy is compared with: the one below."""


def empty(config: StudyConfig, data: Dataset) -> xr.Dataset:
    """The data set of a study before its first cell: labelled, and NaN throughout."""
    coords = {
        "parameterization": list(config.parameterizations),
        "width": sorted(config.widths),
        "seed": list(config.seeds),
        "solve": list(config.solves),
        "time": list(config.solved_times),
        "test_point": np.arange(data.x_test.shape[0]),
        "output": list(data.classes),
    }
    sizes = {name: len(values) for name, values in coords.items()}
    per_cell = ("parameterization", "width", "seed")

    def blank(*dims: str, fill: Any = np.nan, **attrs: str) -> xr.Variable:
        dims = (*per_cell, *dims)
        return xr.Variable(dims, np.full([sizes[d] for d in dims], fill), attrs)

    dataset = xr.Dataset(
        {
            "test_logits": blank("solve", "time", "test_point", "output", long_name="test logits"),
            "train_loss": blank("solve", "time", long_name="training loss"),
            "test_accuracy": blank("solve", "time", long_name="test accuracy", units="1"),
            "test_rmse": blank(
                "solve", "time", long_name="RMSE of the test logits against the network's"
            ),
            "lambda_max": blank(
                long_name="largest eigenvalue of the initial tangent kernel / n_train"
            ),
            "outcome": blank(
                "solve", fill="", long_name="why a solve stopped early; empty where it did not"
            ).astype(object),
            "finished": blank(fill=False, long_name="whether the cell was computed"),
        },
        coords=coords,
        attrs={"title": f"finite-width study on {config.dataset}", "network": NETWORK},
    )
    dataset["time"].attrs = {
        "long_name": "time of gradient flow",
        "units": "1 / lambda_max",
    }
    return dataset


def enter(
    dataset: xr.Dataset, config: StudyConfig, data: Dataset, cell: Cell, result: CellResult
) -> None:
    """Enters the result of one cell, in place."""
    here = {
        "parameterization": cell.parameterization,
        "width": cell.width,
        "seed": cell.seed,
    }
    loss, labels = LOSSES[config.loss], np.asarray(data.labels_test)
    dataset["lambda_max"].loc[here] = result.lambda_max
    network = np.asarray(result.trajectories[NETWORK].test)
    for name, trajectory in result.trajectories.items():
        at = {**here, "solve": name}
        logits = np.asarray(trajectory.test)
        valid = np.asarray(trajectory.valid)
        dataset["test_logits"].loc[at] = logits
        dataset["train_loss"].loc[at] = [
            float(mean_loss(loss, f, data.y_train)) for f in trajectory.train
        ]
        accuracy = np.mean(np.argmax(logits, axis=-1) == labels, axis=-1)
        dataset["test_accuracy"].loc[at] = np.where(valid, accuracy, np.nan)
        dataset["test_rmse"].loc[at] = np.sqrt(np.mean((logits - network) ** 2, axis=(1, 2)))
        if not bool(trajectory.successful):
            reason = RESULTS[trajectory.result].split(". ")[0].rstrip(".")
            reached = float(trajectory.t_reached) * result.lambda_max
            dataset["outcome"].loc[at] = f"{reason} (at t = {reached:.4g}/lambda_max)."
    dataset["finished"].loc[here] = True


def write(folder: Path, dataset: xr.Dataset) -> None:
    """Writes `results.nc` so that whoever looks finds the former file or this one, whole."""
    draft = folder / f".{FILE}.draft"
    of_fixed_width = dataset["outcome"].astype(str)
    dataset.assign(outcome=of_fixed_width).to_netcdf(draft, engine="h5netcdf")
    os.replace(draft, folder / FILE)


def read(folder: Path) -> xr.Dataset:
    """The results of a run, finished or not."""
    with xr.open_dataset(folder / FILE, engine="h5netcdf") as dataset:
        return dataset.load()


def completed(dataset: xr.Dataset) -> tuple[int, int]:
    """How many cells are finished, and of how many."""
    return int(dataset["finished"].sum()), int(dataset["finished"].size)


def median_error(dataset: xr.Dataset) -> xr.DataArray:
    """Test-logit RMSE of each prediction: median over the seeds where it is valid."""
    errors = dataset["test_rmse"].where(dataset["finished"])
    return errors.sel(solve=errors["solve"] != NETWORK).median("seed")


def median_gain(dataset: xr.Dataset, worse: str, better: str) -> xr.DataArray:
    """How many times closer one prediction is than another: the median of each seed's ratio."""
    errors = dataset["test_rmse"].where(dataset["finished"])
    return (errors.sel(solve=worse) / errors.sel(solve=better)).median("seed")
