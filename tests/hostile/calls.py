"""Every public function: what of its result is looked at, and the truth that this is held to.

The functions come from the packages themselves, their arguments from their signatures. A function
that is added has to be given a truth here, and its arguments a kind in `arguments`.
"""

import dataclasses
import enum
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import corrections
import solvers
import zoo
from tests.hostile import arguments

PACKAGES = (zoo, corrections, solvers)


@functools.cache
def public() -> dict[str, Any]:
    """Everything callable that the packages export."""
    return {
        name: value
        for package in PACKAGES
        for name, value in vars(package).items()
        if not name.startswith("_") and not inspect.ismodule(value) and callable(value)
    }


def is_asked(name: str, value: Any) -> bool:
    """Whether users call it with arguments of their own: no exceptions, enumerations, abstract
    classes, and no records, which hold what a function has found.
    """
    if not isinstance(value, type):
        return True
    if issubclass(value, BaseException | enum.Enum | tuple | eqx.Enumeration):
        return False
    if inspect.isabstract(value) or not inspect.signature(value).parameters:
        return False
    return _checks_arguments(value) or name not in _records()


def _checks_arguments(cls: type) -> bool:
    own = any("def __init__(" in inspect.getsource(base) for base in _own_bases(cls))
    return own or any(hasattr(cls, check) for check in ("__check_init__", "__post_init__"))


def _own_bases(cls: type) -> list[type]:
    names = tuple(package.__name__ for package in PACKAGES)
    return [base for base in cls.__mro__ if base.__module__.split(".")[0] in names]


@functools.cache
def _records() -> frozenset[str]:
    """Classes that public functions and methods return, and those in the fields of such records."""
    names = {name for name, value in public().items() if isinstance(value, type)}

    def named_in(annotation: Any) -> set[str]:
        return names & set(re.findall(r"\w+", str(annotation)))

    found: set[str] = set()
    for value in public().values():
        for fn in _functions_of(value):
            found |= named_in(inspect.signature(fn).return_annotation)
    for _ in range(3):  # fields of fields
        for name in list(found):
            cls = public()[name]
            if dataclasses.is_dataclass(cls) and not _checks_arguments(cls):
                for field in dataclasses.fields(cls):
                    found |= named_in(field.type)
    return frozenset(found)


def _functions_of(value: Any) -> Iterator[Any]:
    if not isinstance(value, type):
        yield value
        return
    for name, member in vars(value).items():
        member = member.fget if isinstance(member, property) else member
        if inspect.isfunction(member) and not name.startswith("_"):
            yield member


@dataclasses.dataclass(frozen=True)
class Call:
    """How a function is called and judged.

    - `twin`: the result is that of the same call in float64.
    - `degrees`: scaling laws, the power of an argument that the result goes with.
    - `exact`: what the result has to be, from the arguments by name in float64.
    - `why_none`: why nothing is computed that could be wrong.
    - `read`: what is looked at, from the result and the arguments.
    - `given`: arguments that every call is given.
    - `settings`: what is given with an argument besides.
    - `takes`: (argument, value) that most functions have to refuse and this one has a meaning for.
    - `names`: what else messages may name, arguments of the models that are called.
    - `additive`: arguments in whose units results are, so that large ones are rounded in theirs.
    - `unit`: of results, against which small ones are compared.
    - `passes`: arguments that go into what it returns as they are: NaN where they hold NaN.
    """

    twin: bool = False
    degrees: Mapping[str, float] = dataclasses.field(default_factory=dict)
    exact: Callable[..., Any] | None = None
    why_none: str = ""
    read: Callable[[Any, dict[str, Any]], Any] = lambda result, given: result
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tolerance: float = 2e-3
    settings: Mapping[tuple[str, ...], Any] = dataclasses.field(default_factory=dict)
    takes: frozenset[tuple[str, str]] = frozenset()
    passes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    unit: float = 0.0
    additive: tuple[str, ...] = ()

    @property
    def has_truth(self) -> bool:
        """Whether something says what is right."""
        return bool(self.twin or self.degrees or self.exact or self.why_none)


def _twin(**options: Any) -> Call:
    return Call(twin=True, **options)


def _solve(**options: Any) -> Call:
    """Of outputs in time, to which outputs at the start and targets add."""
    return _twin(**{"read": _outputs, "additive": ("y", "f0", "f0_test")} | options)


def _outputs(found: Any, given: Any) -> Any:
    return found.train, found.test


def _on(xs: np.ndarray) -> Callable[[Any, Any], Any]:
    """Reads a model by its outputs."""
    return lambda net, given: jax.vmap(net)(jnp.asarray(xs, _dtype_of(net)))


def _dtype_of(net: Any) -> Any:
    leaves = [leaf for leaf in jax.tree.leaves(zoo.parameters(net)) if not jnp.iscomplexobj(leaf)]
    return leaves[0].dtype if leaves else jnp.asarray(1.0).dtype


def _product(operator: Any, given: Any) -> Any:
    structure = operator.in_structure()
    return operator.mv(jnp.ones(structure.shape, structure.dtype))


def _step(x: Any) -> Any:
    return np.where(np.isnan(x), np.nan, np.asarray(x) > 0)


IMAGES = np.cos(np.arange(2 * 16.0)).reshape(2, 1, 4, 4)
CHANNELS = np.cos(np.arange(2 * 8.0)).reshape(2, 2, 2, 2)
VECTORS = arguments.X


def _weights_aside(net: Any, given: Any) -> Any:
    """A network drawn by a key: its shapes, since float32 and float64 draw other numbers."""
    return [np.asarray(leaf.shape) for leaf in jax.tree.leaves(zoo.parameters(net))]


CALLS: dict[str, Call] = {
    # zoo
    "activation_function": _twin(read=lambda phi, given: phi(jnp.linspace(-1, 1, 5))),
    "monomial": Call(
        exact=lambda degree: np.linspace(-1, 1, 5) ** degree,
        read=lambda phi, given: phi(jnp.linspace(-1, 1, 5)),
    ),
    "step": Call(exact=_step, passes=("x",)),
    "CNN": _twin(read=_weights_aside, given={"channels": 2, "depth": 1}),
    "WideResNet": _twin(read=_weights_aside),
    "MLP": _twin(read=_weights_aside, given={"depth": 1}),
    "Dense": _twin(read=_weights_aside),
    "Conv": _twin(read=_weights_aside),
    "BatchNorm": _twin(read=_on(CHANNELS)),
    "GroupNorm": _twin(read=_on(CHANNELS)),
    "HermiteDual": _twin(
        read=lambda dual, given: dual.values(
            zoo.GaussianPair(*jnp.array([[1.0], [0.5], [1.0], [1.0], [0.75]]))
        ),
    ),
    "from_hugging_face": _twin(read=lambda found, given: (found.x_train, found.y_train)),
    "load": _twin(
        read=lambda found, given: (found.x_train, found.y_train),
        given={"n_train": 3, "n_test": 2},
        settings={("root",): {"name": "mnist"}},
    ),
    "memory_limit": Call(
        why_none="nothing is computed: a setting, tests/zoo/common",
        takes=frozenset({("size", "huge")}),
    ),
    "astype": Call(why_none="nothing is computed: numbers are rounded to the type asked for"),
    "from_flax": Call(why_none="a network of Flax is called as it is"),
    "Frozen": Call(why_none="holds what it is given"),
    "ContractionRule": Call(why_none="holds functions; kernels of its layers are tested elsewhere"),
    "Transposed": Call(why_none="holds functions; kernels of its layers are tested elsewhere"),
    "register_contraction_rule": Call(why_none="keeps functions, as `ContractionRule`"),
    "register_limit_rule": Call(why_none="keeps a function; limits of its layers are elsewhere"),
    "RungeKuttaChebyshev": Call(why_none="holds a number; flows that take it are asked"),
    "limit": _twin(
        passes=("model",),
        read=lambda net, given: net.ntk(jnp.asarray(VECTORS, _dtype_of(given["model"]))),
    ),
    "critical_weight_std": _twin(),
    "signal_propagation": _twin(
        unit=1.0,
        read=lambda found, given: (found.variance, found.correlation, found.susceptibility),
    ),
    "summary": _twin(passes=("model",), read=lambda found, given: found.parameters),
    "learning_rates": _twin(),
    "reparameterize": _twin(read=_on(VECTORS), passes=("model",)),
    "Sequential": _twin(read=_on(VECTORS), takes=frozenset({("layers", "no entries")})),
    "record": _twin(read=lambda found, given: found[0], passes=("model", "x")),
    "parameters": _twin(),
    "forward_train": _twin(
        read=lambda found, given: found[0], passes=("model", "xs"), names=("x",)
    ),
    "centered": _twin(read=_on(VECTORS), passes=("model",)),
    "scaled": _twin(read=_on(VECTORS), degrees={"alpha": 1}, passes=("model",)),
    "with_output": _twin(read=_on(VECTORS), passes=("model",)),
    # corrections
    "contraction_summary": _twin(read=lambda found, given: found.contracted),
    "linearity_bound": _twin(
        unit=1e-3,
        read=lambda found, given: (found.deviation, found.bound, found.hessian.value),
        given={"samples": 2},
    ),
    "row_space_fraction": _twin(),
    "extreme_eigenvalues": _twin(degrees={"operator": 1}, read=lambda found, given: found.values),
    "spectral_density": Call(  # as many products as there are eigenvalues
        exact=lambda operator, **rest: np.linalg.eigvalsh(operator.matrix),
        degrees={"operator": 1},
        read=lambda found, given: jnp.sort(found.nodes[0]),
        given={"matvecs": 3},
    ),
    "spectrum": _twin(degrees={"kernel": 1}, read=lambda found, given: found.eigenvalues),
    "activation_distance": _twin(),
    "function_distance": _twin(),
    "kernel_distance": _twin(degrees={"first": 0, "second": 0}),
    "kernel_velocity": _twin(),
    "relative_change": _twin(names=("before",)),
    "smallest_ntk_eigenvalue": _twin(unit=1.0),
    "ddntk": _twin(),
    "dntk": _twin(),
    "o3": _twin(),
    "o4": _twin(),
    "nngp": _twin(),
    "ntk": _twin(degrees={"metric": 1}),
    "kernel_target_alignment": _twin(degrees={"kernel": 0, "y": 0}),
    "kernel_rates": _twin(),
    "error_barrier": _twin(),
    "interpolate": _twin(read=_on(VECTORS), passes=("first", "second")),
    "weight_path": _twin(names=("models",), read=lambda found, given: found.explained),
    "hessian_norm": _twin(read=lambda found, given: found.value),
    "jacobian_norm": _twin(read=lambda found, given: found.value),
    "kappa": _twin(read=lambda found, given: found.value, tolerance=2e-2),
    "LossHessian": _twin(
        read=lambda found, given: found.mv(zoo.parameters(given["model"])),
    ),
    "monte_carlo_kernels": _twin(read=lambda found, given: (found.nngp, found.ntk)),
    "NTKOperator": _twin(read=_product),
    "NTKCoefficient": _twin(read=_product, takes=frozenset({("path", "no entries")})),
    "taylor_coefficients": _twin(passes=("theta", "path", "fn")),
    "taylor_terms": _twin(),
    "taylorize": _twin(read=_on(VECTORS), passes=("model", "at")),
    # solvers
    "KernelBlocks": _twin(read=_product, names=("kernel_fn",)),
    "hierarchy_flow": _solve(),
    "parameter_flow": _solve(),
    "compare_predictions": _twin(
        read=lambda found, given: (
            found.network.train,
            [part.train for part in found.predictions.values()],
        ),
        given={"predictions": ["order 2"]},
        settings={
            ("momentum",): {"predictions": ["order 2 descent"]},
            ("optimizer",): {"predictions": ["Taylor 1 descent"], "ts": np.array([1.0, 2.0])},
        },
    ),
    "gradient_descent": _solve(degrees={"y": 1}),
    "width_expansion": _twin(read=lambda found, given: (found.train0, found.train1)),
    "width_expansion_descent": _twin(read=lambda found, given: (found.train0, found.train1)),
    "gradient_flow": _solve(),
    "posterior": _solve(),
    "ensemble": _solve(unit=1.0, names=("nngp", "ntk")),
    "CrossEntropy": _twin(
        read=lambda loss, given: loss(jnp.array([1.0, -1.0]), jnp.array([0.0, 1.0]))
    ),
    "scale_by_metric": _twin(
        degrees={"metric": 1},
        read=lambda scaling, given: scaling.update(
            arguments.direction(), scaling.init(arguments.direction())
        )[0],
    ),
    "linearized_model": _twin(read=_on(VECTORS)),
    "mse_descent": _solve(degrees={"y": 1}),
    "mse_flow": _solve(degrees={"y": 1}),
    "mse_flow_operator": _solve(degrees={"y": 1}),
    "kernel_regression": _solve(unit=1.0, additive=("y", "model")),
    "spawn": _twin(
        read=lambda found, given: [child.history.train_loss for child in found],
        given={"loss": arguments.LOSS, "optimizer": optax.sgd(0.125)},
    ),
    "catapult_map": _twin(),
    "max_learning_rate": _twin(degrees={"kernel": -1}),
    "training_phase": _twin(),
    "AtLoss": Call(why_none="holds a number; flows that take it are asked"),
    "AtAccuracy": Call(why_none="holds a number; flows that take it are asked"),
    "train_ensemble": _twin(read=lambda found, given: found.history.train_loss),
    "train": _twin(read=lambda found, given: found.history.train_loss),
    "initial_state": _twin(read=lambda found, given: found.parameters),
    "log_spaced": Call(
        exact=lambda steps, per_decade=10: (0, steps),
        read=lambda found, given: (found[0], found[-1]),
    ),
}
"""Public function -> how it is judged."""
