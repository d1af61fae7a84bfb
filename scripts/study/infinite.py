"""What infinitely wide networks do: their kernels on the data, and the ensemble of them."""

import dataclasses
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from filelock import FileLock
from jaxtyping import Array, Float

from scripts.study.cells import Cell
from scripts.study.config import StudyConfig
from scripts.study.examples import Examples
from scripts.study.losses import LOSSES
from scripts.study.networks import prototype
from solvers import ensemble, gradient_flow, Trajectory
from solvers.losses import LossFunction
from zoo import Dataset, limit, NoLimitError
from zoo.layers.affine import AffineLayer

DRAWS = 512
"""Functions that the ensemble of infinitely wide networks is sampled with."""


class InfiniteKernels(NamedTuple):
    """Kernels of infinite width on training, then test points, as NumPy arrays.

    - `nngp`: (points, points).
    - `ntk`: (points, n), of a network over width^`power`: the width is its readout's fan-in.
    - `lambda_max`: the largest eigenvalue on the training points over their number.
    """

    nngp: np.ndarray
    ntk: np.ndarray
    power: int
    lambda_max: float


class EnsembleCurves(NamedTuple):
    """Mean and standard deviation over infinitely wide networks, at each time.

    - `mean`, `std`: of the test logits, (t, m, k).
    - `loss_mean`, `loss_std`: of the training loss, (t,).
    """

    mean: np.ndarray
    std: np.ndarray
    loss_mean: np.ndarray
    loss_std: np.ndarray


class Limits:
    """The infinite-width kernels and ensembles of a study, each computed once.

    `shared` is a folder that all threads and processes of a study have in common: what one of them
    computes the others wait for and read there.
    """

    def __init__(self, config: StudyConfig, data: Dataset, shared: Path):
        self._config, self._data, self._shared = config, data, shared
        self._found: dict[str, Any] = {}

    def kernels(self, cell: Cell) -> InfiniteKernels | str:
        """Those of the cell's family and parameterization, or why there is no limit."""
        name = f"kernels {cell.family} {cell.parameterization}"
        found = self._once(name, lambda: _kernels(self._config, self._data, cell))
        assert isinstance(found, InfiniteKernels | str)
        return found

    def ensemble(self, cell: Cell) -> EnsembleCurves:
        """That of the cell's family, parameterization and loss, which have kernels."""
        kernels = self.kernels(cell)
        assert isinstance(kernels, InfiniteKernels)
        name = f"ensemble {cell.family} {cell.parameterization} {cell.loss}"
        found = self._once(name, lambda: _ensemble(self._config, self._data, cell.loss, kernels))
        assert isinstance(found, EnsembleCurves)
        return found

    def _once(self, name: str, compute: Callable[[], Any]) -> Any:
        if name not in self._found:
            file = self._shared / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.pickle"
            with FileLock(file.with_suffix(".lock")):
                if not file.exists():
                    file.write_bytes(pickle.dumps(compute()))
                self._found[name] = pickle.loads(file.read_bytes())
        return self._found[name]


def readout_fan_in(model: eqx.Module) -> int:
    """What the readout sums over: the width that rates and kernels are in powers of."""
    layers = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, AffineLayer))
    return next(
        layer.fans["fan_in"]
        for layer in layers
        if isinstance(layer, AffineLayer) and layer.role == "readout"
    )


def _kernels(config: StudyConfig, data: Dataset, cell: Cell) -> InfiniteKernels | str:
    points = jnp.concatenate([data.x_train, data.x_test])
    n = len(data.x_train)
    # The width drops out but for rounding: one for all, and all cells have the same bits.
    width = config.widths_of(cell.family.architecture)[0]
    model = prototype(config, Examples.of(data), dataclasses.replace(cell, width=width))
    why = ""
    for power in (0, -1):  # -1: STANDARD's tangent kernel grows like the width
        try:
            found = limit(model, rate_power=power).kernels(points)
        except NoLimitError as error:
            why = str(error).split(", expected")[0]
            continue
        nngp, ntk = np.asarray(found.nngp), np.asarray(found.ntk)
        largest = float(np.linalg.eigvalsh(ntk[:n, :n])[-1]) / n
        return InfiniteKernels(nngp, ntk[:, :n], power, largest)
    return why


def _ensemble(
    config: StudyConfig, data: Dataset, loss_name: str, kernels: InfiniteKernels
) -> EnsembleCurves:
    k = data.y_train.shape[1]
    chosen = LOSSES[loss_name]
    loss = chosen.function
    dtype = data.x_train.dtype
    nngp, ntk = jnp.asarray(kernels.nngp, dtype), jnp.asarray(kernels.ntk, dtype)
    ts = jnp.asarray(config.solved_times, dtype) / kernels.lambda_max
    values, vectors = jnp.linalg.eigh(nngp)
    root = vectors * jnp.sqrt(jnp.maximum(values, 0))[None]
    draws = root @ jr.normal(jr.key(0), (DRAWS, len(nngp), k), dtype)
    flows = _flows(ntk, data.y_train, ts, draws, loss, chosen.least_tolerance)
    train_losses = np.asarray(_losses(loss, flows.train, data.y_train))  # (draws, t)
    test = np.asarray(flows.test)
    mean, std = test.mean(axis=0), test.std(axis=0, ddof=1)
    loss_mean, loss_std = train_losses.mean(axis=0), train_losses.std(axis=0, ddof=1)
    if chosen.has_closed_form:
        exact = ensemble(
            lambda a, b: nngp,
            lambda a, b: ntk,
            data.x_train,
            data.y_train,
            ts,
            x_test=data.x_test,
            throw=False,
        )
        assert exact.test is not None
        assert exact.test.covariance is not None
        if not bool(exact.successful):
            return EnsembleCurves(mean, std, loss_mean, loss_std)
        mean = np.asarray(exact.test.mean)
        variance = np.diagonal(np.asarray(exact.test.covariance), axis1=1, axis2=2)
        std = np.broadcast_to(np.sqrt(np.maximum(variance, 0))[:, :, None], mean.shape)
    return EnsembleCurves(mean, std, loss_mean, loss_std)


@eqx.filter_jit
def _flows(
    ntk: Float[Array, "points n"],
    y: Float[Array, "n k"],
    ts: Float[Array, " t"],
    draws: Float[Array, "draws points k"],
    loss: LossFunction,
    least_tolerance: float,
) -> Trajectory:
    n = len(y)

    def flow(f0: Array) -> Trajectory:
        return gradient_flow(
            ntk[:n],
            y,
            ts,
            loss=loss,
            f0=f0[:n],
            kernel_test=ntk[n:],
            f0_test=f0[n:],
            solver=diffrax.Tsit5(),
            rtol=max(1e-5, least_tolerance),
            atol=max(1e-7, least_tolerance),
            throw=False,
        )

    return jax.vmap(flow)(draws)


@eqx.filter_jit
def _losses(loss: LossFunction, f: Float[Array, "draws t n k"], y: Float[Array, "n k"]) -> Array:
    return jnp.mean(jax.vmap(jax.vmap(jax.vmap(loss, (0, 0)), (0, None)), (0, None))(f, y), axis=-1)
