"""Image sets in files: what is read, and what is said of files that are not as they should be."""

import gzip
import hashlib
import pickle
import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.zoo.image_files import (
    cifar_records,
    HTML,
    idx,
    numbered_images,
    numbers,
    write_cifar,
    write_mnist,
)
from zoo import DATASETS, load
from zoo.data import files

MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
FASHION_URL = "https://github.com/zalandoresearch/fashion-mnist"
CIFAR_URL = "cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"


# --- what is read --------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(1, 6)),
    seed=st.integers(0, 2**32 - 1),
    compress=st.booleans(),
)
def test_idx_files_are_read_as_written(tmp_path_factory, shape, seed, compress):
    generator = np.random.default_rng(seed)
    path = tmp_path_factory.getbasetemp() / "round-trip"
    for kind, array in (
        ("images", generator.integers(0, 256, shape)),
        ("labels", generator.integers(0, 256, shape[0])),
    ):
        path.write_bytes(gzip.compress(idx(array)) if compress else idx(array))
        read = files.read_idx(path, kind, "")
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("below", [".", "name"])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist_keeps_pixels_labels_and_the_official_split(tmp_path, name, below, compress):
    write_mnist(tmp_path if below == "." else tmp_path / name, compress=compress)
    data = load(name, root=tmp_path, normalize=None)
    assert data.name == name
    assert data.classes == tuple(range(10))
    assert data.x_train.shape == (60, 1, 28, 28)
    assert data.x_test.shape == (30, 1, 28, 28)
    assert sorted(numbers(data.x_train)) == list(range(60))
    assert sorted(numbers(data.x_test)) == list(range(60, 90))
    for x, labels in ((data.x_train, data.labels_train), (data.x_test, data.labels_test)):
        np.testing.assert_array_equal(numbers(x) % 10, labels)
        np.testing.assert_array_equal(x[:, 0, -1, -1], 255 - numbers(x))
        np.testing.assert_array_equal(x[:, 0, 3, 5], 77)
        np.testing.assert_array_equal(jnp.sum(x, axis=(1, 2, 3)), 255 + 77)


def test_files_may_be_plain_or_gzipped_one_by_one_and_root_a_str(tmp_path):
    write_mnist(tmp_path, compress=True)
    plain = tmp_path / "t10k-images-idx3-ubyte"
    plain.write_bytes(gzip.decompress(plain.with_suffix(".gz").read_bytes()))
    plain.with_suffix(".gz").unlink()
    # A browser that unpacks while it downloads leaves the .gz in the name.
    unpacked = tmp_path / "train-labels-idx1-ubyte.gz"
    unpacked.write_bytes(gzip.decompress(unpacked.read_bytes()))
    assert load("mnist", root=str(tmp_path)).x_train.shape == (60, 1, 28, 28)


def test_two_sets_below_one_root_do_not_mix(tmp_path):
    write_mnist(tmp_path, n_train=20)
    write_mnist(tmp_path / "fashion-mnist", n_train=50)
    assert len(load("mnist", root=tmp_path).x_train) == 20
    assert len(load("fashion-mnist", root=tmp_path).x_train) == 50
    (tmp_path / "fashion-mnist" / "t10k-labels-idx1-ubyte").unlink()
    (tmp_path / "fashion-mnist" / "train-labels-idx1-ubyte").unlink()
    # What is whole counts, and no file of the one set completes the other.
    assert len(load("fashion-mnist", root=tmp_path).x_train) == 20


@pytest.mark.parametrize("below", [".", "cifar-10-batches-bin"])
def test_cifar10_keeps_pixels_labels_and_the_official_split(tmp_path, below):
    write_cifar(tmp_path / below)
    data = load("cifar10", root=tmp_path, normalize=None)
    assert data.x_train.shape == (100, 3, 32, 32)
    assert data.x_test.shape == (20, 3, 32, 32)
    assert sorted(numbers(data.x_train)) == list(range(100))
    assert sorted(numbers(data.x_test)) == list(range(100, 120))
    for x, labels in ((data.x_train, data.labels_train), (data.x_test, data.labels_test)):
        np.testing.assert_array_equal(numbers(x) % 10, labels)
        np.testing.assert_array_equal(x[:, 1, 2, 3], 11)
        np.testing.assert_array_equal(x[:, 2, 31, 30], 22)
        np.testing.assert_array_equal(jnp.sum(x, axis=(1, 2, 3)), numbers(x) + 33)


def test_every_name_that_needs_files_says_which_and_where_to_get_them():
    for name in DATASETS[1:]:
        with pytest.raises(ValueError, match=f"`root` is None, expected the folder .* '{name}'"):
            load(name)
    with pytest.raises(ValueError, match=f"train-images-idx3-ubyte, .* files: {MNIST_URL}"):
        load("mnist")
    with pytest.raises(ValueError, match=f"t10k-labels-idx1-ubyte. .* files: {FASHION_URL}"):
        load("fashion-mnist")
    with pytest.raises(ValueError, match=f"data_batch_1.bin, .* files: {re.escape(CIFAR_URL)}"):
        load("cifar10")


# --- missing files -------------------------------------------------------------------------------


def test_missing_files_are_listed_with_the_folders_looked_in(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("mnist", root=tmp_path)
    message = str(error.value)
    looked = (
        f"'mnist' has none of its files in {tmp_path / 'mnist'} or {tmp_path}, expected 4 files"
    )
    assert message.startswith(f"{looked} in one folder: train-images-idx3-ubyte, train-labels-")
    assert "(each with or without '.gz')" in message
    assert message.endswith(MNIST_URL)

    write_mnist(tmp_path / "mnist", compress=True)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    message = f"'mnist' has no t10k-labels-idx1-ubyte in {tmp_path / 'mnist'}, expected 4 files"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        load("mnist", root=tmp_path)

    write_cifar(tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    message = f"'cifar10' has no data_batch_3.bin in {tmp_path}, expected 6 files in one folder"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        load("cifar10", root=tmp_path)


def test_a_root_that_is_no_folder_is_named(tmp_path, unchecked):
    message = f"`root` is '{tmp_path / 'nowhere'}', expected a folder that exists"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        load("mnist", root=tmp_path / "nowhere")
    with pytest.raises(TypeError, match="`root` is 3, expected a str or a Path"):
        load("mnist", root=3)


@pytest.mark.parametrize(
    "there", ["cifar-10-batches-py/", "data_batch_1", "cifar-10-python.tar.gz"]
)
def test_pickled_cifar10_is_refused_with_the_reason(tmp_path, there):
    if there.endswith("/"):
        (tmp_path / there).mkdir()
    else:
        (tmp_path / there).write_bytes(pickle.dumps({"data": []}))
    message = f"{tmp_path / there} belongs to the pickled version, which is refused: unpickling"
    with pytest.raises(FileNotFoundError, match=re.escape(message)) as error:
        load("cifar10", root=tmp_path)
    assert "no pickle is ever loaded. Get the binary version instead." in str(error.value)
    assert str(error.value).endswith(CIFAR_URL)


def test_the_archive_of_cifar10_has_to_be_unpacked(tmp_path):
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(b"")
    message = f"{archive} is there but not unpacked: `tar -xzf {archive} -C {tmp_path}`"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        load("cifar10", root=tmp_path)


# --- malformed files -----------------------------------------------------------------------------

IMAGES, LABELS = idx(numbered_images(60)), idx(np.arange(60) % 10)
SIXTEEN = IMAGES[:16]
ZIPPED = gzip.compress(IMAGES, mtime=0)
WHOLE = 16 + 60 * 28 * 28


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train-images-idx3", b"", "has 0 bytes (uncompressed), expected at least the 16 of the"),
        ("train-labels-idx1", b"\0\0\x08\1", "has 4 bytes (uncompressed), expected at least the 8"),
        (
            "train-images-idx3",
            IMAGES[:-1],
            f"has {WHOLE - 1} bytes (uncompressed), which is too few, expected {WHOLE}: its header "
            "announces images of shape (60, 28, 28)",
        ),
        (
            "train-images-idx3",
            IMAGES + b"\0\0",
            f"has {WHOLE + 2} bytes (uncompressed), which is too many, expected {WHOLE}",
        ),
        (
            "t10k-labels-idx1",
            gzip.compress(LABELS + b"1", mtime=0),
            "has 69 bytes (uncompressed), which is too many, expected 68: its header announces "
            "labels of shape (60,)",
        ),
        (
            "train-images-idx3",
            LABELS,
            f"starts with {LABELS[:16]!r} and is an idx file of labels, expected an idx file of "
            f"images, which starts with {SIXTEEN[:4]!r}",
        ),
        ("train-labels-idx1", IMAGES, f"starts with {SIXTEEN!r} and is an idx file of images"),
        ("train-images-idx3", HTML, f"starts with {HTML[:16]!r} and is a web page, expected"),
        ("train-labels-idx1", bytes(20), f"starts with {bytes(16)!r} and is no idx file of bytes"),
        (
            "train-images-idx3",
            ZIPPED[:-9],
            f"is a damaged gzip file of {len(ZIPPED) - 9} bytes (Compressed file ended",
        ),
        (
            "train-images-idx3",
            ZIPPED[:-8] + bytes(8),
            f"is a damaged gzip file of {len(ZIPPED)} bytes (CRC check failed), expected one that "
            "decompresses: the download may have been cut off",
        ),
        ("t10k-images-idx3", b"\x1f\x8b" + bytes(30), "is a damaged gzip file of 32 bytes"),
        ("train-labels-idx1", idx(np.full(60, 17)), "has the label 17 (example 0), expected"),
        ("t10k-labels-idx1", idx(np.zeros(0)), "has no examples, expected one at least"),
        (
            "train-images-idx3",
            idx(numbered_images(60, size=32)),
            "has images of 32 x 32 pixels, expected 28 x 28",
        ),
        ("train-images-idx3", idx(numbered_images(59)), "has 59 images and "),
    ],
)
def test_malformed_idx_files_are_named(tmp_path, file, content, message):
    path = write_mnist(tmp_path) / f"{file}-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path} {message}")) as error:
        load("mnist", root=tmp_path)
    assert str(error.value).endswith(MNIST_URL)


def test_a_web_page_saved_as_gzip_is_called_one(tmp_path):
    path = write_mnist(tmp_path, compress=True) / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(HTML)
    message = f"{path} starts with {HTML[:16]!r} and is a web page, expected an idx file of labels"
    with pytest.raises(ValueError, match=re.escape(message)):
        load("mnist", root=tmp_path)


def test_corrupt_gzip_is_named(tmp_path):
    path = write_mnist(tmp_path, compress=True) / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    message = f"{path} is a damaged gzip file of {len(content)} bytes"
    with pytest.raises(ValueError, match=re.escape(message)):
        load("mnist", root=tmp_path)


def test_unequal_counts_name_both_files(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(61)))
    message = (
        f"{tmp_path / 'train-images-idx3-ubyte'} has 60 images and "
        f"{tmp_path / 'train-labels-idx1-ubyte'} has 61 labels, expected as many of the one as"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load("mnist", root=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(3072), "has 3072 bytes and starts with"),
        (HTML, f"has {len(HTML)} bytes and starts with {HTML[:16]!r}, expected a multiple of 3073"),
        (b"", "has no examples, expected one at least"),
        (
            cifar_records(3, 0).tobytes() + b"\x0a" + bytes(3072),
            "has the label 10 (example 3), expected labels from 0 to 9",
        ),
    ],
)
def test_malformed_cifar_files_are_named(tmp_path, content, message):
    path = write_cifar(tmp_path) / "data_batch_2.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path} {message}")) as error:
        load("cifar10", root=tmp_path)
    assert str(error.value).endswith(CIFAR_URL)


def test_files_of_another_set_or_part_are_refused_by_name(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    labels = (np.arange(60) % 10).astype(np.uint8)
    digest = hashlib.sha256(labels.tobytes()).hexdigest()
    path = tmp_path / "train-labels-idx1-ubyte"
    for known, name, message in (
        (("mnist", "train"), "fashion-mnist", "the train labels of 'mnist', expected the train"),
        (("mnist", "t10k"), "mnist", "the t10k labels of 'mnist', expected the train labels of"),
    ):
        monkeypatch.setitem(files._LABEL_DIGESTS, digest, known)
        with pytest.raises(ValueError, match=re.escape(f"{path} holds {message}")):
            load(name, root=tmp_path)
    monkeypatch.setitem(files._LABEL_DIGESTS, digest, ("mnist", "train"))
    assert len(load("mnist", root=tmp_path).x_train) == 60
