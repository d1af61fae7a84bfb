"""Image sets in files: what is read, and what is said of files that are not as they should be."""

import gzip
import hashlib
import pickle
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from zoo import DATASETS, files, load

SHARED = Path(__file__).parents[3] / "shared" / "data"
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
FASHION_URL = "https://github.com/zalandoresearch/fashion-mnist"
CIFAR_URL = "cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"
CIFAR_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")


def idx(array):
    """An array of bytes in the idx format."""
    axes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + axes + array.astype(np.uint8).tobytes()


def numbered_images(n, start=0, size=28):
    """Images that tell their number by their first pixel and its complement by their last."""
    images = np.zeros((n, size, size), np.uint8)
    images[:, 0, 0] = np.arange(start, start + n)
    images[:, -1, -1] = 255 - images[:, 0, 0]
    images[:, 3, 5] = 77
    return images


def write_mnist(folder, n_train=60, n_test=30, compress=False):
    """Image i has the label i % 10; test images are numbered on from the training images."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, n, start in (("train", n_train, 0), ("t10k", n_test, n_train)):
        images, labels = numbered_images(n, start), (np.arange(n) + start) % 10
        for name, array in ((f"{part}-images-idx3", images), (f"{part}-labels-idx1", labels)):
            if compress:
                (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / f"{name}-ubyte").write_bytes(idx(array))
    return folder


def cifar_records(n, start):
    """Record i has the label i % 10 and, counting rows and channels, pixels known in advance."""
    pixels = np.zeros((n, 3, 32, 32), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(start, start + n)
    pixels[:, 1, 2, 3] = 11
    pixels[:, 2, 31, 30] = 22
    labels = (np.arange(n) + start) % 10
    return np.concatenate([labels[:, None], pixels.reshape(n, -1)], axis=1).astype(np.uint8)


def write_cifar(folder, per_file=20):
    folder.mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(CIFAR_FILES):
        (folder / file).write_bytes(cifar_records(per_file, i * per_file).tobytes())
    return folder


def numbers(x):
    """The numbers of images made by `numbered_images` or `cifar_records`."""
    return np.asarray(x[:, 0, 0, 0]).astype(int)


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
HTML = b"<!DOCTYPE html>\n<title>404 Not found</title>"
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


# --- .npz ----------------------------------------------------------------------------------------


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
        ({"y": np.arange(4.0)}, "`y` of {} has dtype float64, expected integers"),
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


# --- the real sets, where they are ---------------------------------------------------------------


def real(path):
    if not path.exists():
        pytest.skip(f"{path.name} is not at {path.parent}: the real set is not checked")
    return path


def test_real_mnist_has_its_sizes_and_counts():
    root = real(SHARED / "mnist")
    source = files.mnist("mnist", root)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    np.testing.assert_array_equal(np.bincount(source.train.labels), counts)
    assert len(source.test.labels) == 10000
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
    np.testing.assert_array_equal(np.bincount(source.train.labels), 6000)
    np.testing.assert_array_equal(np.bincount(source.test.labels), 1000)
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
