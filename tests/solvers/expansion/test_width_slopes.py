"""Powers of the width in the errors of the 1/width expansion, against trained networks."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import ntk
from solvers import compare_predictions, MeanSquaredError
from tests.models import tanh_mlp

WIDTHS, SEEDS, POINTS = (32, 64, 128, 256), 24, 3


def slope(errors):
    """Of the medians over seeds, with a 95 % bootstrap interval over seeds."""
    logs, sizes = np.log(np.array(errors)), np.log(WIDTHS)
    draws = np.random.default_rng(0).integers(0, SEEDS, (1000, SEEDS))
    drawn = [np.polyfit(sizes, np.median(logs[:, seeds], axis=1), 1)[0] for seeds in draws]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return np.polyfit(sizes, np.median(logs, axis=1), 1)[0], low, high


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::solvers.ValidityWarning")
def test_each_order_gains_a_power_of_the_width():
    """Of tanh networks with two hidden layers in NTK parameterization.

    At lambda_max t = 5 the frozen kernel errs by 1/width, the expansion by 1/width^2, and so do
    their kernels. In 8 steps at learning_rate lambda_max = 1 the expansion of descent gains that
    order, and that of the flow does not.
    """
    x = jr.normal(jr.key(10), (POINTS, 3))
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True) * 3**0.5
    y = jr.normal(jr.key(20), (POINTS, 1))
    options = {"loss": MeanSquaredError(), "method": "dense", "rtol": 1e-9, "atol": 1e-11}

    def errors(width, seed):
        model = tanh_mlp(seed, out_size=1, width=width, bias_std=None)
        rate = POINTS / float(jnp.linalg.eigvalsh(ntk(model, x).reshape(POINTS, POINTS))[-1])
        flow = compare_predictions(
            model, x, y, [5 * rate], predictions=("width expansion",), **options
        )
        expansion, network = flow.predictions["width expansion"].record, flow.network
        kernel = ntk(network.record.final, x)
        steps = compare_predictions(
            model, x, y, [8 * rate], learning_rate=rate,
            predictions=("width expansion", "width expansion descent"), **options,
        )  # fmt: skip
        gaps = {
            "f0": network.train[0] - expansion.train0[0],
            "f0 + f1": network.train[0] - expansion.train[0],
            "kernel0": kernel - expansion.kernel0,
            "kernel0 + kernel1": kernel - expansion.kernel[0],
            **{name: steps.network.train - one.train for name, one in steps.predictions.items()},
        }
        return {name: float(jnp.linalg.norm(gap.ravel())) for name, gap in gaps.items()}

    found = [[errors(width, seed) for seed in range(SEEDS)] for width in WIDTHS]
    slopes = {name: slope([[one[name] for one in row] for row in found]) for name in found[0][0]}
    print(slopes)
    assert abs(slopes["f0"][0] + 1) < 0.15
    for name in ("f0 + f1", "kernel0 + kernel1"):
        _, low, high = slopes[name]
        assert low <= -1.6, name
        assert high >= -2.4, name
    assert slopes["width expansion descent"][0] <= -1.5
    assert slopes["width expansion"][0] >= -1.25
