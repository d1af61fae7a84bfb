"""Results of a study that nobody ran: every number follows a law that tests know.

With A the architecture's constant, n the width and f_s the seed's factor,

    network logits    f(t) = f_0 + SHIFT (1 - exp(-t)) +- 1        (signs of points and outputs)
    RMSE of a solve   COEFFICIENT A f_s t^POWER_OF_TIME n^-POWER_OF_WIDTH
    kernel change     A f_s n^-1/2 t / (1 + t)
    limit distance    A f_s n^-1/2
    o3, o4, kappa     A f_s n^-1, A f_s n^-1, A f_s n^-1/2

and f_0 is the infinite ensemble's mean plus its standard deviation times the seed's score.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from scripts.study.report.tables import Table, tables
from scripts.study.results import in_words

CELL = ("architecture", "activation", "loss", "parameterization", "width", "seed")
WIDTHS = {"MLP-2": (64, 256, 1024), "CNN-2": (16, 64, 256)}
CONSTANT = {"MLP-2": 1.0, "CNN-2": 2.0}
LOSS_OF_PARAMETERIZATION = {"NTK": 1.0, "STANDARD": 1.25}
COEFFICIENT = {
    "frozen NTK": 4.0,
    "infinite NTK": 6.0,
    "order 3": 0.5,
    "order 4": 0.05,
    "Taylor 1": 4.0,
    "Taylor 2": 1.0,
    "Taylor 3": 0.25,
}
POWER_OF_TIME = {
    "frozen NTK": 2.0,
    "infinite NTK": 1.0,
    "order 3": 3.0,
    "order 4": 4.0,
    "Taylor 1": 2.0,
    "Taylor 2": 2.0,
    "Taylor 3": 3.0,
}
POWER_OF_WIDTH = {
    "frozen NTK": 1.0,
    "infinite NTK": 0.5,
    "order 3": 1.5,
    "order 4": 2.0,
    "Taylor 1": 1.0,
    "Taylor 2": 1.0,
    "Taylor 3": 1.5,
}
SOLVES = ("network", *COEFFICIENT)
SHIFT = 2.0
LIMIT_STD = 0.5
TIMES = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
FACTORS = (0.8, 1.0, 1.25, 1.0, 1.0)
SCORES = (-1.0, 0.0, 1.0, -1.0, 1.0)
_POINTS, _OUTPUTS = 4, 3


def law(
    solve: str, architecture: str, width: float, time: float, parameterization: str = "NTK"
) -> float:
    """The RMSE of a prediction at the seed's factor 1."""
    a = CONSTANT[architecture] * LOSS_OF_PARAMETERIZATION[parameterization]
    return a * COEFFICIENT[solve] * time ** POWER_OF_TIME[solve] * width ** -POWER_OF_WIDTH[solve]


def study_data(
    *,
    seeds: int = 3,
    activations: Sequence[str] = ("tanh",),
    architectures: Sequence[str] = ("MLP-2", "CNN-2"),
    parameterizations: Sequence[str] = ("NTK", "STANDARD"),
    name: str = "synthetic",
) -> xr.Dataset:
    """A finished study; change what you like in it."""
    coords = {
        "architecture": list(architectures),
        "activation": list(activations),
        "loss": ["cross_entropy"],
        "parameterization": list(parameterizations),
        "width": sorted({width for a in architectures for width in WIDTHS[a]}),
        "seed": list(range(seeds)),
        "solve": list(SOLVES),
        "time": np.array(TIMES),
        "train_point": list(range(_POINTS)),
        "test_point": list(range(_POINTS)),
        "output": [3, 7, 8],
        "mode": list(range(_POINTS * _OUTPUTS)),
        "row": [0, 1],
        "column": [0, 1],
    }
    size = {key: len(values) for key, values in coords.items()}

    def over(*dims: str, values: object = None) -> xr.DataArray:
        array = np.array(list(values) if values is not None else coords[dims[0]], dtype=float)
        return xr.DataArray(array.reshape([size[d] for d in dims]), dims=dims)

    planned = xr.DataArray(
        [[width in WIDTHS[a] for width in coords["width"]] for a in architectures],
        dims=("architecture", "width"),
    )
    constant = over("architecture", values=[CONSTANT[a] for a in architectures])
    constant = constant * over(
        "parameterization", values=[LOSS_OF_PARAMETERIZATION[p] for p in parameterizations]
    )
    factor = over("seed", values=FACTORS[:seeds])
    score = over("seed", values=SCORES[:seeds])
    width, time = over("width"), over("time")
    signs = xr.DataArray(
        np.where((np.arange(_POINTS)[:, None] + np.arange(_OUTPUTS)) % 2, -1.0, 1.0),
        dims=("test_point", "output"),
    )
    coefficient = over("solve", values=[0, *COEFFICIENT.values()])
    rmse = (
        constant
        * factor
        * coefficient
        * time ** over("solve", values=[1, *POWER_OF_TIME.values()])
        * width ** -over("solve", values=[1, *POWER_OF_WIDTH.values()])
    )
    learned = 1 - np.exp(-time)
    network = signs * (SHIFT * learned + LIMIT_STD * score)
    test_logits = network + signs * rmse
    train_logits = test_logits.rename(test_point="train_point")
    loss = np.exp(-time) + 0.1 + 0.02 * score + 0.1 * rmse
    accuracy = 0.5 + 0.4 * learned - 0.05 * np.minimum(rmse, 1)
    shown = over("solve", values=[1, 0, 0, 0.9, 0.99, *[np.nan] * 3])
    change = constant * factor * width**-0.5 * time / (1 + time) * shown
    limit_kernel = xr.DataArray([[1.0, 0.4], [0.4, 0.8]], dims=("row", "column"))
    wiggle = xr.DataArray([[1.0, -0.5], [-0.5, 0.3]], dims=("row", "column"))
    two_point = limit_kernel * (1 + change) + wiggle * score * constant * width**-0.5
    spectrum = over("mode", values=0.9 ** np.arange(size["mode"]) / (1 + np.arange(size["mode"])))
    everywhere = xr.DataArray(
        np.ones([size[d] for d in CELL]), dims=CELL, coords={d: coords[d] for d in CELL}
    )
    whole = everywhere.where(planned)

    def cell(values: xr.DataArray | float, *dims: str) -> xr.DataArray:
        return (whole * values).transpose(*CELL, *dims)

    described = ("architecture", "activation", "parameterization")
    limits = everywhere.isel(loss=0, width=0, seed=0, drop=True)
    per_loss = everywhere.isel(width=0, seed=0, drop=True)
    at_time = ("solve", "time")
    data = xr.Dataset(
        {
            "planned": (everywhere * planned > 0).transpose(*CELL),
            "finished": (everywhere * planned > 0).transpose(*CELL),
            "lambda_max": cell(1.0),
            "spectrum": cell(spectrum * (1 + 0.2 * score * width**-0.5), "mode"),
            "limit_distance": cell(constant * factor * width**-0.5),
            "limit_angle": cell(constant * factor / width),
            "kappa": cell(constant * factor * width**-0.5),
            "hessian_norm": cell(constant * factor * width**-0.5),
            "o3_size": cell(constant * factor / width),
            "o4_size": cell(constant * factor / width),
            "train_logits": cell(train_logits, *at_time, "train_point", "output"),
            "test_logits": cell(test_logits, *at_time, "test_point", "output"),
            "train_loss": cell(loss, *at_time),
            "test_loss": cell(1.1 * loss, *at_time),
            "train_accuracy": cell(accuracy, *at_time),
            "test_accuracy": cell(accuracy, *at_time),
            "train_rmse": cell(rmse, *at_time),
            "test_rmse": cell(rmse, *at_time),
            "kernel_change": cell(change, *at_time),
            "parameter_change": cell(change, *at_time),
            "two_point_kernel": cell(two_point, *at_time, "row", "column"),
            "breakdown_time": cell(
                xr.DataArray(np.full(size["solve"], np.nan), dims="solve"), "solve"
            ),
            "limit_spectrum": (limits * spectrum).transpose(*described, "mode"),
            "limit_two_point_kernel": (limits * limit_kernel).transpose(
                *described, "row", "column"
            ),
            "limit_mean": per_loss * signs * SHIFT * learned,
            "limit_std": per_loss * (0 * learned + LIMIT_STD) * np.abs(signs),
            "limit_loss_mean": per_loss * (np.exp(-time) + 0.1),
            "limit_loss_std": per_loss * (0 * time + 0.02),
            "train_label": ("train_point", [3, 7, 8, 3]),
            "test_label": ("test_point", [3, 7, 8, 7]),
        },
        coords=coords,
    )
    order = ("architecture", "activation", "loss", "parameterization", "time")
    data["limit_mean"] = data["limit_mean"].transpose(*order, "test_point", "output")
    data["limit_std"] = data["limit_std"].transpose(*order, "test_point", "output")
    data["outcome"] = data["breakdown_time"].astype(str).where(False, "").astype(object)
    data["no_limit"] = xr.full_like(limits, "", dtype=object)
    for variable in data.data_vars:
        data[variable].attrs = {"long_name": str(variable).replace("_", " "), "units": "1"}
    config = {
        "name": name,
        "dataset": "digits",
        "classes": [3, 7, 8],
        "n_train": _POINTS,
        "n_test": _POINTS,
        "seeds": list(range(seeds)),
        "times": list(TIMES),
        "reference_time": 1.0,
        "tolerance": 0.1,
        "precision": "float64",
    }
    session = {
        "started": "2026-01-02T03:04:05",
        "finished": "2026-01-02T03:06:07",
        "versions": {"jax": "0.10.2", "finite-width": "0.1.0"},
        "python": "3.11.9",
        "platform": "Linux x86_64",
        "devices": ["cpu:0 (cpu)"],
        "git": "0123abc",
        "wall_time_s": 122.0,
        "cells": int(data["finished"].sum()),
    }
    data.attrs = {
        "title": "finite-width study on digits",
        "config": json.dumps(config),
        "provenance": json.dumps([session]),
        "command": f"finite-width study --name {name}",
    }
    return data


def stop(data: xr.Dataset, solve: str, time: float, outcome: str, **cells: object) -> None:
    """Makes a solve stop early in the named cells, in place: NaN from the next time on.

    Where the network stopped nothing can be compared with it.
    """
    at = {**cells, "solve": solve}
    after = data["time"].values > time
    for variable in ("train_logits", "test_logits", "train_loss", "test_loss", "train_accuracy"):
        data[variable].loc[{**at, "time": after}] = np.nan
    for variable in ("test_accuracy", "kernel_change"):
        data[variable].loc[{**at, "time": after}] = np.nan
    for variable in ("train_rmse", "test_rmse"):
        compared = cells if solve == "network" else at
        data[variable].loc[{**compared, "time": after}] = np.nan
    data["parameter_change"].loc[{**at, "time": after}] = np.nan
    data["two_point_kernel"].loc[{**at, "time": after}] = np.nan
    data["breakdown_time"].loc[at] = time
    data["outcome"].loc[at] = outcome


def leave_out(data: xr.Dataset, **cells: object) -> None:
    """Makes the named cells unfinished, in place: NaN throughout."""
    for variable in data.data_vars:
        if set(CELL) <= set(data[variable].dims) and data[variable].dtype.kind == "f":
            data[variable].loc[cells] = np.nan
    data["finished"].loc[cells] = False


def table(data: xr.Dataset, stem: str) -> Table:
    """A table of the report by the stem of its files."""
    return next(table for table in tables(data) if table.stem == stem)


def save(data: xr.Dataset, folder: Path) -> Path:
    """Makes the folder of a run with these results."""
    folder.mkdir()
    data.assign(in_words(data, str)).to_netcdf(folder / "results.nc", engine="h5netcdf")
    return folder
