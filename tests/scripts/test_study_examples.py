"""What a study knows of its examples: of a dry run by headers, of numbers in place of classes."""

import re

import numpy as np
import pytest

from scripts.study import prepare, run
from scripts.study.analysis import has_classes
from scripts.study.command import parse
from scripts.study.examples import Examples, outlined
from scripts.study.plan import estimates
from scripts.study.report.answer import scope
from scripts.study.report.tables import tables
from tests.scripts.studies import quiet, small
from tests.scripts.study_data import study_data
from tests.zoo.image_files import HTML

RNG = np.random.default_rng(0)
LABELS = np.arange(20) % 3
NUMBERS = RNG.normal(size=(20, 2))


def saved(folder, **arrays):
    """A file of examples, in place of vectors (20, 5) with three classes."""
    file = folder / "own.npz"
    np.savez(file, **({"x": RNG.normal(size=(20, 5)), "y": LABELS} | arrays))
    return str(file)


def dry_run(file, *more):
    return parse(["--dry-run", "--dataset", file, "--architectures", "MLP", *more])


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({}, Examples((5,), 3)),
        ({"x": np.ones((20, 6, 7))}, Examples((1, 6, 7), 3)),
        ({"x": np.ones((20, 6, 7, 3))}, Examples((3, 6, 7), 3)),
        ({"y": NUMBERS}, Examples((5,), 2, has_classes=False)),
        ({"y": NUMBERS[:, 0]}, Examples((5,), 1, has_classes=False)),
    ],
)
def test_a_dry_run_estimates_with_the_examples_of_the_file(tmp_path, arrays, expected):
    words = ["--losses", "mean_squared_error", "--n-train", "6", "--n-test", "6"]
    found = dry_run(saved(tmp_path, **arrays), *words)
    assert found.examples == expected
    assert found.is_dry_run
    larger = estimates(found.config, Examples((3, 32, 32), 3))
    own = estimates(found.config, expected)
    assert all(a.gib < b.gib for a, b in zip(own, larger, strict=True))


REFUSED = [
    ({"y_train": LABELS}, {"n_train": 30}, "`n_train` + `n_test` is 30 + 6 = 36, expected at most"),
    ({}, {"classes": (0, 7)}, "`classes` is (0, 7), expected different labels out of those of"),
    ({"x": np.ones((19, 5))}, {}, "has 19 images in `x` and 20 labels in `y`, expected as many"),
    ({"x": np.ones(20)}, {}, "`x` of {file} has shape (20,), expected (n, channels, height"),
    ({"x": np.array([None] * 20)}, {}, "`x` of {file} is an array of objects"),
    ({"y": np.eye(20)}, {}, "not one-hot"),
    ({}, {"architectures": ("CNN",)}, "`architectures` has 'CNN', which takes images, but the"),
    ({"y": NUMBERS}, {}, "`losses` has 'cross_entropy', which takes classes, but the targets of"),
    ({"y": NUMBERS}, {"losses": ("mean_squared_error", "hinge")}, "`losses` has 'hinge', which t"),
]


@pytest.mark.parametrize(("arrays", "options", "message"), REFUSED)
def test_a_dry_run_refuses_what_a_run_does_with_the_same_words(tmp_path, arrays, options, message):
    file = saved(tmp_path, **arrays)
    config = small(tmp_path / "runs", dataset=file, **options)
    with pytest.raises(ValueError, match=re.escape(message.format(file=file))) as dry:
        outlined(config)
    with pytest.raises(ValueError, match=re.escape(str(dry.value))):
        prepare(config)
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_refuses_a_file_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected an \.npz file: there is none at"):
        dry_run(str(tmp_path / "none.npz"))
    (tmp_path / "page.npz").write_bytes(HTML)
    with pytest.raises(ValueError, match=r"expected an \.npz file as `numpy.savez` writes it"):
        dry_run(str(tmp_path / "page.npz"))
    np.savez(tmp_path / "keys.npz", images=np.ones(3))
    with pytest.raises(ValueError, match="has the keys images, expected x and y, or"):
        dry_run(str(tmp_path / "keys.npz"))


def test_without_classes_nothing_is_said_of_them():
    data = study_data()
    assert has_classes(data)
    assert any("of the classes 3, 7, 8" in sentence for sentence in scope(data).sentences)
    assert "accuracies" in {table.stem for table in tables(data)}
    for part in ("train", "test"):
        data[f"{part}_label"] = data[f"{part}_label"].astype(float) * np.nan
    assert not has_classes(data)
    assert not any("class" in sentence for sentence in scope(data).sentences)
    assert "accuracies" not in {table.stem for table in tables(data)}


@pytest.mark.long
def test_numbers_are_regressed_on(tmp_path):
    """A network of two outputs, on squared loss: no classes, no accuracies, anywhere."""
    file = saved(tmp_path, y=NUMBERS)
    config = small(
        tmp_path / "runs", dataset=file, losses=("mean_squared_error",), infinite_width=True
    )
    found = run(config, console=quiet())
    assert bool(found["finished"].all())
    assert found["output"].values.tolist() == [0, 1]
    for part in ("train", "test"):
        assert bool(found[f"{part}_accuracy"].isnull().all())
        assert bool(found[f"{part}_label"].isnull().all())
    one = found.squeeze(drop=True).isel(width=0)
    loss = one["train_loss"].sel(solve="network")
    assert bool((loss.diff("time") < 0).all())
    start = one["train_logits"].sel(solve="network").isel(time=0).values
    data = prepare(config).data
    expected = 0.5 * np.sum((start - np.asarray(data.y_train)) ** 2, axis=1).mean()
    np.testing.assert_allclose(loss[0], expected, rtol=1e-9)
    assert bool(found["limit_mean"].notnull().all())
    assert not (config.folder / "tables" / "accuracies.csv").exists()
    page = (config.folder / "report.html").read_text()
    assert "ccuracy" not in page
    assert "of the classes" not in page
