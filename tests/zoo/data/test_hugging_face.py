"""Data sets of Hugging Face: what becomes of their columns, and what is said of malformed ones."""

import re
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from zoo import load
from zoo.data.load import from_hugging_face


def pixels(n, *shape, start=0):
    """Images of one byte an entry, with the number of the image in their first entry."""
    values = np.random.default_rng(start).integers(0, 256, (n, *shape)).astype(np.uint8)
    values.reshape(n, -1)[:, 0] = np.arange(start, start + n)
    return values


def pictures(values, **columns):
    """A data set of PNG images, as most on the Hub are stored."""
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    dataset = datasets.Dataset.from_dict(
        {"image": [image.fromarray(value) for value in values], **columns}
    )
    return dataset.cast_column("image", datasets.Image())


def test_hugging_face_pictures_keep_pixels_and_labels():
    values = pixels(40, 5, 6)
    dataset = pictures(values, label=np.arange(40) % 4)
    data = from_hugging_face(dataset, classes=(3, 1), n_train=10, n_test=6, normalize=None)
    assert data.name == "hugging-face"
    assert data.classes == (3, 1)
    assert data.x_train.shape == (10, 1, 5, 6)
    rows = np.concatenate([data.x_train, data.x_test])[:, 0, 0, 0].astype(int)
    assert len(set(rows)) == 16
    np.testing.assert_array_equal(np.concatenate([data.x_train, data.x_test])[:, 0], values[rows])
    labels = np.array(data.classes)[np.concatenate([data.labels_train, data.labels_test])]
    np.testing.assert_array_equal(labels, rows % 4)
    whole = from_hugging_face(dataset)
    assert len(whole.x_train) + len(whole.x_test) == 40
    np.testing.assert_allclose(jnp.std(whole.x_train), 1, rtol=1e-12)


@pytest.mark.parametrize("shape", [(5, 6, 3), (3, 5, 3), (1, 4, 4), (5, 6, 4), (5, 6, 2)])
def test_hugging_face_colors_come_first_whatever_the_size(shape):
    values = pixels(6, *shape)
    dataset = pictures(values, label=[0, 1] * 3)
    data = from_hugging_face(dataset, n_train=4, n_test=2, normalize=None)
    rows = np.asarray(data.x_train[:, 0, 0, 0]).astype(int)
    np.testing.assert_array_equal(data.x_train, np.moveaxis(values, -1, 1)[rows])
    last = from_hugging_face(dataset, n_train=4, n_test=2, normalize=None, channels="last")
    np.testing.assert_array_equal(last.x_train, values[rows])


def test_hugging_face_splits_are_the_official_ones():
    datasets = pytest.importorskip("datasets")
    dataset = datasets.DatasetDict(
        train=pictures(pixels(30, 4, 4), label=np.arange(30) % 3),
        test=pictures(pixels(12, 4, 4, start=30), label=np.arange(12) % 3),
    )
    data = from_hugging_face(dataset, n_train=15, normalize=None)
    assert data.x_train[:, 0, 0, 0].max() < 30
    np.testing.assert_array_equal(np.sort(data.x_test[:, 0, 0, 0]), np.arange(30, 42))
    np.testing.assert_array_equal(np.bincount(data.labels_train), 5)


def test_hugging_face_decodes_the_rows_chosen_only():
    dataset = pictures(pixels(10, 4, 4), label=[0, 1] * 5)
    whole = dataset.cast_column("image", type(dataset.features["image"])(decode=False))
    broken = whole.map(lambda row: {"image": {"bytes": b"no image", "path": None}, "label": 2})
    mixed = pytest.importorskip("datasets").concatenate_datasets([broken, whole])
    mixed = mixed.cast_column("image", dataset.features["image"])
    data = from_hugging_face(mixed, classes=(0, 1), n_train=6, n_test=4, normalize=None)
    assert sorted(np.concatenate([data.x_train, data.x_test])[:, 0, 0, 0]) == list(range(10))


def column_types(datasets):
    return {
        "nested lists": (pixels(6, 4, 5), None, (1, 4, 5)),
        "vectors": (pixels(6, 7).astype(float) / 3, None, (7,)),
        "Array2D": (pixels(6, 4, 5), datasets.Array2D((4, 5), "uint8"), (1, 4, 5)),
        "Array3D": (pixels(6, 4, 5, 3), datasets.Array3D((4, 5, 3), "uint8"), (3, 4, 5)),
        "float64": (pixels(6, 3, 4, 5) / 3, datasets.Array3D((3, 4, 5), "float64"), (3, 4, 5)),
    }


@pytest.mark.parametrize("kind", ["nested lists", "vectors", "Array2D", "Array3D", "float64"])
def test_hugging_face_arrays_follow_the_rule_of_npz_files(tmp_path, kind):
    datasets = pytest.importorskip("datasets")
    values, feature, shape = column_types(datasets)[kind]
    labels = np.arange(6) % 2
    dataset = datasets.Dataset.from_dict({"pixels": values.tolist(), "digit": labels})
    if feature is not None:
        dataset = dataset.cast_column("pixels", feature)
    np.savez(tmp_path / "set.npz", x=values, y=labels)
    options = {"n_train": 4, "n_test": 2, "seed": 8}
    data = from_hugging_face(dataset, image="pixels", label="digit", **options)
    expected = load("set.npz", root=tmp_path, **options)
    assert data.x_train.shape == (4, *shape)
    # Exactly, although the NumPy format of `datasets` rounds to float32 by default.
    np.testing.assert_array_equal(data.x_train, expected.x_train)
    np.testing.assert_array_equal(data.x_test, expected.x_test)
    np.testing.assert_array_equal(data.labels_train, expected.labels_train)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0.0, 1.0]}, "Column 'label' of `dataset` has dtype float32, expected integers"),
        ({"label": ["a", "b"]}, "has dtype <U1, expected integers: the labels 0, 1, 2, ..., none"),
        ({"label": ["a", "b"]}, "`class_encode_column('label')` of a data set numbers the names"),
        (
            {"label": [[0, 1], [1, 0]]},
            "Column 'label' of `dataset` has shape (2, 2), expected (n,)",
        ),
        ({"label": [0, -1]}, "Column 'label' of `dataset` has the label -1 at index 1, expected"),
        ({"image": ["a", "b"]}, "Column 'image' of `dataset` has dtype <U1, expected real numbers"),
        ({"image": [1.0, 2.0]}, "Column 'image' of `dataset` has shape (1,), expected (n, chan"),
        ({"image": [[1.0], [None]]}, "entries out of 1 that are NaN or infinite"),
        (
            {"image": [[[1.0, 2.0]]] * 3 + [[[1.0, 2.0]] * 2] * 3, "label": [0] * 6},
            "Column 'image' of `dataset` has images of shape (",
        ),
        (
            {"image": [[[1.0, 2.0], [1.0]]] * 6, "label": [0] * 6},
            "that make no array of numbers, expected `datasets.Image()`, arrays, or nested lists",
        ),
    ],
)
def test_malformed_hugging_face_columns_are_named(columns, message):
    datasets = pytest.importorskip("datasets")
    given = {"image": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]} | columns
    with pytest.raises(ValueError, match=re.escape(message)):
        from_hugging_face(datasets.Dataset.from_dict(given), n_test=1)


def test_hugging_face_pictures_of_unequal_shapes_are_refused():
    for first, second in (((4, 4), (5, 4)), ((4, 4), (4, 4, 3))):
        dataset = pictures([*pixels(5, *first), *pixels(5, *second)], label=[0] * 10)
        with pytest.raises(ValueError, match="Column 'image' of `dataset` has images of shape"):
            from_hugging_face(dataset)


@pytest.mark.parametrize("seed", range(4))
def test_hugging_face_arrays_that_are_none_are_refused(seed):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"image": [[1.0, 2.0], None] * 4, "label": [0] * 8})
    # Releases of `datasets` differ in what they make of it.
    with pytest.raises(ValueError, match=r"Column 'image' of `dataset` (does not|has|holds)"):
        from_hugging_face(dataset, seed=seed)


def test_hugging_face_pictures_that_are_none_or_of_a_palette_are_refused():
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    palette = image.fromarray(pixels(1, 4, 4, 3)[0]).convert("P")
    for picture, message in (
        (None, "Column 'image' of `dataset` has a row without an image, expected one in every row"),
        (palette, "has an image of mode 'P', whose pixels are indices into a palette, expected"),
    ):
        dataset = datasets.Dataset.from_dict(
            {"image": [picture] * 2, "label": [0, 1]},
            features=datasets.Features(image=datasets.Image(), label=datasets.Value("int64")),
        )
        with pytest.raises(ValueError, match=message):
            from_hugging_face(dataset)


def test_hugging_face_pictures_not_decoded_are_refused():
    datasets = pytest.importorskip("datasets")
    dataset = pictures(pixels(4, 4, 4), label=[0, 1] * 2)
    with pytest.raises(ValueError, match="Column 'image' of `dataset` holds entries of type dict"):
        from_hugging_face(dataset.cast_column("image", datasets.Image(decode=False)))


def test_missing_hugging_face_columns_are_told_with_those_there():
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"img": [[1.0]], "fine_label": [0]})
    message = "`image` is 'image', expected a column of `dataset`: 'img', 'fine_label'."
    with pytest.raises(ValueError, match=message):
        from_hugging_face(dataset)
    splits = datasets.DatasetDict(train=dataset, test=dataset.remove_columns("fine_label"))
    message = r"`label` is 'fine_label', expected a column of `dataset\['test'\]`: 'img'\."
    with pytest.raises(ValueError, match=message):
        from_hugging_face(splits, image="img", label="fine_label")


def test_missing_hugging_face_splits_are_told_with_those_there():
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_dict({"image": [[1.0]], "label": [0]})
    message = "`dataset` has the splits 'train', 'validation', expected 'train' and 'test'"
    with pytest.raises(ValueError, match=message):
        from_hugging_face(datasets.DatasetDict(train=part, validation=part))


def test_what_is_no_hugging_face_data_set_is_named(monkeypatch):
    datasets = pytest.importorskip("datasets")
    streamed = datasets.Dataset.from_dict({"image": [[1.0]], "label": [0]}).to_iterable_dataset()
    for wrong, kind in ((streamed, "IterableDataset"), ([1], "list")):
        message = (
            f"`dataset` is a {kind}, expected a `datasets.Dataset` or a `datasets.DatasetDict`"
        )
        with pytest.raises(TypeError, match=message):
            from_hugging_face(wrong)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TypeError, match=r"not installed: `pip install 'finite-width\[datasets\]'`"):
        from_hugging_face([1])


def test_hugging_face_options_are_checked_before_the_data(unchecked):
    for options, message in (
        ({"seed": -1}, "`seed` is -1, expected an integer >= 0"),
        ({"n_test": 0}, "`n_test` is 0, expected an integer >= 1"),
        ({"normalize": "whiten"}, "`normalize` is 'whiten', expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            from_hugging_face(None, **options)
