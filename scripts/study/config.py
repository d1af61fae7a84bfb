"""What a study is: every choice, typed, checked before any work and before JAX is imported."""

import dataclasses
import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TYPE_CHECKING

from scripts import architectures, fields
from scripts.architectures import Architecture, ARCHITECTURES
from scripts.study import predictions
from scripts.study.losses import LOSSES
from scripts.study.predictions import Solve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Function = Callable[..., Any]
    Architectures = tuple[str | Function, ...] | Mapping[str, str | Function]
else:
    Architectures = tuple[str, ...]  # what a command line can say, and what others become
DATASETS = ("digits", "mnist", "fashion-mnist", "cifar10")
ACTIVATIONS = (
    "relu",
    "leaky_relu",
    "abs",
    "erf",
    "tanh",
    "gelu",
    "sigmoid",
    "silu",
    "elu",
    "softplus",
    "sin",
    "cos",
    "identity",
)
PARAMETERIZATIONS = ("NTK", "STANDARD", "MEAN_FIELD", "MUP")
Measure = Literal["kappa", "hessian_norm", "rates"]
MEASURES: tuple[Measure, ...] = ("kappa", "hessian_norm", "rates")
KERNEL_REGIME = ("NTK", "STANDARD")
"""The parameterizations in which a kernel describes the training of infinitely wide networks; in
the others it moves by O(1) at any width.
"""

_OF_THE_MACHINE = ("devices", "budget_minutes", "budget_gib")
_NOT_OF_RESULTS = ("name", "out", *_OF_THE_MACHINE)
"""Fields that do not change what a study finds."""
_FLOATS = (float, float | None, tuple[float, ...])

_TIMES = (
    *(0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.75, 1.0, 1.4, 2.0),
    *(2.8, 4.0, 5.6, 7.5, 10.0, 14.0, 20.0),
)


@dataclass(frozen=True)
class StudyConfig:
    """Trains real networks and predicts them: over architectures, parameterizations, widths, seeds.

    Times are in units of 1/lambda_max: the largest eigenvalue of the initial tangent kernel of the
    training points divided by their number, the rate at which squared loss learns its fastest mode.
    """

    name: str | None = None
    """Name of the run, and of its folder under `out` (default: data set and a digest of the
    choices, so that the same study goes on in the same folder)."""
    out: Path = Path("runs")
    """Where runs are kept."""
    dataset: str = "digits"
    """Data set: digits, mnist, fashion-mnist, cifar10, or a .npz file."""
    root: Path | None = None
    """Folder of the data set's files (digits need none)."""
    classes: tuple[int, ...] = (0, 1, 2)
    """Labels to keep."""
    n_train: int = 12
    """Number of training images, spread over the classes."""
    n_test: int = 12
    """Number of test images, spread over the classes."""
    data_seed: int = 0
    """Seed of the split of the data."""
    architectures: Architectures = tuple(ARCHITECTURES)
    """Architectures to compare: MLP, CNN, WideResNet, or functions of your own as module:function
    or name=module:function (from Python a mapping of names to functions, too)."""
    depths: tuple[int, ...] = (2,)
    """Numbers of hidden layers of MLP and CNN; depths of architectures of your own."""
    resnet_depths: tuple[int, ...] = (10,)
    """Depths of WideResNet, 6 n + 4."""
    widths: tuple[int, ...] = (32, 64, 128, 256)
    """Widths of the hidden layers of MLP; widths of architectures of your own."""
    channels: tuple[int, ...] = (4, 8, 16, 32)
    """Widths of CNN: channels of its layers."""
    base_channels: tuple[int, ...] = (4, 6, 8, 12)
    """Widths of WideResNet: channels of its first group."""
    cnn_readout: Literal["flatten", "mean"] = "flatten"
    """How CNN goes from an image to a vector."""
    resnet_norm: Literal["none", "layer", "group"] = "none"
    """Normalization in WideResNet."""
    activations: tuple[str, ...] = ("tanh",)
    """Activations; smooth ones, for the corrections to be defined."""
    weight_std: float = 2**0.5
    """sigma_w of every layer."""
    bias_std: float = 0.0
    """sigma_b of every layer; 0 leaves biases out."""
    parameterizations: tuple[str, ...] = ("NTK", "STANDARD")
    """Parameterizations to compare, each at its own learning rates (`zoo.learning_rates`)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the initial parameters."""
    losses: tuple[str, ...] = ("cross_entropy",)
    """Losses: cross_entropy, mean_squared_error, brier, hinge."""
    orders: tuple[int, ...] = (2, 3, 4)
    """Orders of the kernel hierarchy to predict with; 2 is the frozen NTK."""
    taylor_orders: tuple[int, ...] = (1, 2, 3)
    """Orders of the Taylor models to predict with."""
    infinite_width: bool = True
    """Whether to predict with the kernel of infinite width too, where there is one."""
    measures: tuple[Measure, ...] = MEASURES
    """What to measure of curvature at the start: kappa, Hessian norms, and the rates at which O_3
    and O_4 move the kernel."""
    predicted_kernels: bool = True
    """Whether orders 3 and 4 show the kernel that they predict."""
    kernel_points: int = 64
    """The most training points that spectra, kernels and curvature are looked at on."""
    times: tuple[float, ...] = _TIMES
    """Times to compare at, in units of 1/lambda_max."""
    reference_time: float = 1.0
    """The time that tables and width plots are made at, in units of 1/lambda_max."""
    tolerance: float = 0.1
    """The relative error up to which a prediction counts as good."""
    rtol: float = 1e-7
    """Relative tolerance of every flow."""
    atol: float = 1e-10
    """Absolute tolerance of every flow."""
    precision: Literal["float32", "float64"] = "float64"
    """Floating-point type of everything."""
    devices: int | None = None
    """The most devices to spread networks over (default: all; of a CPU, its cores, but 8)."""
    fast_compilation: bool = False
    """Compile in about half the time what then takes twice as long (of a CPU): for small studies,
    which are compilation mostly."""
    budget_minutes: float | None = None
    """Refuse a study that is estimated to take longer."""
    budget_gib: float | None = None
    """Refuse a study that is estimated to take more memory (default: that of this machine)."""

    def __post_init__(self) -> None:
        """Writes the same choice in one way: whole numbers in fields of floats as floats, functions
        as what they are imported by.
        """
        object.__setattr__(self, "architectures", architectures.written(self.architectures))
        for field in dataclasses.fields(self):
            if field.type in _FLOATS:
                object.__setattr__(self, field.name, _as_float(getattr(self, field.name)))

    def check(self) -> None:
        """**Raises:** `ValueError` that names the field, what came and what was expected."""
        for field in ("out", "root"):
            value = getattr(self, field)
            if not isinstance(value, str | Path) and not (field == "root" and value is None):
                raise ValueError(f"`{field}` is {value!r}, expected the path of a folder.")
        fields.folder_name("name", self.name)
        for field in ("classes", "architectures", "depths", "resnet_depths", "widths", "channels"):
            fields.distinct(field, getattr(self, field))
        for field in ("base_channels", "activations", "parameterizations", "seeds", "losses"):
            fields.distinct(field, getattr(self, field))
        for field in ("orders", "taylor_orders", "measures"):
            fields.distinct(field, getattr(self, field), empty=True)
        fields.distinct("times", self.times)
        for field in ("depths", "resnet_depths", "widths", "channels", "base_channels"):
            for value in getattr(self, field):
                fields.integer(field, value)
        fields.integer("n_test", self.n_test)
        for field in ("n_train", "kernel_points"):  # of two points the kernel is drawn
            fields.integer(field, getattr(self, field), least=2)
        for label in self.classes:
            fields.integer("classes", label, least=0)
        for seed in self.seeds:
            fields.seed("seeds", seed)
        fields.seed("data_seed", self.data_seed)
        for depth in self.resnet_depths:
            if depth < 10 or depth % 6 != 4:
                raise ValueError(
                    f"`resnet_depths` is {depth}, expected 6 n + 4: 10, 16, 22, 28, ..."
                )
        if not isinstance(self.dataset, str) or not self.dataset.endswith(".npz"):
            fields.choice("dataset", self.dataset, DATASETS)
        for field, choices in (
            ("parameterizations", PARAMETERIZATIONS),
            ("activations", ACTIVATIONS),
            ("losses", LOSSES),
            ("orders", predictions.orders("hierarchy")),
            ("taylor_orders", predictions.orders("taylor")),
            ("measures", MEASURES),
        ):
            for value in getattr(self, field):
                fields.choice(field, value, choices)
        names = [one.name for one in self.networks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"`architectures` is {self.architectures!r}, expected one {name!r}: "
                    "'name=module:function' gives a function another name."
                )
        fields.choice("cnn_readout", self.cnn_readout, ("flatten", "mean"))
        fields.choice("resnet_norm", self.resnet_norm, ("none", "layer", "group"))
        fields.choice("precision", self.precision, ("float32", "float64"))
        for field in ("infinite_width", "predicted_kernels", "fast_compilation"):
            fields.choice(field, getattr(self, field), (True, False))
        for field in ("weight_std", "rtol", "atol", "reference_time", "tolerance"):
            fields.number(field, getattr(self, field), positive=True)
        fields.number("bias_std", self.bias_std)
        for time in self.times:
            fields.number("times", time)
        fields.increasing("times", self.times)
        if self.devices is not None:
            fields.integer("devices", self.devices)
        for field in ("budget_minutes", "budget_gib"):
            if getattr(self, field) is not None:
                fields.number(field, getattr(self, field), positive=True)
        if len(self.classes) < 2:
            raise ValueError(
                f"`classes` is {self.classes!r}, expected at least two labels to tell apart."
            )
        if len(self.solves) == 1:
            raise ValueError(
                "`orders` and `taylor_orders` are empty and `infinite_width` is False, expected at "
                "least one prediction."
            )

    @property
    def solves(self) -> tuple[Solve, ...]:
        """The network, then its predictions."""
        return tuple(solve for solve in predictions.SOLVES if self._asks_for(solve))

    def _asks_for(self, solve: Solve) -> bool:
        chosen = {"hierarchy": self.orders, "taylor": self.taylor_orders}
        if solve.kind == "limit":
            return self.infinite_width
        return solve.kind == "network" or solve.order in chosen[solve.kind]

    @property
    def solved_times(self) -> tuple[float, ...]:
        """`times` with 0 and the reference time among them."""
        return tuple(sorted({0.0, float(self.reference_time), *map(float, self.times)}))

    @property
    def folder(self) -> Path:
        """Where this study is kept."""
        return Path(self.out) / (self.name or self._default_name())

    @property
    def networks(self) -> tuple[Architecture, ...]:
        """The architectures that `architectures` names."""
        return tuple(architectures.named(entry) for entry in self.architectures)

    def network(self, name: str) -> Architecture:
        """The architecture of this name."""
        return next(one for one in self.networks if one.name == name)

    def widths_of(self, name: str) -> tuple[int, ...]:
        """The widths of an architecture, increasing."""
        return tuple(sorted(getattr(self, self.network(name).widths)))

    def depths_of(self, name: str) -> tuple[int, ...]:
        """The depths of an architecture."""
        return getattr(self, self.network(name).depths)

    def choices(self) -> dict[str, Any]:
        """The fields as JSON has them, with the `sources`.

        **Raises:** as `sources`.
        """
        sources = self.sources()
        return fields.choices(self) | ({"sources": sources} if sources else {})

    def sources(self) -> dict[str, str]:
        """Of each function of a user's own, a digest of the file that it stands in.

        **Raises:** `ValueError` where there is no such function, or it takes other arguments.
        """
        return {one.name: one.source_digest() for one in self.networks if one.reference}

    def differences(self, other: dict[str, Any]) -> list[str]:
        """What is chosen otherwise in `other`, of the fields that change what is found."""
        missing = object()
        found = []
        for field, own in of_results(self.choices()).items():
            theirs = other.get(field, missing)
            if theirs != own:
                shown = "nothing" if theirs is missing else repr(theirs)
                found.append(f"`{field}`: {shown} there, {own!r} now")
        return found

    def command(self) -> str:
        """The command that runs this study again."""
        default = StudyConfig().choices()
        words = ["finite-width", "study"]
        for field, value in self.choices().items():
            if field in (*_OF_THE_MACHINE, "sources") or value == default[field]:
                continue
            flag = field.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
                continue
            values = value if isinstance(value, list) else [value]
            words += [f"--{flag}", *map(str, values)]
        return shlex.join(words)

    def _default_name(self) -> str:
        choices = json.dumps(of_results(self.choices()), sort_keys=True)
        digest = hashlib.sha256(choices.encode()).hexdigest()
        return f"{Path(self.dataset).stem}-{digest[:8]}"


def of_results(choices: dict[str, Any]) -> dict[str, Any]:
    """The choices that change what a study finds."""
    return {name: value for name, value in choices.items() if name not in _NOT_OF_RESULTS}


def _as_float(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_as_float(one) for one in value)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_whole else value


PRESETS: dict[str, StudyConfig] = {
    "quick": StudyConfig(
        widths=(32, 128),
        channels=(4, 16),
        base_channels=(4, 8),
        seeds=(0, 1),
        taylor_orders=(),
        measures=("rates",),
        fast_compilation=True,
        predicted_kernels=False,
    ),
    "default": StudyConfig(),
    "paper": StudyConfig(
        n_train=48,
        n_test=96,
        widths=(32, 64, 128, 256, 512, 1024),
        channels=(8, 16, 32, 64, 128),
        base_channels=(4, 8, 16, 32, 64),
        activations=("tanh", "gelu"),
        losses=("cross_entropy", "mean_squared_error"),
        seeds=tuple(range(10)),
    ),
}
"""Studies with a name: minutes, the better part of an hour, and a weekend on two cores."""
