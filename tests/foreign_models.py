"""Models as people write them, which the library knows nothing of, and some that mislead.

Each is a function of its parts and an example (4,), with 2 outputs.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from zoo import ACTIVATIONS, BatchNorm, Conv, Dense, Flatten, ParameterizedLayer, Sequential

Linear = eqx.nn.Linear
KEYS = jr.split(jr.key(0), 8)
SIZE, OUTPUTS = 4, 2


class Foreign(eqx.Module):
    """Parts, which hold the parameters, and what is done with them."""

    parts: Any
    forward: Callable[[Any, jax.Array], jax.Array] = eqx.field(static=True)

    def __call__(self, x):
        return self.forward(self.parts, x)


class Case(NamedTuple):
    """A model, and what is known of it.

    - `forward`, `parts`: the model's.
    - `contracted`: how many of its layers may be contracted.
    - `hidden`: its last hidden representation by hand, where it ends in a readout.
    - `reverse_only`: whether it has derivatives in reverse mode only.
    """

    forward: Callable[[Any, jax.Array], jax.Array]
    parts: dict[str, Any]
    contracted: int
    hidden: Callable[[Any, jax.Array], jax.Array] | None = None
    reverse_only: bool = False

    @property
    def model(self) -> Foreign:
        return Foreign(self.parts, self.forward)


def linear(seed: int, inputs: int = SIZE, outputs: int = SIZE) -> Linear:
    return Linear(inputs, outputs, key=KEYS[seed])


def two(**more: Any) -> dict[str, Any]:
    """A layer, and a readout."""
    return {"a": linear(0), "b": linear(1, outputs=OUTPUTS), **more}


def squares(layer: Any) -> jax.Array:
    return sum(jnp.sum(w**2) for w in jax.tree.leaves(eqx.filter(layer, eqx.is_array)))


def each(fn: Callable, layer: Any) -> Any:
    return jax.tree.map(lambda w: fn(w) if eqx.is_array(w) else w, layer)


# --- models in use -------------------------------------------------------------------------------


def transformer_block(p, x):
    tokens = jnp.outer(x, jnp.ones(3)) + p["positions"]
    normed = jax.vmap(p["norm"])(tokens)
    q, k, v = jnp.split(jax.vmap(p["qkv"])(normed), 3, axis=-1)
    tokens = tokens + jax.vmap(p["out"])(jax.nn.softmax(q @ k.T, axis=-1) @ v)
    tokens = tokens + jax.vmap(p["mlp"])(jax.vmap(p["norm"])(tokens))
    return p["head"](jnp.mean(tokens, axis=0))


def attention_block(p, x):
    tokens = jnp.outer(jnp.ones(3), x) + p["positions"].T[:3]
    tokens = tokens + p["attention"](tokens, tokens, tokens)
    return p["head"](jnp.mean(tokens, axis=0))


def tokens_of(x):
    return jnp.floor(jnp.abs(jnp.concatenate([x, x[:2]])) * 3).astype(int) % 5


def language_model(p, x):
    """Two outputs for the next token, of six; the table of tokens is used at both ends if tied."""
    tokens = jax.vmap(p["embed"])(tokens_of(x)) + p["positions"]
    mask = jnp.tril(jnp.ones((6, 6), bool))
    for block in p["blocks"]:
        normed = jax.vmap(block["norm"])(tokens)
        tokens = tokens + block["attention"](normed, normed, normed, mask=mask)
        tokens = tokens + jax.vmap(block["mlp"])(tokens)
    if p["head"] is None:
        return (p["embed"].weight @ tokens[-1])[:OUTPUTS]
    return p["head"](tokens[-1])


def lookups(p, x):
    """Of one token, from the end too; beyond the table the last row is taken."""
    first, *_, last = tokens_of(x)
    return p["b"](jnp.tanh(p["embed"](first - 5) * p["embed"](last + 20) + p["embed"](last)))


def mixer_block(p, x):
    tokens = jnp.outer(x, jnp.ones(3)) + p["positions"]  # 4 tokens of 3 channels
    tokens = tokens + jnp.tanh(jax.vmap(p["across"], in_axes=1, out_axes=1)(tokens))
    tokens = tokens + jnp.tanh(eqx.filter_vmap(p["within"])(tokens))
    return p["head"](jnp.mean(tokens, axis=0))


def nested_maps(p, x):
    grid = jnp.outer(x, x).reshape(2, 2, SIZE)
    shared = jax.vmap(lambda row: jnp.sum(jax.vmap(lambda a: p["a"](row[0]) * a)(row), axis=0))
    return p["b"](
        jnp.sum(jnp.tanh(jax.vmap(jax.vmap(p["a"]))(grid)), axis=(0, 1)) + shared(grid)[1]
    )


def mapped_and_called(p, x):
    """One layer under `vmap`, and by itself; means over the entries by their name."""

    def centered(t):
        h = p["a"](t)
        return jnp.tanh(h - jax.lax.pmean(h, "entry"))

    entries = jax.vmap(centered, axis_name="entry")(jnp.outer(x[:3], x))
    return p["b"](jnp.sum(entries, axis=0) + jnp.tanh(p["a"](x)))


def set_of_series(p, x):
    series = jnp.outer(x[:2], jnp.outer(x, x)).reshape(2, SIZE, SIZE)
    return p["b"](jnp.sum(jnp.tanh(jax.vmap(p["conv"])(series)), axis=(0, 2)))


def mapped_outside_or_inside(p, x):
    """Under `vmap`, and under what is no `vmap` alone."""
    entries = jnp.outer(x[:3], x)
    compiled = jax.jit(lambda t: jax.vmap(p["c"])(t))(entries)
    kept = jax.vmap(jax.checkpoint(lambda t: p["d"](t)))(entries)
    slopes = jax.vmap(jax.grad(lambda t: jnp.sum(jnp.tanh(p["e"](t)))))(entries)
    return p["b"](jnp.sum(jnp.tanh(jax.vmap(p["a"])(compiled + kept + slopes)), axis=0))


def low_rank_adapter(p, x):
    frozen = jax.lax.stop_gradient(p["base"])
    return p["b"](jnp.tanh(frozen(x) + p["up"](p["down"](x))))


def weight_norm(p, x):
    return p["b"](jnp.tanh(p["normed"](x)))


def spectral_norm(p, x):
    w = p["a"].weight
    v = jnp.linspace(0.5, 1.5, SIZE)
    for _ in range(3):
        u = w @ v / jnp.linalg.norm(w @ v)
        v = w.T @ u / jnp.linalg.norm(w.T @ u)
    u, v = jax.lax.stop_gradient((u, v))
    return p["b"](jnp.tanh(eqx.tree_at(lambda a: a.weight, p["a"], w / (u @ w @ v))(x)))


def tied_embedding(p, x):
    code = jnp.tanh(p["a"](x))
    return p["b"](jnp.tanh(code @ p["a"].weight))


def experts(p, x):
    gates = jax.nn.softmax(p["gate"](x))
    return p["b"](sum(g * jnp.tanh(e(x)) for g, e in zip(gates, p["experts"], strict=True)))


def siamese(p, x):
    return p["b"](jnp.tanh(p["a"](x)) * jnp.tanh(p["a"](x[::-1])))


def recurrent(p, x):
    h, _ = jax.lax.scan(lambda h, t: (p["cell"](t[None], h), None), jnp.zeros(SIZE), x)
    return p["b"](h)


def neural_ode(p, x):
    term = diffrax.ODETerm(lambda t, y, layer: jnp.tanh(layer(y)))
    options = {"args": p["a"], "adjoint": diffrax.DirectAdjoint(), "max_steps": 4}
    solution = diffrax.diffeqsolve(term, diffrax.Euler(), 0.0, 1.0, 0.5, x, **options)
    return p["b"](solution.ys[-1])


def meta_step(p, x):
    gradient = eqx.filter_grad(lambda a: jnp.sum(a(x) ** 2))(p["a"])
    adapted = eqx.apply_updates(p["a"], each(lambda g: -0.1 * g, gradient))
    return p["b"](jnp.tanh(adapted(x)))


def frozen_layer(p, x):
    return p["b"](jnp.tanh(jax.lax.stop_gradient(p["a"])(x)))


def in_a_closure(p, x):
    layer = p["a"]
    return p["b"]((lambda h: jnp.tanh(layer(h)))(x))


def checkpointed(p, x):
    return p["b"](jax.checkpoint(lambda layer, h: jnp.tanh(layer(h)))(p["a"], x))


def compiled(p, x):
    return p["b"](eqx.filter_jit(lambda layer, h: jnp.tanh(layer(h)))(p["a"], x))


def stacked_layers(p, x):
    h = eqx.filter_vmap(lambda layer, h: jnp.tanh(layer(h)), in_axes=(0, None))(p["stack"], x)
    return p["b"](jnp.mean(h, axis=0))


def by_hand(p, x):
    return p["b"](jnp.tanh(p["a"].weight @ x + p["a"].bias))


def regularised(p, x):
    return p["b"](jnp.tanh(p["a"](x))) * squares(p["a"])


def with_frozen_norm(p, x):
    return p["b"](jnp.tanh(p["a"](x))) * jax.lax.stop_gradient(squares(p["a"]))


def gain(p, x):
    return each(lambda w: w * p["gain"], p["net"])(x)


def called_twice(p, x):
    return p["b"](jnp.tanh(p["a"](jnp.tanh(p["a"](x)))))


def guarded(p, x):
    n = jnp.linalg.norm(x)
    return p["b"](jnp.tanh(p["a"](x / eqx.error_if(n, n == 0, "a vector of zeros"))))


def looped(p, x):
    grown = jax.lax.while_loop(lambda v: jnp.max(jnp.abs(v)) < 1, lambda v: 2 * v, x)
    return p["b"](jnp.tanh(p["a"](grown)))


def unused_layer(p, x):
    del p["other"], p["norm"]
    return plain(p, x)


def dead_call(p, x):
    y = plain(p, x)
    p["other"](y)
    return y


def by_isinstance(p, x):
    *hidden, last = p["layers"]
    for layer in hidden:
        x = layer(x)
        if isinstance(layer, Linear | ParameterizedLayer):
            x = jnp.tanh(x)
    return last(x)


def zoo_images(p, x):
    return p["network"](x.reshape(1, 2, 2))


def gradient_network(p, x):
    """A layer is called, and then differentiated in its input."""
    slope = jax.grad(lambda x: jnp.sum(jnp.tanh(p["a"](x))))(x)
    return p["b"](slope + jnp.tanh(p["a"](x)))


def auxiliary(p, x):
    """The call is inside a gradient, whose value is not used."""
    _, h = jax.grad(lambda x: (jnp.sum(x**2), jnp.tanh(p["a"](x))), has_aux=True)(x)
    return p["b"](h)


def with_keys(p, x):
    return p["chain"](x, key=jr.key(0))


def branches(p, x):
    return p["b"](jax.lax.cond(x[0] > 0, lambda h: jnp.tanh(p["a"](h)), lambda h: h, x))


def plain(p, x):
    return p["b"](hidden_of_plain(p, x))


def hidden_of_plain(p, x):
    return jnp.tanh(p["a"](x))


@jax.custom_vjp
def straight_through(z):
    return jnp.sign(z)


straight_through.defvjp(
    lambda z: (jnp.sign(z), z), lambda z, g: (g * (jnp.abs(z) < 1).astype(g.dtype),)
)


def binary(p, x):
    return p["b"](straight_through(p["a"](x)))


# --- models that mean to mislead -----------------------------------------------------------------


@jax.custom_vjp
def without_weights(layer, x):
    return jnp.tanh(layer(x))


without_weights.defvjp(
    lambda layer, x: (without_weights(layer, x), (layer, x)),
    lambda kept, g: (jax.tree.map(jnp.zeros_like, kept[0]), g),
)


def rule_without_weights(p, x):
    return p["b"](without_weights(p["a"], x))


@jax.custom_vjp
def doubled_backwards(z):
    return jnp.sign(z)


doubled_backwards.defvjp(
    lambda z: (jnp.sign(z), z), lambda z, g: (2 * g * (jnp.abs(z) < 1).astype(g.dtype),)
)


def rule_by_type(p, x):
    """The same values for both types, and other derivatives."""
    rule = straight_through if type(p["a"]) is Linear else doubled_backwards
    return p["b"](rule(p["a"](x)))


def by_type(p, x):
    return p["b"](jnp.tanh(p["a"](x)) if type(p["a"]) is Linear else x)


def by_equal_types(p, x):
    return p["b"](jnp.tanh(p["a"](x)) if type(p["a"]) is type(p["c"]) else x) + p["c"](x)[:2]


def by_fields(p, x):
    return p["b"](x * len(dataclasses.fields(p["a"])) + p["a"](x))


def by_class_call(p, x):
    return p["b"](jnp.tanh(Linear.__call__(p["a"], x)))


KEPT: list[Any] = []


def kept_outside(p, x):
    """Calls the layer through a list that is no part of the model, changed."""
    KEPT[:] = [eqx.tree_at(lambda a: a.bias, p["a"], 3 * p["a"].bias)]
    y = p["b"](jnp.tanh(KEPT[0](x)))
    KEPT.clear()
    return y


def catching(p, x):
    """Takes another way where adding two layers fails."""
    try:
        shifted = jax.tree.map(jnp.add, p["a"], Linear(SIZE, SIZE, key=KEYS[5]))
    except (TypeError, ValueError):
        return p["b"](p["a"](x))
    return p["b"](jnp.tanh(p["a"](x))) + jnp.sum(shifted.weight)


class Counting:
    """Calls a layer, each time with another activation."""

    def __init__(self, layer):
        self.layer, self.activations = layer, itertools.cycle((jnp.tanh, jnp.sin))

    def __call__(self, x):
        return next(self.activations)(self.layer(x))


def counting(p, x):
    layer = Counting(p["a"])
    return p["b"](layer(layer(layer(x))))


def detached_call(p, x):
    return p["b"](jnp.tanh(p["a"](x)) * jax.lax.stop_gradient(p["a"])(x[::-1]))


def widened(p, x):
    return p["b"](jnp.tanh(each(lambda w: w.reshape(-1).reshape(w.shape), p["a"])(x)))


def of_images() -> Sequential:
    layers = [Conv(1, 2, kernel_size=(2, 2), key=KEYS[0]), BatchNorm(2), ACTIVATIONS["tanh"]]
    return Sequential([*layers, Flatten(), Dense(8, OUTPUTS, role="readout", key=KEYS[1])])


def foreign_layers() -> list[Any]:
    norm = eqx.nn.LayerNorm(SIZE)
    return [linear(0), norm, linear(2), linear(1, outputs=OUTPUTS)]


def zoo_layers() -> list[Any]:
    dense = [Dense(SIZE, SIZE, bias_std=0.5, key=key) for key in KEYS[:2]]
    return [*dense, Dense(SIZE, OUTPUTS, bias_std=0.5, role="readout", key=KEYS[2])]


def chain() -> eqx.nn.Sequential:
    return eqx.nn.Sequential(
        [linear(0), eqx.nn.Lambda(jnp.tanh), eqx.nn.Dropout(0.5, inference=True), linear(1, 4, 2)]
    )


def hidden_of_dispatch(p, x):
    first, norm, second, _ = p["layers"]
    return jnp.tanh(second(norm(jnp.tanh(first(x)))))


BLOCK = {
    "positions": jr.normal(KEYS[5], (SIZE, 3)),
    "norm": eqx.nn.LayerNorm(3),
    "qkv": linear(0, 3, 9),
    "out": linear(1, 3, 3),
    "mlp": linear(2, 3, 3),
    "head": linear(3, 3, OUTPUTS),
}
ADAPTER = {"base": linear(0), "down": linear(2, SIZE, 1), "up": linear(3, 1, SIZE)}


def language_parts(*, tied: bool) -> dict[str, Any]:
    keys = jr.split(KEYS[6], 8)
    blocks = [
        {
            "norm": eqx.nn.LayerNorm(SIZE),
            "attention": eqx.nn.MultiheadAttention(2, SIZE, key=keys[i]),
            "mlp": eqx.nn.MLP(SIZE, SIZE, 6, 1, activation=jnp.tanh, key=keys[i + 2]),
        }
        for i in range(2)
    ]
    return {
        "embed": eqx.nn.Embedding(5, SIZE, key=keys[4]),
        "positions": jr.normal(keys[5], (6, SIZE)),
        "blocks": blocks,
        "head": None if tied else linear(3, outputs=OUTPUTS),
    }


EXPERTS = {"gate": linear(3, SIZE, 2), "experts": [linear(0), linear(2)]}
STACK = eqx.filter_vmap(lambda key: Linear(SIZE, SIZE, key=key))(KEYS[:3])
NET = eqx.nn.MLP(SIZE, OUTPUTS, 5, 1, activation=jnp.tanh, key=KEYS[4])
READOUT = {"b": linear(1, outputs=OUTPUTS)}

MODELS = {
    "plain": Case(plain, two(), 2, hidden_of_plain),
    "transformer block": Case(transformer_block, BLOCK, 4),
    "attention": Case(
        attention_block,
        {
            "attention": eqx.nn.MultiheadAttention(2, SIZE, key=KEYS[2]),
            "positions": BLOCK["positions"],
            "head": linear(3, outputs=OUTPUTS),
        },
        5,
    ),
    "language model": Case(language_model, language_parts(tied=False), 14),
    "tied language model": Case(language_model, language_parts(tied=True), 12),
    "lookups": Case(lookups, {"embed": eqx.nn.Embedding(5, SIZE, key=KEYS[0])} | READOUT, 2),
    "mixer": Case(
        mixer_block,
        {
            "across": linear(0),
            "within": linear(1, 3, 3),
            "positions": BLOCK["positions"],
            "head": linear(3, 3, OUTPUTS),
        },
        3,
    ),
    "nested maps": Case(nested_maps, two(), 2),
    "mapped and called": Case(mapped_and_called, two(), 2),
    "set of series": Case(
        set_of_series,
        {"conv": eqx.nn.Conv1d(SIZE, SIZE, 2, padding=1, key=KEYS[0])} | READOUT,
        2,
    ),
    "mapped and more": Case(
        mapped_outside_or_inside, two(c=linear(2), d=linear(4), e=linear(5)), 2
    ),
    "low-rank adapter": Case(low_rank_adapter, ADAPTER | READOUT, 3),
    "weight norm": Case(weight_norm, {"normed": eqx.nn.WeightNorm(linear(0))} | READOUT, 1),
    "spectral norm": Case(spectral_norm, two(), 1),
    "tied embedding": Case(tied_embedding, two(), 1),
    "mixture of experts": Case(experts, EXPERTS | READOUT, 4),
    "Siamese": Case(siamese, two(), 2),
    "recurrent": Case(recurrent, {"cell": eqx.nn.GRUCell(1, SIZE, key=KEYS[0])} | READOUT, 1),
    "neural ODE": Case(neural_ode, two(), 1),
    "meta-learning step": Case(meta_step, two(), 1),
    "frozen layer": Case(frozen_layer, two(), 1, hidden_of_plain),
    "layer in a closure": Case(in_a_closure, two(), 2, hidden_of_plain),
    "checkpoint": Case(checkpointed, two(), 1, hidden_of_plain),
    "compiled inside": Case(compiled, two(), 1, hidden_of_plain),
    "stacked layers": Case(stacked_layers, {"stack": STACK} | READOUT, 1),
    "weights by hand": Case(by_hand, two(), 1, hidden_of_plain),
    "regulariser": Case(regularised, two(), 1),
    "frozen norm": Case(with_frozen_norm, two(), 2),
    "gain": Case(gain, {"net": NET, "gain": jnp.array(1.7)}, 0),
    "called twice": Case(called_twice, two(), 2),
    "guarded": Case(guarded, two(), 2),
    "while loop": Case(lambda p, x: looped(p, jax.lax.stop_gradient(x)), two(), 2),
    "unused layers": Case(
        unused_layer, two(other=linear(2), norm=eqx.nn.LayerNorm(3)), 2, hidden_of_plain
    ),
    "unused call": Case(dead_call, two(other=linear(2, 2, 2)), 2, hidden_of_plain),
    "isinstance": Case(by_isinstance, {"layers": foreign_layers()}, 3, hidden_of_dispatch),
    "isinstance of the zoo": Case(by_isinstance, {"layers": zoo_layers()}, 3),
    "batch normalization": Case(zoo_images, {"network": of_images()}, 2),
    "gradient network": Case(gradient_network, two(), 1),
    "auxiliary output": Case(auxiliary, two(), 1, hidden_of_plain),
    "keys": Case(with_keys, {"chain": chain()}, 2),
    "branches": Case(branches, two(), 1),
    "straight-through": Case(binary, two(), 2, reverse_only=True),
    "rule without weights": Case(rule_without_weights, two(), 1, reverse_only=True),
    "rule by type": Case(rule_by_type, two(), 1, reverse_only=True),
    "type": Case(by_type, two(), 1, hidden_of_plain),
    "equal types": Case(by_equal_types, two(c=linear(2)), 3),
    "fields": Case(by_fields, two(), 1),
    "call of the class": Case(by_class_call, two(), 1, hidden_of_plain),
    "kept outside": Case(kept_outside, two(), 1),
    "catching": Case(catching, two(), 1),
    "counting": Case(counting, two(), 2),
    "detached call": Case(detached_call, two(), 1),
    "reshaped weights": Case(widened, two(), 1, hidden_of_plain),
}


def batch(n: int, seed: int = 10) -> jax.Array:
    return jr.normal(jr.key(seed), (n, SIZE))


def jacobian(model: Any, x: jax.Array) -> np.ndarray:
    """The gradients of all outputs in all parameters by hand, (n, k, parameters)."""
    params, static = eqx.partition(model, eqx.is_inexact_array)

    @jax.jit
    def gradients(params, x):
        return jax.vmap(lambda x: jax.jacrev(lambda p: eqx.combine(p, static)(x))(params))(x)

    leaves = jax.tree.leaves(gradients(params, x))
    return np.concatenate([np.asarray(g).reshape(*g.shape[:2], -1) for g in leaves], axis=-1)
