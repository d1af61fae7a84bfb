"""Image sets in files: MNIST and Fashion-MNIST (idx), CIFAR-10 (binary version), .npz.

idx: 4 bytes that say what it is (00 00 08 and the number of axes), the lengths of the axes as
big-endian 32-bit integers, then one byte for each entry (Y. LeCun, C. Cortes, C. J. C. Burges,
"The MNIST database of handwritten digits"; H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", 2017).
CIFAR-10: records of 1 byte for the label and 3072 for the pixels, channel-first
(A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009).

No pickle is ever loaded: unpickling runs code from the file.
"""

import functools
import gzip
import hashlib
import itertools
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from zoo.data.sources import channel_first, class_labels, Examples, image_shape, numbers, Source

_Read = TypeVar("_Read")

_MNIST_PARTS = ("train", "t10k")
_IMAGES, _LABELS = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"
_MNIST_FILES = tuple(file.format(part) for part in _MNIST_PARTS for file in (_IMAGES, _LABELS))
_CIFAR_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_CIFAR_TEST = "test_batch.bin"
_CIFAR_RECORD = 1 + 3 * 32 * 32
_CIFAR_PICKLES = ("cifar-10-batches-py", "data_batch_1", "cifar-10-python.tar.gz")

_MAGIC = {"images": b"\x00\x00\x08\x03", "labels": b"\x00\x00\x08\x01"}

# At the end of messages, so that no full stop sticks to the address.
_OFFICIAL = {
    "mnist": "Official files: https://storage.googleapis.com/cvdf-datasets/mnist/",
    "fashion-mnist": "Official files: https://github.com/zalandoresearch/fashion-mnist",
    "cifar10": "Official files: cifar-10-binary.tar.gz from "
    "https://www.cs.toronto.edu/~kriz/cifar.html",
}

# The files of both sets have the same names. SHA-256 of the labels tells them apart.
_LABEL_DIGESTS = {
    "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13": ("mnist", "train"),
    "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5": ("mnist", "t10k"),
    "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7": ("fashion-mnist", "train"),
    "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9": ("fashion-mnist", "t10k"),
}


def mnist(name: str, root: str | Path | None) -> Source:
    """The four idx files of "mnist" or "fashion-mnist", plain or gzipped.

    **Raises:** `ValueError` for `root=None` and for malformed files, `FileNotFoundError` for
    missing ones.
    """
    folder = _folder(name, root, _MNIST_FILES)
    files = _found(name, (folder / name, folder), _MNIST_FILES, suffixes=("", ".gz"))
    return Source(name, *(_mnist_examples(name, part, files) for part in _MNIST_PARTS))


def cifar10(root: str | Path | None) -> Source:
    """The six files of the binary version of CIFAR-10.

    **Raises:** `ValueError` for `root=None` and for malformed files, `FileNotFoundError` for
    missing ones, also where only the pickled version is there.
    """
    names = (*_CIFAR_TRAIN, _CIFAR_TEST)
    folder = _folder("cifar10", root, names)
    files = _found(
        "cifar10", (folder / "cifar-10-batches-bin", folder), names, instead=_cifar_instead(folder)
    )
    train, test = (
        np.concatenate([_cifar_records(files[name]) for name in part])
        for part in (_CIFAR_TRAIN, (_CIFAR_TEST,))
    )
    return Source("cifar10", _cifar_examples(train), _cifar_examples(test))


def npz(name: str, root: str | Path | None) -> Source:
    """A file of `numpy.savez`: `x` and `y`, or `x_train`, `y_train`, `x_test` and `y_test`.

    **Raises:** `FileNotFoundError` where there is no such file, `ValueError` for malformed ones.
    """
    path = _npz_path(name, root)
    with path.open("rb") as file:
        start = file.read(16)
        # Anything else NumPy would take for a pickle, and say so.
        if not start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            raise ValueError(
                f"{path} starts with {start!r}, expected an .npz file as `numpy.savez` writes it."
            )
        file.seek(0)
        try:
            with zipfile.ZipFile(file) as archive:
                keys = [key.removesuffix(".npy") for key in archive.namelist()]
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"{path} is damaged ({error}), expected a whole .npz file as `numpy.savez` writes "
                "it: the end may be missing."
            ) from error
    split = ("x_train", "y_train"), ("x_test", "y_test")
    parts = split if all(key in keys for pair in split for key in pair) else (("x", "y"),)
    if not all(key in keys for pair in parts for key in pair):
        raise ValueError(
            f"{path} has the keys {', '.join(keys) or '(none)'}, expected x and y, or "
            "x_train, y_train, x_test and y_test."
        )
    return Source(name, *(_npz_examples(path, *pair) for pair in parts))


def read_idx(path: Path, kind: str, official: str) -> np.ndarray:
    """The array in an idx file of bytes, plain or gzipped, whatever the file is called.

    **Arguments:**

    - `path`: the file.
    - `kind`: "images" (three axes) or "labels" (one axis).
    - `official`: where to get the right file, for error messages.

    **Returns:** a read-only array of uint8.

    **Raises:** `ValueError` where the file is something else, damaged, or of another length than
    its header says.
    """
    content = _decompressed(path, official)
    axes = _MAGIC[kind][-1]
    header = 4 + 4 * axes
    if len(content) < header:
        raise ValueError(
            f"{path} has {len(content)} bytes (uncompressed), expected at least the {header} of "
            f"the header of an idx file of {kind}. {official}"
        )
    if not content.startswith(_MAGIC[kind]):
        raise ValueError(
            f"{path} starts with {content[:16]!r} and is {_looks_like(content)}, expected an idx "
            f"file of {kind}, which starts with {_MAGIC[kind]!r}. {official}"
        )
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", count=axes, offset=4))
    size = header + math.prod(shape)
    if len(content) != size:
        raise ValueError(
            f"{path} has {len(content)} bytes (uncompressed), which is too "
            f"{'few' if len(content) < size else 'many'}, expected {size}: its header announces "
            f"{kind} of shape {shape}. {official}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _folder(name: str, root: str | Path | None, files: Sequence[str]) -> Path:
    if root is None:
        raise ValueError(
            f"`root` is None, expected the folder that holds the files of {name!r}: "
            f"{', '.join(files)}. {_OFFICIAL[name]}"
        )
    folder = _path("root", root)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"`root` is {str(root)!r}, expected a folder that exists, with the files of {name!r}: "
            f"{', '.join(files)}. {_OFFICIAL[name]}"
        )
    return folder


def _path(argument: str, value: str | Path) -> Path:
    if not isinstance(value, str | Path):
        raise TypeError(f"`{argument}` is {value!r}, expected a str or a Path.")
    return Path(value).expanduser()


def _found(
    name: str,
    folders: tuple[Path, Path],
    files: Sequence[str],
    *,
    suffixes: Sequence[str] = ("",),
    instead: str = "",
) -> dict[str, Path]:
    """Where each of `files` is. All come from one folder: sets in two folders must not mix."""

    def present(folder: Path) -> dict[str, Path]:
        paths: dict[str, Path] = {}
        for file, suffix in itertools.product(files, suffixes):
            if (path := folder / (file + suffix)).is_file():
                paths.setdefault(file, path)
        return paths

    found = max((present(folder) for folder in folders), key=len)
    missing = [file for file in files if file not in found]
    if missing:
        lacks = f"no {', '.join(missing)}" if found else "none of its files"
        looked = next(iter(found.values())).parent if found else " or ".join(map(str, folders))
        endings = " or ".join(repr(suffix) for suffix in suffixes if suffix)
        raise FileNotFoundError(
            f"{name!r} has {lacks} in {looked}, expected {len(files)} files in "
            f"one folder: {', '.join(files)}"
            + (f" (each with or without {endings}). " if endings else ". ")
            + instead
            + _OFFICIAL[name]
        )
    return found


def _decompressed(path: Path, official: str) -> bytes:
    content = path.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is a damaged gzip file of {len(content)} bytes ({error}), expected one that "
            f"decompresses: the download may have been cut off. {official}"
        ) from error


def _looks_like(content: bytes) -> str:
    for kind, magic in _MAGIC.items():
        if content.startswith(magic):
            return f"an idx file of {kind}"
    # What a failed download leaves under the file's name.
    return "a web page" if content.lstrip().startswith(b"<") else "no idx file of bytes"


def _mnist_examples(name: str, part: str, files: dict[str, Path]) -> Examples:
    images_file, labels_file = files[_IMAGES.format(part)], files[_LABELS.format(part)]
    official = _OFFICIAL[name]
    labels = read_idx(labels_file, "labels", official)
    known = _LABEL_DIGESTS.get(hashlib.sha256(labels.tobytes()).hexdigest(), (name, part))
    if known != (name, part):
        raise ValueError(
            f"{labels_file} holds the {known[1]} labels of {known[0]!r}, expected the {part} "
            f"labels of {name!r}. {official}"
        )
    _check_ten_classes(labels_file, labels, official)
    images = read_idx(images_file, "images", official)
    if images.shape[1:] != (28, 28):
        raise ValueError(
            f"{images_file} has images of {images.shape[1]} x {images.shape[2]} pixels, expected "
            f"28 x 28. {official}"
        )
    if len(images) != len(labels):
        raise ValueError(
            f"{images_file} has {len(images)} images and {labels_file} has {len(labels)} labels, "
            f"expected as many of the one as of the other. {official}"
        )
    return Examples(labels, lambda rows: images[rows, None])


def _check_ten_classes(path: Path, labels: np.ndarray, official: str) -> None:
    if labels.size == 0:
        raise ValueError(f"{path} has no examples, expected one at least. {official}")
    if labels.max() > 9:
        raise ValueError(
            f"{path} has the label {labels.max()} (example {np.argmax(labels)}), expected labels "
            f"from 0 to 9. {official}"
        )


def _cifar_records(path: Path) -> np.ndarray:
    content = path.read_bytes()
    if len(content) % _CIFAR_RECORD:
        raise ValueError(
            f"{path} has {len(content)} bytes and starts with {content[:16]!r}, expected a "
            f"multiple of {_CIFAR_RECORD} bytes: 1 for the label and 3072 for the pixels of each "
            f"image. {_OFFICIAL['cifar10']}"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD)
    _check_ten_classes(path, records[:, 0], _OFFICIAL["cifar10"])
    return records


def _cifar_examples(records: np.ndarray) -> Examples:
    return Examples(records[:, 0], lambda rows: records[rows, 1:].reshape(-1, 3, 32, 32))


def _cifar_instead(folder: Path) -> str:
    """What there is of CIFAR-10 in `folder` that cannot be read as it is."""
    archive = folder / "cifar-10-binary.tar.gz"
    if archive.is_file():
        return f"{archive} is there but not unpacked: `tar -xzf {archive} -C {folder}`. "
    pickled = [path for file in _CIFAR_PICKLES if (path := folder / file).exists()]
    if pickled:
        return (
            f"{pickled[0]} belongs to the pickled version, which is refused: unpickling runs code "
            "from the file, so no pickle is ever loaded. Get the binary version instead. "
        )
    return ""


def _npz_path(name: str, root: str | Path | None) -> Path:
    path = _path("name", name)
    # An absolute `name` stays as it is.
    candidates = [path] if root is None else [_path("root", root) / path, path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = " or ".join(dict.fromkeys(str(candidate.absolute()) for candidate in candidates))
    raise FileNotFoundError(
        f"`name` is {name!r}, expected an .npz file: there is none at {looked}."
    )


def _npz_examples(path: Path, x: str, y: str) -> Examples:
    """All targets; of the images the header alone, until rows of them are asked for."""
    where, hint = f"`{y}` of {path}", f"`numpy.argmax({y}, axis=1)` makes labels of one-hot rows."
    values = _npz_array(path, y)
    targets = (numbers if values.dtype.kind == "f" else class_labels)(values, where, hint)
    count, dtype = _npz_header(path, x)
    shape = image_shape(count, dtype, f"`{x}` of {path}")
    if count[0] != len(targets):
        what = "labels" if targets.dtype.kind in "iu" else "targets"
        raise ValueError(
            f"{path} has {count[0]} images in `{x}` and {len(targets)} {what} in `{y}`, expected "
            "as many of the one as of the other."
        )

    @functools.cache
    def every() -> np.ndarray:
        return channel_first(_npz_array(path, x), f"`{x}` of {path}")

    return Examples(targets, lambda rows: every()[rows], shape)


_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
"""By version of NumPy's format; the third is that of arrays of records with names in Unicode."""


def _npz_header(path: Path, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and the dtype of an array, without its numbers."""

    def read(archive: zipfile.ZipFile) -> tuple[tuple[int, ...], np.dtype]:
        with archive.open(f"{key}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            if version not in _HEADERS:
                raise ValueError(f"its format has the version {version}")
            shape, _, dtype = _HEADERS[version](stream)
        if dtype.hasobject:
            raise ValueError("its objects are a pickle")
        return shape, dtype

    return _of_archive(path, key, read)


def _npz_array(path: Path, key: str) -> np.ndarray:
    def read(archive: zipfile.ZipFile) -> np.ndarray:
        with archive.open(f"{key}.npy") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)

    return _of_archive(path, key, read)


def _of_archive(path: Path, key: str, read: Callable[[zipfile.ZipFile], _Read]) -> _Read:
    """What `read` finds about the array `key` of an .npz file.

    **Raises:** `ValueError` for an array that is damaged, or of objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return read(archive)
    except (ValueError, KeyError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        pickled = isinstance(error, ValueError) and "pickle" in str(error)
        reason = (
            "an array of objects, which is a pickle, and no pickle is ever loaded: unpickling runs "
            "code from the file"
            if pickled
            else f"damaged ({error})"
        )
        raise ValueError(f"`{key}` of {path} is {reason}. Expected an array of numbers.") from error
