"""What infinitely wide networks predict: accuracies of kernel methods with the zoo's limits.

For each architecture, from `zoo.limit` alone: the Gaussian process (regression with the NNGP
kernel), the infinite ensemble trained to the end on squared loss (regression with the tangent
kernel, and how far its members differ), and gradient flow of cross-entropy under the tangent
kernel. Compare Lee et al. (2020), "Finite versus infinite neural networks: an empirical study",
table 1.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import xarray as xr
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.progress import track
from rich.table import Table

from scripts.architectures import Architecture, CNN, MLP, WIDE_RESNET
from scripts.reproduce.reproduction import Reproduction, RunConfig
from solvers import CrossEntropy, ensemble, gradient_flow, posterior
from zoo import ACTIVATIONS, Dataset, DATASETS, limit, load
from zoo.common import checks

ARCHITECTURES: dict[str, tuple[Architecture, dict[str, Any]]] = {
    "mlp": (MLP, {}),
    "cnn_flatten": (CNN, {"readout": "flatten"}),
    "cnn_mean": (CNN, {"readout": "mean"}),
    "wide_resnet": (WIDE_RESNET, {"depth": 10}),
}
"""By name: an architecture with what is chosen for it; the width drops out."""


@dataclass(frozen=True)
class InfiniteWidthConfig(RunConfig):
    """Accuracies of infinitely wide networks on a data set, by three kernel methods."""

    name: str = "infinite-width"
    dataset: str = "digits"
    """Data set: digits, mnist, fashion-mnist or cifar10."""
    root: Path | None = None
    """Folder of the data set's files (digits needs none)."""
    n_train: int = 200
    """Training examples, spread over the classes."""
    n_test: int = 200
    """Test examples."""
    architectures: tuple[str, ...] = ("mlp", "cnn_flatten", "cnn_mean", "wide_resnet")
    """Architectures. `cnn_mean` and `wide_resnet` (WideResNet-10) hold all pairs of pixels, so they
    are for small images."""
    depth: int = 3
    """Hidden layers of MLP and CNN."""
    activation: str = "relu"
    """Activation."""
    weight_std: float = 2**0.5
    """sigma_w of every layer."""
    bias_std: float | None = 0.1
    """sigma_b of every layer; none: no biases."""
    noise: float = 1e-4
    """Variance of the Gaussian process's observation noise, and the ridge of the tangent kernel,
    in units of the kernel's mean eigenvalue."""
    time: float = 1e4
    """When the flow of cross-entropy ends, in units of 1 / lambda_max."""

    def check(self) -> None:
        """**Raises:** `ValueError` that names the field, what came and what was expected."""
        super().check()
        checks.choice("dataset", self.dataset, DATASETS)
        checks.choice("activation", self.activation, ACTIVATIONS)
        checks.distinct("architectures", self.architectures)
        for architecture in self.architectures:
            checks.choice("architectures", architecture, ARCHITECTURES)
        for field in ("n_train", "n_test", "depth"):
            checks.integer(field, getattr(self, field))
        for field in ("weight_std", "noise", "time"):
            checks.nonnegative_number(field, getattr(self, field), strictly=True)
        if self.bias_std is not None:
            checks.nonnegative_number("bias_std", self.bias_std)


def infinite_width(
    config: InfiniteWidthConfig | None = None, *, console: Console | None = None
) -> xr.Dataset:
    """Runs the comparison and returns the accuracies.

    They are also on disk, in the folder `config.out / config.name`: `accuracies.nc`, `config.json`.

    **Arguments:**

    - `config`: the comparison (default: `InfiniteWidthConfig()`).
    - `console`: where progress and the table go (default: the terminal).

    **Returns:** test accuracies by architecture: `gaussian_process`, `ensemble`, `cross_entropy`;
    `spread`, the standard deviation of the ensemble's outputs (root mean square over test points);
    `seconds`.

    **Raises:** before any work, `ValueError` for a config that makes no sense, `FileExistsError`
    where the folder exists, what `zoo.load` raises.
    """
    return REPRODUCTION.run(config, console)


def _examples(config: InfiniteWidthConfig) -> Dataset:
    return load(config.dataset, root=config.root, n_train=config.n_train, n_test=config.n_test)


def _measured(config: InfiniteWidthConfig, data: Dataset, console: Console) -> xr.Dataset:
    rows = [
        _accuracies(config, data, architecture)
        for architecture in track(config.architectures, "architectures", console=console)
    ]
    return xr.Dataset(
        {name: ("architecture", [row[name] for row in rows]) for name in rows[0]},
        coords={"architecture": list(config.architectures)},
    )


def _accuracies(config: InfiniteWidthConfig, data: Dataset, architecture: str) -> dict[str, float]:
    start = time.perf_counter()
    shape, k = data.x_train.shape[1:], len(data.classes)
    built, chosen = ARCHITECTURES[architecture]
    options = {
        "width": 1,
        "depth": config.depth,
        "activation": config.activation,
        "weight_std": config.weight_std,
        "bias_std": config.bias_std,
        "key": jr.key(0),
    }
    model = built.make(shape, k, **(options | chosen))
    x, n = jnp.concatenate([data.x_train, data.x_test]), len(data.x_train)
    network = limit(model)
    kernels = network.kernels(x)
    jax.block_until_ready(kernels)
    seconds = time.perf_counter() - start
    targets = data.y_train - 1 / k  # outputs have mean zero at the start

    scale = float(jnp.trace(kernels.nngp[:n, :n]) / n)
    process = posterior(
        kernels.nngp[:n, :n],
        targets,
        noise=config.noise * scale,
        kernel_test=kernels.nngp[n:, :n],
        kernel_test_test=kernels.nngp[n:, n:],
    )
    trained = ensemble(
        network.nngp,
        network.ntk,
        data.x_train,
        targets,
        [jnp.inf],
        x_test=data.x_test,
        diag_reg=config.noise,
        diag_reg_scale="relative",
    )
    theta = kernels.ntk
    unit = n / float(jnp.linalg.eigvalsh(theta[:n, :n])[-1])
    flow = gradient_flow(
        theta[:n, :n],
        data.y_train,
        [config.time * unit],
        loss=CrossEntropy(),
        kernel_test=theta[n:, :n],
    )
    assert process.test is not None
    assert trained.test is not None
    assert flow.test is not None

    def accuracy(outputs: Any) -> float:
        return float(jnp.mean(jnp.argmax(outputs, axis=1) == data.labels_test))

    return {
        "gaussian_process": accuracy(process.test.mean),
        "ensemble": accuracy(trained.test.mean[0]),
        "spread": float(jnp.sqrt(jnp.mean(trained.test.std[0] ** 2))),
        "cross_entropy": accuracy(flow.test[0]),
        "seconds": seconds,
    }


def _table(config: InfiniteWidthConfig, found: xr.Dataset) -> RenderableType:
    table = Table(
        box=SIMPLE_HEAD,
        title=f"{config.dataset}, {config.n_train} images to train on, {config.n_test} to test on, "
        f"{config.activation}; test accuracies",
        title_justify="left",
    )
    headings = {
        "gaussian_process": "Gaussian\nprocess",
        "ensemble": "NTK, squared\nloss, t = inf",
        "spread": "its\nspread",
        "cross_entropy": "NTK, cross-\nentropy",
        "seconds": "seconds,\nboth kernels",
    }
    table.add_column("architecture")
    for heading in headings.values():
        table.add_column(heading, justify="right")
    for architecture in found["architecture"].values:
        row = found.sel(architecture=architecture)
        table.add_row(
            str(architecture),
            *(f"{float(row[name]):.{1 if name == 'seconds' else 3}f}" for name in headings),
        )
    return table


REPRODUCTION = Reproduction(
    config=InfiniteWidthConfig,
    inputs=_examples,
    measure=_measured,
    table=_table,
    results="accuracies.nc",
)
