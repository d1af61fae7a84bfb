"""The figures of a study: what they draw is what the results hold."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from scripts.study.analysis import groups
from scripts.study.report import figures, panels
from scripts.study.report.figures import PICTURES
from scripts.study.report.style import COLOURS, label_ends
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
    figure = figures.grid(picture, data)
    labels = [group.label for group in groups(data)]
    assert [axis.get_title() for axis in figure.axes] == labels
    for axis in figure.axes:
        drawn = [
            np.isfinite(np.asarray(line.get_ydata(), float)).sum() for line in axis.get_lines()
        ]
        assert max(drawn) >= 3
    assert figure.legends


def test_error_in_time_draws_the_law_at_the_widest_width(data):
    axis = figures.grid(NAMED["error_in_time"], data).axes[0]
    (line,) = lines_of(axis, COLOURS["order 3"])
    expected = [law("order 3", "MLP-2", 1024, t) for t in TIMES[1:]]
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-12)
    np.testing.assert_allclose(line.get_xdata(), TIMES[1:])


def test_error_in_width_says_the_exponents(data):
    axis = figures.grid(NAMED["error_in_width"], data).axes[0]
    said = {(text.get_text(), text.get_color()) for text in axis.texts}
    assert ("−1.50", COLOURS["order 3"]) in said
    assert ("−0.50", COLOURS["infinite NTK"]) in said


def test_kernel_evolution_has_no_line_for_solves_without_a_kernel(data):
    axis = figures.grid(NAMED["kernel_evolution"], data).axes[0]
    colours = {to_hex(line.get_color()) for line in axis.get_lines()}
    assert colours == {COLOURS[name] for name in ("network", "order 3", "order 4")}


def test_a_prediction_that_explodes_does_not_flatten_the_rest():
    data = study_data()
    data["test_rmse"].loc[{"solve": "order 4", "time": 20.0}] = 1e30
    low, high = figures.grid(NAMED["error_in_time"], data).axes[0].get_ylim()
    assert high <= 20.001
    assert low >= 1e-8 * high


def test_ellipses_sit_on_the_limit_where_the_kernel_is_the_limits():
    data = study_data(seeds=1, architectures=("MLP-2",), parameterizations=("NTK",))
    kernel = data["limit_two_point_kernel"].values[0, 0, 0]
    (group,) = groups(data)
    figure = figures.ellipses([group])
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
    figure = figures.ellipses([group])
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
    (axis,) = figures.grid(picture, data).axes
    assert axis.get_title() == "MLP-2, NTK"
    assert len(figures.ellipses(groups(data)).axes) == 1


def test_an_inline_figure_is_deterministic_and_takes_its_colours_from_the_page(data):
    group = groups(data)[0]
    picture = PICTURES[0]
    within = figures.limits(figures.grid(picture, data), data)[group.label]
    first, second = (inline(figures.single(picture, group, within), "a", "b") for _ in range(2))
    assert first == second
    assert first.startswith("<svg")
    assert "var(--vermilion)" in first
    assert not [colour for colour in VARIABLES if colour in first.lower()]
    assert "http" not in first.replace("http://www.w3.org/", "")


def test_labels_at_the_ends_of_lines_do_not_overlap(data):
    axis = figures.grid(NAMED["error_in_width"], data).axes[0]
    for text in list(axis.texts):
        text.remove()
    label_ends(axis, 1024, [(1e-2, "a", "k"), (1.01e-2, "b", "k"), (1.02e-2, "c", "k")])
    low, high = np.log(axis.get_ylim())
    heights = sorted(np.log(text.xy[1]) for text in axis.texts)
    assert min(np.diff(heights)) >= 0.06 * (high - low)
