"""A study's results: one labelled data set, on disk after every cell, whole or not at all."""

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from scripts.run_folder import encoded, write_whole
from scripts.study.cells import families
from scripts.study.config import of_results, StudyConfig
from scripts.study.config_file import from_choices
from scripts.study.predictions import NETWORK
from zoo import Dataset

FILE = "results.nc"

CELL = ("architecture", "activation", "loss", "parameterization", "width", "seed")
"""The axes that cells are told apart by."""

_LIMIT = ("architecture", "activation", "parameterization")
_ENSEMBLE = ("architecture", "activation", "loss", "parameterization")

# name: (axes beside those of the cell, what it is, its unit)
_PER_CELL: dict[str, tuple[tuple[str, ...], str, str]] = {
    "lambda_max": ((), "largest eigenvalue of the initial tangent kernel / n_train", "1 / time"),
    "spectrum": (
        ("mode",),
        "eigenvalues of the initial tangent kernel on the points it is looked at on / their number",
        "1 / time",
    ),
    "limit_distance": ((), "|Theta - Theta_inf|_F / |Theta_inf|_F at the start", "1"),
    "limit_angle": ((), "1 - cosine of Theta and Theta_inf at the start", "1"),
    "kappa": ((), "inverse relative scale |y - f| |D^2 f| / |D f|^2 at the start", "1"),
    "hessian_norm": (
        (),
        "largest Hessian norm of an output of a training point at the start / lambda_max",
        "1 / logit",
    ),
    "o3_size": ((), "|O_3 g|_F / (lambda_max |Theta|_F) at the start", "1"),
    "o4_size": ((), "|O_4 g g|_F / (lambda_max^2 |Theta|_F) at the start", "1"),
    "train_logits": (("solve", "time", "train_point", "output"), "training logits", "logit"),
    "test_logits": (("solve", "time", "test_point", "output"), "test logits", "logit"),
    "train_loss": (("solve", "time"), "training loss", "loss"),
    "test_loss": (("solve", "time"), "test loss", "loss"),
    "train_accuracy": (("solve", "time"), "training accuracy", "1"),
    "test_accuracy": (("solve", "time"), "test accuracy", "1"),
    "train_rmse": (("solve", "time"), "RMSE of training logits against the network's", "logit"),
    "test_rmse": (("solve", "time"), "RMSE of test logits against the network's", "logit"),
    "kernel_change": (("solve", "time"), "|Theta_t - Theta_0|_F / |Theta_0|_F", "1"),
    "parameter_change": (("solve", "time"), "|theta_t - theta_0| / |theta_0|", "1"),
    "two_point_kernel": (
        ("solve", "time", "row", "column"),
        "tangent kernel of two training points, mean over outputs",
        "lambda_max",
    ),
    "breakdown_time": (("solve",), "time at which a solve stopped early", "1 / lambda_max"),
}
_OF_LIMITS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "limit_spectrum": (
        (*_LIMIT, "mode"),
        "eigenvalues of the infinite-width tangent kernel on the same points / (their number "
        "lambda_max)",
        "1",
    ),
    "limit_two_point_kernel": (
        (*_LIMIT, "row", "column"),
        "infinite-width tangent kernel of two training points",
        "lambda_max",
    ),
    "limit_mean": (
        (*_ENSEMBLE, "time", "test_point", "output"),
        "mean test logits of infinitely wide networks",
        "logit",
    ),
    "limit_std": (
        (*_ENSEMBLE, "time", "test_point", "output"),
        "standard deviation of the test logits of infinitely wide networks",
        "logit",
    ),
    "limit_loss_mean": (
        (*_ENSEMBLE, "time"),
        "mean training loss of infinitely wide networks",
        "loss",
    ),
    "limit_loss_std": (
        (*_ENSEMBLE, "time"),
        "standard deviation of the training loss of infinitely wide networks",
        "loss",
    ),
}
_IN_WORDS: dict[str, tuple[tuple[str, ...], str]] = {
    "outcome": ((*CELL, "solve"), "why a solve stopped early; empty where it did not"),
    "no_limit": (_LIMIT, "why there is no kernel of infinite width; empty where there is"),
}
_DIMS: dict[str, tuple[str, ...]] = {
    **{name: (*CELL, *dims) for name, (dims, *_) in _PER_CELL.items()},
    **{name: dims for name, (dims, *_) in _OF_LIMITS.items()},
    **{name: dims for name, (dims, _) in _IN_WORDS.items()},
    "planned": CELL,
    "finished": CELL,
    "train_label": ("train_point",),
    "test_label": ("test_point",),
}
"""The axes of every variable."""
_OF_CELLS = (*_PER_CELL, *_OF_LIMITS, *_IN_WORDS)
"""What is found about a cell."""
_NAMES, _NUMBERS, _MARKS = "OTU", "iuf", "biu"
"""Kinds of NumPy's types: words, numbers, and what is true or false, as files have them."""
_KINDS = {**dict.fromkeys(_IN_WORDS, _NAMES), "planned": _MARKS, "finished": _MARKS}
_NAMED_AXES = ("architecture", "activation", "loss", "parameterization", "solve")
_REPORTED = ("dataset", "n_train", "n_test", "reference_time", "tolerance")
"""The choices that a report cannot do without."""


def empty(config: StudyConfig, data: Dataset) -> xr.Dataset:
    """The data set of a study before its first cell: labelled, and NaN throughout."""
    own = families(config)
    n, k = data.y_train.shape
    coords = {
        "architecture": list(dict.fromkeys(family.label for family in own)),
        "activation": list(config.activations),
        "loss": list(config.losses),
        "parameterization": list(config.parameterizations),
        "width": sorted({w for family in own for w in config.widths_of(family.architecture)}),
        "seed": list(config.seeds),
        "solve": [solve.name for solve in config.solves],
        "time": list(config.solved_times),
        "train_point": np.arange(n),
        "test_point": np.arange(len(data.x_test)),
        "output": list(data.classes) or list(range(k)),
        "mode": np.arange(min(n, config.kernel_points) * k),
        "row": [0, 1],
        "column": [0, 1],
    }
    sizes = {name: len(values) for name, values in coords.items()}

    def blank(dims: tuple[str, ...], fill: Any, **attrs: str) -> xr.Variable:
        return xr.Variable(dims, np.full([sizes[d] for d in dims], fill), attrs)

    variables = {
        name: blank(_DIMS[name], np.nan, long_name=what, units=unit)
        for name, (_, what, unit) in (_PER_CELL | _OF_LIMITS).items()
    }
    for name, (dims, what) in _IN_WORDS.items():
        variables[name] = blank(dims, "", long_name=what).astype(object)
    for name, what in (("planned", "is part of the study"), ("finished", "was computed")):
        variables[name] = blank(CELL, False, long_name=f"whether the cell {what}")
    for part, labels in (("train", data.labels_train), ("test", data.labels_test)):
        points = (f"{part}_point",)
        variables[f"{part}_label"] = (
            blank(points, np.nan)
            if labels is None
            else xr.Variable(points, np.asarray(data.classes)[np.asarray(labels)])
        )
    attrs = {
        "title": f"finite-width study of {config.dataset}",
        "network": NETWORK,
        "config": json.dumps(config.choices()),
        "data": digest_of(data),
        "command": encoded(config.command()).decode(),
        "provenance": "[]",
    }
    dataset = xr.Dataset(variables, coords=coords, attrs=attrs)
    dataset["time"].attrs = {"long_name": "time of gradient flow", "units": "1 / lambda_max"}
    for family in own:
        at = {"architecture": family.label, "width": list(config.widths_of(family.architecture))}
        dataset["planned"].loc[at] = True
    return dataset


def digest_of(data: Dataset) -> str:
    """What tells one set of examples from another."""
    digest = hashlib.sha256(repr((data.name, data.classes)).encode())
    for array in (data.x_train, data.y_train, data.x_test, data.y_test):
        values = np.asarray(array)
        digest.update(repr((values.shape, values.dtype.str)).encode() + values.tobytes())
    return digest.hexdigest()


def study_of(dataset: xr.Dataset) -> str:
    """What tells one study from another: its choices and its examples."""
    choices = of_results(json.loads(dataset.attrs["config"]))
    study = json.dumps([choices, dataset.attrs.get("data")], sort_keys=True)
    return hashlib.sha256(study.encode()).hexdigest()


def sessions_in(provenance: str) -> list[dict[str, Any]]:
    """The computing sessions that a text lists.

    **Raises:** `ValueError` for a text that does not.
    """
    found = json.loads(provenance)
    fine = isinstance(found, list) and all(
        isinstance(one, dict) and isinstance(one.get("wall_time_s"), int | float) for one in found
    )
    if not fine:
        raise ValueError("its provenance is no list of sessions that took some time")
    return found


def check_cell(dataset: xr.Dataset, at: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """**Raises:** `ValueError` where these are not values of a cell of this study."""
    if set(at) != set(CELL) or any(label not in dataset.indexes[a] for a, label in at.items()):
        raise ValueError(f"the study has no cell at {dict(at)}")
    for name in ("outcome", *values):
        if name not in values or name not in _OF_CELLS:
            raise ValueError(f"`{name}` is missing, or no variable of a cell")
        found = np.asarray(values[name])
        shape = tuple(dataset.sizes[axis] for axis in _DIMS[name] if axis not in CELL)
        _check_kind(name, found.dtype, _KINDS.get(name, _NUMBERS))
        if found.shape != shape:
            raise ValueError(f"`{name}` has the shape {found.shape}, expected {shape}")


def check_axes(folder: Path, dataset: xr.Dataset, expected: xr.Dataset) -> None:
    """**Raises:** `ValueError` where the results in `folder` have not the labels expected."""
    for axis, labels in expected.coords.items():
        if dataset[axis].values.tolist() != labels.values.tolist():
            raise _unreadable(folder, f"its axis `{axis}` is not that of its choices")


def enter(dataset: xr.Dataset, at: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Enters what was found about the cell `at` these labels, in place; of limits, what all its
    like share.
    """
    for name, value in values.items():
        dims = dataset[name].dims
        here = {axis: label for axis, label in at.items() if axis in dims}
        dataset[name].loc[here] = value
    dataset["finished"].loc[dict(at)] = True


def write(folder: Path, dataset: xr.Dataset) -> None:
    """Writes `results.nc` so that whoever looks finds the former file or this one, whole.

    **Raises:** `OSError` where there is no room or no permission; the former file is untouched.
    """
    of_fixed_width = dataset.assign(in_words(dataset, str))
    # HDF5 takes the process with it where there is no room: it writes elsewhere, where there is.
    with tempfile.TemporaryDirectory() as elsewhere:
        needed = 2 * dataset.nbytes + 2**20
        if shutil.disk_usage(elsewhere).free < needed:
            raise OSError(
                errno.ENOSPC, "No space left on device for temporary files", tempfile.gettempdir()
            )
        file = Path(elsewhere) / FILE
        of_fixed_width.to_netcdf(file, engine="h5netcdf")
        write_whole(folder / FILE, lambda draft: shutil.copyfile(file, draft))


def read(folder: Path) -> xr.Dataset:
    """The results of a run, finished or not.

    **Raises:** `FileNotFoundError` where there are none; `ValueError` for a file that is not whole,
    or holds something else.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        raise FileNotFoundError(f"There is no {FILE} in {folder}, expected the folder of a study.")
    try:
        with xr.open_dataset(file, engine="h5netcdf") as dataset:
            found = dataset.load()
        _check(found)
    except Exception as error:  # whatever HDF5 makes of a damaged file
        raise _unreadable(folder, error) from error
    return found.assign(in_words(found, object))


def in_words(values: Mapping[Any, Any], dtype: type) -> dict[str, Any]:
    """What is said in words among these values: of fixed width (str), as files have it, or not
    (object).
    """
    return {name: values[name].astype(dtype) for name in _IN_WORDS if name in values}


def _unreadable(folder: Path, why: object) -> ValueError:
    return ValueError(
        f"{Path(folder) / FILE} cannot be read ({why}), expected the results of a study. It was "
        "not written by one, or damaged since: move it away, and the same command computes it anew."
    )


def _check(dataset: xr.Dataset) -> None:
    """**Raises:** an error where this is not of the shape of a study's results."""
    for name, dims in _DIMS.items():
        if name not in dataset.data_vars:
            raise ValueError(f"it has no variable `{name}`")
        if dataset[name].dims != dims:
            raise ValueError(f"`{name}` has the axes {dataset[name].dims}, expected {dims}")
        if not name.endswith("_label"):
            _check_kind(name, dataset[name].dtype, _KINDS.get(name, _NUMBERS))
    for axis, size in dataset.sizes.items():
        if axis not in dataset.indexes or not size or not dataset.indexes[axis].is_unique:
            raise ValueError(f"its axis `{axis}` has no labels, or one twice")
        if axis != "output":
            kinds = _NAMES if axis in _NAMED_AXES else _NUMBERS
            _check_kind(str(axis), dataset[axis].dtype, kinds)
    choices = json.loads(dataset.attrs["config"])
    if not isinstance(choices, dict) or not set(_REPORTED) <= set(choices):
        raise ValueError(f"its `config` has not the choices {', '.join(_REPORTED)}")
    config = from_choices(choices)
    if config.reference_time not in dataset.indexes["time"]:
        raise ValueError(f"it has not the time {config.reference_time} that its `config` refers to")
    sessions_in(dataset.attrs["provenance"])


def _check_kind(name: str, dtype: Any, kinds: str) -> None:
    if dtype.kind not in kinds:
        expected = "words" if kinds == _NAMES else "numbers"
        raise ValueError(f"`{name}` holds values of type {dtype}, expected {expected}")
