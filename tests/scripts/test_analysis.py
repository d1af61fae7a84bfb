"""The numbers of a study's report, on results whose laws are known (`study_data`)."""

import numpy as np
import pytest
import xarray as xr

from scripts.study.analysis import (
    breakdowns,
    completed,
    displacement,
    errors,
    exceptions,
    gain,
    Group,
    groups,
    horizons,
    median_error,
    median_horizon,
    relative_error,
)
from scripts.study.trends import ensemble, ERROR, exponents, foretold, linearity
from tests.scripts.study_data import (
    COEFFICIENT,
    FACTORS,
    law,
    leave_out,
    LIMIT_STD,
    POWER_OF_TIME,
    POWER_OF_WIDTH,
    SHIFT,
    stop,
    study_data,
    TIMES,
)

_MLP = {"architecture": "MLP-2", "activation": "tanh", "loss": "cross_entropy"}
_NARROW = {**_MLP, "parameterization": "NTK", "width": 64}


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    """Three seeds, all finished."""
    return study_data()


def group_of(data: xr.Dataset, architecture: str, parameterization: str = "NTK") -> Group:
    wanted = {"architecture": architecture, "parameterization": parameterization}
    return next(group for group in groups(data) if wanted.items() <= group.key.items())


def test_groups_have_their_own_widths_and_are_told_apart_by_what_differs(data):
    found = groups(data)
    labels = ["MLP-2, NTK", "MLP-2, STANDARD", "CNN-2, NTK", "CNN-2, STANDARD"]
    assert [group.label for group in found] == labels
    assert [group.widths for group in found] == [[64, 256, 1024]] * 2 + [[16, 64, 256]] * 2
    assert all(group.smooth for group in found)
    alone = study_data(architectures=("CNN-2",), parameterizations=("NTK",))
    assert [group.label for group in groups(alone)] == ["CNN-2"]


@pytest.mark.parametrize(
    ("activation", "smooth"), [("tanh", True), ("relu", False), ("elu", False)]
)
def test_an_activation_is_smooth_with_three_derivatives(activation, smooth):
    (group, *_) = groups(study_data(seeds=1, activations=(activation,)))
    assert group.smooth is smooth


@pytest.mark.parametrize("architecture", ["MLP-2", "CNN-2"])
@pytest.mark.parametrize("solve", COEFFICIENT)
def test_median_errors_are_those_of_the_law(data, architecture, solve):
    group = group_of(data, architecture)
    found = median_error(group.data).sel(solve=solve)
    expected = [[law(solve, architecture, n, t) for t in TIMES] for n in group.widths]
    np.testing.assert_allclose(found.transpose("width", "time"), expected, rtol=1e-12)


def test_a_gain_is_the_ratio_of_the_laws(data):
    group = group_of(data, "CNN-2", "STANDARD")
    found = gain(group.data, "frozen NTK", "order 3").sel(time=2.0)
    expected = [
        law("frozen NTK", "CNN-2", n, 2.0) / law("order 3", "CNN-2", n, 2.0) for n in group.widths
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    at_reference = gain(group.data, "order 3", "order 4").sel(time=1.0)
    np.testing.assert_allclose(at_reference, 10 * np.sqrt(group.widths), rtol=1e-12)


def test_the_median_of_ratios_is_not_the_ratio_of_medians():
    data = study_data()
    for seed, (worse, better) in enumerate([(1.0, 1.0), (10.0, 2.0), (2.0, 4.0)]):
        at = {**_NARROW, "seed": seed, "time": 1.0}
        data["test_rmse"].loc[{**at, "solve": "frozen NTK"}] = worse
        data["test_rmse"].loc[{**at, "solve": "order 3"}] = better
    here = {"width": 64, "time": 1.0}
    assert float(gain(group_of(data, "MLP-2").data, "frozen NTK", "order 3").sel(here)) == 1.0


def test_a_prediction_that_stopped_is_infinitely_wrong_and_counts_in_medians():
    data = study_data()
    for seed in (0, 1):
        stop(data, "order 3", 0.7, "It diverged.", **_NARROW, seed=seed)
    group = group_of(data, "MLP-2")
    here = {"width": 64, "time": 1.0}
    each = errors(group.data).sel(solve="order 3", **here)
    assert np.isinf(each.values).tolist() == [True, True, False]
    assert np.isfinite(errors(group.data).sel(solve="order 3", width=64, time=0.5)).all()
    assert float(median_error(group.data).sel(solve="order 3", **here)) == np.inf
    assert float(gain(group.data, "frozen NTK", "order 3").sel(here)) == 0.0
    assert float(gain(group.data, "order 3", "order 4").sel(here)) == np.inf


@pytest.mark.parametrize("ratios", [(0.01, 10.0), (np.inf, 0.0), (4.0, 0.25)])
def test_of_two_seeds_that_disagree_the_gain_is_no_better_backwards(ratios):
    """The arithmetic mean of ratios would see a gain both ways."""
    data = study_data(seeds=2)
    for seed, ratio in enumerate(ratios):
        at = {**_NARROW, "seed": seed}
        for solve, error in (("frozen NTK", ratio), ("order 3", 1.0)):
            if ratio in (0.0, np.inf) and (solve == "order 3") == (ratio == 0.0):
                stop(data, solve, 0.7, "It diverged.", **at)
            else:
                data["test_rmse"].loc[{**at, "time": 1.0, "solve": solve}] = error
    part = group_of(data, "MLP-2").data
    here = {"width": 64, "time": 1.0}
    forth = float(gain(part, "frozen NTK", "order 3").sel(here))
    back = float(gain(part, "order 3", "frozen NTK").sel(here))
    assert forth * back == pytest.approx(1.0)
    assert forth <= 1 + 1e-12


def test_where_both_orders_stopped_neither_is_better():
    data = study_data(seeds=1)
    for solve in ("order 3", "order 4"):
        stop(data, solve, 0.7, "It diverged.", **_NARROW)
    (found,) = [one for one in exceptions(data) if one.better == "order 4"]
    assert (found.gain, found.width, found.errors) == (1.0, 64, (np.inf, np.inf))


def test_no_exception_where_each_order_is_better(data):
    assert exceptions(data) == []


def test_an_exception_is_named_with_its_numbers():
    data = study_data()
    at = {"architecture": "CNN-2", "parameterization": "STANDARD", "width": 16}
    data["test_rmse"].loc[{**at, "solve": "order 4"}] *= 80
    (found,) = exceptions(data)
    assert (found.group.label, found.width) == ("CNN-2, STANDARD", 16)
    assert (found.worse, found.better) == ("order 3", "order 4")
    assert found.gain == pytest.approx(10 * np.sqrt(16) / 80)
    assert found.errors[1] == pytest.approx(80 * law("order 4", "CNN-2", 16, 1.0, "STANDARD"))


def test_cells_that_are_not_finished_are_left_out():
    data = study_data()
    leave_out(data, architecture="MLP-2", width=1024)
    leave_out(data, architecture="CNN-2", width=16, seed=0)
    assert completed(data) == (36 - 6 - 2, 36)
    assert group_of(data, "MLP-2").widths == [64, 256]
    found = median_error(group_of(data, "CNN-2").data).sel(width=16, solve="order 3", time=1.0)
    remaining = np.median(FACTORS[1:3])
    assert float(found) == pytest.approx(remaining * law("order 3", "CNN-2", 16, 1.0))


@pytest.mark.parametrize("solve", ["frozen NTK", "infinite NTK", "Taylor 2"])
@pytest.mark.parametrize("width", [64, 256])
def test_the_horizon_solves_the_law_for_the_tolerance(data, solve, width):
    """C A f t^p n^-q = 0.1 SHIFT (1 - exp(-t_last)), between the saved times."""
    found = horizons(group_of(data, "MLP-2").data).sel(width=width, solve=solve)
    tolerated = 0.1 * SHIFT * (1 - np.exp(-TIMES[-1]))
    at_one = COEFFICIENT[solve] * np.array(FACTORS[:3]) * width ** -POWER_OF_WIDTH[solve]
    expected = (tolerated / at_one) ** (1 / POWER_OF_TIME[solve])
    assert expected.max() < TIMES[-1]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_horizon_before_the_first_saved_time_is_on_the_line_from_zero():
    data = study_data(seeds=1)
    at = {**_NARROW, "seed": 0, "solve": "frozen NTK"}
    data["test_rmse"].loc[at] = np.array(TIMES) * 10
    found = horizons(group_of(data, "MLP-2").data).sel(width=64, solve="frozen NTK")
    np.testing.assert_allclose(found, 0.02, rtol=1e-6)


def test_a_horizon_beyond_the_last_time_is_infinite(data):
    assert np.isinf(horizons(group_of(data, "MLP-2").data).sel(width=1024, solve="order 4")).all()


def test_a_prediction_that_stops_while_good_is_good_until_it_stops():
    data = study_data(seeds=1)
    stop(data, "order 4", 3.5, "It diverged.", **_NARROW)
    found = horizons(group_of(data, "MLP-2").data).sel(width=64, solve="order 4")
    assert float(found.sel(seed=0)) == 3.5


def test_a_horizon_beyond_which_the_network_is_not_known_is_not_known():
    data = study_data(seeds=1)
    stop(data, "network", 2.0, "It diverged.", **_NARROW)
    found = horizons(group_of(data, "MLP-2").data).sel(width=64, seed=0)
    assert np.isnan(float(found.sel(solve="order 4")))


def test_of_two_seeds_the_shorter_horizon_counts():
    data = study_data(seeds=2)
    stop(data, "order 4", 0.5, "It diverged.", **(_NARROW | {"width": 1024}), seed=1)
    part = group_of(data, "MLP-2").data.sel(width=1024)
    assert np.isinf(horizons(part).sel(solve="order 4", seed=0))
    assert float(median_horizon(part).sel(solve="order 4")) == 0.5


def test_displacement_and_relative_error(data):
    moved = SHIFT * (1 - np.exp(-TIMES[-1]))
    group = group_of(data, "MLP-2")
    np.testing.assert_allclose(displacement(group.data), moved, rtol=1e-12)
    found = relative_error(group.data).sel(solve="order 3", width=64, seed=1, time=1.0)
    np.testing.assert_allclose(found, law("order 3", "MLP-2", 64, 1.0) / moved, rtol=1e-12)


def test_displacement_of_a_network_that_stopped_is_up_to_there():
    data = study_data(seeds=1)
    stop(data, "network", 2.0, "It diverged.", **_NARROW)
    found = displacement(group_of(data, "MLP-2").data).sel(width=64)
    np.testing.assert_allclose(found, SHIFT * (1 - np.exp(-2.0)), rtol=1e-12)


def test_breakdowns_say_where_when_and_why():
    data = study_data()
    stop(data, "order 4", 3.5, "It diverged.", **_NARROW, seed=2)
    (found,) = breakdowns(data)
    assert found.group.label == "MLP-2, NTK"
    assert (found.width, found.seed, found.solve) == (64, 2, "order 4")
    assert (found.time, found.outcome) == (3.5, "It diverged.")


def test_exponents_are_those_of_the_laws_with_intervals_of_no_length(data):
    """A seed's factor is the same at each width, so resampled seeds have the same slope."""
    found = exponents(group_of(data, "CNN-2"))
    expected = {f"{ERROR}{name}": -power for name, power in POWER_OF_WIDTH.items()}
    expected |= {"kernel change": -0.5, "limit_distance": -0.5, "kappa": -0.5}
    expected |= {"hessian_norm": -0.5, "o3_size": -1.0, "o4_size": -1.0}
    assert set(found["quantity"].values) == set(expected)
    for name, power in expected.items():
        here = found.sel(quantity=name)
        for variable in ("exponent", "low", "high"):
            np.testing.assert_allclose(here[variable], power, atol=1e-10)


def test_intervals_cover_slopes_that_differ_between_seeds():
    data = study_data(seeds=3)
    widths = data["width"] / 64
    tilted = data["kappa"] * widths ** xr.DataArray([-0.1, 0.0, 0.1], dims="seed")
    data["kappa"] = tilted.transpose(*data["kappa"].dims)
    found = exponents(group_of(data, "MLP-2")).sel(quantity="kappa")
    np.testing.assert_allclose(found["exponent"], -0.5, atol=1e-10)
    assert -0.6 - 1e-9 <= float(found["low"]) < -0.55
    assert -0.45 < float(found["high"]) <= -0.4 + 1e-9


def test_one_seed_has_an_exponent_without_interval_and_one_width_none():
    found = exponents(group_of(study_data(seeds=1), "MLP-2")).sel(quantity="kappa")
    np.testing.assert_allclose(found["exponent"], -0.5, atol=1e-10)
    assert np.isnan([found["low"], found["high"]]).all()
    data = study_data()
    leave_out(data, architecture="MLP-2", width=[64, 256])
    assert np.isnan(exponents(group_of(data, "MLP-2"))["exponent"]).all()


def test_groups_are_ranked_by_the_relative_error_at_their_widest(data):
    found = linearity(data)
    order = ["MLP-2, NTK", "MLP-2, STANDARD", "CNN-2, NTK", "CNN-2, STANDARD"]
    assert found["group"].values.tolist() == order
    assert found["width"].values.tolist() == [1024, 1024, 256, 256]
    moved = SHIFT * (1 - np.exp(-TIMES[-1]))
    expected = law("frozen NTK", "MLP-2", 1024, 1.0, "STANDARD") / moved
    np.testing.assert_allclose(found["relative_error"][1], expected, rtol=1e-12)
    np.testing.assert_allclose(found["kappa"][2], 2 / np.sqrt(256), rtol=1e-12)


def test_a_measure_that_grows_with_the_error_foretells_it_and_its_inverse_does_the_reverse():
    data = study_data()
    error = relative_error(data).sel(solve="frozen NTK", time=1.0, drop=True)
    data["kappa"] = error**3
    data["o3_size"] = 1 / error
    found = foretold(data)
    np.testing.assert_allclose(found.sel(measure="kappa"), 1, atol=1e-12)
    np.testing.assert_allclose(found.sel(measure="o3_size"), -1, atol=1e-12)
    data["o4_size"] = xr.ones_like(data["o4_size"])
    assert np.isnan(foretold(data).sel(measure="o4_size"))


def test_an_ensemble_is_compared_in_units_of_its_sampling_error():
    """Scores -1, 0, 1, -1: mean -1/4, variance 11/12, in units of the infinite ensemble's."""
    found = ensemble(group_of(study_data(seeds=4), "MLP-2")).sel(width=256, time=1.0)
    np.testing.assert_allclose(found["mean_distance"], 0.25, rtol=1e-12)
    np.testing.assert_allclose(found["mean_z"], 0.5, rtol=1e-12)
    np.testing.assert_allclose(found["std_ratio"], np.sqrt(11 / 12), rtol=1e-12)
    np.testing.assert_allclose(found["std_z"], (np.sqrt(11 / 12) - 1) * np.sqrt(6), rtol=1e-10)
    assert int(found["seeds"]) == 4


def test_draws_from_the_infinite_ensemble_have_unit_z_on_average():
    """Independent Gaussian logits: mean_z^2 is chi-squared over its 12 degrees of freedom."""
    data = study_data(seeds=5, architectures=("MLP-2",), parameterizations=("NTK",))
    limit = data["limit_mean"]
    generator = np.random.default_rng(1)
    squares, ratios = [], []
    for _ in range(60):
        logits = data["test_logits"].sel(solve="network")
        noise = xr.DataArray(generator.normal(size=logits.shape), dims=logits.dims)
        drawn = (limit + LIMIT_STD * noise).transpose(*logits.dims)
        data["test_logits"].loc[{"solve": "network"}] = drawn.values
        found = ensemble(group_of(data, "MLP-2")).sel(time=1.0)
        squares.append(found["mean_z"].values ** 2)
        ratios.append(found["std_ratio"].values ** 2)
    # 60 x 3 widths x 12 logits: the standard error of the mean square is 0.03.
    assert np.mean(squares) == pytest.approx(1, abs=0.12)
    assert np.mean(ratios) == pytest.approx(1, abs=0.06)


def test_two_seeds_are_no_ensemble():
    found = ensemble(group_of(study_data(seeds=2), "MLP-2"))
    assert np.isnan(found["mean_z"]).all()
    assert np.isnan(found["std_ratio"]).all()


def test_stopped_solves_are_not_part_of_a_fitted_power():
    data = study_data(seeds=1)
    stop(data, "order 3", 0.7, "It diverged.", **_NARROW)
    found = exponents(group_of(data, "MLP-2")).sel(quantity=f"{ERROR}order 3")
    np.testing.assert_allclose(found["exponent"], -1.5, atol=1e-10)
