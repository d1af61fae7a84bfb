"""Cells that are known to end badly: to be emptied. Each is expected to fail, strictly."""

from types import ModuleType
from typing import Any

import pytest

from tests.hostile import judge

FAULTS: dict[str, dict[str, dict[str, list[str]]]] = {
    "what the function gives is not checked": {"HermiteDual": {"function": ["gives text"]}},
    "overflow raises an error of Python": {"limit": {"rate_power": ["huge"]}},
    "half precision is neither refused nor computed in float32": {
        "linearity_bound": {"model": ["half", "bfloat16"]},
        "row_space_fraction": {"model": ["bfloat16"]},
        "extreme_eigenvalues": {"operator": ["half", "bfloat16"]},
        "spectral_density": {"operator": ["half", "bfloat16"]},
        "spectrum": {"kernel": ["half", "bfloat16"]},
        "kernel_distance": {"second": ["bfloat16"]},
        "ddntk": {
            "model": ["half", "bfloat16"],
            "x1": ["half", "bfloat16"],
            "x2": ["half", "bfloat16"],
        },
        "dntk": {"model": ["half", "bfloat16"], "x1": ["half", "bfloat16"]},
        "o3": {
            "model": ["half", "bfloat16"],
            "x1": ["half", "bfloat16"],
            "x2": ["half", "bfloat16"],
        },
        "o4": {
            "model": ["half", "bfloat16"],
            "x1": ["half", "bfloat16"],
            "x2": ["half", "bfloat16"],
            "x3": ["half", "bfloat16"],
        },
        "ntk": {"model": ["bfloat16"]},
        "nngp": {"model": ["bfloat16"]},
        "interpolate": {"first": ["bfloat16"], "second": ["bfloat16"]},
        "NTKOperator": {"model": ["bfloat16"]},
        "record": {"model": ["bfloat16"]},
        "forward_train": {"model": ["half", "bfloat16"]},
        "kernel_rates": {"model": ["half", "bfloat16"]},
        "hessian_norm": {"model": ["half", "bfloat16"]},
        "kappa": {"model": ["half", "bfloat16"]},
        "LossHessian": {"model": ["half", "bfloat16"]},
        "taylor_coefficients": {"theta": ["half", "bfloat16"], "path": ["half", "bfloat16"]},
        "taylor_terms": {"model": ["half", "bfloat16"], "displacement": ["bfloat16"]},
        "taylorize": {"at": ["half", "bfloat16"]},
        "hierarchy_flow": {"model": ["bfloat16"]},
        "parameter_flow": {"model": ["bfloat16"]},
        "compare_predictions": {"model": ["bfloat16"]},
        "width_expansion": {"model": ["half", "bfloat16"]},
        "width_expansion_descent": {"model": ["half", "bfloat16"]},
        "gradient_flow": {"kernel": ["bfloat16"]},
        "posterior": {"kernel": ["half", "bfloat16"]},
        "ensemble": {"x": ["half", "bfloat16"]},
        "mse_descent": {"kernel": ["half", "bfloat16"]},
        "mse_flow": {"kernel": ["half", "bfloat16"]},
        "mse_flow_operator": {"kernel": ["half", "bfloat16"]},
        "max_learning_rate": {"kernel": ["half", "bfloat16"]},
        "train": {"model": ["bfloat16"]},
    },
    "overflow gives NaN": {"ntk": {"x1": ["huge"]}, "monte_carlo_kernels": {"x1": ["huge"]}},
    "what the function gives is named, not the function": {
        "monte_carlo_kernels": {
            "model_fn": ["gives text", "gives nan"],
            "metric_fn": ["gives text", "gives nan"],
        }
    },
    "keys are not checked": {
        "monte_carlo_kernels": {"key": ["nothing", "integer", "nan", "text", "floats", "keys"]}
    },
    "the count is not checked": {
        "RungeKuttaChebyshev": {
            "max_stages": [
                "nan",
                "infinity",
                "complex",
                "text",
                "list",
                "fraction",
                "negative",
                "boolean",
                "float",
                "zero",
                "huge",
            ]
        }
    },
}
"""Fault -> function -> argument -> values."""

KNOWN = {
    str(judge.Cell(function, argument, value)): fault
    for fault, functions in FAULTS.items()
    for function, named in functions.items()
    for argument, values in named.items()
    for value in values
}
"""Cell -> its fault."""


def parameters(package: ModuleType) -> list[Any]:
    """The cells of a package as parameters of a test: those that compute are long."""
    return [_parameter(cell) for cell in judge.cells(package)]


def _parameter(cell: judge.Cell) -> Any:
    marks: list[Any] = [pytest.mark.long] if cell.computes else []
    if str(cell) in KNOWN:
        marks.append(pytest.mark.xfail(strict=True, reason=KNOWN[str(cell)]))
    return pytest.param(cell, marks=marks, id=str(cell))
