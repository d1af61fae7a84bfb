import dataclasses
import json
import re

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from corrections import ntk, o3
from scripts.runtime import single_precision
from scripts.study import examples, prepare, read, report, run, workers
from scripts.study.cell import _if_known
from scripts.study.runner import StudyError
from solvers import CrossEntropy, hierarchy_flow, parameter_flow
from tests.scripts.studies import quiet, small, vectors
from zoo import astype, learning_rates, limit, load, MLP, NTK, STANDARD


def whole(out, **options):
    """Two parameterizations and two seeds, with the kernel of infinite width."""
    defaults = {
        "parameterizations": ("NTK", "STANDARD"),
        "seeds": (0, 3),
        "orders": (2, 3),
        "taylor_orders": (1,),
        "infinite_width": True,
    }
    return small(out, **(defaults | options))


def standard_mlp(width, seed):
    """The network of a small study as a user makes it, with its own learning rates."""
    key = jr.fold_in(jr.key(seed), width)
    options = {"width": width, "depth": 1, "activation": "tanh", "key": key}
    with single_precision():
        drawn = MLP(64, 3, parameterization=STANDARD, **options)
    model = astype(drawn, "float64")
    return model, learning_rates(model)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small study that ran to its end: its results, its folder, what it printed."""
    out = tmp_path_factory.mktemp("runs")
    console = quiet()
    dataset = run(whole(out), console=console)
    return dataset, out / "small", console.file.getvalue()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A network with everything that there is to measure."""
    out = tmp_path_factory.mktemp("runs")
    config = small(
        out,
        widths=(8,),
        parameterizations=("STANDARD",),
        orders=(2, 3, 4),
        measures=("kappa", "hessian_norm", "rates"),
        predicted_kernels=True,
        n_train=4,
        n_test=3,
    )
    return run(config, console=quiet())


@pytest.mark.smoke
def test_results_on_disk_are_the_results_returned(finished):
    dataset, folder, _ = finished
    assert read(folder).identical(dataset)
    assert bool(dataset["finished"].all())
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["widths"] == [16, 32]
    (session,) = json.loads(dataset.attrs["provenance"])
    assert set(session["versions"]) >= {"jax", "equinox", "diffrax"}
    assert session["cells"] == 8
    assert session["wall_time_s"] > 0
    for name in dataset.variables:
        if name not in dataset.coords and dataset[name].dtype == float:
            assert dataset[name].attrs["units"], name
    assert not (folder / "unfinished").exists()


@pytest.mark.long
def test_the_network_is_trained_in_its_own_parameterization(finished):
    """Though it is written in another: against gradient flow of the module as a user makes it."""
    dataset, _, _ = finished
    data = load("digits", classes=(0, 1, 2), n_train=6, n_test=6)
    at = {"parameterization": "STANDARD", "width": 32, "seed": 3}
    found = dataset.sel(at).squeeze(drop=True)
    model, metric = standard_mlp(width=32, seed=3)
    kernel = ntk(model, data.x_train, metric=metric)
    values = np.linalg.eigvalsh(kernel.reshape(18, 18))[::-1] / 6
    np.testing.assert_allclose(found["spectrum"], values, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found["lambda_max"], values[0], rtol=1e-10)
    ts = found["time"].values / values[0]
    problem = (model, data.x_train, data.y_train, ts)
    options = {"loss": CrossEntropy(), "x_test": data.x_test, "metric": metric}
    options |= {"rtol": 1e-9, "atol": 1e-12}
    truth = parameter_flow(*problem, **options)
    network = found.sel(solve="network")
    np.testing.assert_allclose(network["test_logits"], truth.test, atol=1e-6)
    np.testing.assert_allclose(network["train_logits"], truth.train, atol=1e-6)
    moved = ntk(truth.final, data.x_train, metric=metric) - kernel
    change = jnp.linalg.norm(moved.ravel()) / jnp.linalg.norm(kernel.ravel())
    np.testing.assert_allclose(network["kernel_change"][-1], change, rtol=1e-4)
    start = eqx.filter(model, eqx.is_inexact_array)
    size = jnp.sqrt(
        sum(
            jnp.sum(leaf**2) for leaf in [start.body.layers[1].weight, start.body.layers[-1].weight]
        )
    )
    np.testing.assert_allclose(network["parameter_change"], truth.displacement / size, rtol=1e-5)
    order3 = hierarchy_flow(*problem, order=3, **options)
    np.testing.assert_allclose(found["test_logits"].sel(solve="order 3"), order3.test, atol=1e-6)


def test_losses_accuracies_and_errors_are_those_of_the_logits(finished):
    dataset, _, _ = finished
    for part in ("train", "test"):
        logits, labels = dataset[f"{part}_logits"], dataset[f"{part}_label"]
        hits = dataset["output"].values[logits.values.argmax(-1)] == labels.values
        np.testing.assert_allclose(dataset[f"{part}_accuracy"], hits.mean(-1))
        shifted = logits - logits.max("output")
        of_label = shifted.sel(output=labels)
        losses = np.log(np.exp(shifted).sum("output")) - of_label
        np.testing.assert_allclose(dataset[f"{part}_loss"], losses.mean(f"{part}_point"), rtol=1e-9)
        gap = (logits - logits.sel(solve="network")) ** 2
        rmse = np.sqrt(gap.mean([f"{part}_point", "output"]))
        np.testing.assert_allclose(dataset[f"{part}_rmse"], rmse, atol=1e-12)
    assert float(dataset["test_rmse"].sel(time=0).max()) < 1e-12
    early = dataset["test_rmse"].sel(time=1.0)
    gain = early.sel(solve="frozen NTK") / early.sel(solve="order 3")
    assert float(gain.median()) > 4
    assert float(gain.min()) > 1
    # Order 3 is behind by one more power of the time: at 0.3 it gains three times as much.
    earlier = dataset["test_rmse"].sel(time=0.3)
    assert bool((earlier.sel(solve="order 3") < earlier.sel(solve="frozen NTK") / 4).all())


def test_the_first_taylor_model_is_the_frozen_kernel(finished):
    """An identity that two solvers reach by different ways."""
    dataset, _, _ = finished
    logits = dataset["test_logits"]
    np.testing.assert_allclose(
        logits.sel(solve="Taylor 1"), logits.sel(solve="frozen NTK"), atol=1e-6
    )


def test_the_kernel_of_infinite_width_is_that_of_the_limit(finished):
    dataset, _, _ = finished
    data = load("digits", classes=(0, 1, 2), n_train=6, n_test=6)
    options = {"width": 16, "depth": 1, "activation": "tanh", "key": jr.key(0)}
    for parameterization, power in ((NTK, 0), (STANDARD, -1)):
        found = dataset.sel(parameterization=parameterization.name).squeeze(drop=True)
        model = MLP(64, 3, parameterization=parameterization, **options)
        kernel = limit(model, rate_power=power).ntk(data.x_train)
        values = np.linalg.eigvalsh(kernel)[::-1]
        np.testing.assert_allclose(
            found["limit_spectrum"], np.repeat(values / values[0], 3), rtol=1e-7, atol=1e-9
        )
        first, second = (int(np.argmax(data.labels_train == label)) for label in (0, 1))
        pair = np.asarray(kernel)[np.ix_([first, second], [first, second])]
        np.testing.assert_allclose(found["limit_two_point_kernel"], pair / values[0] * 6, rtol=1e-8)
    distance = dataset["limit_distance"].mean("seed").squeeze(drop=True)
    # The share of the input layer in STANDARD's kernel goes like 1 / width.
    standard = distance.sel(parameterization="STANDARD")
    assert float(standard.sel(width=32)) < 0.75 * float(standard.sel(width=16))
    assert float(distance.sel(parameterization="NTK").max()) < 1


def test_the_infinite_ensemble_starts_at_the_prior_and_learns(finished):
    dataset, _, _ = finished
    data = load("digits", classes=(0, 1, 2), n_train=6, n_test=6)
    model = MLP(64, 3, width=16, depth=1, activation="tanh", key=jr.key(0))
    prior = np.sqrt(np.diagonal(limit(model).nngp(data.x_test)))
    start = dataset.sel(parameterization="NTK", time=0.0).squeeze(drop=True)
    sampling = 4 / np.sqrt(2 * 512)
    ratio = start["limit_std"].values / prior[:, None]
    assert np.all(np.abs(ratio - 1) < sampling)
    assert np.all(np.abs(start["limit_mean"].values) < 4 * prior[:, None] / np.sqrt(512))
    losses = dataset["limit_loss_mean"].sel(parameterization="NTK")
    assert bool((losses.diff("time") < 0).all())


@pytest.mark.long
def test_measures_are_those_of_the_corrections(measured):
    data = load("digits", classes=(0, 1, 2), n_train=4, n_test=3)
    model, metric = standard_mlp(width=8, seed=0)
    kernel, third = (fn(model, data.x_train, metric=metric) for fn in (ntk, o3))
    logits = np.stack([model(x) for x in data.x_train])
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = measured.squeeze(drop=True)
    moved = np.einsum("aibjck,ck->aibj", third, (softmax - data.y_train) / 4)
    size = np.linalg.norm(moved) / np.linalg.norm(kernel)
    np.testing.assert_allclose(found["o3_size"], size / found["lambda_max"], rtol=1e-8)
    for name in ("kappa", "hessian_norm", "o4_size"):
        assert float(found[name]) > 0
    # At the start the kernel moves as O_3 says, in the network and as both orders predict it.
    speed = found["kernel_change"].sel(time=0.3) / 0.3
    for solve in ("network", "order 3", "order 4"):
        assert abs(float(speed.sel(solve=solve) / found["o3_size"]) - 1) < 0.5
    assert abs(float(speed.sel(solve="order 4") / speed.sel(solve="network")) - 1) < abs(
        float(speed.sel(solve="order 3") / speed.sel(solve="network")) - 1
    )


def test_the_report_and_the_answer_are_there(finished):
    _, folder, printed = finished
    assert (folder / "report.html").stat().st_size > 10_000
    assert list((folder / "figures").glob("*.pdf"))
    assert "report.html" in printed
    assert "…" not in printed
    assert "finished in" in (folder / "study.log").read_text()


def test_norms_that_are_not_known_are_left_out():
    assert _if_known("kappa", jnp.asarray(2.0), jnp.asarray(0.09)) == 2.0
    with pytest.warns(RuntimeWarning, match=r"`kappa` is left out: its relative residual is 0.06"):
        assert np.isnan(_if_known("kappa", jnp.asarray(2.0), jnp.asarray(0.12)))


def test_no_kernel_predicts_the_training_of_features(tmp_path, monkeypatch):
    """In muP the kernel of infinite width is that of the start; it does not stay."""
    monkeypatch.setattr(report, "write", lambda folder, runs: [])
    config = small(tmp_path, widths=(16,), parameterizations=("MUP",), infinite_width=True)
    found = run(config, console=quiet()).squeeze(drop=True)
    assert float(found["limit_distance"]) > 0
    assert np.isnan(found["test_rmse"].sel(solve="infinite NTK")).all()
    assert np.isnan(found["limit_mean"]).all()
    assert found["outcome"].values.tolist() == ["", "", ""]


def test_twice_the_same_gives_the_same_bits(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write", lambda folder, runs: [])
    dataset, _, _ = finished
    config = whole(tmp_path, parameterizations=("STANDARD",), seeds=(3,))
    again = run(config, console=quiet())
    expected = dataset.sel(parameterization=["STANDARD"], seed=[3])
    assert again.drop_vars("finished").equals(expected.drop_vars("finished"))


def test_a_finished_study_is_not_computed_again(finished, monkeypatch):
    dataset, folder, _ = finished

    def never(*args):
        raise AssertionError("computed again")

    monkeypatch.setattr(report, "write", lambda folder, runs: [])
    monkeypatch.setattr(workers, "compute", never)
    console = quiet()
    assert run(whole(folder.parent), console=console).identical(dataset)
    assert "8 of 8 cells of" in console.file.getvalue()


def test_another_study_in_the_same_folder_is_refused_with_the_difference(finished):
    _, folder, _ = finished
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=r"(?s)holds a study of other choices:.*`seeds`: \[0, 3\]"):
        run(whole(folder.parent, seeds=(0, 1)), console=quiet())
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


@pytest.mark.long
def test_a_breakdown_is_said_not_hidden(tmp_path, monkeypatch):
    """Width 2, squared loss, late times: the truncated hierarchy breaks down."""
    console = quiet()
    loss = ("mean_squared_error",)
    monkeypatch.setattr(report, "write", lambda folder, runs: [])
    config = small(tmp_path, widths=(2,), times=(1.0, 2000.0), losses=loss, rtol=1e-5, orders=(3,))
    dataset = run(config, console=console).squeeze(drop=True).sel(solve="order 3")
    assert "stopped being positive" in dataset["outcome"].item()
    assert 0 < float(dataset["breakdown_time"]) < 2000
    assert np.isnan(dataset["test_rmse"].sel(time=2000.0).item())
    assert np.isnan(dataset["test_accuracy"].sel(time=2000.0).item())


def test_a_cell_that_fails_does_not_take_the_others_with_it(tmp_path, monkeypatch):
    compute = workers.compute

    def failing(config, data, cell, *rest):
        if cell.width == 16:
            raise FloatingPointError("no kernel")
        return compute(config, data, cell, *rest)

    monkeypatch.setattr(report, "write", lambda folder, runs: [])
    monkeypatch.setattr(workers, "compute", failing)
    with pytest.raises(StudyError, match=r"1 of 2 cells failed \(the first: .*width 16.*no kernel"):
        run(small(tmp_path), console=quiet())
    dataset = read(tmp_path / "small").squeeze(drop=True)
    assert dataset["finished"].values.tolist() == [False, True]
    assert "Traceback" in (tmp_path / "small" / "study.log").read_text()
    monkeypatch.setattr(workers, "compute", compute)
    assert bool(run(small(tmp_path), console=quiet())["finished"].all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": (0, 77)}, "`classes` is (0, 77), expected different labels"),
        ({"n_train": 10**6}, "expected at most"),
        ({"devices": 10**4}, "`devices` is 10000, expected at most"),
        ({"widths": (10**6,), "depths": (3,)}, "`widths` holds 1000000: MLP-3 is estimated"),
    ],
)
def test_what_only_the_data_or_the_machine_can_tell_is_refused_before_a_folder_is_made(
    tmp_path, options, message
):
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare(small(tmp_path, **options))
    assert list(tmp_path.iterdir()) == []


def test_vectors_are_for_mlps(tmp_path):
    vectors(tmp_path / "vectors.npz")
    config = small(tmp_path / "runs", dataset=str(tmp_path / "vectors.npz"), classes=(0, 1))
    assert prepare(config).data.x_train.shape == (6, 5)
    images = dataclasses.replace(config, name="images", architectures=("MLP", "CNN"))
    with pytest.raises(
        ValueError, match=r"`architectures` has 'CNN', which takes images, .* expected 'MLP'"
    ):
        prepare(images)


def test_nan_in_the_data_is_refused(tmp_path, monkeypatch):
    loaded = examples.read

    def spoiled(*args, **kwargs):
        data = loaded(*args, **kwargs)
        object.__setattr__(data, "x_test", data.x_test.at[1, 0, 2, 3].set(np.nan))
        return data

    monkeypatch.setattr(examples, "read", spoiled)
    with pytest.raises(ValueError, match=r"`x_test` has 1 entries out of 384 that are not finite"):
        prepare(small(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_single_precision_agrees_with_double_within_its_error(tmp_path):
    """Tolerances that float32 can keep: 1e-5; its own rounding is 6e-8 of logits of order 1."""
    options = {"rtol": 1e-5, "atol": 1e-7, "orders": (2, 3, 4), "taylor_orders": (1, 2)}
    double = run(small(tmp_path, name="double", **options), console=quiet())
    single = run(small(tmp_path, name="single", precision="float32", **options), console=quiet())
    for name in ("train_logits", "test_logits"):
        np.testing.assert_allclose(single[name], double[name], atol=2e-4)
    np.testing.assert_allclose(single["spectrum"], double["spectrum"], rtol=1e-4, atol=1e-5)
