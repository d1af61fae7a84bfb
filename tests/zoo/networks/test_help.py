"""What people see first: `help` of what they make, and what it prints as."""

import math
import pydoc
from dataclasses import replace

import jax.random as jr
import pytest

from zoo import (
    BatchNorm,
    CNN,
    Conv,
    Dense,
    GroupNorm,
    MLP,
    NTK,
    Parameterization,
    PARAMETERIZATIONS,
    WideResNet,
)

COLUMNS, ROWS = 100, 50
KEY = jr.key(0)


@pytest.mark.parametrize("kind", [MLP, CNN, WideResNet, Dense, Conv, GroupNorm, BatchNorm])
def test_how_to_make_one_fits_a_screen_of_help(kind):
    """The page goes on with what Equinox gives every module, which is longer than a screen."""
    page = pydoc.plain(pydoc.render_doc(kind)).splitlines()
    start = next(i for i, line in enumerate(page) if line.startswith(" |  __init__("))
    end = next(i for i, line in enumerate(page[start + 1 :], start + 1) if line.strip() == "|")
    while page[end + 1].startswith(" |      "):  # paragraphs of its docstring
        end = next(i for i, line in enumerate(page[end + 1 :], end + 1) if line.strip() == "|")
    assert "**Raises:**" in "".join(page[start:end])
    assert sum(math.ceil(len(line) / COLUMNS) for line in page[:end]) <= ROWS


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_parameterizations_print_as_their_names(name):
    assert repr(PARAMETERIZATIONS[name]) == name


def test_layers_print_with_the_name_of_their_parameterization():
    own = Parameterization("mine", NTK.input, NTK.hidden, replace(NTK.readout))
    for parameterization, name in ((NTK, "NTK"), (own, "mine")):
        made = [
            Dense(2, 3, parameterization=parameterization, key=KEY),
            Conv(2, 3, kernel_size=(3,), parameterization=parameterization, key=KEY),
            GroupNorm(2, parameterization=parameterization),
            MLP(2, 1, width=2, depth=1, parameterization=parameterization, key=KEY),
        ]
        for layer in made:
            shown = [line.strip() for line in repr(layer).splitlines()]
            assert any(line.rstrip(",") == f"parameterization={name}" for line in shown)
            assert "PowerLaw" not in repr(layer)
    assert "Activation(name='relu')" in repr(made[-1])
