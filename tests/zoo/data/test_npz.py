"""Data sets in .npz files: what is read, and what is said of malformed ones."""

import pickle
import re

import jax.numpy as jnp
import numpy as np
import pytest

from tests.zoo.image_files import HTML, numbered_images, numbers
from zoo import load
from zoo.data.load import has_classes, outline


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((12, 7), (7,)),
        ((12, 5, 6), (1, 5, 6)),
        ((12, 3, 5, 6), (3, 5, 6)),
        ((12, 5, 6, 3), (3, 5, 6)),
        ((12, 5, 6, 1), (1, 5, 6)),
        ((12, 5, 6, 4), (4, 5, 6)),
        ((12, 1, 6, 4), (1, 6, 4)),
        ((12, 3, 3, 3), (3, 3, 3)),
        ((12, 16, 5, 6), (16, 5, 6)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_npz_images_become_channel_first(tmp_path, shape, expected, dtype):
    x = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    path = save(tmp_path / "set.npz", x=x, y=np.arange(12))
    data = load(str(path), n_train=8, n_test=4, normalize=None)
    assert data.x_train.shape == (8, *expected)
    assert data.x_train.dtype == jnp.float64
    moved = x if x.shape[1:] == expected or x.ndim == 3 else np.moveaxis(x, -1, 1)
    labels = np.asarray(data.labels_train)
    np.testing.assert_array_equal(data.x_train, moved[labels].reshape(8, *expected))


@pytest.mark.parametrize("shape", [(12, 5, 6, 3), (12, 5, 6, 1), (12, 7)])
@pytest.mark.parametrize("normalize", [None, "unit-variance", "sphere"])
def test_channels_are_last_where_asked(tmp_path, shape, normalize):
    x = np.random.default_rng(0).uniform(size=shape)
    path = save(tmp_path / "set.npz", x=x, y=np.arange(12))
    options = {"n_train": 8, "n_test": 4, "normalize": normalize}
    first, last = load(str(path), **options), load(str(path), channels="last", **options)
    assert last.x_train.shape == (8, *shape[1:])
    axes = (0, 2, 3, 1) if len(shape) == 4 else (0, 1)
    np.testing.assert_array_equal(last.x_train, jnp.transpose(first.x_train, axes))
    np.testing.assert_array_equal(last.x_test, jnp.transpose(first.x_test, axes))
    if normalize is None:
        np.testing.assert_array_equal(last.x_test, x[np.asarray(last.labels_test)])


def test_images_without_an_axis_of_channels_get_one_last(tmp_path, unchecked):
    x = np.random.default_rng(0).uniform(size=(12, 5, 6))
    path = save(tmp_path / "set.npz", x=x, y=np.arange(12))
    data = load(str(path), normalize=None, channels="last")
    np.testing.assert_array_equal(data.x_train[..., 0], x[np.asarray(data.labels_train)])
    with pytest.raises(ValueError, match="`channels` is 'middle', expected one of 'first', 'last'"):
        load(str(path), channels="middle")


def test_npz_is_found_absolutely_below_root_and_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    arrays = {"x": np.eye(10), "y": np.arange(10)[:, None] % 2}
    save(tmp_path / "here.npz", **arrays)
    save(tmp_path / "root" / "there.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    options = {"n_train": 6, "n_test": 4}
    first = load(str(tmp_path / "here.npz"), **options)
    assert first.name.endswith("here.npz")
    for name, root in (("here.npz", None), ("there.npz", tmp_path / "root"), ("here.npz", "root")):
        other = load(name, root=root, **options)
        np.testing.assert_array_equal(first.x_train, other.x_train)
    message = f"there is none at {tmp_path / 'root' / 'no.npz'} or {tmp_path / 'no.npz'}."
    with pytest.raises(FileNotFoundError, match=re.escape("`name` is 'no.npz', expected an .npz")):
        load("no.npz")
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        load("no.npz", root=tmp_path / "root")


def test_npz_with_four_arrays_has_an_official_split(tmp_path):
    path = save(
        tmp_path / "split.npz",
        x_train=numbered_images(40),
        y_train=np.arange(40) % 4,
        x_test=numbered_images(12, start=40),
        y_test=np.arange(12) % 4,
    )
    data = load(str(path), normalize=None)
    assert sorted(numbers(data.x_train)) == list(range(40))
    assert sorted(numbers(data.x_test)) == list(range(40, 52))


GOOD = {"x": np.ones((4, 5)), "y": np.arange(4)}
NAN = np.ones((4, 2, 3))
NAN[2, 1, 0] = np.nan
OFFICIAL = {"x_train": np.ones((4, 5)), "y_train": np.arange(4), "y_test": np.arange(4)}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones(4)}, "`x` of {} has shape (4,), expected (n, channels, height, width)"),
        ({"x": np.ones((4, 1, 1, 1, 1))}, "`x` of {} has shape (4, 1, 1, 1, 1), expected (n, "),
        ({"x": np.ones((4, 0))}, "`x` of {} has shape (4, 0), expected"),
        ({"x": np.ones((4, 5), complex)}, "`x` of {} has dtype complex128, expected real numbers"),
        ({"x": np.full((4, 2), "a")}, "`x` of {} has dtype <U1, expected real numbers"),
        ({"x": NAN}, "has 1 entries out of 24 that are NaN or infinite (the first at index (2, 1"),
        ({"x": np.full((4, 2), np.inf)}, "has 8 entries out of 8 that are NaN or infinite"),
        ({"x": np.ones((5, 5))}, "{} has 5 images in `x` and 4 labels in `y`, expected as many"),
        ({"y": np.arange(4) * 1j}, "`y` of {} has dtype complex128, expected integers"),
        ({"y": np.full(4, np.nan)}, "`y` of {} has 4 entries out of 4 that are NaN or infinite"),
        ({"y": np.ones((4, 1, 1))}, "`y` of {} has shape (4, 1, 1), expected (n,) or (n, k)"),
        ({"y": np.ones(3)}, "{} has 4 images in `x` and 3 targets in `y`, expected as many"),
        ({"y": np.ones(4, bool)}, "`y` of {} has dtype bool, expected integers"),
        ({"y": np.eye(4)}, "`y` of {} has shape (4, 4), expected (n,) with n > 0: one integer"),
        ({"y": np.eye(4)}, "not one-hot. `numpy.argmax(y, axis=1)` makes labels of one-hot rows"),
        ({"y": np.zeros(0, int)}, "`y` of {} has shape (0,), expected (n,) with n > 0"),
        ({"y": np.array([0, 1, -1, 1])}, "`y` of {} has the label -1 at index 2, expected labels"),
        (
            {"x": np.array([None, {}, 1, 2])},
            "`x` of {} is an array of objects, which is a pickle, and no pickle is ever loaded",
        ),
    ],
)
def test_malformed_npz_arrays_are_named(tmp_path, arrays, message):
    path = save(tmp_path / "bad.npz", **(GOOD | arrays))
    with pytest.raises(ValueError, match=re.escape(message.format(path))):
        load(str(path))


@pytest.mark.parametrize(
    ("arrays", "keys"),
    [
        ({"images": np.ones(3), "y": np.ones(3)}, "images, y"),
        (OFFICIAL, "x_train, y_train, y_test"),
        ({}, "(none)"),
    ],
)
def test_missing_npz_arrays_are_told_with_those_there(tmp_path, arrays, keys):
    path = save(tmp_path / "bad.npz", **arrays)
    message = f"{path} has the keys {keys}, expected x and y, or x_train, y_train, x_test and"
    with pytest.raises(ValueError, match=re.escape(message)):
        load(str(path))


def test_training_and_test_examples_need_one_shape(tmp_path):
    path = save(tmp_path / "bad.npz", **OFFICIAL, x_test=np.ones((4, 6)))
    message = "has training examples of shape (5,) and test examples of shape (6,), expected one"
    with pytest.raises(ValueError, match=re.escape(message)):
        load(str(path))


def test_what_is_no_npz_file_is_named(tmp_path):
    path = tmp_path / "bad.npz"
    for content in (HTML, pickle.dumps({"x": 1}), b"", b"PK\x07\x08"):
        path.write_bytes(content)
        message = f"{path} starts with {content[:16]!r}, expected an .npz file as `numpy.savez`"
        with pytest.raises(ValueError, match=re.escape(message)):
            load(str(path))
    content = save(path, **GOOD).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=re.escape(f"{path} is damaged (")):
        load(str(path))
    pixels = content.index(np.ones(5).tobytes())
    path.write_bytes(content[:pixels] + b"\x01" + content[pixels + 1 :])
    with pytest.raises(ValueError, match=re.escape(f"`x` of {path} is damaged (Bad CRC-32")):
        load(str(path))


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("shape", [(12,), (12, 3)])
def test_floating_point_targets_are_numbers_that_go_with_their_examples(tmp_path, shape, split):
    """The first pixel of an example is its row, and so is its target, but for the column."""
    rows = np.arange(12.0)
    y = rows if len(shape) == 1 else rows[:, None] + np.array([0.0, 100.0, -0.5])
    x = np.stack([rows, np.ones(12)], axis=1)
    arrays = {"x": x, "y": y}
    if split:
        parts = {"train": slice(0, 8), "test": slice(8, 12)}
        arrays = {f"{k}_{p}": v[at] for k, v in arrays.items() for p, at in parts.items()}
    path = str(save(tmp_path / "numbers.npz", **arrays))
    data = load(path, n_train=8, n_test=4, normalize=None)
    assert (data.classes, data.labels_train, data.labels_test) == ((), None, None)
    expected = y.reshape(12, -1)
    for given, targets in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        np.testing.assert_array_equal(targets, expected[np.asarray(given[:, 0], int)])
    seen = np.concatenate([data.x_train[:, 0], data.x_test[:, 0]])
    np.testing.assert_array_equal(np.sort(seen), rows)
    found = outline(path, n_train=8, n_test=4)
    assert found == ((2,), expected.shape[1], ())
    assert not has_classes(path)


def test_what_numbers_have_not_is_refused(tmp_path):
    path = str(save(tmp_path / "numbers.npz", x=np.eye(6), y=np.linspace(0, 1, 6)))
    with pytest.raises(ValueError, match=r"`classes` is \(0,\), but the targets .* are float"):
        load(path, classes=(0,))
    with pytest.raises(ValueError, match=r"is 5 \+ 2 = 7, expected at most 6: there are no more"):
        load(path, n_train=5, n_test=2)
    mixed = {"x_train": np.eye(4), "y_train": np.arange(4), "x_test": np.eye(4)}
    path = str(save(tmp_path / "mixed.npz", **mixed, y_test=np.ones(4)))
    with pytest.raises(ValueError, match="has training and test targets of two kinds"):
        load(path)


@pytest.mark.parametrize(
    ("stored", "shape"),
    [
        ((4, 9000), (9000,)),
        ((4, 50, 60, 3), (3, 50, 60)),
        ((4, 1, 90, 90), (1, 90, 90)),
        ((4, 90, 90), (1, 90, 90)),
    ],
)
def test_an_outline_is_of_the_headers_and_the_targets_alone(tmp_path, stored, shape):
    path = save(tmp_path / "set.npz", x=np.ones(stored), y=np.arange(4))
    options = {"classes": (2, 0), "n_train": 1, "n_test": 1}
    assert outline(str(path), **options) == (shape, 2, (2, 0))
    content = path.read_bytes()
    last_pixel = content.rindex(np.ones(5).tobytes())
    path.write_bytes(content[:last_pixel] + b"\x01" + content[last_pixel + 1 :])
    assert outline(str(path), **options) == (shape, 2, (2, 0))
    with pytest.raises(ValueError, match="Bad CRC-32"):
        load(str(path), **options)


@pytest.mark.parametrize(
    ("arrays", "options"),
    [
        ({"x": np.ones(4)}, {}),
        ({"x": np.ones((5, 5))}, {}),
        ({"x": np.full((4, 2), "a")}, {}),
        ({"x": np.array([None, {}, 1, 2])}, {}),
        ({"y": np.eye(4)}, {}),
        ({}, {"classes": (7,)}),
        ({}, {"n_train": 4, "n_test": 1}),
        ({"x_train": np.eye(4), "x_test": np.ones((4, 5)), "y_train": GOOD["y"]}, {}),
    ],
)
def test_an_outline_refuses_what_load_does_with_the_same_words(tmp_path, arrays, options):
    more = {"y_test": GOOD["y"]} if "x_train" in arrays else {}
    path = str(save(tmp_path / "bad.npz", **(GOOD | arrays | more)))
    with pytest.raises(ValueError, match="xpected") as loaded:
        load(path, **options)
    with pytest.raises(ValueError, match=re.escape(str(loaded.value))):
        outline(path, **options)
