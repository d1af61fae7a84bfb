"""Programs that JAX has traced: whether two compute the same, and what depends on what.

Seen in the equations of a jaxpr, by shapes alone: nothing is ever evaluated. Both answers err on
one side. Programs that are called the same are, and so is what is called independent: results of
an equation are taken to depend on all of its arguments, what cannot be compared is taken to differ.
"""

import dataclasses
import functools
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun, JaxprEqn, Literal
from jaxtyping import Array

from zoo.common import checks

_MARK = "finite-width: "

# Rules of derivatives are compared as far as the kernels take them: those of O_4 are the deepest.
_ORDERS = 3

# How far into the objects that parametrize an equation: beyond, they differ.
_LEVELS = 8


def mark(value: Array, name: str) -> Array:
    """`value`, as an equation of its own that `marked` finds in the program under `name`."""
    return checkpoint_name(value, _MARK + name)


def marked(jaxpr: Jaxpr) -> dict[str, list[JaxprEqn]]:
    """The equations that mark values, by name; not those of programs inside the program."""
    found: dict[str, list[JaxprEqn]] = {}
    for equation in jaxpr.eqns:
        if _is_mark(equation):
            found.setdefault(equation.params["name"].removeprefix(_MARK), []).append(equation)
    return found


def dependence(jaxpr: Jaxpr, sources: Mapping[Any, int], cuts: Mapping[Any, int]) -> dict[Any, int]:
    """What each variable depends on, as a set of bits.

    **Arguments:**

    - `sources`: the bits of the variables that something starts from.
    - `cuts`: the bits that a variable does not pass on.
    """
    bits = dict(sources)
    for equation in jaxpr.eqns:
        of_all = functools.reduce(
            int.__or__, (bits.get(v, 0) for v in equation.invars if not isinstance(v, Literal)), 0
        )
        if of_all:
            bits.update({v: of_all & ~cuts.get(v, 0) for v in equation.outvars})
    return bits


def without_gradient(jaxpr: Jaxpr) -> set[Any]:
    """The variables that `jax.lax.stop_gradient` has made: no derivative passes through them."""
    stops = (e.outvars for e in jaxpr.eqns if e.primitive.name == "stop_gradient")
    return {v for outvars in stops for v in outvars}


def needed(jaxpr: Jaxpr, *, ends: Collection[Any] = ()) -> set[Any]:
    """The variables that the outputs depend on, and the outputs; not through those in `ends`."""
    found = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    for equation in reversed(jaxpr.eqns):
        if any(v in found and v not in ends for v in equation.outvars):
            found.update(v for v in equation.invars if not isinstance(v, Literal))
    return found


def same_program(
    plain: ClosedJaxpr, other: ClosedJaxpr, stands_for: Sequence[int] | None = None
) -> bool:
    """Whether two programs compute the same, equation by equation, with the same derivatives.

    Marks, and what no output depends on, are left out.

    **Arguments:**

    - `plain`, `other`: the programs.
    - `stands_for`: for each input of `other` the input of `plain` that it is another name for
      (default: they have the same inputs).
    """
    inputs = plain.jaxpr.invars
    given = inputs if stands_for is None else [inputs[i] for i in stands_for]
    return _Comparison(_ORDERS).closed(plain, other, given)


def _is_mark(equation: JaxprEqn) -> bool:
    return equation.primitive.name == "name" and str(equation.params["name"]).startswith(_MARK)


class _Comparison:
    """Compares programs with so many orders of derivatives."""

    def __init__(self, orders: int):
        self._orders = orders

    def closed(self, plain: ClosedJaxpr, other: ClosedJaxpr, given: Sequence[Any]) -> bool:
        """Two programs, the second on the variables `given` of the first."""
        return self._values(plain.consts, other.consts, _LEVELS) and self._jaxprs(
            plain.jaxpr, other.jaxpr, given
        )

    def _jaxprs(self, plain: Jaxpr, other: Jaxpr, given: Sequence[Any]) -> bool:
        if len(plain.constvars) != len(other.constvars) or len(given) != len(other.invars):
            return False
        names: dict[Any, Any] = dict(zip(other.constvars, plain.constvars, strict=True))
        names |= dict(zip(other.invars, given, strict=True))
        alive, alive_in_other = needed(plain), needed(other)
        equations = (e for e in plain.eqns if any(v in alive for v in e.outvars))
        for equation in other.eqns:
            if not any(v in alive_in_other for v in equation.outvars):
                continue
            if _is_mark(equation):
                (v,) = equation.invars
                names[equation.outvars[0]] = v if isinstance(v, Literal) else names[v]
                continue
            expected = next(equations, None)
            if expected is None or not self._equations(
                (plain, expected, alive), (other, equation, alive_in_other), names
            ):
                return False
            names.update(zip(equation.outvars, expected.outvars, strict=True))
        return next(equations, None) is None and self._atoms(plain.outvars, other.outvars, names)

    def _equations(
        self,
        plain: tuple[Jaxpr, JaxprEqn, set[Any]],
        other: tuple[Jaxpr, JaxprEqn, set[Any]],
        names: Mapping[Any, Any],
    ) -> bool:
        expected, got = plain[1], other[1]
        if (
            expected.primitive is not got.primitive
            or expected.params.keys() != got.params.keys()
            or len(expected.outvars) != len(got.outvars)
            or not self._atoms(expected.invars, got.invars, names)
        ):
            return False
        pairs = [(value, got.params[name]) for name, value in expected.params.items()]
        unlike = [pair for pair in pairs if not self._values(*pair, _LEVELS)]
        if not unlike:
            return True
        # A rule is an object of JAX's own, made anew in each trace: its program is compared.
        with_rules = expected.primitive.name.startswith(("custom_jvp", "custom_vjp"))
        of_program = (ClosedJaxpr, Jaxpr, bool, int, str)
        if not with_rules or any(isinstance(value, of_program) for value, _ in unlike):
            return False
        return self._derivatives(plain, other)

    def _derivatives(
        self,
        plain: tuple[Jaxpr, JaxprEqn, set[Any]],
        other: tuple[Jaxpr, JaxprEqn, set[Any]],
    ) -> bool:
        """Two equations with rules of their own for derivatives, by the programs of these."""
        if self._orders == 0:
            return True
        (_, expected, alive), (_, got, alive_in_other) = plain, other
        if [v in alive for v in expected.outvars] != [v in alive_in_other for v in got.outvars]:
            return False
        inputs = _inputs(expected)
        if len(inputs) != len(_inputs(got)):
            return False
        inexact = [i for i, v in enumerate(inputs) if _is_inexact(v)]
        whole = self._in_inputs(plain, other, inexact)
        if whole is not None:
            return whole
        # Some rules are for derivatives in some inputs only, and raise where others move too.
        return all(self._in_inputs(plain, other, [i]) is not False for i in inexact)

    def _in_inputs(
        self,
        plain: tuple[Jaxpr, JaxprEqn, set[Any]],
        other: tuple[Jaxpr, JaxprEqn, set[Any]],
        moving: list[int],
    ) -> bool | None:
        """Those in the inputs `moving`; None where neither equation has any."""
        expected, got = _derivative(*plain, moving), _derivative(*other, moving)
        if expected is None or got is None:
            return None if expected is got else False
        return _Comparison(self._orders - 1).closed(expected, got, expected.jaxpr.invars)

    def _atoms(self, plain: Sequence[Any], other: Sequence[Any], names: Mapping[Any, Any]) -> bool:
        if len(plain) != len(other):
            return False
        for expected, got in zip(plain, other, strict=True):
            named = got if isinstance(got, Literal) else names[got]
            if named is expected:
                continue
            if not isinstance(named, Literal) or not isinstance(expected, Literal):
                return False
            if not _same_array(expected.val, named.val):
                return False
        return True

    def _values(self, expected: Any, got: Any, levels: int) -> bool:
        """Two parameters of equations, or what they are made of."""
        if expected is got:
            return True
        if type(expected) is not type(got) or levels == 0:
            return False
        if isinstance(expected, ClosedJaxpr):
            return self.closed(expected, got, expected.jaxpr.invars)
        if isinstance(expected, Jaxpr):
            return self._jaxprs(expected, got, expected.invars)
        if hasattr(expected, "__array__"):
            return _same_array(expected, got)
        if isinstance(expected, Mapping):
            return list(expected) == list(got) and self._all(
                expected.values(), got.values(), levels
            )
        if isinstance(expected, list | tuple):
            return self._all(expected, got, levels)
        parts = _parts(expected)
        if parts is not None:
            return self._all(parts, _parts(got) or (), levels)
        try:
            return bool(expected == got)
        except Exception:  # of no meaning for these objects
            return False

    def _all(self, expected: Any, got: Any, levels: int) -> bool:
        return len(expected) == len(got) and all(
            self._values(*pair, levels - 1) for pair in zip(expected, got, strict=True)
        )


def _parts(value: Any) -> tuple[Any, ...] | None:
    """What a function or a dataclass is made of: equal parts make equal ones."""
    if isinstance(value, types.FunctionType):
        try:
            cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
        except ValueError:  # not assigned yet
            return (object(),)
        return (value.__code__, value.__defaults__, value.__kwdefaults__, cells)
    if isinstance(value, functools.partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, types.MethodType):
        return (value.__func__, value.__self__)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return tuple(getattr(value, field.name) for field in dataclasses.fields(value))
    return None


def _same_array(expected: Any, got: Any) -> bool:
    """Bit for bit; what is traced is compared by identity only."""
    if expected is got:
        return True
    if jnp.shape(expected) != jnp.shape(got) or type(expected) is not type(got):
        return False
    try:
        first, second = checks.concrete(expected), checks.concrete(got)
    except TypeError:  # keys of random numbers
        return False
    if first is None or second is None or first.dtype != second.dtype:
        return False
    return first.tobytes() == second.tobytes()


def _inputs(equation: JaxprEqn) -> list[Any]:
    """The variables that go into an equation."""
    return list(dict.fromkeys(v for v in equation.invars if not isinstance(v, Literal)))


def _derivative(
    jaxpr: Jaxpr, equation: JaxprEqn, alive: set[Any], moving: Sequence[int]
) -> ClosedJaxpr | None:
    """The program of the derivatives of one equation in some of its inputs, forward or in reverse
    as its rule is; None where it has none.
    """
    inputs = _inputs(equation)
    outputs = [v for v in equation.outvars if v in alive]
    of_one = jaxpr.replace(constvars=[], invars=inputs, outvars=outputs, eqns=[equation])
    fn = jaxpr_as_fun(ClosedJaxpr(of_one, []))

    def derivative(arrays: list[Array], along: list[Array]) -> Any:
        def moved(*at: Array) -> list[Array]:
            given = list(arrays)
            for i, a in zip(moving, at, strict=True):
                given[i] = a
            return [z for z in fn(*given) if jnp.issubdtype(z.dtype, jnp.inexact)]

        at = tuple(arrays[i] for i in moving)
        if forward:
            return jax.jvp(moved, at, tuple(along))[1]
        return jax.vjp(moved, *at)[1](along)

    forward = equation.primitive.name.startswith("custom_jvp")
    along = [inputs[i] for i in moving] if forward else [v for v in outputs if _is_inexact(v)]
    try:
        return jax.make_jaxpr(derivative)([_shape(v) for v in inputs], [_shape(v) for v in along])
    except Exception:  # whatever a rule that is somebody else's may raise
        return None


def _is_inexact(variable: Any) -> bool:
    return jnp.issubdtype(variable.aval.dtype, jnp.inexact)


def _shape(variable: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype)
