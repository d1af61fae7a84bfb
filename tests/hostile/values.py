"""What can be wrong with an argument, by its kind, and how the result of a call is compared.

A hostile value is made from the valid one. Some have to be refused; of the others a result may
come, which then has to be the right one (`computes`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

TINY, HUGE = 1e-20, 1e20
"""Their squares are no float32 numbers."""


class Hostile(NamedTuple):
    """A hostile value.

    - `make`: from the valid value.
    - `computes`: whether it may be computed with; else it has to be refused.
    - `factor`: for scaling laws, what the valid value was multiplied by.
    - `same`: whether it is the valid value itself, in another form.
    """

    make: Callable[[Any], Any]
    computes: bool = False
    factor: float | None = None
    same: bool = False


def _inexact(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray | jax.Array | np.generic) and jnp.issubdtype(
        leaf.dtype, jnp.inexact
    )


def cast(tree: Any, dtype: Any, integers: bool = False) -> Any:
    """Floating-point arrays of a tree (with `integers` those too) in another type."""
    kinds = (jnp.floating, jnp.integer) if integers else (jnp.floating,)

    def converted(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray | jax.Array | np.generic):
            return leaf
        if not any(jnp.issubdtype(leaf.dtype, kind) for kind in kinds):
            return leaf
        moved = np.asarray(leaf).astype(dtype)
        return moved[()] if isinstance(leaf, np.generic) else jnp.asarray(moved)

    return jax.tree.map(converted, tree)


def _entry(value: Any) -> Callable[[Any], Any]:
    def make(valid: Any) -> Any:
        array = np.array(valid)
        array.flat[0] = value
        return jnp.asarray(array)

    return make


def _times(factor: float) -> Callable[[Any], Any]:
    def scaled(leaf: Any) -> Any:
        return leaf * np.asarray(factor, leaf.dtype) if _inexact(leaf) else leaf

    return lambda valid: jax.tree.map(scaled, valid)


def _as(dtype: Any) -> Callable[[Any], Any]:
    return lambda valid: cast(valid, dtype, integers=True)


def _longer(valid: Any) -> Any:
    return jnp.concatenate([jnp.asarray(valid), jnp.asarray(valid)[-1:]])


def _wider(valid: Any) -> Any:
    return jnp.concatenate([jnp.asarray(valid), jnp.asarray(valid)[..., -1:]], axis=-1)


TEXT = Hostile(lambda valid: "nonsense")
NOTHING = Hostile(lambda valid: None)
THING = Hostile(lambda valid: object())

FLOATS = {
    "nan": Hostile(_entry(np.nan)),
    "infinity": Hostile(_entry(np.inf)),
    "complex": Hostile(_as(np.complex64)),
    "text": TEXT,
    "empty": Hostile(lambda valid: jnp.asarray(valid)[:0]),
    "longer": Hostile(_longer),
    "zero": Hostile(_times(0.0), computes=True, factor=0.0),
    "tiny": Hostile(_times(TINY), computes=True, factor=TINY),
    "huge": Hostile(_times(HUGE), computes=True, factor=HUGE),
    "half": Hostile(_as(np.float16), computes=True, same=True),
    "bfloat16": Hostile(_as(jnp.bfloat16), computes=True, same=True),
    "integer": Hostile(_as(np.int32), computes=True),
}
ROWS = FLOATS | {"wider": Hostile(_wider)}
EXAMPLES = {name: value for name, value in ROWS.items() if name != "longer"}
ANY = {name: value for name, value in EXAMPLES.items() if name != "wider"}
KERNEL = FLOATS | {
    "wider": Hostile(_wider),
    "empty": Hostile(lambda valid: jnp.asarray(valid)[:0, :0]),
    "asymmetric": Hostile(lambda valid: jnp.asarray(valid).at[0, -1].add(2.0)),
    "negative": Hostile(lambda valid: -valid, computes=True),
}
del KERNEL["longer"]
TIMES = {
    "nan": Hostile(_entry(np.nan)),
    "infinity": Hostile(lambda valid: jnp.asarray([0.5, jnp.inf]), computes=True),
    "infinity first": Hostile(_entry(np.inf)),
    "negative": Hostile(_entry(-1.0)),
    "falling": Hostile(lambda valid: jnp.asarray(valid)[::-1]),
    "complex": Hostile(_as(np.complex64)),
    "text": TEXT,
    "empty": Hostile(lambda valid: jnp.asarray(valid)[:0]),
    "matrix": Hostile(lambda valid: jnp.asarray(valid)[None]),
    "number": Hostile(lambda valid: 1.0),
    "zero": Hostile(lambda valid: jnp.zeros(len(valid)), computes=True),
    "tiny": Hostile(_times(TINY), computes=True),
    "half": Hostile(_as(np.float16), computes=True, same=True),
    "integer": Hostile(lambda valid: jnp.arange(1, 1 + len(valid)), computes=True),
}
MOMENTS = {name: value for name, value in TIMES.items() if name != "negative"}
COUNTS = {
    "nan": Hostile(lambda valid: [float("nan")]),
    "infinity": Hostile(lambda valid: [float("inf")]),
    "negative": Hostile(lambda valid: [-1]),
    "fraction": Hostile(lambda valid: [0.5]),
    "falling": Hostile(lambda valid: list(valid)[::-1]),
    "complex": Hostile(lambda valid: np.asarray(valid, complex)),
    "text": TEXT,
    "matrix": Hostile(lambda valid: np.asarray(valid)[None]),
    "number": Hostile(lambda valid: 3),
    "huge": Hostile(lambda valid: [2**70]),
}
INDICES = {
    "nan": Hostile(lambda valid: np.asarray(valid) * np.nan),
    "negative": Hostile(lambda valid: np.asarray(valid) - 1),
    "too large": Hostile(lambda valid: np.asarray(valid) + 100),
    "fraction": Hostile(lambda valid: np.asarray(valid) + 0.5),
    "text": TEXT,
    "empty": Hostile(lambda valid: np.asarray(valid)[:0]),
    "number": Hostile(lambda valid: 0),
}


def _number(value: Any, computes: bool = False, factor: float | None = None) -> Hostile:
    return Hostile(lambda valid: value, computes, factor)


NOT_A_NUMBER = {
    "nan": _number(float("nan")),
    "infinity": _number(float("inf")),
    "complex": _number(1j),
    "text": TEXT,
    "list": _number([]),
    "empty": _number(np.zeros(0)),
    "two": _number(np.ones(2)),
}
FORMS = {
    "half": Hostile(lambda valid: np.float16(valid), computes=True, same=True),
    "bfloat16": Hostile(lambda valid: jnp.bfloat16(valid), computes=True, same=True),
    "array": Hostile(lambda valid: jnp.asarray(float(valid)), computes=True, same=True),
    "integer": _number(1, computes=True),
}
REAL = (
    NOT_A_NUMBER
    | FORMS
    | {
        "zero": _number(0.0, computes=True, factor=0.0),
        "one": _number(1.0, computes=True),
        "negative": _number(-1.0, computes=True),
        "tiny": Hostile(lambda valid: valid * TINY, True, TINY),
        "huge": Hostile(lambda valid: valid * HUGE, True, HUGE),
    }
)
NONNEGATIVE = REAL | {"negative": _number(-1.0)}
POSITIVE = NONNEGATIVE | {"zero": _number(0.0)}
SHARE = NONNEGATIVE | {"one": _number(1.0), "huge": _number(HUGE), "integer": _number(1)}
PART = NONNEGATIVE | {"huge": _number(HUGE)}
TOLERANCE = NOT_A_NUMBER | {
    "negative": _number(-1.0),
    "zero": _number(0.0, computes=True),
    "tiny": _number(TINY, computes=True),
}
NOT_A_COUNT = {
    "nan": _number(float("nan")),
    "infinity": _number(float("inf")),
    "complex": _number(1j),
    "text": TEXT,
    "list": _number([]),
    "fraction": _number(1.5),
    "negative": _number(-1),
    "boolean": _number(True),
    "float": Hostile(lambda valid: float(valid)),
}
ORDER = NOT_A_COUNT | {
    "numpy": Hostile(lambda valid: np.int64(valid), computes=True, same=True),
    "zero": _number(0, computes=True),
}
COUNT = ORDER | {"zero": _number(0), "huge": _number(2**70)}
CHUNK = COUNT | {
    "one": _number(1, computes=True),
    "huge": _number(2**70, computes=True),
}
CHOICE = {
    "another": TEXT,
    "number": _number(3),
    "nan": _number(float("nan")),
    "list": _number([]),
}
FUNCTION = {
    "number": _number(3),
    "text": TEXT,
    "gives text": Hostile(lambda valid: lambda *args, **options: "nonsense"),
}
GIVES_NAN = {
    "gives nan": Hostile(
        lambda valid: lambda *args: jax.tree.map(lambda out: out * jnp.nan, valid(*args)),
        computes=True,
    )
}
GIVES_PAIR = {
    "gives two": Hostile(lambda valid: lambda *args: (valid(*args),) * 2),
}
AXIS = {name: value for name, value in CHOICE.items() if name != "number"}
OTHER = {"number": _number(3), "text": TEXT, "thing": THING}
NAME = {"number": _number(3), "another": TEXT, "list": _number([])}
KEY = {
    "nothing": NOTHING,
    "integer": _number(0),
    "nan": _number(float("nan")),
    "text": TEXT,
    "floats": _number(np.zeros(2, np.float32)),
    "keys": Hostile(lambda valid: jax.random.split(valid)),
}
SHAPE = {
    "nan": Hostile(lambda valid: (float("nan"), *valid[1:])),
    "fraction": Hostile(lambda valid: (1.5, *valid[1:])),
    "zero": Hostile(lambda valid: (0, *valid[1:])),
    "negative": Hostile(lambda valid: (-1, *valid[1:])),
    "text": TEXT,
    "thing": THING,
    "huge": Hostile(lambda valid: (2**70, *valid[1:])),
}
LABELS = {
    "empty": _number([]),
    "nan": _number([float("nan"), 1]),
    "fraction": _number([0.5, 1]),
    "negative": _number([-1, 1]),
    "missing": _number([0, 99]),
    "twice": _number([1, 1]),
    "text": TEXT,
    "number": _number(3),
}


class Identity(eqx.Module):
    """A model without parameters."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def _first_leaf(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def make(tree: Any) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        i = next(i for i, leaf in enumerate(leaves) if _inexact(leaf))
        return jax.tree.unflatten(structure, [*leaves[:i], fn(leaves[i]), *leaves[i + 1 :]])

    return make


TREE = {
    "nan": Hostile(_first_leaf(_entry(np.nan))),
    "infinity": Hostile(_first_leaf(_entry(np.inf))),
    "complex": Hostile(_as(np.complex64)),
    "number": _number(3),
    "text": TEXT,
    "zero": Hostile(_times(0.0), True, 0.0),
    "tiny": Hostile(_times(TINY), True, TINY),
    "huge": Hostile(_times(HUGE), True, HUGE),
    "half": Hostile(_as(np.float16), computes=True),
    "bfloat16": Hostile(_as(jnp.bfloat16), computes=True),
}
MODEL = TREE | {"no parameters": Hostile(lambda valid: Identity()), "nothing": NOTHING}
DIRECTION = TREE | {"longer": Hostile(_first_leaf(_longer)), "nothing": NOTHING}
METRIC = {
    "nan": _number(float("nan")),
    "infinity": _number(float("inf")),
    "negative": _number(-1.0),
    "complex": _number(1j),
    "text": TEXT,
    "two": _number(np.ones(2, np.float32)),
    "tree": _number({"a": 1.0}),
    "zero": _number(0.0, True, 0.0),
    "one": _number(1.0, True),
    "tiny": Hostile(lambda valid: valid * TINY, True, TINY),
    "huge": Hostile(lambda valid: valid * HUGE, True, HUGE),
    "half": Hostile(lambda valid: np.float16(valid), computes=True, same=True),
    "integer": _number(1, computes=True),
}


def _in_operator(values: dict[str, Hostile]) -> dict[str, Hostile]:
    """The same of the matrix of a symmetric operator."""

    def wrapped(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda valid: lx.MatrixLinearOperator(make(valid.matrix), valid.tags)

    left_out = ("text", "integer", "empty", "wider")
    found = {
        name: value._replace(make=wrapped(value.make))
        for name, value in values.items()
        if name not in left_out
    }
    return found | {"text": TEXT}


def _in_list(values: dict[str, Hostile]) -> dict[str, Hostile]:
    """The same of the first entry of a sequence."""

    def wrapped(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda valid: [make(valid[0]), *valid[1:]]

    found = {name: value._replace(make=wrapped(value.make)) for name, value in values.items()}
    return found | {"no entries": _number([]), "number": _number(3), "text": TEXT}


KINDS: dict[str, dict[str, Hostile]] = {
    "kernel": KERNEL,
    "operator": _in_operator(KERNEL),
    "kernels": _in_list(ROWS),
    "floats": ANY,  # of any shape
    "columns": FLOATS,  # as many rows as another argument
    "rows": ROWS,  # and as many columns
    "examples": EXAMPLES,  # as many columns
    "pairs": _in_list(EXAMPLES),
    "times": TIMES,
    "moments": MOMENTS,
    "step counts": COUNTS,
    "indices": INDICES,
    "real": REAL,
    "nonnegative": NONNEGATIVE,
    "positive": POSITIVE,
    "share": SHARE,
    "part": PART,
    "tolerance": TOLERANCE,
    "order": ORDER,
    "count": COUNT,
    "chunk": CHUNK,
    "choice": CHOICE,
    "axis": AXIS,
    "choices": _in_list(CHOICE),
    "array": {name: value for name, value in ANY.items() if name != "text"},
    "traced": {"number": _number(3), "text": TEXT} | GIVES_NAN,
    "function": FUNCTION | GIVES_NAN,
    "loss": FUNCTION | GIVES_NAN | GIVES_PAIR,
    "called back": FUNCTION,
    "other": OTHER,
    "others": _in_list(OTHER),
    "name": NAME,
    "key": KEY,
    "keys": _in_list(KEY),
    "shape": SHAPE,
    "labels": LABELS,
    "model": MODEL,
    "models": _in_list(MODEL),
    "direction": DIRECTION,
    "directions": _in_list(DIRECTION),
    "metric": METRIC,
    "flag": {},  # Python's own truth
    "anything": {},  # no value is wrong
}
"""The hostile values of each kind of argument."""

ALL = "*"
"""In the place of an argument: all data at once."""

ONE: dict[str, Callable[[Any], Any]] = {
    "kernel": lambda valid: valid[:1, :1],
    "operator": lambda valid: lx.MatrixLinearOperator(valid.matrix[:1, :1], valid.tags),
    "kernels": lambda valid: [kernel[:1, :1] for kernel in valid],
    **dict.fromkeys(("floats", "columns", "rows", "examples"), lambda valid: valid[:1]),
}
"""Data of one example, by its kind."""

NUMERIC = {
    "kernel",
    "operator",
    "kernels",
    "floats",
    "columns",
    "rows",
    "examples",
    "pairs",
    "times",
    "direction",
}
"""Kinds whose integers mean the same as floating-point numbers."""
