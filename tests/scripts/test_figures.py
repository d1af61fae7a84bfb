"""The figures of a study: what they draw is what the results hold."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from scripts.study.analysis import groups
from scripts.study.palette import BLUE
from scripts.study.predictions import named, SOLVES
from scripts.study.report import figures, panels
from scripts.study.report.figures import PICTURES
from scripts.study.report.style import label_ends
from scripts.study.report.svg import inline, VARIABLES
from tests.scripts.study_data import law, leave_out, stop, study_data, TIMES

_MLP = {"architecture": "MLP-2", "activation": "tanh", "loss": "cross_entropy"}


NAMED = {picture.stem: picture for picture in PICTURES}


def lines_of(axis, colour: str, style: str = "-"):
    return [
        line
        for line in axis.get_lines()
        if to_hex(line.get_color()) == colour and line.get_linestyle() == style
    ]


@pytest.fixture(scope="module")
def data():
    return study_data()


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.stem)
def test_each_figure_has_a_panel_a_group_with_something_in_it(data, picture):
    figure = figures.grid(picture, data).figure
    labels = [group.label for group in groups(data)]
    assert [axis.get_title() for axis in figure.axes] == labels
    for axis in figure.axes:
        drawn = [
            np.isfinite(np.asarray(line.get_ydata(), float)).sum() for line in axis.get_lines()
        ]
        assert max(drawn) >= 3
    assert figure.legends


def test_error_in_time_draws_the_law_at_the_widest_width(data):
    axis = figures.grid(NAMED["error_in_time"], data).figure.axes[0]
    (line,) = lines_of(axis, named("order 3").colour)
    expected = [law("order 3", "MLP-2", 1024, t) for t in TIMES[1:]]
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-12)
    np.testing.assert_allclose(line.get_xdata(), TIMES[1:])


def test_error_in_width_says_the_exponents(data):
    axis = figures.grid(NAMED["error_in_width"], data).figure.axes[0]
    said = {(text.get_text(), text.get_color()) for text in axis.texts}
    assert ("−1.50", named("order 3").colour) in said
    assert ("−0.50", named("infinite NTK").colour) in said


def test_kernel_evolution_has_no_line_for_solves_without_a_kernel(data):
    axis = figures.grid(NAMED["kernel_evolution"], data).figure.axes[0]
    colours = {to_hex(line.get_color()) for line in axis.get_lines()}
    assert colours == {named(name).colour for name in ("network", "order 3", "order 4")}


def test_a_prediction_that_explodes_does_not_flatten_the_rest():
    data = study_data()
    data["test_rmse"].loc[{"solve": "order 4", "time": 20.0}] = 1e30
    low, high = figures.grid(NAMED["error_in_time"], data).figure.axes[0].get_ylim()
    assert high <= 20.001
    assert low >= 1e-8 * high


def test_ellipses_sit_on_the_limit_where_the_kernel_is_the_limits():
    data = study_data(seeds=1, architectures=("MLP-2",), parameterizations=("NTK",))
    kernel = data["limit_two_point_kernel"].values[0, 0, 0]
    (group,) = groups(data)
    figure = figures.ellipses([group]).figure
    assert [axis.get_title() for axis in figure.axes] == ["width 64", "width 256", "width 1024"]
    limit = figure.axes[0].get_lines()[-1]
    points = np.stack([limit.get_xdata(), limit.get_ydata()])
    on_it = np.einsum("ip,ij,jp->p", points, np.linalg.inv(kernel), points)
    np.testing.assert_allclose(on_it, 1, rtol=1e-10)


def test_at_most_four_widths_have_an_ellipse_the_ends_among_them():
    data = study_data(seeds=1, architectures=("MLP-2",), parameterizations=("NTK",))
    widths = [16, 64, 256, 512, 1024, 4096]
    (group,) = groups(data.reindex(width=widths, method="nearest"))
    chosen = panels.some_widths(group)
    assert (chosen[0], chosen[-1], len(chosen)) == (group.widths[0], group.widths[-1], 4)


def test_a_kernel_that_is_not_positive_has_no_ellipse():
    data = study_data(seeds=1, architectures=("MLP-2",), parameterizations=("NTK",))
    data["two_point_kernel"].loc[{"solve": "network", "time": 20.0}] = [[1.0, 2.0], [2.0, 1.0]]
    (group,) = groups(data)
    figure = figures.ellipses([group]).figure
    start, end, _ = figure.axes[0].get_lines()
    assert np.isfinite(start.get_ydata()).all()
    assert np.isnan(end.get_ydata()).all()


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.stem)
def test_figures_bear_one_finished_cell_without_limits(picture):
    data = study_data(seeds=1)
    leave_out(data, architecture="CNN-2")
    leave_out(data, parameterization="STANDARD")
    leave_out(data, width=[256, 1024])
    stop(data, "order 4", 0.0, "It diverged.", **_MLP, parameterization="NTK", width=64, seed=0)
    for name in ("limit_spectrum", "limit_mean", "limit_std", "limit_loss_mean"):
        data[name] = data[name] * np.nan
    data["limit_loss_std"] = data["limit_loss_std"] * np.nan
    data["limit_two_point_kernel"] = data["limit_two_point_kernel"] * np.nan
    (axis,) = figures.grid(picture, data).figure.axes
    assert axis.get_title() == "MLP-2, NTK"
    assert len(figures.ellipses(groups(data)).figure.axes) == 1


def test_an_inline_figure_is_deterministic_and_takes_its_colours_from_the_page(data):
    group = groups(data)[0]
    picture = PICTURES[0]
    within = figures.grid(picture, data).limits[group.label]
    first, second = (inline(figures.single(picture, group, within), "a", "b") for _ in range(2))
    assert first == second
    assert first.startswith("<svg")
    assert "var(--vermilion)" in first
    assert not [colour for colour in VARIABLES if colour in first.lower()]
    assert "http" not in first.replace("http://www.w3.org/", "")


def test_labels_at_the_ends_of_lines_do_not_overlap(data):
    axis = figures.grid(NAMED["error_in_width"], data).figure.axes[0]
    for text in list(axis.texts):
        text.remove()
    label_ends(axis, 1024, [(1e-2, "a", "k"), (1.01e-2, "b", "k"), (1.02e-2, "c", "k")])
    low, high = np.log(axis.get_ylim())
    heights = sorted(np.log(text.xy[1]) for text in axis.texts)
    assert min(np.diff(heights)) >= 0.06 * (high - low)


def labels(stem: str, data) -> set[str]:
    """What the key of a figure names."""
    paper = figures.grid(NAMED[stem], data)
    return {key.label for key in paper.keys}


_ONE = {"architectures": ("MLP-2",), "parameterizations": ("NTK",)}


def test_keys_name_what_is_drawn_and_nothing_else():
    data = study_data(**_ONE)
    solves = {solve.name for solve in SOLVES} - {"network"}
    ends = {"narrowest width", "widest width"}
    assert labels("error_in_time", data) == solves | ends | {"tolerance", "reference time"}
    fitted = panels.FITTED.label
    assert labels("error_in_width", data) == solves | {fitted}
    assert labels("kernel_evolution", data) == {"network", "order 3", "order 4"} | ends
    assert labels("spectra", data) == ends | {"infinite width"}
    assert labels("learning_curves", data) == ends | {"infinite width", panels.DEVIATION.label}
    two = study_data(seeds=2, **_ONE).isel(width=[0, 1])
    assert labels("error_in_width", two) == solves
    assert not list(figures.grid(NAMED["error_in_width"], two).figure.axes[0].texts)


def test_keys_leave_out_what_is_not_there():
    """One width, no limit, one solve not computed, another out of sight."""
    data = study_data(seeds=2, **_ONE).isel(width=[0])
    for name in ("limit_spectrum", "limit_loss_mean", "limit_loss_std", "limit_two_point_kernel"):
        data[name] = data[name] * np.nan
    data["test_rmse"].loc[{"solve": "infinite NTK"}] = np.nan
    data["kernel_change"].loc[{"solve": "order 4"}] = np.nan
    data["test_rmse"].loc[{"solve": "order 3"}] = 1e9
    found = labels("error_in_time", data)
    assert not {"infinite NTK", "order 3", "narrowest width", "widest width"} & found
    assert {"order 4", "tolerance"} <= found
    assert labels("kernel_evolution", data) == {"network", "order 3"}
    assert "infinite width" not in labels("spectra", data) | labels("learning_curves", data)
    assert panels.DEVIATION.label not in labels("learning_curves", data)
    ellipses = figures.ellipses(groups(data))
    assert [key.label for key in ellipses.keys] == [
        "start of training",
        "end of training, t = 20",
    ]
    assert "limit" not in ellipses.text


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.stem)
def test_captions_presuppose_nothing_that_is_not_drawn(picture):
    told = [sentence for _, sentence in picture.caption.where_drawn]
    text = figures.grid(picture, study_data(**_ONE)).text
    assert all(sentence in text for sentence in told)
    assert picture.caption.text([]) == picture.caption.always


@pytest.mark.parametrize("groups_of", [_ONE, {}], ids=["one panel", "four"])
@pytest.mark.parametrize("stem", ["error_in_time", "error_in_width"])
def test_the_key_fits_the_paper(stem, groups_of):
    figure = figures.grid(NAMED[stem], study_data(**groups_of)).figure
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.width <= figure.bbox.width
    assert len(legend.get_texts()) > 5


def test_bands_of_networks_take_three_seeds():
    def bands(seeds):
        figure = figures.grid(NAMED["test_loss"], study_data(seeds=seeds, **_ONE)).figure
        return sum(len(band.get_paths()) for band in figure.axes[0].collections)

    assert bands(3) == 1
    assert bands(2) == 0


def test_a_line_ends_where_its_solve_stopped_in_a_seed():
    data = study_data(**_ONE)
    stop(data, "order 4", 2.0, "It diverged.", width=1024, seed=1)
    for stem in ("error_in_time", "kernel_evolution"):
        (line,) = lines_of(figures.grid(NAMED[stem], data).figure.axes[0], named("order 4").colour)
        known = np.isfinite(np.asarray(line.get_ydata(), float))
        assert np.asarray(line.get_xdata())[known].max() == 2.0


def test_the_line_of_a_loss_that_is_zero_ends_there():
    """That of the hinge loss is 0 once all examples have their margin: no line falls to nowhere."""
    data = study_data(architectures=("MLP-2",), parameterizations=("NTK",))
    data["train_loss"].loc[{"time": data["time"].values >= 5}] = 0.0
    axis = figures.grid(NAMED["learning_curves"], data).figure.axes[0]
    ends = [line.get_xdata()[np.isfinite(line.get_ydata())].max() for line in lines_of(axis, BLUE)]
    assert len(ends) == 3
    assert set(ends) == {2.0}
