"""The coordinate check: how far a few steps of training move each layer, against the width.

    mean |z_l(x; theta_t) - z_l(x; theta_0)|     over examples, coordinates of layer l, and seeds

In the maximal-update parameterization every layer moves by an amount that has a limit in width; in
the standard one the layers blow up with it (Yang et al. 2022, arXiv:2203.03466, figure 5).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import optax
import xarray as xr
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.progress import track
from rich.table import Table

from scripts import architectures, runtime
from scripts.reproduce.reproduction import Reproduction, RunConfig
from scripts.slopes import FEWEST, slope_in_width
from solvers import CrossEntropy
from solvers.losses import mean_loss
from zoo import ACTIVATIONS, AffineLayer, Dataset, learning_rates, load, PARAMETERIZATIONS, record
from zoo.common import checks
from zoo.common.trainable import partitioned


@dataclass(frozen=True)
class CoordinateCheckConfig(RunConfig):
    """Trains networks of many widths for a few steps and shows how far each layer has moved."""

    name: str = "coordinate-check"
    architecture: str = "MLP"
    """MLP, CNN, WideResNet, or a function of your own, module:function as in `study`, whose layers
    are the zoo's. The width is that of hidden layers, channels, or base channels."""
    depth: int = 3
    """Depth, as the architecture counts it."""
    activation: str = "relu"
    """Activation."""
    bias_std: float | None = None
    """sigma_b of every layer of the zoo's networks; none: no biases."""
    readout_std: float = 0.0
    """sigma_w of their readout; at 0 the outputs start at zero (Yang et al. 2022, appendix D.2)."""
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Widths."""
    parameterizations: tuple[str, ...] = ("MUP", "STANDARD")
    """Parameterizations to compare, each at its own learning rates for the optimizer."""
    sgd_rate: float = 0.1
    """Learning rate of SGD, before the parameterization's multipliers."""
    adam_rate: float = 0.01
    """Learning rate of Adam, before the parameterization's multipliers."""
    steps: int = 4
    """Steps of full-batch training."""
    seeds: int = 5
    """Number of draws of the network."""
    n_train: int = 64
    """Number of digits, spread over the ten classes."""
    precision: runtime.Precision = "float32"

    def check(self) -> None:
        """**Raises:** `ValueError` that names the field, what came and what was expected."""
        super().check()
        _ = self.built
        checks.choice("activation", self.activation, ACTIVATIONS)
        for field in ("widths", "parameterizations"):
            checks.distinct(field, getattr(self, field))
        for width in self.widths:
            checks.integer("widths", width)
        for parameterization in self.parameterizations:
            checks.choice("parameterizations", parameterization, PARAMETERIZATIONS)
            for role in ("input", "hidden", "readout"):
                if PARAMETERIZATIONS[parameterization].scaling(role).weight.adam is None:
                    raise ValueError(
                        f"`parameterizations` has {parameterization}, which does not say what "
                        "Adam's learning rates are, expected STANDARD or MUP."
                    )
        for field in ("depth", "steps", "seeds", "n_train"):
            checks.integer(field, getattr(self, field))
        for field in ("sgd_rate", "adam_rate"):
            checks.nonnegative_number(field, getattr(self, field), strictly=True)
        checks.nonnegative_number("readout_std", self.readout_std)

    @property
    def built(self) -> architectures.Architecture:
        """What `architecture` names."""
        return architectures.named(self.architecture, "architecture")

    def choices(self) -> dict[str, Any]:
        """The fields, and a digest of the source of a user's own architecture."""
        own = {"source": self.built.source_digest()} if self.built.reference else {}
        return super().choices() | own


def coordinate_check(
    config: CoordinateCheckConfig | None = None, *, console: Console | None = None
) -> xr.DataArray:
    """Runs the check and returns the changes.

    They are also on disk, in the folder `config.out / config.name`: `changes.nc`, `config.json` and
    `coordinate_check.png`.

    **Arguments:**

    - `config`: the check (default: `CoordinateCheckConfig()`).
    - `console`: where progress and the table go (default: the terminal).

    **Returns:** the mean |change| of the preactivations, by optimizer, parameterization, layer,
    width and seed.

    **Raises:** before any work, `ValueError` for a config that makes no sense, `ImportError` where
    scikit-learn is missing, `FileExistsError` where the folder exists.
    """
    return REPRODUCTION.run(config, console)


def _examples(config: CoordinateCheckConfig) -> Dataset:
    """The digits, of which networks as asked for can be made.

    **Raises:** `ValueError` for an architecture without layers to look at.
    """
    data = load("digits", n_train=config.n_train, n_test=1)
    model = eqx.filter_eval_shape(_maker(config, data, config.parameterizations[0], 1), jr.key(0))
    if not _layer_names(model, data):
        raise ValueError(
            f"`architecture` is {config.architecture}, which calls no `zoo.Dense` or `zoo.Conv`, "
            "expected a network of the zoo's layers: it is their preactivations that are looked at."
        )
    return data


def _measured(config: CoordinateCheckConfig, data: Dataset, console: Console) -> xr.DataArray:
    optimizers = {"sgd": optax.sgd(config.sgd_rate), "adam": optax.adam(config.adam_rate)}
    found: dict[tuple[str, str, int], np.ndarray] = {}
    todo = [
        (optimizer, parameterization, width)
        for width in sorted(config.widths)
        for parameterization in config.parameterizations
        for optimizer in optimizers
    ]
    for cell in track(todo, description="widths", console=console):
        optimizer, parameterization, width = cell
        make = _maker(config, data, parameterization, width)
        change = _change(make, data, optimizers[optimizer], optimizer, config.steps)
        # One seed at a time in memory, all of them in one program.
        found[cell] = np.asarray(
            jax.jit(lambda keys, f=change: jax.lax.map(f, keys))(jr.split(jr.key(0), config.seeds))
        )
    layers = _layer_names(make(jr.key(0)), data)
    widths = sorted(config.widths)
    values = [
        [np.stack([found[o, p, w] for w in widths]) for p in config.parameterizations]
        for o in optimizers
    ]
    return xr.DataArray(
        np.asarray(values),
        dims=("optimizer", "parameterization", "width", "seed", "layer"),
        coords={
            "optimizer": list(optimizers),
            "parameterization": list(config.parameterizations),
            "width": widths,
            "seed": np.arange(config.seeds),
            "layer": layers,
        },
        name="change",
        attrs={"long_name": f"mean |change| of preactivations in {config.steps} steps"},
    )


def _maker(
    config: CoordinateCheckConfig, data: Dataset, parameterization: str, width: int
) -> Callable[[jax.Array], Any]:
    of_the_zoo = {"bias_std": config.bias_std, "readout_std": config.readout_std}
    return lambda key: config.built.make(
        data.x_train.shape[1:],
        len(data.classes),
        width=width,
        depth=config.depth,
        activation=config.activation,
        parameterization=PARAMETERIZATIONS[parameterization],
        key=key,
        **({} if config.built.reference else of_the_zoo),
    )


def _preactivations(model: Any, x: jax.Array) -> list[jax.Array]:
    calls = record(model, x)[1]
    return [call.output for call in calls if isinstance(call.layer, AffineLayer)]


def _layer_names(model: Any, data: Dataset) -> list[str]:
    calls = eqx.filter_eval_shape(lambda m, x: _preactivations(m, x), model, data.x_train[0])
    return [f"layer {i + 1}" for i in range(len(calls) - 1)] + ["outputs"] * bool(calls)


def _change(
    make: Callable[[jax.Array], Any],
    data: Dataset,
    optimizer: optax.GradientTransformation,
    name: Literal["sgd", "adam"] | str,
    steps: int,
) -> Callable[[jax.Array], jax.Array]:
    """From a key to the mean |change| of each layer of the network it draws."""
    loss = CrossEntropy()

    def training_loss(model: Any) -> jax.Array:
        return mean_loss(loss, jax.vmap(model)(data.x_train), data.y_train)

    def change(key: jax.Array) -> jax.Array:
        start = make(key)
        rates = learning_rates(start, optimizer=name)  # pyright: ignore[reportArgumentType]
        params, static = partitioned(start)

        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            gradient = jax.grad(lambda p: training_loss(eqx.combine(p, static)))(params)
            updates, state = optimizer.update(gradient, state, params)
            scaled = jax.tree.map(lambda rate, u: rate * u, rates, updates)
            return (optax.apply_updates(params, scaled), state), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
        signals = [
            jax.vmap(lambda x, m=model: _preactivations(m, x))(data.x_train)
            for model in (start, eqx.combine(params, static))
        ]
        return jnp.stack([jnp.mean(jnp.abs(b - a)) for a, b in zip(*signals, strict=True)])

    return change


def _table(config: CoordinateCheckConfig, changes: xr.DataArray) -> RenderableType:
    if len(config.widths) < FEWEST:
        return f"No slopes in width: they take at least {FEWEST} widths."
    table = Table(box=SIMPLE_HEAD)
    table.add_column("layer")
    slopes = slope_in_width(changes.mean("seed"))
    columns = [
        (parameterization, optimizer)
        for parameterization in changes["parameterization"].values
        for optimizer in changes["optimizer"].values
    ]
    for parameterization, optimizer in columns:
        table.add_column(f"{parameterization}\n{optimizer}", justify="right")
    for layer in changes["layer"].values:
        row = [float(slopes.sel(parameterization=p, optimizer=o, layer=layer)) for p, o in columns]
        table.add_row(str(layer), *(f"{slope:.2f}" for slope in row))
    return Group("Slope of log mean |change| against log width (0 is flat):", table)


def _draw(config: CoordinateCheckConfig, changes: xr.DataArray, file: Path) -> None:
    optimizers, names = changes["optimizer"].values, changes["parameterization"].values
    figure, axes = plt.subplots(
        len(optimizers),
        len(names),
        figsize=(4.6 * len(names), 3.6 * len(optimizers)),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    layers = changes["layer"].values
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(layers)))
    for row, optimizer in zip(axes, optimizers, strict=True):
        for axis, name in zip(row, names, strict=True):
            panel = changes.sel(optimizer=optimizer, parameterization=name)
            for layer, color in zip(layers, colors, strict=True):
                values = panel.sel(layer=layer)
                axis.loglog(values["width"], values.mean("seed"), "o-", color=color, label=layer)
                for seed in values["seed"]:
                    axis.loglog(
                        values["width"], values.sel(seed=seed), color=color, alpha=0.2, linewidth=1
                    )
            axis.set_title(f"{name}, {optimizer.upper() if optimizer == 'sgd' else 'Adam'}")
            axis.grid(True, which="major", alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("width")
        axis.set_xticks(changes["width"].values, [str(w) for w in changes["width"].values])
        axis.minorticks_off()
    for axis in axes[:, 0]:
        axis.set_ylabel(f"mean |change of z| in {config.steps} steps")
    axes[0, 0].legend(frameon=False, fontsize=8, ncols=2)
    figure.savefig(file, dpi=150)
    plt.close(figure)


REPRODUCTION = Reproduction(
    config=CoordinateCheckConfig,
    inputs=_examples,
    measure=_measured,
    table=_table,
    results="changes.nc",
    figure=("coordinate_check.png", _draw),
)
