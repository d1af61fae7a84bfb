"""Whether a call with a hostile value ended well: refused by name, marked as failed, or right."""

import contextlib
import inspect
import re
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import corrections
import solvers
import zoo
from tests.hostile import arguments
from tests.hostile.calls import Call, CALLS, public
from tests.hostile.values import ALL, cast, Hostile, KINDS, NUMERIC, ONE

FOLDERS = [str(Path(package.__file__).parent) for package in (zoo, corrections, solvers)]
SMALLEST, LARGEST = 1e3 * np.finfo(np.float32).tiny, 1e-3 * np.finfo(np.float32).max
"""What is smaller may be lost on the way, to zero; what is larger, to no number at all."""
FAILURES = (solvers.SolverError, zoo.NoLimitError)
"""What a solve raises that has failed: its result, marked."""
PASSED = {"nan", "infinity", "complex", "no parameters", "no entries", "empty"}
"""Values that may go into what is returned, where this is right."""
OF_SHAPE = {"longer", "wider", "empty", "no entries"}
"""Values that do not fit others, which may be named in their place."""


class Cell(NamedTuple):
    """One call: a hostile value in the place of an argument."""

    function: str
    argument: str
    value: str

    @property
    def hostile(self) -> Hostile:
        """The value, by the kind of the argument."""
        if self.argument == ALL:
            return Hostile(lambda valid: valid, computes=True)
        return KINDS[self.kind][self.value]

    @property
    def kind(self) -> str:
        """The kind of the argument."""
        return (
            ALL
            if self.argument == ALL
            else arguments.kind_and_value(self.function, self.argument)[0]
        )

    @property
    def computes(self) -> bool:
        """Whether a result may come."""
        call = CALLS[self.function]
        passed = self.argument in call.passes and self.value in PASSED
        return self.hostile.computes or passed or (self.argument, self.value) in call.takes

    def __str__(self) -> str:
        return f"{self.function}({self.argument}={self.value})"


@contextlib.contextmanager
def precision(bits: int) -> Iterator[None]:
    """JAX's default floating-point type, of 32 or 64 bits."""
    before = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_x64", bits == 64)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def valid_arguments(function: str, *argument: str) -> dict[str, Any]:
    """A valid call in float64: what the function needs, and these arguments with what they need."""
    fn = public()[function]
    names = [*arguments.required(fn), *argument]
    for name in argument:
        names += arguments.NEEDS.get(name, [])
    parameters = inspect.signature(fn).parameters
    with precision(64):
        given = {
            name: arguments.kind_and_value(function, name)[1]()
            for name in names
            if name in parameters and name != "call_options"
        }
    return dict(CALLS[function].given) | given | dict(CALLS[function].settings.get(argument, {}))


def hostile_arguments(cell: Cell) -> dict[str, Any]:
    """The call of a cell, in float32."""
    if cell.argument == ALL:
        return cast(_of_one_example(cell.function), np.float32)
    given = cast(valid_arguments(cell.function, cell.argument), np.float32)
    given[cell.argument] = cell.hostile.make(given[cell.argument])
    return given


def _of_one_example(function: str) -> dict[str, Any]:
    """A valid call in float64 with data of one example."""
    given = valid_arguments(function)
    for name, value in given.items():
        cut = ONE.get(arguments.kind_and_value(function, name)[0])
        given[name] = value if cut is None else cut(value)
    return given


def outcome(cell: Cell) -> str | None:
    """What is wrong with how the call ended, or None."""
    given = hostile_arguments(cell)
    call = CALLS[cell.function]
    try:
        result, found = _called(cell.function, call, given)
    except FAILURES:
        return None
    except Exception as error:
        return _badly_refused(cell, error)
    if _is_marked(result):
        return None
    if not cell.computes:
        return f"was computed with, result {_short(found)}"
    return _wrong(cell, call, given, found)


def _called(function: str, call: Call, given: dict[str, Any]) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = public()[function](**given)
        return result, jax.block_until_ready(call.read(result, given))


def _badly_refused(cell: Cell, error: Exception) -> str | None:
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    own = any(raised_in.startswith(folder) for folder in FOLDERS)
    allowed = isinstance(error, ValueError | TypeError | FileNotFoundError)
    names = [cell.argument, *CALLS[cell.function].names]
    if (
        cell.value in OF_SHAPE
        or cell.argument == ALL
        or (cell.kind, cell.value) == ("model", "complex")
    ):
        names += list(inspect.signature(public()[cell.function]).parameters)
    named = any(re.search(rf"`{re.escape(name)}\b", str(error)) for name in names)
    if own and allowed and named:
        return None
    where = "" if own else f" in {Path(raised_in).name}"
    return f"raised {type(error).__name__}{where}: {str(error).strip()[:200]}"


def _is_marked(result: Any) -> bool:
    """Whether the result says itself that it failed."""
    if isinstance(result, list):
        return any(map(_is_marked, result))
    if isinstance(result, solvers.Comparison):
        return any(map(_is_marked, [result.network, *result.predictions.values()]))
    for name in ("successful", "converged", "valid"):
        mark = getattr(result, name, None)
        if mark is not None and not np.all(np.asarray(mark)):
            return True
    return False


def _wrong(cell: Cell, call: Call, given: dict[str, Any], found: Any) -> str | None:
    """How a result differs from what is right, or None."""
    try:
        if call.why_none:
            return None
        truths = [*_in_float64(cell, call, given), *_by_law(cell, call)]
    except Exception as error:
        return f"has no twin: {type(error).__name__}: {str(error)[:200]}"
    if not truths:
        return f"has no truth for `{cell.argument}`"
    unit = call.unit
    if cell.argument in call.additive:
        sizes = [
            np.max(np.abs(leaf)) for leaf in jax.tree.leaves(cast(given[cell.argument], float))
        ]
        unit = float(max(unit, *sizes))
    return next(filter(None, (_difference(found, one, call, cell, unit) for one in truths)), None)


def _in_float64(cell: Cell, call: Call, given: dict[str, Any]) -> Iterator[Any]:
    """What the call gives in float64, or what it has to give."""
    if not (call.twin or call.exact):
        return
    if cell.argument == ALL:
        exact = _of_one_example(cell.function)
    else:
        exact = valid_arguments(cell.function, cell.argument)
    with precision(64):
        numeric = cell.kind in NUMERIC
        if cell.argument != ALL and cell.kind not in ("tolerance", "chunk"):
            exact[cell.argument] = cast(given[cell.argument], np.float64, integers=numeric)
        if call.exact is not None:
            yield call.exact(**exact)
        if call.twin:
            yield jax.device_get(_called(cell.function, call, exact)[1])


def _by_law(cell: Cell, call: Call) -> Iterator[Any]:
    """What a scaling law says of a multiple of a valid argument."""
    degree, factor = call.degrees.get(cell.argument), cell.hostile.factor
    if cell.hostile.same:
        degree, factor = 0, 1.0
    if degree is None or factor is None or (factor == 0 and degree <= 0):
        return
    valid = cast(valid_arguments(cell.function, cell.argument), np.float32)
    base = _called(cell.function, call, valid)[1]
    scale = factor**degree
    yield base if scale == 1 else jax.tree.map(lambda leaf: np.asarray(leaf, float) * scale, base)


def _difference(found: Any, expected: Any, call: Call, cell: Cell, unit: float) -> str | None:
    """How the leaves of two results differ beyond rounding to the type of `found`, or None."""
    leaves, leaves_expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    if len(leaves) != len(leaves_expected):
        return f"has {len(leaves)} parts, expected {len(leaves_expected)}"
    for one, other in zip(leaves, leaves_expected, strict=True):
        if isinstance(one, str) or callable(one):
            if one != other and isinstance(one, str):
                return f"is {one!r}, expected {other!r}"
            continue
        got, want = np.asarray(one), np.asarray(other)
        if got.shape != want.shape:
            return f"has shape {got.shape}, expected {want.shape}"
        if np.iscomplexobj(got):
            got, want = (np.stack([a.real, a.imag]) for a in (got, want))
        precise = jnp.issubdtype(got.dtype, jnp.inexact)
        eps = float(jnp.finfo(got.dtype).eps) if precise else 0.0
        with np.errstate(all="ignore"):
            rounded = want.astype(got.dtype) if precise else want
            rounded, got = rounded.astype(float), got.astype(float)
            size = np.max(np.abs(rounded[np.isfinite(rounded)]), initial=0.0)
            floor = max(size if eps > 1e-4 else 0.1 * size, unit)
            allowed = max(call.tolerance, 4 * eps) * np.maximum(np.abs(rounded), floor)
            close = np.abs(got - rounded) <= allowed + (SMALLEST if precise else 0)
            overflow = ~np.isfinite(got) & ~(np.abs(rounded) < LARGEST)
            agree = close | overflow | (got == rounded) | (np.isnan(got) & np.isnan(want))
        if np.any(np.isnan(got)) and not np.all(agree):
            return f"holds NaN, expected {_short(rounded)}"
        if not np.all(agree):
            return f"is {_short(got)}, expected {_short(rounded)}"
        if np.any(np.isnan(got) & ~overflow) and cell.argument not in call.passes:
            return "is NaN, and not marked"
    return None


def _short(tree: Any) -> str:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if not callable(leaf)]
    text = " ".join(
        np.array2string(leaf.ravel()[:4].astype(float), precision=4)
        if leaf.dtype.kind not in "USOc"
        else str(leaf)
        for leaf in leaves[:2]
    )
    return text[:160]


def cells(package: ModuleType) -> list[Cell]:
    """Every hostile value of every argument of every public function of a package."""
    of_one = [
        Cell(function, ALL, "one example")
        for function in CALLS
        if hasattr(package, function) and _has_data(function)
    ]
    return of_one + [
        Cell(function, argument, value)
        for function in CALLS
        if hasattr(package, function)
        for parameters in [inspect.signature(public()[function]).parameters]
        for argument in parameters
        for value in KINDS[arguments.kind_and_value(function, argument)[0]]
        if value != "nothing" or parameters[argument].default is inspect.Parameter.empty
    ]


def _has_data(function: str) -> bool:
    names = arguments.required(public()[function])
    return any(arguments.kind_and_value(function, name)[0] in ONE for name in names)


def parameters(package: ModuleType) -> list[Any]:
    """The cells of a package as parameters of a test: those that compute are long."""
    return [
        pytest.param(cell, marks=[pytest.mark.long] if cell.computes else [], id=str(cell))
        for cell in cells(package)
    ]
