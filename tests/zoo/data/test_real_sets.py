"""The real image sets, where they are: skipped elsewhere."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from zoo import load
from zoo.data import files

SHARED = Path(__file__).parents[4] / "shared" / "data"
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def real(path):
    if not path.exists():
        pytest.skip(f"{path.name} is not at {path.parent}: the real set is not checked")
    return path


def test_real_mnist_has_its_sizes_and_counts():
    root = real(SHARED / "mnist")
    source = files.mnist("mnist", root)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    np.testing.assert_array_equal(np.bincount(source.train.targets), counts)
    assert len(source.test.targets) == 10000
    images = source.train.images(np.arange(60000))
    assert images.shape == (60000, 1, 28, 28)
    assert images.dtype == np.uint8
    # The mean that everybody normalizes MNIST with.
    np.testing.assert_allclose(images.mean() / 255, 0.1307, atol=5e-5)


def test_real_mnist_gives_small_balanced_sets():
    data = load("mnist", root=real(SHARED / "mnist"), n_train=205, n_test=100)
    assert data.x_train.shape == (205, 1, 28, 28)
    assert sorted(np.bincount(data.labels_train)) == [20] * 5 + [21] * 5
    np.testing.assert_array_equal(np.bincount(data.labels_test), 10)
    np.testing.assert_allclose(jnp.std(data.x_train), 1, rtol=1e-12)


def test_real_mnist_is_not_taken_for_fashion_mnist():
    root = real(SHARED / "mnist")
    message = "holds the train labels of 'mnist', expected the train labels of 'fashion-mnist'"
    with pytest.raises(ValueError, match=message):
        load("fashion-mnist", root=root)


def test_real_mnist_parts_are_not_taken_for_each_other(tmp_path):
    root = real(SHARED / "mnist")
    for kind in ("images-idx3", "labels-idx1"):
        for part, other in (("train", "t10k"), ("t10k", "train")):
            shutil.copy(root / f"{part}-{kind}-ubyte.gz", tmp_path / f"{other}-{kind}-ubyte.gz")
    with pytest.raises(ValueError, match="holds the t10k labels of 'mnist', expected the train"):
        load("mnist", root=tmp_path)


def test_real_fashion_mnist_is_not_taken_for_mnist():
    root = real(DEBIAN_FASHION)
    source = files.mnist("fashion-mnist", root)
    np.testing.assert_array_equal(np.bincount(source.train.targets), 6000)
    np.testing.assert_array_equal(np.bincount(source.test.targets), 1000)
    message = "holds the train labels of 'fashion-mnist', expected the train labels of 'mnist'"
    with pytest.raises(ValueError, match=message):
        load("mnist", root=root)


def test_real_cifar10_images_from_npz_are_channel_first():
    path = real(SHARED / "cifar10-4000.npz")
    data = load(path.name, root=path.parent, n_train=50, n_test=20, normalize=None)
    assert data.x_train.shape == (50, 3, 32, 32)
    with np.load(path, allow_pickle=False) as archive:
        stored = {
            image.tobytes(): int(y) for image, y in zip(archive["x"], archive["y"], strict=True)
        }
    images = np.asarray(data.x_train).transpose(0, 2, 3, 1).astype(np.uint8)
    for image, label in zip(images, np.asarray(data.labels_train), strict=True):
        assert stored[image.tobytes()] == label
