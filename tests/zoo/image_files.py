"""Image sets in files, as their authors publish them, with contents known in advance."""

import gzip

import numpy as np

CIFAR_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
HTML = b"<!DOCTYPE html>\n<title>404 Not found</title>"


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
