"""Kernels of more examples than are taken at once: how often gradients are computed, and the kernel
that comes of it.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import ntk
from corrections.kernels import ntk as tangent_kernels
from corrections.kernels.panels import Plan, plan
from tests import oracles
from tests.corrections.contraction.test_gradient_factors import random_metric
from tests.models import inputs, tanh_mlp
from zoo import CNN, memory_limit

MODELS = {
    "MLP": lambda: (tanh_mlp(), inputs(11), inputs(5, seed=3)),
    "CNN": lambda: (
        CNN((2, 6, 6), 3, channels=4, depth=2, bias_std=0.3, activation="tanh", key=jr.key(0)),
        jr.normal(jr.key(1), (7, 2, 6, 6)),
        jr.normal(jr.key(2), (3, 2, 6, 6)),
    ),
}


# By the limits that stand for them: all gradients kept, those of some rows, of one row at a time.
CUTS = {
    101: Plan(tile=2, panel=11, columns=11),
    102: Plan(tile=2, panel=4, columns=3),
    103: Plan(tile=2, panel=3, columns=1),
    104: Plan(tile=1, panel=1, columns=1),
    105: Plan(tile=3, panel=4, columns=11),  # columns that reach back over the rows
}


def reduced(kernel, outputs):
    diagonal = jnp.einsum("akbk->abk", kernel)
    return {"full": kernel, "diagonal": diagonal, "mean": jnp.mean(diagonal, axis=-1)}[outputs]


@pytest.fixture
def computed(monkeypatch):
    """The examples of each step whose gradients are computed."""
    steps, of_tile = [], tangent_kernels._of_tile

    def counted(model, x, start, size, *rest):
        steps.append((int(start), size))
        return of_tile(model, x, start, size, *rest)

    monkeypatch.setattr(tangent_kernels, "_of_tile", counted)
    return steps


@pytest.mark.parametrize(
    ("name", "method", "outputs"),
    [
        case
        if case in (("MLP", "auto", "full"), ("CNN", "auto", "mean"))
        else pytest.param(*case, marks=pytest.mark.long)
        for case in itertools.product(MODELS, ["auto", "jacobian"], ["full", "diagonal", "mean"])
    ],
)
def test_is_its_definition_whatever_is_kept(name, method, outputs, monkeypatch):
    """All gradients, those of some rows, or of one row at a time; of a set with itself, and of two
    sets of which either is the larger.
    """

    def cut(*, rows, columns, memory, **_):
        tile, panel, streamed = CUTS[memory]
        wide = rows if columns is None else columns
        return Plan(tile, min(panel, rows), min(streamed, wide))

    monkeypatch.setattr(tangent_kernels, "plan", cut)
    model, x1, x2 = MODELS[name]()
    metric = random_metric(model)
    for first, second in ((x1, None), (x1, x2), (x2, x1)):
        whole = oracles.kernel(model, first, first if second is None else second, metric)
        expected = reduced(whole, outputs)
        for memory in CUTS:
            with memory_limit(memory):
                found = ntk(
                    model,
                    first,
                    second,
                    metric=metric,
                    outputs=outputs,
                    method=method,
                    batch_size=2,
                )
            scale = float(jnp.max(jnp.abs(expected)))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * scale)


def test_gradients_that_fit_are_computed_once(computed):
    model, x = tanh_mlp(), inputs(12)
    ntk(model, x, batch_size=4)
    assert computed == [(0, 4), (4, 4), (8, 4)]
    computed.clear()
    ntk(model, x, inputs(6, seed=3), batch_size=6)
    assert computed == [(0, 6), (6, 6), (0, 6)]


def test_gradients_that_do_not_fit_are_computed_once_for_each_panel_before_them(computed):
    """Of rows once, of columns behind them once for each panel."""
    model, x = tanh_mlp(), inputs(12)
    with memory_limit(1):  # one row, one column
        ntk(model, x, batch_size=1)
    assert len(computed) == 12 + 12 * 11 // 2


def test_what_is_kept_fits():
    """Panels and columns, what a step needs and what products do take no more than there is."""
    for rows in (10, 1000):
        for columns in (None, 300):
            for memory in (2**28, 2**30, 2**32):
                stored, working = 3_000_000, 28_000_000
                chosen = plan(
                    rows=rows,
                    columns=columns,
                    stored=stored,
                    working=working,
                    tile=None,
                    memory=memory,
                )
                kept = (chosen.panel + chosen.columns) * stored
                kept -= chosen.columns * stored * (columns is None and chosen.panel == rows)
                assert kept + chosen.tile * working < memory


def test_a_kernel_that_fits_is_one_panel():
    found = plan(rows=1000, columns=None, stored=10**6, working=10**6, tile=8, memory=2**32)
    assert found == Plan(tile=8, panel=1000, columns=1000)


def test_panels_take_what_memory_there_is():
    """A quarter of the memory for all of them: four panels and a rest, not more."""
    n, stored = 1000, 4_000_000
    found = plan(
        rows=n, columns=None, stored=stored, working=stored, tile=1, memory=n * stored // 4
    )
    assert math.ceil(n / found.panel) <= 6


def test_a_limit_changes_what_is_kept_and_not_the_kernel_of_one_program():
    """Inside the user's own `jit`, where the limit is that of the trace."""
    model, x = tanh_mlp(), inputs(9)
    expected = oracles.kernel(model, x, x, None)
    with memory_limit(2000):
        found = jax.jit(lambda x: ntk(model, x))(x)
    np.testing.assert_allclose(found, expected, atol=1e-13 * float(jnp.max(jnp.abs(expected))))
