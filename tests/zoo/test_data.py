import re
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from zoo import load


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
        ({"name": "imagenet"}, "`name` is 'imagenet', expected one of 'digits'"),
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


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'finite-width\[study\]'"):
        load("digits")
