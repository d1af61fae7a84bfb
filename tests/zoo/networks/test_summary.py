import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import pytest

from tests.models import tanh_mlp, TwoLayerLinear
from zoo import centered, CNN, MUP, Sequential, STANDARD, summary, WideResNet


def test_the_table_is_the_network():
    model = CNN(
        (3, 8, 8), 10, channels=4, depth=1, stride=2, bias_std=0.5, weight_std=3.0, key=jr.key(0)
    )
    assert str(summary(model, (3, 8, 8))).splitlines() == [
        "CNN: 3 x 8 x 8 -> 10",
        "",
        "layer    role     output     parameter  shape          count  multiplier  init",
        "-----------------------------------------------------------------------------------",
        "Conv     input    4 x 4 x 4  weight     4 x 3 x 3 x 3  108    0.5774      N(0, 1^2)",
        "                             bias       4              4      0.5         N(0, 1^2)",
        "relu              4 x 4 x 4",
        "Flatten           64",
        "Dense    readout  10         weight     10 x 64        640    0.375       N(0, 1^2)",
        "                             bias       10             10     0.5         N(0, 1^2)",
        "",
        "762 parameters",
    ]


def test_scales_are_those_of_the_parameterization():
    rows = summary(tanh_mlp(parameterization=MUP, weight_std=2.0, width=16), (3,)).rows
    weights = [row.tensors[0] for row in rows if row.tensors]
    assert [t.multiplier for t in weights] == [1, 1, 1]
    assert [t.init_std for t in weights] == pytest.approx([2 / 3**0.5, 2 / 4, 2 / 16])


@pytest.mark.long
def test_norms_start_at_one_and_zero_and_statistics_are_frozen():
    model = WideResNet((1, 4, 4), 2, base_channels=4, norm="batch", key=jr.key(0))
    found = summary(model, (1, 4, 4))
    norm = next(row for row in found.rows if row.kind == "BatchNorm")
    assert [(t.name, t.start, t.init_std) for t in norm.tensors] == [
        ("scale", 1.0, 0.0),
        ("shift", 0.0, 0.0),
    ]
    assert found.frozen == 2 * sum(
        row.tensors[0].shape[0] for row in found.rows if row == norm or row.kind == "BatchNorm"
    )
    copied = summary(centered(model), (1, 4, 4))
    assert (copied.parameters, copied.frozen) == (
        found.parameters,
        found.parameters + 2 * found.frozen,
    )


def test_parameters_of_other_modules_are_counted():
    found = summary(TwoLayerLinear(5, 3, key=jr.key(0)), (3,))
    assert (found.parameters, found.outside, found.rows) == (20, 20, ())
    assert str(found).endswith("20 parameters, 20 of them outside zoo layers")
    layer = tanh_mlp(parameterization=STANDARD).layers[1]
    shared = summary(Sequential([layer, jnp.sin, layer]), (8,))  # two places, so twice the leaves
    assert (shared.parameters, shared.outside) == (2 * 72, 0)


def test_nothing_is_computed():
    """A network that would not fit in memory: shapes only."""
    huge = eqx.filter_eval_shape(
        lambda key: CNN((3, 1024, 1024), 1000, channels=4096, depth=3, key=key), jr.key(0)
    )
    assert summary(huge, (3, 1024, 1024)).parameters == 4096 * 9 * (3 + 2 * 4096) + 1000 * (
        4096 * 1024**2
    )


def test_a_wrong_shape_is_named(unchecked):
    with pytest.raises(ValueError, match=r"`x` has shape \(4,\), that is 4 entries, expected one"):
        summary(tanh_mlp(), (4,))
    with pytest.raises(ValueError, match=r"`in_shape\[0\]` is -3, expected an integer >= 1"):
        summary(tanh_mlp(), (-3,))
