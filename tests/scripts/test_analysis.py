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
    gains,
    Group,
    groups,
    horizons,
    mean_error,
    mean_horizon,
    relative_error,
    tally,
    tally_by_width,
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
def test_mean_errors_are_those_of_the_law(data, architecture, solve):
    group = group_of(data, architecture)
    found = mean_error(group.data).sel(solve=solve)
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


def set_errors(data: xr.Dataset, width: int, errors: dict[str, list[float]]) -> None:
    """The errors of the seeds of MLP-2, NTK at t = 1, by prediction."""
    at = {**_NARROW, "width": width, "time": 1.0}
    for solve, values in errors.items():
        for seed, value in enumerate(values):
            data["test_rmse"].loc[{**at, "seed": seed, "solve": solve}] = value


_HERE = {"width": 64, "time": 1.0}


def test_a_gain_is_the_ratio_of_the_errors_beside_it_and_the_mean_of_the_seeds_ratios():
    """Medians of errors and of ratios would say 1.1 and 0.9 here."""
    data = study_data()
    set_errors(data, 64, {"order 3": [1.0, 10.0, 90.0], "order 4": [1.1, 9.0, 100.0]})
    part = group_of(data, "MLP-2").data
    errors_of = mean_error(part).sel(_HERE)
    found = float(gain(part, "order 3", "order 4").sel(_HERE))
    assert found == pytest.approx(
        float(errors_of.sel(solve="order 3") / errors_of.sel(solve="order 4"))
    )
    assert found == pytest.approx(np.prod([1 / 1.1, 10 / 9, 0.9]) ** (1 / 3))
    assert float(gain(part, "order 4", "order 3").sel(_HERE)) == pytest.approx(1 / found)


def test_cells_are_counted_so_that_a_seed_that_loses_is_not_averaged_away():
    """Order 4 is closer in the mean, and not in seed 1."""
    data = study_data(seeds=2)
    set_errors(data, 64, {"order 3": [1e-2, 7.1e-3], "order 4": [1e-3, 7.7e-3]})
    group = group_of(data, "MLP-2")
    assert float(gain(group.data, "order 3", "order 4").sel(_HERE)) > 2
    won, *_ = tally_by_width(group, "order 3", "order 4", 1.0)
    assert (won.closer, won.known, won.cells, won.everywhere) == (1, 2, 2, False)
    (found,) = exceptions(data)
    assert (found.group.label, found.width, found.seed) == ("MLP-2, NTK", 64, 1)
    assert found.errors == (7.1e-3, 7.7e-3)
    every = tally(groups(data), "order 3", "order 4", 1.0)
    assert (every.closer, every.known) == (23, 24)


def test_a_prediction_that_stopped_is_infinitely_wrong_in_its_cell_and_in_the_mean():
    data = study_data()
    stop(data, "order 3", 0.7, "It diverged.", **_NARROW, seed=1)
    group = group_of(data, "MLP-2")
    each = errors(group.data).sel(solve="order 3", **_HERE)
    assert np.isinf(each.values).tolist() == [False, True, False]
    assert np.isfinite(errors(group.data).sel(solve="order 3", width=64, time=0.5)).all()
    assert float(mean_error(group.data).sel(solve="order 3", **_HERE)) == np.inf
    assert float(gain(group.data, "frozen NTK", "order 3").sel(_HERE)) == 0.0
    assert float(gain(group.data, "order 3", "order 4").sel(_HERE)) == np.inf
    won, *_ = tally_by_width(group, "frozen NTK", "order 3", 1.0)
    assert (won.closer, won.known) == (2, 3)
    assert won.mean == pytest.approx(8 * np.sqrt(64))  # of the two in which neither stopped


def test_where_both_orders_stopped_neither_is_better():
    data = study_data(seeds=1)
    for solve in ("order 3", "order 4"):
        stop(data, solve, 0.7, "It diverged.", **_NARROW)
    (found,) = [one for one in exceptions(data) if one.better == "order 4"]
    assert (found.width, found.seed, found.errors) == (64, 0, (np.inf, np.inf))
    part = group_of(data, "MLP-2").data
    assert float(gains(part, "order 3", "order 4").sel(_HERE).sel(seed=0)) == 1.0
    assert np.isnan(float(gain(part, "order 3", "order 4").sel(_HERE)))


def test_no_exception_where_each_order_is_better(data):
    assert exceptions(data) == []


def test_an_exception_is_named_with_its_seed_and_numbers():
    data = study_data()
    at = {"architecture": "CNN-2", "parameterization": "STANDARD", "width": 16, "seed": 1}
    data["test_rmse"].loc[{**at, "solve": "order 4"}] *= 80
    (found,) = exceptions(data)
    assert (found.group.label, found.width, found.seed) == ("CNN-2, STANDARD", 16, 1)
    assert (found.worse, found.better) == ("order 3", "order 4")
    laws = [law(order, "CNN-2", 16, 1.0, "STANDARD") for order in ("order 3", "order 4")]
    np.testing.assert_allclose(found.errors, (laws[0], 80 * laws[1]), rtol=1e-12)


def test_cells_that_are_not_finished_are_left_out():
    data = study_data()
    leave_out(data, architecture="MLP-2", width=1024)
    leave_out(data, architecture="CNN-2", width=16, seed=0)
    assert completed(data) == (36 - 6 - 2, 36)
    assert group_of(data, "MLP-2").widths == [64, 256]
    found = mean_error(group_of(data, "CNN-2").data).sel(width=16, solve="order 3", time=1.0)
    remaining = np.prod(FACTORS[1:3]) ** 0.5
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


def test_a_mean_horizon_counts_what_lies_beyond_the_end_with_the_end():
    data = study_data(seeds=2)
    stop(data, "order 4", 0.5, "It diverged.", **(_NARROW | {"width": 1024}), seed=1)
    part = group_of(data, "MLP-2").data.sel(width=1024)
    assert np.isinf(horizons(part).sel(solve="order 4", seed=0))
    found = mean_horizon(part).sel(solve="order 4")
    assert float(found["time"]) == pytest.approx(np.sqrt(20 * 0.5))
    assert int(found["beyond"]) == 1


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


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_have_an_exponent_without_interval_and_two_widths_none(seeds):
    found = exponents(group_of(study_data(seeds=seeds), "MLP-2")).sel(quantity="kappa")
    np.testing.assert_allclose(found["exponent"], -0.5, atol=1e-10)
    assert np.isnan([found["low"], found["high"]]).all()
    data = study_data()
    leave_out(data, architecture="MLP-2", width=64)
    fitted = exponents(group_of(data, "MLP-2"))
    assert all(bool(fitted[name].isnull().all()) for name in fitted.data_vars)


def test_groups_are_ranked_by_the_relative_error_at_the_widest_common_width(data):
    found = linearity(data)
    order = ["MLP-2, NTK", "MLP-2, STANDARD", "CNN-2, NTK", "CNN-2, STANDARD"]
    assert found["group"].values.tolist() == order
    assert set(found["width"].values) == {256}
    assert found["rank"].values.tolist() == [1, 2, 3, 4]
    moved = SHIFT * (1 - np.exp(-TIMES[-1]))
    expected = law("frozen NTK", "MLP-2", 256, 1.0, "STANDARD") / moved
    np.testing.assert_allclose(found["relative_error"][1], expected, rtol=1e-12)
    np.testing.assert_allclose(found["kappa"][2], 2 / np.sqrt(256), rtol=1e-12)


def test_architectures_without_a_common_width_are_not_ranked_against_each_other():
    data = study_data()
    leave_out(data, architecture="MLP-2", width=[64, 256])
    found = linearity(data)
    assert found["among"].values.tolist() == ["MLP-2", "MLP-2", "CNN-2", "CNN-2"]
    assert found["width"].values.tolist() == [1024, 1024, 256, 256]
    assert found["rank"].values.tolist() == [1, 2, 1, 2]
    leave_out(data, architecture="CNN-2", parameterization="NTK", width=[16, 256])
    leave_out(data, architecture="CNN-2", parameterization="STANDARD", width=[64])
    found = linearity(data)
    assert found["width"].values.tolist()[2:] == [64, 256]
    assert np.isnan(found["rank"].values[2:]).all()


def test_a_measure_that_grows_with_the_error_foretells_it_and_its_inverse_does_the_reverse():
    data = study_data()
    error = relative_error(data).sel(solve="frozen NTK", time=1.0, drop=True)
    data["kappa"] = error**3
    data["o3_size"] = 1 / error
    found = foretold(data)
    correlation = found["correlation"]
    np.testing.assert_allclose(correlation.sel(measure="kappa"), 1, atol=1e-12)
    np.testing.assert_allclose(correlation.sel(measure="o3_size"), -1, atol=1e-12)
    assert set(found["cells"].values) == {36}
    data["o4_size"] = xr.ones_like(data["o4_size"])
    assert np.isnan(foretold(data)["correlation"].sel(measure="o4_size"))


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


def test_a_width_at_which_a_solve_stopped_in_a_seed_is_not_part_of_its_power():
    """Of three widths two remain, which have none."""
    data = study_data()
    stop(data, "order 3", 0.7, "It diverged.", **_NARROW, seed=1)
    found = exponents(group_of(data, "MLP-2"))["exponent"]
    assert np.isnan(found.sel(quantity=f"{ERROR}order 3"))
    np.testing.assert_allclose(found.sel(quantity=f"{ERROR}order 4"), -2, atol=1e-10)
