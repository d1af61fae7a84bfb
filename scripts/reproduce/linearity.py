r"""How linear a network is, against its width: |H|, kappa, and the change of its kernel.

    |H| ~ width^{-1/2},  kernel change ~ 1 / width    with a linear output
    both of order 1                                   with a nonlinear output or a bottleneck

(Liu, Zhu & Belkin 2020), kappa ~ width^{-1/2} or 1 / width by parameterization, and a kernel change
of 1 / alpha for alpha times a centered network (Chizat, Oyallon & Bach 2019).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import xarray as xr
from rich.console import Console
from rich.progress import track

from corrections import hessian_norm, kappa, ntk, relative_change
from scripts.reproduce.linearity_report import draw, table
from scripts.reproduce.reproduction import Reproduction, RunConfig
from scripts.slopes import FEWEST
from solvers import MeanSquaredError, parameter_flow
from zoo import ACTIVATIONS, centered, MLP, NTK, scaled, STANDARD, with_output
from zoo.common import checks


@dataclass(frozen=True)
class LinearityConfig(RunConfig):
    """Measures how linear networks are, for many widths, and fits powers of the width."""

    name: str = "linearity"
    activation: str = "tanh"
    """Activation of the hidden layers: a smooth one."""
    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Widths of the hidden layers."""
    alphas: tuple[float, ...] = (4.0, 8.0, 16.0, 32.0, 64.0)
    """Factors of the outputs, for the centered network."""
    alpha_width: int = 64
    """Width of the centered network."""
    seeds: int = 20
    """Number of draws of each network."""
    bottleneck_seeds: int = 200
    """The same with a bottleneck, whose one unit makes everything vary by orders of magnitude."""
    in_size: int = 4
    """Entries of an example: few, since width counts against them in STANDARD parameterization."""
    n_train: int = 8
    """Number of examples: random, each entry of order 1."""
    target: float = 0.8
    """The targets are plus and minus this, in turn."""
    n_hessian: int = 4
    """Of how many examples |H| and kappa are taken."""
    time: float = 30.0
    """Length of training, in units of n / lambda_max of the kernel at the start."""
    rtol: float = 1e-5
    """Relative tolerance of the training."""

    def check(self) -> None:
        """**Raises:** `ValueError` that names the field, what came and what was expected."""
        super().check()
        checks.choice("activation", self.activation, ACTIVATIONS)
        for field in ("widths", "alphas"):
            checks.distinct(field, getattr(self, field))
            count = len(getattr(self, field))
            if count < FEWEST:
                raise ValueError(
                    f"`{field}` has {count} of the sizes that a slope is fitted to, expected at "
                    f"least {FEWEST}."
                )
        for width in (*self.widths, self.alpha_width):
            checks.integer("widths", width)
        for alpha in self.alphas:
            checks.nonnegative_number("alphas", alpha, strictly=True)
        for field in ("seeds", "bottleneck_seeds", "in_size", "n_train", "n_hessian"):
            checks.integer(field, getattr(self, field))
        if self.n_hessian > self.n_train:
            raise ValueError(
                f"`n_hessian` is {self.n_hessian}, expected at most `n_train` {self.n_train}."
            )
        for field in ("target", "time", "rtol"):
            checks.nonnegative_number(field, getattr(self, field), strictly=True)


class Law(NamedTuple):
    """A power law, and how to measure one point of it."""

    quantity: str
    network: str
    slope: float
    """That theory expects."""
    make: Callable[..., Any]
    """Config, size (a width or an alpha) and key -> the network."""
    measure: Callable[..., Any]
    """Config, network, x (n, in_size), y (n, 1) -> the quantity, and whether it can be trusted."""
    abscissa: str = "width"
    seeds: str = "seeds"
    """The field of the config that says how many."""


def linearity(
    config: LinearityConfig | None = None, *, console: Console | None = None
) -> xr.Dataset:
    """Measures all laws and returns what was measured.

    It is also on disk, in the folder `config.out / config.name`: `linearity.nc`, `config.json` and
    `linearity.png`.

    **Arguments:**

    - `config`: the run (default: `LinearityConfig()`).
    - `console`: where progress and the table go (default: the terminal).

    **Returns:** a data set with one variable for each law, over its sizes and the seeds, and the
    expected slope in its attributes. What did not converge, or was not drawn, is NaN.

    **Raises:** before any work, `ValueError` for a config that makes no sense, `FileExistsError`
    where the folder exists.
    """
    return REPRODUCTION.run(config, console)


def _measured(
    config: LinearityConfig, inputs: tuple[jax.Array, jax.Array], console: Console
) -> xr.Dataset:
    sizes = {"width": sorted(config.widths), "alpha": sorted(config.alphas)}
    most = max(config.seeds, config.bottleneck_seeds)
    values = {law: np.full((len(sizes[law.abscissa]), most), np.nan) for law in LAWS}
    x, y = inputs
    todo = [(law, i) for law in LAWS for i in range(len(sizes[law.abscissa]))]
    for law, i in track(todo, description="laws", console=console):
        for seed in range(getattr(config, law.seeds)):
            model = law.make(config, sizes[law.abscissa][i], jr.key(seed))
            value, trusted = law.measure(config, model, x, y)
            values[law][i, seed] = float(value) if bool(trusted) else np.nan
    return xr.Dataset(
        {
            f"{law.quantity}, {law.network}": (
                (law.abscissa, "seed"),
                measured,
                {"quantity": law.quantity, "network": law.network, "slope": law.slope},
            )
            for law, measured in values.items()
        },
        coords={**sizes, "seed": np.arange(most)},
    )


def examples(config: LinearityConfig) -> tuple[jax.Array, jax.Array]:
    """Random examples of Euclidean norm in_size^{1/2}, and targets of both signs in turn."""
    x = jr.normal(jr.key(0), (config.n_train, config.in_size))
    x *= config.in_size**0.5 / jnp.linalg.norm(x, axis=1, keepdims=True)
    even = jnp.arange(config.n_train)[:, None] % 2 == 0
    return x, jnp.where(even, config.target, -config.target)


def _mlp(config: LinearityConfig, width: Any, key: Any, parameterization: Any = NTK) -> MLP:
    return MLP(
        config.in_size,
        1,
        width=width,
        activation=config.activation,
        parameterization=parameterization,
        weight_std=1.0,
        key=key,
    )


def _deep(config: LinearityConfig, width: int, key: Any) -> Any:
    return _mlp(config, [width, width], key)


def _with_tanh_output(config: LinearityConfig, width: int, key: Any) -> Any:
    return with_output(_deep(config, width, key), "tanh")


def _with_bottleneck(config: LinearityConfig, width: int, key: Any) -> Any:
    return _mlp(config, [width, 1, width], key)


def _shallow_standard(config: LinearityConfig, width: int, key: Any) -> Any:
    return _mlp(config, [width], key, STANDARD)


def _scaled_centered(config: LinearityConfig, alpha: float, key: Any) -> Any:
    return scaled(centered(_deep(config, config.alpha_width, key)), alpha)


def _hessian_norm(config: LinearityConfig, model: Any, x: Any, y: Any) -> tuple[Any, Any]:
    found = hessian_norm(model, x[: config.n_hessian], rtol=1e-3)
    return jnp.mean(found.value), jnp.all(found.converged)


def _kappa(config: LinearityConfig, model: Any, x: Any, y: Any) -> tuple[Any, Any]:
    found = kappa(model, x[: config.n_hessian], y[: config.n_hessian], starts=2)
    return found.value, found.converged


def _kernel_change(config: LinearityConfig, model: Any, x: Any, y: Any) -> tuple[Any, Any]:
    before = ntk(model, x, outputs="mean")
    unit = len(x) / jnp.linalg.eigvalsh(before)[-1]
    ts = jnp.stack([0 * unit, config.time * unit])
    loss = MeanSquaredError()
    trained = parameter_flow(model, x, y, ts, loss=loss, rtol=config.rtol, throw=False)
    return relative_change(before, ntk(trained.final, x, outputs="mean")), trained.successful


LAWS = (
    Law("|H|", "linear output", -0.5, _deep, _hessian_norm),
    Law("|H|", "tanh output", 0.0, _with_tanh_output, _hessian_norm),
    Law("|H|", "bottleneck", 0.0, _with_bottleneck, _hessian_norm, seeds="bottleneck_seeds"),
    Law("kernel change", "linear output", -1.0, _deep, _kernel_change),
    Law("kernel change", "tanh output", 0.0, _with_tanh_output, _kernel_change),
    Law(
        "kernel change",
        "bottleneck",
        0.0,
        _with_bottleneck,
        _kernel_change,
        seeds="bottleneck_seeds",
    ),
    Law("kappa", "NTK, two hidden layers", -0.5, _deep, _kappa),
    Law("kappa", "STANDARD, one hidden layer", -1.0, _shallow_standard, _kappa),
    Law("kernel change", "alpha (f - f_0)", -1.0, _scaled_centered, _kernel_change, "alpha"),
)
REPRODUCTION = Reproduction(
    config=LinearityConfig,
    inputs=examples,
    measure=_measured,
    table=lambda config, found: table(found),
    results="linearity.nc",
    figure=("linearity.png", lambda config, found, file: draw(found, file)),
)
