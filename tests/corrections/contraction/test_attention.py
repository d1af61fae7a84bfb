"""A layer that is taught to the library, end to end: attention, contracted and infinitely wide.

    k = W_K a,   v = W_V a,   out_p = sum_q softmax_q(4 k_p . k_q / d) v_q,     a (d, tokens)

With scores over d, not its root, and keys that are the queries the weights have a limit, as k_p .
k_q / d is a mean over d channels: out is Gaussian again, and its kernels are those of v, mixed. The
gradient of W_K vanishes like 1/d (Hron, Bahri, Sohl-Dickstein & Novak 2020, "Infinite attention",
section 3).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import monte_carlo_kernels, ntk, o3
from corrections.contraction.gradient_factors import GradientFactors
from tests import oracles
from zoo import (
    ACTIVATIONS,
    ContractionRule,
    Dense,
    Flatten,
    GlobalAveragePool,
    limit,
    LimitLayout,
    LimitNeeds,
    LimitRule,
    LimitSide,
    NTK,
    ParameterizedLayer,
    ParameterizedTensor,
    Sequential,
    Transposed,
)

X = jr.normal(jr.key(1), (3, 4, 3))  # examples, channels, tokens
SHARPNESS = 4.0


class Tokenwise(ParameterizedLayer):
    """W a_p for each token p of (channels, tokens)."""

    weight: Any
    role: Any = eqx.field(static=True)
    parameterization: Any = eqx.field(static=True, default=NTK)

    @property
    def fans(self):
        return {"fan_in": self.weight.shape[1], "fan_out": self.weight.shape[0]}

    @property
    def tensors(self):
        return {"weight": ParameterizedTensor("weight", 1.0)}

    def like(self, parameterization):
        return eqx.filter_eval_shape(type(self), self.weight, self.role, parameterization)

    def __call__(self, a):
        return self.multiplier("weight") * self.weight @ a

    def contraction_rule(self):
        return ContractionRule(
            patches=lambda layer, a: a.T,
            multipliers=lambda layer: (layer.multiplier("weight"), 0.0),
            transposed=Transposed(lambda layer, delta: delta.T, lambda layer, matrix: matrix),
        )

    def limit_rule(self, widths):
        return TokenwiseRule(widths.tensor(self, "weight"))


class TokenwiseRule(LimitRule):
    tensor: Any = eqx.field(static=True)

    def __call__(self, kernels):
        forward, backward, gradient = (
            getattr(self.tensor, name).factor for name in ("forward", "backward", "gradient")
        )
        ntk = None
        if kernels.tangent:
            ntk = gradient * kernels.nngp
            ntk = ntk if kernels.ntk is None else ntk + backward * kernels.ntk
        after = kernels.mapped(lambda kernel, layout: forward * kernel)
        return after.replaced(ntk=ntk, channels=None, gaussian=True, fresh=True)


class Attention(eqx.Module):
    """Scores of the keys with the queries, or with themselves."""

    keys: Tokenwise
    values: Tokenwise
    queries: Tokenwise | None = None

    def __call__(self, a):
        keys = self.keys(a)
        queries = keys if self.queries is None else self.queries(a)
        return self.values(a) @ jax.nn.softmax(SHARPNESS * keys.T @ queries / len(keys), axis=0)

    def limit_rule(self, widths):
        keys, values = (
            getattr(self, name).limit_rule(widths.at(f".{name}")) for name in ("keys", "values")
        )
        return AttentionRule(keys, values)


class AttentionRule(LimitRule):
    keys: LimitRule
    values: LimitRule

    def needs(self, after):
        # All pairs of tokens, of each example with itself too.
        return LimitNeeds(LimitLayout.FULL, LimitLayout.FULL)

    def __call__(self, kernels):
        first, second = (
            jax.nn.softmax(SHARPNESS * side.own, axis=-1) for side in self.keys(kernels).sides
        )
        values = self.values(kernels)

        def mixed(kernel):
            return jnp.einsum("ipa,ijab,jqb->ijpq", first, kernel, second)

        sides = tuple(
            LimitSide(jnp.einsum("ipa,iab,iqb->ipq", weights, side.own, weights), side.layout)
            for weights, side in zip((first, second), values.sides, strict=True)
        )
        ntk = None if values.ntk is None else mixed(values.ntk)
        return values.replaced(nngp=mixed(values.nngp), ntk=ntk, sides=sides)


def network(width, key, *, tied=True, pool=True):
    keys = jr.split(key, 5)

    def tokenwise(key, role="hidden", size=width):
        return Tokenwise(jr.normal(key, (width, size)), role)

    queries = None if tied else tokenwise(keys[4])
    out = width * (1 if pool else X.shape[2])
    layers = [
        tokenwise(keys[0], "input", X.shape[1]),
        ACTIVATIONS["erf"],
        Attention(tokenwise(keys[1]), tokenwise(keys[2]), queries),
        ACTIVATIONS["erf"],
        GlobalAveragePool() if pool else Flatten(),
        Dense(out, 1 if tied else 2, role="readout", key=keys[3]),
    ]
    return Sequential(layers)


@pytest.mark.parametrize("tied", [True, False], ids=["keys are queries", "queries"])
def test_the_projections_are_contracted(tied):
    model, count = network(5, jr.key(0), tied=tied), []
    eqx.filter_eval_shape(
        lambda m: count.append(len(GradientFactors(m, X[0], None, method="structured").ruled)),
        model,
    )
    assert count == [4 if tied else 5]
    found, expected = (ntk(model, X, method=method) for method in ("structured", "jacobian"))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * np.max(expected))
    if tied:  # the third kernel takes the transposed rules
        expected = oracles.third(model, X[:2], X[:2], X[:2], None)
        np.testing.assert_allclose(o3(model, X[:2]), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param(True, id="mean over tokens", marks=pytest.mark.long),
        pytest.param(False, id="flat"),
    ],
)
def test_finite_networks_approach_the_limit(pool):
    """Both the errors of the mean and its distance from the limit, O(1/d), are about 2%."""
    limits = limit(network(8, jr.key(0), pool=pool)).kernels(X)
    drawn = monte_carlo_kernels(
        lambda key: network(64, key, pool=pool), X, n_samples=64, key=jr.key(2)
    )
    for mean, error, expected in zip(
        (drawn.nngp, drawn.ntk), (drawn.nngp_error, drawn.ntk_error), limits, strict=True
    ):
        assert np.all(np.abs(mean - expected) < 4 * error)
