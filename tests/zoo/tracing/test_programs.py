"""Programs are the same where they compute the same, with the same derivatives."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.tracing.programs import dependence, mark, marked, needed, same_program, without_gradient

X = np.linspace(0.5, 1.5, 3)


def program(fn, *args):
    return jax.make_jaxpr(fn)(*(args or (X,)))


def with_rule(kind, slope):
    """The sine, with a derivative of its own."""
    if kind == "jvp":
        rule = jax.custom_jvp(jnp.sin)
        rule.defjvp(lambda primals, tangents: (rule(*primals), slope * tangents[0]))
        return rule
    rule = jax.custom_vjp(jnp.sin)
    rule.defvjp(lambda x: (rule(x), None), lambda _, g: (slope * g,))
    return rule


def second_order(slope):
    """The sine, whose derivative is right and has itself a derivative of its own."""
    cosine = jax.custom_jvp(jnp.cos)
    cosine.defjvp(lambda primals, tangents: (cosine(*primals), slope * tangents[0]))
    sine = jax.custom_jvp(jnp.sin)
    sine.defjvp(lambda primals, tangents: (sine(*primals), cosine(*primals) * tangents[0]))
    return sine


def checked(threshold):
    return lambda x: eqx.error_if(x, jnp.any(x > threshold), "too large")


def scanned(factor):
    return lambda x: jax.lax.scan(lambda h, _: (factor * jnp.sin(h), None), x, length=2)[0]


def called_back(factor):
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    return lambda x: jax.pure_callback(functools.partial(np.multiply, factor), shape, x)


TABLE = np.arange(3.0)
# Functions made of a number, of which different numbers make different programs.
MAKERS = {
    "scalars": lambda a: lambda x: a * x,
    "arrays": lambda a: lambda x: x * (a * TABLE),
    "inner programs": scanned,
    "rules of forward derivatives": functools.partial(with_rule, "jvp"),
    "rules of reverse derivatives": functools.partial(with_rule, "vjp"),
    "rules of second derivatives": second_order,
    "conditions": checked,
    "functions of the host": called_back,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_programs_are_told_apart_by_what_they_are_made_of(make):
    assert same_program(program(make(2.0)), program(make(2.0)))
    assert not same_program(program(make(2.0)), program(make(3.0)))


def test_what_no_output_needs_and_marks_are_left_out():
    def other(x):
        jnp.cos(x)
        return mark(jnp.sin(mark(x, "before")), "after")

    traced = program(other)
    assert same_program(program(jnp.sin), traced)
    assert not same_program(program(jnp.cos), traced)
    assert {name: len(found) for name, found in marked(traced.jaxpr).items()} == {
        "before": 1,
        "after": 1,
    }


def test_an_input_may_have_two_names():
    plain = program(lambda w, x: w * jnp.sin(w + x), X, X)
    parted = program(lambda w, v, x: w * jnp.sin(v + x), X, X, X)
    assert same_program(plain, parted, [0, 0, 1])
    assert not same_program(plain, parted, [0, 1, 1])


def test_large_constants_are_compared_by_their_numbers():
    """NaN is a number like any other here, and 0 is not -0."""
    of = {value: np.array([1.0, value]) for value in (np.nan, 0.0, -0.0)}
    for value, array in of.items():
        for other in of.values():
            same = same_program(
                program(lambda x, a=array: x[:2] + a), program(lambda x, a=other: x[:2] + a.copy())
            )
            assert same == (other is array), value


def test_dependence_is_cut_where_it_is_said():
    def fn(w, v, x):
        z = mark(w * x, "z")
        return jnp.sin(z) + v, w + x, jax.lax.stop_gradient(w) * x

    jaxpr = program(fn, X, X, X).jaxpr
    w, v, x = jaxpr.invars
    (z,) = marked(jaxpr)["z"][0].outvars
    sources = {w: 1, v: 2, x: 4}
    seen = dependence(jaxpr, sources, {})
    assert [seen[y] for y in jaxpr.outvars] == [7, 5, 5]
    seen = dependence(jaxpr, sources, {z: 1} | dict.fromkeys(without_gradient(jaxpr), 7))
    assert [seen[y] for y in jaxpr.outvars] == [6, 5, 4]


def test_what_is_needed_ends_where_no_derivative_passes():
    jaxpr = program(lambda w, x: jax.lax.stop_gradient(jnp.sin(w)) * x, X, X).jaxpr
    w, x = jaxpr.invars
    assert {w, x} <= needed(jaxpr)
    assert {w, x} & needed(jaxpr, ends=without_gradient(jaxpr)) == {x}


def test_rules_for_some_inputs_only_are_compared_in_those():
    """`equinox.filter_custom_vjp` raises where an input moves that its rule does not cover."""

    def make(slope):
        @eqx.filter_custom_vjp
        def fn(moving, still):
            return moving * still

        fn.def_fwd(lambda perturbed, moving, still: (fn(moving, still), still))
        fn.def_bwd(lambda kept, g, perturbed, moving, still: slope * g * kept)
        return lambda x: fn(x, jax.lax.stop_gradient(2 * x))

    assert same_program(program(make(1.0)), program(make(1.0)))
    assert not same_program(program(make(1.0)), program(make(3.0)))
