"""Checks of what users pass in: each names the argument, what came and what was expected.

Checks of *values* need concrete arrays. Under `jax.jit` there are none, so they pass silently
there; checks of shapes and types hold everywhere.
"""

import weakref
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

Number = Float[ArrayLike, ""] | Int[ArrayLike, ""]
"""A number, or an array of one, which may be traced."""


def concrete(array: Any) -> np.ndarray | None:
    """`array` as a NumPy array, or None where it is being traced and has no values yet."""
    try:
        return np.asarray(array)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
        return None


def is_traced(tree: Any) -> bool:
    """Whether some array of a PyTree is being traced and has no values yet."""

    def has_values(leaf: Any) -> bool:
        try:
            return leaf.addressable_shards is not None
        except (AttributeError, jax.errors.ConcretizationTypeError):
            return False

    return not all(has_values(leaf) for leaf in jax.tree.leaves(tree) if isinstance(leaf, Array))


Half = Literal["float32", "kept", "refused"]
"""What becomes of numbers of 16 bits: float32, which holds them exactly; what they are; an error.

Kernels are refused: rounded to so few bits they have eigenvalues below zero."""


def real_array(
    name: str, value: Any, *, expected: str, integers: bool = False, half: Half = "float32"
) -> jax.Array:
    """`value` as a floating JAX array.

    **Raises:** `TypeError` where it is not an array of real floating-point numbers (integers are
    converted where they are allowed), or one in half precision where that is refused.
    """
    array = as_array(name, value, expected)
    if integers and jnp.issubdtype(array.dtype, jnp.integer):
        return array.astype(float)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        advice = f"Convert it first, for example with `jnp.asarray({name}, float)`."
        if jnp.iscomplexobj(array):
            advice = "Of complex numbers take the real and the imaginary part."
        raise TypeError(
            f"`{name}` has dtype {array.dtype}, expected real floating-point numbers: {expected}. "
            f"{advice}"
        )
    if half == "refused":
        full_precision(name, array.dtype)
    return array if half == "kept" else without_half(array)


def is_half(dtype: Any) -> bool:
    """Whether numbers of this type are floating ones of less than 32 bits."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def without_half(array: jax.Array) -> jax.Array:
    """The same numbers, in float32 where they were in half precision."""
    return array.astype(jnp.float32) if is_half(array.dtype) else array


def full_precision(name: str, dtype: Any, advice: str = "Compute it in float32.") -> None:
    """**Raises:** `TypeError` for half precision."""
    if is_half(dtype):
        digits = int(1 - np.log10(float(jnp.finfo(dtype).eps)))
        raise TypeError(
            f"`{name}` has dtype {dtype}, numbers of {digits} digits, expected float32 or float64: "
            f"what is computed here is lost in their rounding. {advice}"
        )


def as_array(name: str, value: Any, expected: str) -> jax.Array:
    """`value` as a JAX array.

    **Raises:** `TypeError` where it is none.
    """
    if isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value):
        value = np.asarray(value)  # which compiles no program
    try:
        return as_given(value) if isinstance(value, np.ndarray) else jnp.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"`{name}` is not an array: got {type(value).__name__}, expected {expected}."
        ) from error


def as_given(values: np.ndarray) -> jax.Array:
    """As `jnp.asarray`, also of NaN and inf that are there on purpose: `jax_debug_nans` and
    `jax_debug_infs` stop at every program that gives them back, which a transfer is not.
    """
    if not jnp.issubdtype(values.dtype, jnp.floating) or np.all(np.isfinite(values)):
        return jnp.asarray(values)
    return jax.device_put(values)


SMALL = 2**18
"""Numbers that are fetched sooner than a program that looks at them is compiled."""

# Arrays of JAX never change: one that was found finite is not looked at again.
_FOUND_FINITE: weakref.WeakValueDictionary[int, jax.Array] = weakref.WeakValueDictionary()


def finite(name: str, array: Any) -> None:
    """**Raises:** `ValueError` where `array` holds NaN or infinity."""
    if isinstance(array, jax.Array) and _found_finite(array):
        return
    values = concrete(array)
    if values is None or bool(np.all(np.isfinite(values))):
        return
    bad = ~np.isfinite(values)
    first = tuple(int(i) for i in np.argwhere(bad)[0])
    raise ValueError(
        f"`{name}` has {int(bad.sum())} entries out of {values.size} that are not finite (the "
        f"first is {values[first]} at index {first}), expected finite numbers only."
    )


def nonzero(name: str, array: Any, expected: str) -> None:
    """**Raises:** `ValueError` where `array` is known to be all zero."""
    values = concrete(array)
    if values is not None and not np.any(values):
        raise ValueError(f"`{name}` is all zero, expected {expected}.")


def computed(names: str, result: Any) -> None:
    """**Raises:** `ValueError` where something in a result is known not to be finite: arguments,
    `names`, that are finite have overflowed on the way.
    """
    for leaf in jax.tree.leaves(result):
        if isinstance(leaf, jax.Array) and _found_finite(leaf):
            continue
        values = concrete(leaf)
        if values is not None and not np.all(np.isfinite(values)):
            raise ValueError(
                f"the numbers of {names} overflow {values.dtype} on the way to the result, "
                "expected smaller ones, or float64."
            )


def _found_finite(array: Array) -> bool:
    """Whether all entries are known to be finite, looked at on the devices that hold them.

    Small arrays are not looked at there, unless other processes hold parts of them.
    """
    if _FOUND_FINITE.get(id(array)) is array:
        return True
    try:
        if array.size <= SMALL and array.is_fully_addressable:
            return False
        found = bool(_all_finite(array))
    except jax.errors.ConcretizationTypeError:
        return False
    if found:
        _FOUND_FINITE[id(array)] = array
    return found


@jax.jit
def _all_finite(array: Array) -> Array:
    return jnp.all(jnp.isfinite(array))


def shape(name: str, array: Any, expected: tuple[int | str, ...], because: str = "") -> None:
    """**Raises:** `ValueError` where the shape differs from `expected`.

    A string in `expected` names an axis of any positive length.
    """
    got = jnp.shape(array)
    fits = len(got) == len(expected) and all(
        (isinstance(want, str) and have > 0) or want == have
        for have, want in zip(got, expected, strict=False)
    )
    if not fits:
        text = ", ".join(str(axis) for axis in expected) + ("," if len(expected) == 1 else "")
        reason = f": {because}" if because else ""
        raise ValueError(f"`{name}` has shape {got}, expected ({text}){reason}.")


def example(x: Any, expected: tuple[int, ...]) -> jax.Array:
    """`x` as one example that a network takes.

    **Raises:** `TypeError` where it does not hold floating-point numbers; `ValueError` where its
    shape differs from `expected`.
    """
    text = f"one example of shape {expected}"
    array = real_array("x", x, expected=text, half="kept")
    if array.shape != expected:
        raise ValueError(
            f"`x` has shape {array.shape}, expected {text}. For a batch use `jax.vmap(model)(xs)`."
        )
    return array


def choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """**Raises:** `ValueError` where `value` is not one of `choices`, of the same type."""
    if not any(type(value) is type(one) and value == one for one in choices):
        raise ValueError(f"`{name}` is {value!r}, expected one of {_listed(choices)}.")


def sequence(name: str, value: Any, expected: str) -> None:
    """**Raises:** `TypeError` where `value` is no sequence; an array is one of its rows."""
    is_array = isinstance(value, np.ndarray | jax.Array) and value.ndim > 0
    if not is_array and (not isinstance(value, Sequence) or isinstance(value, str | bytes)):
        raise TypeError(f"`{name}` is {value!r}, expected {expected}.")


def function(name: str, value: Any, expected: str) -> None:
    """**Raises:** `TypeError` where `value` cannot be called."""
    if not callable(value):
        raise TypeError(f"`{name}` is {value!r}, expected {expected}.")


def instance(name: str, value: Any, of: Any, expected: str) -> None:
    """**Raises:** `TypeError` where `value` is no instance of the type or types `of`."""
    if not isinstance(value, of):
        raise TypeError(f"`{name}` is {value!r}, expected {expected}.")


def key(name: str, value: Any) -> None:
    """**Raises:** `TypeError` where `value` is not one key of `jax.random`."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    if not typed and not (dtype == np.uint32 and shape in ((2,), (4,))):
        raise TypeError(f"`{name}` is {value!r}, expected a key, `jax.random.key(0)` say.")


def key_or_default(name: str, value: Any) -> jax.Array:
    """One key of `jax.random`, `jax.random.key(0)` where `value` is None.

    **Raises:** `TypeError` where it is something else.
    """
    if value is None:
        return jax.random.key(0)
    key(name, value)
    return value


def distinct(name: str, values: Collection[Any]) -> None:
    """**Raises:** `ValueError` where `values` is empty or holds a value twice."""
    if len(values) == 0 or len(set(values)) != len(values):
        raise ValueError(f"`{name}` is {values!r}, expected different values, at least one.")


MOST = 2**31 - 1
"""The largest count: JAX's default integers have 32 bits."""

MOST_SIZE = 2**63 - 1
"""The largest axis of a shape."""


def integer(name: str, value: Any, *, least: int = 1, most: int | None = MOST) -> int:
    """`value` as an integer of Python: one of NumPy would be traced where it is to be static.

    **Raises:** `ValueError` where it is not an integer of at least `least` and at most `most`.
    """
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or value < least:
        raise ValueError(f"`{name}` is {value!r}, expected an integer >= {least}.")
    if most is not None and value > most:
        raise ValueError(f"`{name}` is {value!r}, expected an integer from {least} to {most}.")
    return int(value)


def integer_or_none(name: str, value: Any) -> int | None:
    """As `integer`, where None says that there is no such bound."""
    return None if value is None else integer(name, value)


def size(name: str, value: Any) -> int:
    """`value` as the length of an axis, of an array that may never be formed.

    **Raises:** `ValueError` where it is not an integer >= 1.
    """
    return integer(name, value, most=MOST_SIZE)


def nonnegative_number(name: str, value: Any, *, strictly: bool = False) -> None:
    """**Raises:** `ValueError` where `value` is not a finite number >= 0 (> 0 if `strictly`)."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not np.isfinite(value) or value < 0 or (strictly and value == 0):
        bound = "> 0" if strictly else ">= 0"
        raise ValueError(f"`{name}` is {value!r}, expected a finite number {bound}.")


def nonnegative_scalar(
    name: str, value: Any, *, strictly: bool = False, below: float = np.inf
) -> jax.Array:
    """`value`, a number or an array of one that may be traced, as an array of JAX's default type.

    **Raises:** `TypeError` / `ValueError` where it is no real number, or known not to be a finite
    one >= 0 (> 0 if `strictly`) and less than `below`.
    """
    expected = f"a finite number {'> 0' if strictly else '>= 0'}"
    if below < np.inf:
        expected = f"a number in {'(' if strictly else '['}0, {below:g})"
    array = _scalar(name, value, expected)
    found = concrete(value)
    if found is not None and not (found >= 0 and found < below and not (strictly and found == 0)):
        raise ValueError(f"`{name}` is {value!r}, expected {expected}.")
    return array


def finite_scalar(name: str, value: Any) -> jax.Array:
    """As `nonnegative_scalar`, of any sign.

    **Raises:** `TypeError` / `ValueError` where it is no real number, or known not to be finite.
    """
    return _scalar(name, value, "a finite number")


def _scalar(name: str, value: Any, expected: str) -> jax.Array:
    if isinstance(value, np.ndarray | jax.Array):
        numeric = any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer))
        if not numeric or value.ndim != 0:
            raise ValueError(
                f"`{name}` is an array of shape {value.shape}, {value.dtype}, expected {expected}."
            )
    elif not isinstance(value, int | float | np.number) or isinstance(value, bool):
        raise ValueError(f"`{name}` is {value!r}, expected {expected}.")
    found = concrete(value)
    if found is not None and not np.isfinite(found):
        raise ValueError(f"`{name}` is {value!r}, expected {expected}.")
    return jnp.asarray(value, float)


def _listed(choices: Iterable[Any]) -> str:
    return ", ".join(repr(item) for item in choices)
