"""One cell of a study: one network, measured at its start, trained for real and predicted."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from corrections import (
    extreme_eigenvalues,
    hessian_norm,
    kappa,
    kernel_distance,
    kernel_rates,
    ntk,
    NTKOperator,
    taylorize,
)
from corrections.operators.metric_coordinates import metric_norm
from scripts.study.cells import Cell
from scripts.study.config import KERNEL_REGIME, Measure, StudyConfig
from scripts.study.examples import Examples
from scripts.study.infinite import EnsembleCurves, InfiniteKernels, Limits, readout_fan_in
from scripts.study.losses import LOSSES
from scripts.study.networks import draw, Network
from scripts.study.predictions import Kind, Solve
from solvers import gradient_flow, hierarchy_flow, parameter_flow, RESULTS, Trajectory
from solvers.losses import LossFunction, mean_loss
from zoo import Dataset, parameters

_LARGEST_KERNEL = 2**24
"""Numbers of a frozen kernel that is stored; a larger one is solved without storing it."""
_KNOWN_TO = 0.05
"""The relative residual of a norm up to which it is kept."""

Values = dict[str, Any]
"""Names of the variables of a cell -> NumPy arrays without the axes of cells."""


class _Problem(NamedTuple):
    """What all solves of a cell share."""

    data: Dataset
    network: Network
    loss: LossFunction
    ts: Float[Array, " t"]
    lambda_max: float
    shown: Float[Array, "p ..."]
    """The training points that kernels are looked at on."""
    shown_at: list[int]
    """Which they are."""
    kernel: Float[Array, "p k p k"]
    """The tangent kernel at the start, on these."""
    f0: Float[Array, "points k"]
    infinite: InfiniteKernels | None
    in_kernel_regime: bool
    shows_predicted_kernels: bool
    tolerances: dict[str, Any]


def compute(
    config: StudyConfig,
    data: Dataset,
    cell: Cell,
    limits: Limits,
    started: Callable[[str], None],
) -> Values:
    """Everything about one cell; `started` hears the name of each part as it starts.

    **Raises:** `FloatingPointError` for a network whose kernel at the start is not finite, or has a
    largest eigenvalue that cannot be found.
    """
    started("kernel")
    network, loss = draw(config, Examples.of(data), cell), LOSSES[cell.loss]
    x, y = data.x_train, data.y_train
    n, k = y.shape
    shown_at = shown_points(config, data)
    shown = x[np.asarray(shown_at)]
    kernel = ntk(network.model, shown, metric=network.metric)
    size = len(shown_at) * k
    spectrum = np.asarray(jnp.linalg.eigvalsh(kernel.reshape(size, size))[::-1]) / len(shown_at)
    lambda_max = float(spectrum[0])
    if len(shown_at) < n:
        operator = NTKOperator(network.model, x, metric=network.metric)
        rtol = 1e-6 if y.dtype == jnp.float64 else 1e-5
        largest = extreme_eigenvalues(operator, rtol=rtol)
        if not bool(largest.converged[0]):
            raise FloatingPointError(
                f"The largest eigenvalue of the tangent kernel of {cell} has not converged to "
                f"{rtol:g}, expected it to: it is the unit of time."
            )
        lambda_max = float(largest.values[0]) / n
    if not np.isfinite(lambda_max) or lambda_max <= 0:
        raise FloatingPointError(
            f"The tangent kernel of {cell} has the largest eigenvalue {lambda_max} at the start, "
            "expected a positive one: choose another `weight_std` or `precision`."
        )
    f0 = jax.vmap(network.model)(jnp.concatenate([x, data.x_test]))
    infinite = None
    values: Values = {}
    if config.infinite_width:
        started("infinite width")
        found = limits.kernels(cell)
        infinite = None if isinstance(found, str) else found
        values["no_limit"] = np.asarray(found if infinite is None else "", dtype=object)
    problem = _Problem(
        data=data,
        network=network,
        loss=loss.function,
        ts=jnp.asarray(config.solved_times, y.dtype) / lambda_max,
        lambda_max=lambda_max,
        shown=shown,
        shown_at=shown_at,
        kernel=kernel,
        f0=f0,
        infinite=infinite,
        in_kernel_regime=cell.parameterization in KERNEL_REGIME,
        shows_predicted_kernels=config.predicted_kernels,
        tolerances={
            "rtol": max(config.rtol, loss.least_tolerance),
            "atol": max(config.atol, loss.least_tolerance),
            "throw": False,
        },
    )
    values |= {"lambda_max": lambda_max, "spectrum": spectrum}
    values |= _distances(problem)
    for name in config.measures:
        started(name)
        values |= _MEASURES[name](problem)
    rows = []
    for solve in config.solves:
        started(solve.name)
        found = _SOLVERS[solve.kind](problem, solve)
        rows.append(_unsolved(problem) if found is None else _solved(problem, solve, found))
    values |= {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    for part in ("train", "test"):
        logits = values[f"{part}_logits"]
        gap = logits - logits[:1]
        values[f"{part}_rmse"] = np.sqrt(np.mean(gap**2, axis=(2, 3)))
    if infinite is not None:
        values |= _of_limit(problem)
        if cell.parameterization in KERNEL_REGIME:
            started("infinite ensemble")
            values |= _of_ensemble(limits.ensemble(cell))
    return values


def _of_limit(problem: _Problem) -> Values:
    """The kernel of infinitely wide networks of the cell's kind, at their start."""
    k = problem.data.y_train.shape[1]
    assert problem.infinite is not None
    ntk, lambda_max = problem.infinite.ntk, problem.infinite.lambda_max
    kernel = ntk[np.ix_(problem.shown_at, problem.shown_at)]
    spectrum = np.repeat(np.linalg.eigvalsh(kernel)[::-1], k) / len(kernel)
    return {
        "limit_spectrum": spectrum / lambda_max,
        "limit_two_point_kernel": kernel[:2, :2] / lambda_max,
    }


def _of_ensemble(curves: EnsembleCurves) -> Values:
    """What infinitely wide networks do in training."""
    return {
        "limit_mean": curves.mean,
        "limit_std": curves.std,
        "limit_loss_mean": curves.loss_mean,
        "limit_loss_std": curves.loss_std,
    }


def _distances(problem: _Problem) -> Values:
    if problem.infinite is None:
        return {"limit_distance": np.nan, "limit_angle": np.nan}
    kernel, limit = problem.kernel, _shown_infinite_kernel(problem)
    size = jnp.linalg.norm(limit.ravel())
    return {
        "limit_distance": float(jnp.linalg.norm((kernel - limit).ravel()) / size),
        "limit_angle": float(kernel_distance(kernel, limit)),
    }


def _infinite_kernel(problem: _Problem) -> Float[Array, "points n"]:
    """The limit's kernel on all points, of this width where it grows like the width."""
    assert problem.infinite is not None
    kernel, power = problem.infinite.ntk, problem.infinite.power
    if power:
        kernel = kernel * float(readout_fan_in(problem.network.model)) ** -power
    return jnp.asarray(kernel, problem.kernel.dtype)


def _shown_infinite_kernel(problem: _Problem) -> Float[Array, "p k p k"]:
    """The same on the points that kernels are looked at on, with its outputs."""
    at = np.asarray(problem.shown_at)
    outputs = jnp.eye(problem.data.y_train.shape[1], dtype=problem.kernel.dtype)
    return jnp.einsum("ij,ab->iajb", _infinite_kernel(problem)[at][:, at], outputs)


def _kappa(problem: _Problem) -> Values:
    model, metric = problem.network
    y = problem.data.y_train[np.asarray(problem.shown_at)]
    found = kappa(model, problem.shown, y, metric=metric)
    return {"kappa": _if_known("kappa", found.value, found.residual)}


def _hessian_norm(problem: _Problem) -> Values:
    model, metric = problem.network
    found = hessian_norm(model, problem.shown, metric=metric, rtol=1e-3)
    value = _if_known("hessian_norm", jnp.max(found.value), jnp.max(found.residual))
    return {"hessian_norm": value / problem.lambda_max}


def _if_known(name: str, value: Array, residual: Array) -> float:
    """The value where its residual is small beside it; NaN elsewhere, with a warning."""
    relative = float(residual / jnp.where(value > 0, value, 1))
    if relative <= _KNOWN_TO:
        return float(value)
    warnings.warn(
        f"`{name}` is left out: its relative residual is {relative:.2g} still, expected at most "
        f"{_KNOWN_TO:g}.",
        RuntimeWarning,
        stacklevel=2,
    )
    return np.nan


def _rates(problem: _Problem) -> Values:
    data, (model, metric) = problem.data, problem.network
    f0 = problem.f0[: len(data.y_train)]
    gradient = jax.grad(lambda f: mean_loss(problem.loss, f, data.y_train))(f0)
    pairs = (problem.shown, problem.shown)
    rates = kernel_rates(model, data.x_train, gradient, metric=metric, kernel_pairs=pairs)
    size = jnp.linalg.norm(rates.kernel.ravel())
    first, second = (jnp.linalg.norm(rate.ravel()) / size for rate in rates[1:])
    return {
        "o3_size": float(first) / problem.lambda_max,
        "o4_size": float(second) / problem.lambda_max**2,
    }


_MEASURES: dict[Measure, Callable[[_Problem], Values]] = {
    "kappa": _kappa,
    "hessian_norm": _hessian_norm,
    "rates": _rates,
}


def _network(problem: _Problem, solve: Solve) -> Trajectory:
    model, metric = problem.network
    pairs = (problem.shown, problem.shown)
    return parameter_flow(model, *_on(problem), kernel_pairs=pairs, **_options(problem, metric))


def _limit(problem: _Problem, solve: Solve) -> Trajectory | None:
    """None where no kernel of infinite width describes the training."""
    if problem.infinite is None or not problem.in_kernel_regime:
        return None
    return _under_kernel(problem, _infinite_kernel(problem))


def _hierarchy(problem: _Problem, solve: Solve) -> Trajectory:
    data, (model, metric) = problem.data, problem.network
    points = jnp.concatenate([data.x_train, data.x_test])
    n, k = data.y_train.shape
    if solve.keeps_its_kernel and len(points) * n * k**2 <= _LARGEST_KERNEL:
        return _under_kernel(problem, ntk(model, points, data.x_train, metric=metric))
    shows = problem.shows_predicted_kernels and solve.predicts_its_kernel
    pairs = (problem.shown, problem.shown) if shows else None
    options = _options(problem, metric)
    return hierarchy_flow(model, *_on(problem), order=solve.order, kernel_pairs=pairs, **options)


def _taylor(problem: _Problem, solve: Solve) -> Trajectory:
    model, metric = problem.network
    taylor = taylorize(model, solve.order)
    options = _options(problem, taylor.lift_metric(metric))
    return parameter_flow(taylor, *_on(problem), **options)


_SOLVERS: dict[Kind, Callable[[_Problem, Solve], Trajectory | None]] = {
    "network": _network,
    "limit": _limit,
    "hierarchy": _hierarchy,
    "taylor": _taylor,
}
"""What gives the trajectory of a solve, or None where there is no such prediction."""


def _on(problem: _Problem) -> tuple[Array, Array, Array]:
    """Training points, their targets and the times of a flow."""
    return problem.data.x_train, problem.data.y_train, problem.ts


def _options(problem: _Problem, metric: Any) -> dict[str, Any]:
    """Those that all flows of parameters share."""
    x_test = problem.data.x_test
    return {"loss": problem.loss, "x_test": x_test, "metric": metric, **problem.tolerances}


def _under_kernel(problem: _Problem, kernel: Float[Array, "points n ..."]) -> Trajectory:
    """The flow under a kernel that stays as it is, from the network's own outputs."""
    n = len(problem.data.y_train)
    return gradient_flow(
        kernel[:n],
        problem.data.y_train,
        problem.ts,
        f0=problem.f0[:n],
        kernel_test=kernel[n:],
        f0_test=problem.f0[n:],
        loss=problem.loss,
        **problem.tolerances,
    )


def _solved(problem: _Problem, solve: Solve, found: Trajectory) -> Values:
    """What is kept of a trajectory, over its times."""
    data = problem.data
    valid = np.asarray(found.valid)
    row: Values = {}
    assert found.test is not None
    for part, logits, targets in (
        ("train", found.train, data.y_train),
        ("test", found.test, data.y_test),
    ):
        values = np.asarray(logits)
        row[f"{part}_logits"] = values
        row[f"{part}_loss"] = np.asarray(_losses(problem.loss, logits, targets))
        hits = np.argmax(values, axis=-1) == np.argmax(np.asarray(targets), axis=-1)
        known = valid if data.classes else np.zeros_like(valid)
        row[f"{part}_accuracy"] = np.where(known, np.mean(hits, axis=-1), np.nan)
    row |= _kernel_rows(problem, solve, found)
    size = metric_norm(parameters(problem.network.model), problem.network.metric)
    row["parameter_change"] = (
        np.full(len(valid), np.nan)
        if found.displacement is None
        else np.asarray(found.displacement) / float(size)
    )
    successful = bool(found.successful)
    reached = float(found.t_reached) * problem.lambda_max
    row["breakdown_time"] = np.nan if successful else reached
    reason = "" if successful else RESULTS[found.result].split(". ")[0].rstrip(".") + "."
    row["outcome"] = np.asarray(reason, dtype=object)
    return row


def _kernel_rows(problem: _Problem, solve: Solve, found: Trajectory) -> Values:
    """How the kernel on the training points changes, and its mean over outputs on two of them."""
    count = len(found.ts)
    start = _shown_infinite_kernel(problem) if solve.kind == "limit" else problem.kernel
    if found.kernel is not None:
        kernels = np.asarray(found.kernel)
    elif solve.keeps_its_kernel:
        kernels = np.broadcast_to(np.asarray(start), (count, *start.shape))
    else:
        return {
            "kernel_change": np.full(count, np.nan),
            "two_point_kernel": np.full((count, 2, 2), np.nan),
        }
    change = np.linalg.norm((kernels - np.asarray(start)).reshape(count, -1), axis=1)
    # The first two points that are shown are of different classes, where there are any.
    pair = np.einsum("tiaja->tij", kernels[:, :2, :, :2]) / start.shape[1]
    return {
        "kernel_change": change / float(np.linalg.norm(np.asarray(start).ravel())),
        "two_point_kernel": pair / problem.lambda_max,
    }


def shown_points(config: StudyConfig, data: Dataset) -> list[int]:
    """The training points that kernels are looked at on: the first of each class, the second of
    each, and so on; without classes, the first.
    """
    if not data.classes:
        return list(range(min(len(data.x_train), config.kernel_points)))
    labels = np.asarray(data.labels_train)
    rank = np.zeros(len(labels), int)
    for label in range(len(data.classes)):
        rank[labels == label] = np.arange(np.sum(labels == label))
    order = np.lexsort((labels, rank))
    return [int(i) for i in order[: config.kernel_points]]


def _unsolved(problem: _Problem) -> Values:
    """The row of a prediction that there is not."""
    data, count = problem.data, len(problem.ts)
    row: Values = {}
    for part, y in (("train", data.y_train), ("test", data.y_test)):
        row[f"{part}_logits"] = np.full((count, *y.shape), np.nan)
        row[f"{part}_loss"] = np.full(count, np.nan)
        row[f"{part}_accuracy"] = np.full(count, np.nan)
    return row | {
        "kernel_change": np.full(count, np.nan),
        "two_point_kernel": np.full((count, 2, 2), np.nan),
        "parameter_change": np.full(count, np.nan),
        "breakdown_time": np.nan,
        "outcome": np.asarray("", dtype=object),
    }


@eqx.filter_jit
def _losses(
    loss: LossFunction, f: Float[Array, "t n k"], y: Float[Array, "n k"]
) -> Float[Array, " t"]:
    return jax.vmap(lambda outputs: mean_loss(loss, outputs, y))(f)
