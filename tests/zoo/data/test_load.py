import re
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from zoo import DATASETS, load


def test_digits_are_split_balanced_and_disjoint():
    data = load("digits", classes=(3, 5, 8), n_train=31, n_test=20, normalize=None)
    assert data.x_train.shape == (31, 1, 8, 8)
    assert data.x_test.shape == (20, 1, 8, 8)
    assert data.classes == (3, 5, 8)
    assert sorted(np.bincount(data.labels_train)) == [10, 10, 11]
    assert sorted(np.bincount(data.labels_test)) == [6, 7, 7]
    np.testing.assert_array_equal(jnp.argmax(data.y_train, axis=1), data.labels_train)
    np.testing.assert_array_equal(jnp.sum(data.y_test, axis=1), 1)
    train = {np.asarray(image).tobytes() for image in data.x_train}
    assert not train & {np.asarray(image).tobytes() for image in data.x_test}


@settings(max_examples=25, deadline=None)
@given(
    classes=st.lists(st.integers(0, 9), min_size=1, max_size=10, unique=True),
    n_train=st.integers(1, 120),
    n_test=st.integers(1, 50),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_split_has_the_sizes_asked_for_spread_evenly(classes, n_train, n_test, seed):
    data = load("digits", classes=classes, n_train=n_train, n_test=n_test, seed=seed)
    for labels, n in ((data.labels_train, n_train), (data.labels_test, n_test)):
        counts = np.bincount(labels, minlength=len(classes))
        assert counts.sum() == n
        assert counts.max() - counts.min() <= 1
    images = np.concatenate([data.x_train, data.x_test]).reshape(n_train + n_test, -1)
    assert len(np.unique(images, axis=0)) == len(images)


def test_labels_belong_to_their_images():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    label_of = {row.tobytes(): int(label) for row, label in zip(pixels, labels, strict=True)}
    data = load("digits", classes=(7, 1), n_train=20, n_test=10, normalize=None)
    for x, label in zip(data.x_train, data.labels_train, strict=True):
        assert label_of[np.asarray(x).reshape(-1).tobytes()] == data.classes[int(label)]


def test_the_seed_decides_the_split():
    first, again, other = (load("digits", n_train=50, n_test=20, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.x_train, again.x_train)
    assert not np.array_equal(first.x_train, other.x_train)


def test_examples_come_in_no_order_of_classes():
    labels = load("digits", classes=(0, 1, 2), n_train=60, n_test=10).labels_train
    assert len(np.unique(labels[:10])) == 3
    assert np.count_nonzero(np.diff(labels)) > 20


def test_default_split_uses_every_image_once():
    data = load("digits")
    assert data.x_train.shape[0] + data.x_test.shape[0] == 1797
    assert data.x_test.shape[0] == 1797 // 5


def test_unit_variance_is_that_of_the_training_set():
    data = load("digits", n_train=200, n_test=50)
    np.testing.assert_allclose(jnp.mean(data.x_train), 0, atol=1e-12)
    np.testing.assert_allclose(jnp.std(data.x_train), 1, rtol=1e-12)
    raw = load("digits", n_train=200, n_test=50, normalize=None)
    expected = (raw.x_test - raw.x_train.mean()) / raw.x_train.std()
    np.testing.assert_allclose(data.x_test, expected, rtol=1e-12, atol=1e-12)


def test_sphere_puts_every_example_at_radius_sqrt_d():
    data = load("digits", n_train=20, n_test=20, normalize="sphere")
    for x in (data.x_train, data.x_test):
        np.testing.assert_allclose(jnp.sum(x**2, axis=(1, 2, 3)), 64, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "imagenet"},
            "`name` is 'imagenet', expected one of 'digits', 'mnist', 'fashion-",
        ),
        ({"name": "imagenet"}, "'cifar10', or the path of a .npz file."),
        ({"normalize": "whiten"}, "`normalize` is 'whiten', expected one of 'unit-variance'"),
        ({"classes": (0, 12)}, "`classes` is (0, 12), expected different labels out of those"),
        ({"classes": (1, 1)}, "`classes` is (1, 1), expected different labels"),
        ({"n_train": 0}, "`n_train` is 0, expected an integer >= 1"),
        ({"n_train": 2000}, "`n_train` + `n_test` is 2000 + 1"),
        ({"n_test": -3}, "`n_test` is -3, expected an integer >= 1"),
        ({"seed": -1}, "`seed` is -1, expected an integer >= 0"),
        ({"classes": (0.5, 1)}, "`classes` is 0.5, expected an integer >= 0"),
        ({"n_train": 1790, "n_test": 10}, "1790 + 10 = 1800, expected at most 1797"),
    ],
)
def test_bad_arguments_are_named(unchecked, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load(**({"name": "digits"} | options))


def test_these_sets_have_names():
    assert DATASETS == ("digits", "mnist", "fashion-mnist", "cifar10")


def test_the_split_of_digits_stays_the_same():
    data = load("digits", n_train=6, n_test=4, seed=3, normalize=None)
    # Taken down when only "digits" could be loaded; the figures in the README depend on it.
    sums = jnp.sum(data.x_train, axis=(1, 2, 3))
    np.testing.assert_array_equal(data.labels_train, [2, 5, 1, 3, 0, 4])
    np.testing.assert_array_equal(data.labels_test, [0, 1, 3, 2])
    np.testing.assert_array_equal(sums, [324, 296, 316, 346, 317, 247])


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'finite-width\[study\]'"):
        load("digits")


# --- official training and test sets -------------------------------------------------------------


@pytest.fixture
def official(tmp_path):
    """100 training and 60 test vectors (number, label); class 4 has but 3 of either, 5 no tests."""
    y_train = np.array([4] * 3 + [5] * 7 + [i % 3 for i in range(90)])
    y_test = np.array([4] * 3 + [i % 3 for i in range(57)])
    path = tmp_path / "official.npz"
    np.savez(
        path,
        x_train=np.stack([np.arange(100), y_train], axis=1),
        y_train=y_train,
        x_test=np.stack([np.arange(100, 160), y_test], axis=1),
        y_test=y_test,
    )

    def take(**options):
        return load(str(path), normalize=None, **options)

    return take


def test_official_sets_are_taken_whole_by_default(official):
    data = official()
    assert data.classes == (0, 1, 2, 4, 5)
    np.testing.assert_array_equal(np.sort(data.x_train[:, 0]), np.arange(100))
    np.testing.assert_array_equal(np.sort(data.x_test[:, 0]), np.arange(100, 160))
    np.testing.assert_array_equal(np.array(data.classes)[data.labels_train], data.x_train[:, 1])
    np.testing.assert_array_equal(np.array(data.classes)[data.labels_test], data.x_test[:, 1])
    assert np.count_nonzero(np.diff(data.labels_train)) > 40
    kept = official(classes=(2, 0))
    assert kept.x_train.shape == (60, 2)
    assert kept.x_test.shape == (38, 2)
    np.testing.assert_array_equal(kept.x_train[:, 1], 2 - 2 * kept.labels_train)


@settings(max_examples=25, deadline=None)
@given(n_train=st.integers(1, 100), n_test=st.integers(1, 60), seed=st.integers(0, 2**32 - 1))
def test_official_sets_are_drawn_from_evenly(tmp_path_factory, n_train, n_test, seed):
    path = tmp_path_factory.getbasetemp() / "even.npz"
    x, y = np.arange(160)[:, None], np.arange(160) % 5
    np.savez(path, x_train=x[:100], y_train=y[:100], x_test=x[100:], y_test=y[100:])
    data = load(str(path), n_train=n_train, n_test=n_test, seed=seed, normalize=None)
    for drawn, labels, n, whole in (
        (data.x_train, data.labels_train, n_train, range(100)),
        (data.x_test, data.labels_test, n_test, range(100, 160)),
    ):
        numbers = np.asarray(drawn)[:, 0].astype(int)
        assert len(set(numbers)) == n
        assert set(numbers) <= set(whole)
        np.testing.assert_array_equal(numbers % 5, labels)
        counts = np.bincount(labels, minlength=5)
        assert counts.max() - counts.min() <= 1


def test_scarce_classes_leave_their_share_to_the_others(official):
    data = official(n_train=43, n_test=40)
    np.testing.assert_array_equal(np.bincount(data.labels_train), [11, 11, 11, 3, 7])
    np.testing.assert_array_equal(np.bincount(data.labels_test), [13, 12, 12, 3])


def test_the_official_test_set_does_not_depend_on_the_training_set(official):
    small, large = (official(n_train=n, n_test=20, seed=5) for n in (10, 50))
    np.testing.assert_array_equal(small.x_test, large.x_test)
    assert set(np.asarray(small.x_train[:, 0])) <= set(np.asarray(large.x_train[:, 0]))
    other = official(n_train=10, n_test=20, seed=6)
    assert not np.array_equal(small.x_test, other.x_test)


def test_official_sets_too_small_are_named(official):
    message = "`n_train` is 101, expected at most 100: the classes kept have no more examples in"
    with pytest.raises(ValueError, match=message):
        official(n_train=101)
    message = "`n_test` is 20, expected at most 19: .* in the official test set of '.*official.npz'"
    with pytest.raises(ValueError, match=message):
        official(n_test=20, classes=(1,))
    message = r"`classes` is \(5,\), expected a class that has examples in the official test set"
    with pytest.raises(ValueError, match=message):
        official(classes=(5,))


# --- normalization of what users bring -----------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32, bool])
@pytest.mark.parametrize("normalize", ["unit-variance", "sphere", None])
def test_every_type_of_pixels_is_normalized_as_float64_is(tmp_path, dtype, normalize):
    x = np.random.default_rng(0).integers(0, 256, (30, 4, 5)).astype(dtype)
    sets = []
    for number, pixels in enumerate((x, x.astype(np.float64))):
        np.savez(tmp_path / f"{number}.npz", x=pixels, y=np.arange(30) % 2)
        sets.append(load(f"{number}.npz", root=tmp_path, normalize=normalize))
    assert sets[0].x_train.dtype == jnp.float64
    np.testing.assert_array_equal(sets[0].x_train, sets[1].x_train)
    np.testing.assert_array_equal(sets[0].x_test, sets[1].x_test)


def test_data_have_the_default_type_in_float32(float32, tmp_path):
    np.savez(tmp_path / "set.npz", x=np.random.default_rng(0).normal(size=(30, 4)), y=np.arange(30))
    data = load("set.npz", root=tmp_path)
    assert data.x_train.dtype == data.y_test.dtype == jnp.float32
    assert data.labels_train.dtype == jnp.int32


@pytest.mark.parametrize("value", [0, 0.1, 7])
def test_pixels_that_cannot_be_normalized_are_refused(tmp_path, value):
    np.savez(tmp_path / "set.npz", x=np.full((30, 4), value), y=np.arange(30) % 2)
    message = "`normalize` is 'unit-variance' and all training pixels are equal, expected pixels"
    with pytest.raises(ValueError, match=message):
        load("set.npz", root=tmp_path)
    message = "`normalize` is 'sphere' and an example has all pixels at the mean of the training"
    with pytest.raises(ValueError, match=message):
        load("set.npz", root=tmp_path, normalize="sphere")
    assert load("set.npz", root=tmp_path, normalize=None).x_train[0, 0] == value
