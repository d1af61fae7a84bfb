"""The architectures that scripts build by name: the zoo's, each described once, and a user's own.

Reading and checking a name takes no JAX; what is built is imported when it is first asked for. A
function of a user's is named by where it is imported from, `module:function`, so that other
processes find it too.
"""

import functools
import hashlib
import importlib
import inspect
import itertools
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Shape = tuple[int, ...]
"""Of one example, without the axis of examples: an image (channels, height, width), or a vector."""
_REFERENCE = r"(?:(?P<name>\w[\w.-]*)=)?(?P<module>\w+(?:\.\w+)*):(?P<function>\w+(?:\.\w+)*)"
SIGNATURE = "(in_shape, out_size, *, width, depth, activation, parameterization, key)"
"""Of a user's function."""


@dataclass(frozen=True)
class Layer:
    """What a layer costs.

    - `kind`: of the program.
    - `parameters`, `positions`: their product is the multiplications of an example.
    - `outputs`: channels that it gives, at each position.
    """

    kind: Literal["dense", "conv"]
    parameters: int
    positions: int
    outputs: int


@dataclass(frozen=True)
class Architecture:
    """Networks that are built by one function.

    - `name`: in configs and results.
    - `make`: `make(in_shape, out_size, *, width, depth, activation, parameterization, key)`, and
      further options of the zoo's networks, gives a model.
    - `layers`: `layers(in_shape, out_size, *, width, depth)` tells the costs; None: they are those
      of the parameters of a model.
    - `reference`: `module:function` of a user's own; None for the zoo's.
    - `widths`, `depths`: the fields of a study that hold its own.
    - `options`: fields of a study beside these, each with the argument that it is.
    - `takes_images`: whether vectors are refused.
    - `field`: the choice that named it, for errors.
    """

    name: str
    make: Callable[..., Any]
    layers: Callable[..., list[Layer]] | None = None
    reference: str | None = None
    widths: str = "widths"
    depths: str = "depths"
    options: tuple[tuple[str, str], ...] = ()
    takes_images: bool = False
    field: str = "architectures"

    def source_digest(self) -> str:
        """A digest of the file that a user's function stands in.

        **Raises:** `ValueError` where it cannot be imported, or has no source.
        """
        module = inspect.getmodule(imported(self.reference or "", self.field))
        try:
            source = Path(inspect.getsourcefile(module) or "").read_bytes()  # pyright: ignore[reportArgumentType]
        except (OSError, TypeError) as error:
            raise ValueError(
                f"`{self.field}` has {self.reference}, whose source cannot be read ({error}), "
                "expected a function of a Python file: its digest tells one study from another."
            ) from error
        return hashlib.sha256(source).hexdigest()[:16]

    def costs(
        self, in_shape: Shape, out_size: int, *, width: int, depth: int, activation: str
    ) -> list[Layer]:
        """What its layers cost at this size, without computing anything."""
        if self.layers is not None:
            return self.layers(in_shape, out_size, width=width, depth=depth)
        return _costs_of_parameters(self, in_shape, out_size, width, depth, activation)


def _mlp(in_shape: Shape, out_size: int, *, width: Any, **options: Any) -> Any:
    from zoo import MLP

    return MLP(math.prod(in_shape), out_size, width=width, **options)


def _cnn(in_shape: Shape, out_size: int, *, width: Any, **options: Any) -> Any:
    from zoo import CNN

    return CNN(in_shape, out_size, channels=width, **options)


def _wide_resnet(in_shape: Shape, out_size: int, *, width: int = 16, **options: Any) -> Any:
    from zoo import WideResNet

    return WideResNet(in_shape, out_size, base_channels=width, **options)


def _mlp_layers(in_shape: Shape, out_size: int, *, width: int, depth: int) -> list[Layer]:
    sizes = [math.prod(in_shape), *[width] * depth, out_size]
    return [Layer("dense", a * b, 1, b) for a, b in itertools.pairwise(sizes)]


def _cnn_layers(in_shape: Shape, out_size: int, *, width: int, depth: int) -> list[Layer]:
    channels, positions = in_shape[0], math.prod(in_shape[1:])
    pairs = itertools.pairwise([channels, *[width] * depth])
    convolutions = [Layer("conv", 9 * a * b, positions, b) for a, b in pairs]
    return [*convolutions, Layer("dense", width * positions * out_size, 1, out_size)]


def _wide_resnet_layers(in_shape: Shape, out_size: int, *, width: int, depth: int) -> list[Layer]:
    channels, positions = in_shape[0], math.prod(in_shape[1:])
    found = [Layer("conv", 9 * channels * width, positions, width)]
    before = width
    for group in range(3):
        after = width * 2**group
        if group:
            positions = max(1, positions // 4)
        for _ in range((depth - 4) // 6):
            found.append(Layer("conv", 9 * before * after, positions, after))
            found.append(Layer("conv", 9 * after * after, positions, after))
            if before != after:
                found.append(Layer("conv", before * after, positions, after))
            before = after
    return [*found, Layer("dense", before * out_size, 1, out_size)]


_STDS = (("weight_std", "weight_std"), ("bias_std", "bias_std"))
MLP = Architecture("MLP", _mlp, _mlp_layers, options=_STDS)
CNN = Architecture(
    "CNN",
    _cnn,
    _cnn_layers,
    widths="channels",
    options=(*_STDS, ("cnn_readout", "readout")),
    takes_images=True,
)
WIDE_RESNET = Architecture(
    "WideResNet",
    _wide_resnet,
    _wide_resnet_layers,
    widths="base_channels",
    depths="resnet_depths",
    options=(*_STDS, ("resnet_norm", "norm")),
    takes_images=True,
)
ARCHITECTURES = {one.name: one for one in (MLP, CNN, WIDE_RESNET)}
"""Those of the zoo, by name."""


def written(architectures: Any) -> Any:
    """What a user gave in place of names: a mapping of names to functions, or functions among the
    names, as names; anything else as it came.
    """
    if isinstance(architectures, Mapping):
        return tuple(_entry(value, str(name)) for name, value in architectures.items())
    if isinstance(architectures, Sequence) and not isinstance(architectures, str):
        return tuple(_entry(value) if callable(value) else value for value in architectures)
    return architectures


def _entry(value: Any, name: str = "") -> str:
    """`module:function` of a function, with the name where it has another."""
    if callable(value):
        own = getattr(value, "__qualname__", repr(value))
        value = f"{getattr(value, '__module__', None)}:{own}"
    return value if name in ("", value) else f"{name}={value}"


def named(entry: Any, field: str = "architectures") -> Architecture:
    """The architecture of a name: the zoo's, `module:function`, or `name=module:function`.

    **Arguments:**

    - `field`: the choice that names it.

    **Raises:** `ValueError` for anything else, before anything is imported.
    """
    if entry in ARCHITECTURES:
        return ARCHITECTURES[entry]
    found = re.fullmatch(_REFERENCE, entry) if isinstance(entry, str) else None
    if found is None or found["module"] == "__main__":
        listed = ", ".join(map(repr, ARCHITECTURES))
        raise ValueError(
            f"`{field}` is {entry!r}, expected one of {listed}, or a function of your own as "
            "'module:function' or 'name=module:function', from a module that can be imported: no "
            "lambda, no function within another, and none of the script that runs."
        )
    name = found["name"] or found["function"].split(".")[-1]
    if name in ARCHITECTURES:
        raise ValueError(
            f"`{field}` has {entry!r}, expected a function of another name than the zoo's "
            f"{name}: 'name=module:function' gives it one."
        )
    reference = f"{found['module']}:{found['function']}"
    make = functools.partial(_made, reference, field)
    return Architecture(name, make, reference=reference, field=field)


def imported(reference: str, field: str = "architectures") -> Callable[..., Any]:
    """The function at `module:function`; the working folder is looked in last.

    **Raises:** `ValueError` where there is none, or it takes other arguments than `SIGNATURE`.
    """
    module_name, _, path = reference.partition(":")
    working_folder = str(Path.cwd())
    if working_folder not in sys.path:
        sys.path.append(working_folder)
    expected = f"expected a function {path}{SIGNATURE} in a module that can be imported"
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does
        raise ValueError(
            f"`{field}` has {reference}, whose module cannot be imported "
            f"({type(error).__name__}: {error}), {expected}, from the working folder too."
        ) from error
    function: Any = module
    for part in path.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        where = getattr(module, "__file__", module_name)
        raise ValueError(f"`{field}` has {reference}: {where} has no such one, {expected}.")
    keywords = dict.fromkeys(("width", "depth", "activation", "parameterization", "key"))
    try:
        inspect.signature(function).bind((1,), 1, **keywords)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{field}` has {reference}, which cannot be called so ({error}), {expected}."
        ) from error
    return function


def _made(reference: str, field: str, in_shape: Shape, out_size: int, **options: Any) -> Any:
    return imported(reference, field)(in_shape, out_size, **options)


def _costs_of_parameters(
    architecture: Architecture,
    in_shape: Shape,
    out_size: int,
    width: int,
    depth: int,
    activation: str,
) -> list[Layer]:
    """From the shapes of the parameters: arrays of more than two axes are taken to be those of
    convolutions at each pixel.
    """
    import equinox as eqx
    import jax

    from zoo import NTK, parameters

    def made() -> Any:
        options = {"width": width, "depth": depth, "activation": activation}
        key = jax.random.key(0)
        return parameters(
            architecture.make(in_shape, out_size, parameterization=NTK, key=key, **options)
        )

    weights = [leaf for leaf in jax.tree.leaves(eqx.filter_eval_shape(made)) if leaf.ndim > 1]
    positions = math.prod(in_shape[1:]) if len(in_shape) > 1 else 1
    return [
        Layer("conv", leaf.size, positions, leaf.shape[0])
        if leaf.ndim > 2
        else Layer("dense", leaf.size, 1, leaf.shape[0])
        for leaf in weights
    ]
