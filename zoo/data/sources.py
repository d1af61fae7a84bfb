"""Where images and targets come from: scikit-learn and Hugging Face here, files in `files`.

A source gives all its targets at once and its images by row, so that only the rows chosen are
decoded and only they become floating-point numbers. Targets are labels, or numbers to regress on.
Images are channel-first and keep the type that they are stored in; vectors stay vectors.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Examples(NamedTuple):
    """n examples.

    - `targets`: labels (n,), integers, or floating-point numbers (n, k).
    - `images`: a function from rows to the images of those rows.
    - `shape`: of an example, where that is known without any image.
    """

    targets: np.ndarray
    images: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, ...] | None = None

    @property
    def has_classes(self) -> bool:
        """Whether the targets are labels."""
        return self.targets.dtype.kind in "iu"


class Source(NamedTuple):
    """A data set as it is stored. `test` is None where there is no official test set."""

    name: str
    train: Examples
    test: Examples | None = None


def digits() -> Source:
    """The 1797 handwritten digits of 8x8 pixels that ship with scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'The data set "digits" ships with scikit-learn, which is not installed, expected '
            "`pip install 'finite-width[study]'` (or `pip install scikit-learn`)."
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    images = np.asarray(pixels).reshape(-1, 1, 8, 8)
    return Source("digits", Examples(np.asarray(labels), lambda rows: images[rows]))


def hugging_face(dataset: Any, *, image: str, label: str) -> Source:
    """A `datasets.Dataset`, or the splits "train" and "test" of a `datasets.DatasetDict`.

    **Raises:** `TypeError` for anything else; `ValueError` where a split or a column is missing or
    the labels are no integers. What is wrong with an image shows when its row is read.
    """
    try:
        import datasets
    except ImportError as error:
        raise TypeError(
            f"`dataset` is a {type(dataset).__name__}, expected a `datasets.Dataset` or a "
            "`datasets.DatasetDict`, and `datasets` is not installed: "
            "`pip install 'finite-width[datasets]'`."
        ) from error
    if isinstance(dataset, datasets.Dataset):
        name = dataset.info.dataset_name or "hugging-face"
        return Source(name, _hugging_face_examples(dataset, image, label, "`dataset`"))
    if not isinstance(dataset, datasets.DatasetDict):
        raise TypeError(
            f"`dataset` is a {type(dataset).__name__}, expected a `datasets.Dataset` or a "
            "`datasets.DatasetDict`. A streamed data set has no rows to choose from: load it with "
            "`streaming=False`."
        )
    if not {"train", "test"} <= set(dataset):
        raise ValueError(
            f"`dataset` has the splits {_quoted(dataset)}, expected 'train' and 'test'. To split "
            "one of them here, pass it alone: `dataset[split]`."
        )
    train, test = (
        _hugging_face_examples(dataset[split], image, label, f"`dataset[{split!r}]`")
        for split in ("train", "test")
    )
    return Source(dataset["train"].info.dataset_name or "hugging-face", train, test)


def class_labels(values: np.ndarray, where: str, hint: str) -> np.ndarray:
    """`values` as labels (n,). `where` says in an error whose they are, `hint` what to do.

    **Raises:** `ValueError` where they are not integers >= 0 of shape (n,) or (n, 1).
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.size == 0:
        raise ValueError(
            f"{where} has shape {values.shape}, expected (n,) with n > 0: one integer label for "
            f"each image, not one-hot. {hint}"
        )
    if values.dtype.kind not in "iu":
        raise ValueError(
            f"{where} has dtype {values.dtype}, expected integers: the labels 0, 1, 2, ..., none "
            f"of them missing. {hint}"
        )
    if values.min() < 0:
        raise ValueError(
            f"{where} has the label {values.min()} at index {np.argmin(values)}, expected labels "
            ">= 0. (A negative label often marks an example without a label.)"
        )
    return values


def numbers(values: np.ndarray, where: str, hint: str) -> np.ndarray:
    """Floating-point `values` as targets (n, k) to regress on.

    **Raises:** `ValueError` for other shapes, numbers that are not finite, and one-hot rows, which
    are labels.
    """
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(
            f"{where} has shape {values.shape}, expected (n,) or (n, k) with n > 0: the numbers to "
            "regress on of each example."
        )
    if not np.all(finite := np.isfinite(values)):
        raise ValueError(
            f"{where} has {np.count_nonzero(~finite)} entries out of {values.size} that are NaN or "
            f"infinite (the first at index {_first(~finite)}), expected finite numbers only."
        )
    rows = values[:, None] if values.ndim == 1 else values
    if rows.shape[1] > 1 and np.all((rows == 0) | (rows == 1)) and np.all(rows.sum(axis=1) == 1):
        raise ValueError(
            f"{where} has shape {values.shape}, expected (n,) with n > 0: one integer label for "
            f"each image, not one-hot. {hint}"
        )
    return rows


def channel_first(values: np.ndarray, where: str) -> np.ndarray:
    """`values` as images (n, channels, height, width), or vectors (n, d).

    Of four axes the last is the channels where its length is 1, 3 or 4 and axis 1 has neither
    length 1 nor 3; otherwise axis 1 is. Three axes are images of one channel, two are vectors.

    **Raises:** `ValueError` for other shapes, and for anything but finite real numbers.
    """
    image_shape(values.shape, values.dtype, where)
    if values.dtype.kind == "f" and not np.all(finite := np.isfinite(values)):
        raise ValueError(
            f"{where} has {np.count_nonzero(~finite)} entries out of {values.size} that are NaN or "
            f"infinite (the first at index {_first(~finite)}), expected finite numbers only."
        )
    if values.ndim == 3:
        return values[:, None]
    return values.transpose(0, 3, 1, 2) if _is_channel_last(values.shape) else values


def image_shape(shape: tuple[int, ...], dtype: np.dtype, where: str) -> tuple[int, ...]:
    """The shape that `channel_first` gives an example of an array of this shape and dtype.

    **Raises:** `ValueError` for other shapes, and for anything but real numbers.
    """
    if dtype.kind not in "biuf":
        raise ValueError(f"{where} has dtype {dtype}, expected real numbers.")
    if len(shape) not in (2, 3, 4) or 0 in shape:
        raise ValueError(
            f"{where} has shape {shape}, expected (n, channels, height, width), (n, height, "
            "width, channels), (n, height, width) or (n, d), without an empty axis."
        )
    if len(shape) == 3:
        return (1, *shape[1:])
    return (shape[3], *shape[1:3]) if _is_channel_last(shape) else shape[1:]


def _is_channel_last(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[3] in (1, 3, 4) and shape[1] not in (1, 3)


def _first(where: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(np.argmax(where), where.shape))


def _quoted(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _hugging_face_examples(dataset: Any, image: str, label: str, where: str) -> Examples:
    import datasets

    for argument, column in (("image", image), ("label", label)):
        if column not in dataset.column_names:
            raise ValueError(
                f"`{argument}` is {column!r}, expected a column of {where}: "
                f"{_quoted(dataset.column_names)}."
            )
    labels = class_labels(
        _column(dataset, label),
        f"Column {label!r} of {where}",
        f"`class_encode_column({label!r})` of a data set numbers the names of classes.",
    )
    place = f"Column {image!r} of {where}"
    feature = dataset.features[image]
    decodes = isinstance(feature, datasets.Image) and feature.decode

    def images(rows: np.ndarray) -> np.ndarray:
        chosen = dataset.select(rows)
        if decodes:
            return _pictures(chosen, image, place)
        return channel_first(_numbers(chosen, image, place), place)

    return Examples(labels, images)


def _column(dataset: Any, column: str, **options: Any) -> np.ndarray:
    return dataset.with_format("numpy", columns=[column], **options)[:][column]


def _numbers(dataset: Any, column: str, where: str) -> np.ndarray:
    """The arrays or nested lists of a column, stacked."""
    try:
        # Left alone, the format rounds to float32; given a dtype, it converts integers as well.
        floating = _column(dataset.select([0]), column).dtype.kind == "f"
        values = _column(dataset, column, **({"dtype": np.float64} if floating else {}))
    # Which of them a missing entry or a ragged one raises depends on the release of `datasets`.
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} does not stack to one array ({error}), expected images of one shape, none "
            "of them missing."
        ) from error
    if values.dtype == object:
        _one_shape([np.shape(value) for value in values], where)
        raise ValueError(
            f"{where} holds entries of type {type(values.flat[0]).__name__} that make no array of "
            "numbers, expected `datasets.Image()`, arrays, or nested lists of numbers."
        )
    return values


def _pictures(dataset: Any, column: str, where: str) -> np.ndarray:
    """The decoded images of a column, stacked.

    Read as PIL images and not through the NumPy format: PIL is channel-last whatever the number of
    channels, and only the image knows whether its pixels are colors or indices into a palette.
    """
    pixels = []
    for row in dataset.select_columns([column]).with_format(None):
        picture = row[column]
        if picture is None:
            raise ValueError(f"{where} has a row without an image, expected one in every row.")
        if picture.mode.startswith("P"):
            raise ValueError(
                f"{where} has an image of mode {picture.mode!r}, whose pixels are indices into a "
                "palette, expected colors or gray values. "
                f"`cast_column({column!r}, datasets.Image(mode='RGB'))` of a data set converts it."
            )
        values = np.asarray(picture)
        pixels.append(values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0))
    _one_shape([values.shape for values in pixels], where)
    return np.stack(pixels)


def _one_shape(shapes: list[tuple[int, ...]], where: str) -> None:
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"{where} has images of shape {shapes[0]} and {shape} (entries 0 and {i} of those "
                "chosen), expected one shape: resize them first."
            )
