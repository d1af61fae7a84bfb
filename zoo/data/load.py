"""Sets of images with labels, or numbers, split and normalized the same way every time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zoo.common import checks
from zoo.data import files, sources
from zoo.data.sources import Examples, Source

NORMALIZATIONS = ("unit-variance", "sphere", None)

Channels = Literal["first", "last"]

_SOURCES: dict[str, Callable[[str | Path | None], Source]] = {
    "digits": lambda root: sources.digits(),
    "mnist": lambda root: files.mnist("mnist", root),
    "fashion-mnist": lambda root: files.mnist("fashion-mnist", root),
    "cifar10": files.cifar10,
}

DATASETS = tuple(_SOURCES)
"""The names that `load` knows, besides those of .npz files."""


class Dataset(eqx.Module):
    """Training and test examples with targets.

    Images are (C, H, W), or (H, W, C) where `channels` is "last"; a source of vectors gives
    vectors. `labels_*` are indices into `classes`, which holds the labels that the source uses;
    `y_*` is their one-hot form. Where targets are numbers `y_*` holds them, there are no labels
    (None) and no `classes`.
    """

    x_train: Float[Array, "n ..."]
    y_train: Float[Array, "n k"]
    x_test: Float[Array, "m ..."]
    y_test: Float[Array, "m k"]
    labels_train: Int[Array, " n"] | None
    labels_test: Int[Array, " m"] | None
    classes: tuple[int, ...] = eqx.field(static=True)
    name: str = eqx.field(static=True)


def load(
    name: str,
    *,
    root: str | Path | None = None,
    classes: Sequence[int] | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    normalize: str | None = "unit-variance",
    channels: Channels = "first",
) -> Dataset:
    """Loads a data set: shuffles by `seed`, balances the classes, splits, normalizes.

    Files are read from disk and never downloaded. No pickle is ever loaded.

    **Arguments:**

    - `name`: one of

        - "digits", the 1797 handwritten digits of 8x8 pixels that ship with scikit-learn;
        - "mnist" or "fashion-mnist", the four official idx files, plain or gzipped, in `root` or
          in the folder of that name in `root`;
        - "cifar10", the six files of the official binary version, in `root` or in
          `root/cifar-10-batches-bin`;
        - the path of a .npz file, in `root` or in the working directory, with the arrays `x` and
          `y`, or `x_train`, `y_train`, `x_test` and `y_test`. Images have the shape (n, C, H, W),
          (n, H, W) or (n, H, W, C), vectors (n, d). Of four axes the last is the channels where
          its length is 1, 3 or 4 and axis 1 has neither length 1 nor 3; otherwise axis 1 is.
          Labels are integers >= 0 of shape (n,) or (n, 1). Floating-point `y` of shape (n,) or
          (n, k) are numbers to regress on: they stay as they are, and there are no classes.

    - `root`: the folder of the files; "digits" needs none.
    - `classes`: the labels to keep, in the order of the outputs (default: all); None for numbers.
    - `n_train`, `n_test`: number of training and test examples, disjoint, spread over the classes
      as evenly as whole numbers allow. "mnist", "fashion-mnist", "cifar10" and .npz files with
      `x_test` have an official test set: `n_train` examples are drawn from the official training
      set and `n_test` from the official test set. Default: all of them. Otherwise both are drawn
      from all examples. Default: `n_test` takes a fifth (or what `n_train` leaves, where that is
      less), `n_train` the rest.
    - `seed`: of the shuffle; the same seed gives the same split.
    - `normalize`: "unit-variance" subtracts the mean of all training pixels and divides by their
      standard deviation; "sphere" subtracts that mean and scales every example to |x|^2 = its
      number of entries; None leaves the pixels as they are.
    - `channels`: "first" gives images as (C, H, W), as the networks of `zoo` take them; "last" as
      (H, W, C), as those of Flax do. Vectors stay as they are.

    **Returns:** a `Dataset` of JAX's default floating-point type.

    **Raises:** `ValueError` for an unknown name, class or normalization, where there are fewer
    examples than asked for, where `root` is missing, for files that are malformed or belong to
    another data set, and where the pixels cannot be normalized; `FileNotFoundError` where files
    are missing (the message says where to get them); `ImportError` where the package that ships
    the data is missing.
    """
    _check_options(n_train, n_test, seed, normalize, channels)
    return _dataset(_source(name, root), classes, n_train, n_test, seed, normalize, channels)


def from_hugging_face(
    dataset: Any,
    *,
    image: str = "image",
    label: str = "label",
    classes: Sequence[int] | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    normalize: str | None = "unit-variance",
    channels: Channels = "first",
) -> Dataset:
    """Takes images and labels from a data set of the Hugging Face library `datasets`.

    Labels are read first, then the images of the rows chosen: a few examples of a large data set
    cost little. Columns are read as they are stored; a transform set on `dataset` is not applied.

    **Arguments:**

    - `dataset`: a `datasets.Dataset`, or a `datasets.DatasetDict` whose splits "train" and "test"
      are taken as the official training and test set.
    - `image`: the column of the images: `datasets.Image()`, or arrays or nested lists of one
      example's shape in `load`, whose rule for the channels holds for them.
    - `label`: the column of the labels, integers >= 0.
    - `classes`, `n_train`, `n_test`, `seed`, `normalize`, `channels`: as in `load`.

    **Returns:** a `Dataset` of JAX's default floating-point type.

    **Raises:** `TypeError` where `dataset` is something else; `ValueError` for a missing column or
    split, labels that are no integers, images of unequal shapes, and as `load` does.
    """
    _check_options(n_train, n_test, seed, normalize, channels)
    source = sources.hugging_face(dataset, image=image, label=label)
    return _dataset(source, classes, n_train, n_test, seed, normalize, channels)


def _check_options(
    n_train: int | None,
    n_test: int | None,
    seed: int,
    normalize: str | None = None,
    channels: Channels = "first",
) -> None:
    checks.choice("normalize", normalize, NORMALIZATIONS)
    checks.choice("channels", channels, get_args(Channels))
    seed = checks.integer("seed", seed, least=0, most=None)
    for argument, count in (("n_train", n_train), ("n_test", n_test)):
        if count is not None:
            checks.integer(argument, count)


def _source(name: str, root: str | Path | None) -> Source:
    if isinstance(name, str) and name.endswith(".npz"):
        return files.npz(name, root)
    if name not in DATASETS:
        known = ", ".join(repr(known) for known in DATASETS)
        raise ValueError(
            f"`name` is {name!r}, expected one of {known}, or the path of a .npz file."
        )
    return _SOURCES[name](root)


class Outline(NamedTuple):
    """What is known of a data set without its images: the shape of an example, the number k of
    outputs, and the classes, of which numbers to regress on have none.
    """

    shape: tuple[int, ...]
    outputs: int
    classes: tuple[int, ...]


def outline(
    name: str,
    *,
    root: str | Path | None = None,
    classes: Sequence[int] | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
) -> Outline:
    """What `load` with these arguments would give, channels first; of .npz files no image is read.

    **Raises:** as `load`, but for what is wrong with pixels.
    """
    _check_options(n_train, n_test, seed)
    source = _source(name, root)
    kept = _kept_classes(source, classes)
    rows = _rows(source, kept, n_train, n_test, seed)
    parts = zip((source.train, source.test or source.train), rows, strict=True)
    shape, of_test = (one.shape or one.images(chosen[:1]).shape[1:] for one, chosen in parts)
    _check_one_shape(source.name, shape, of_test)
    return Outline(shape, len(kept) or source.train.targets.shape[1], kept)


def has_classes(name: str, root: str | Path | None = None) -> bool:
    """Whether the targets of a data set are labels; else they are numbers to regress on.

    **Raises:** as `load`, where the data set cannot be read.
    """
    return name in DATASETS or _source(name, root).train.has_classes


def _dataset(
    source: Source,
    classes: Sequence[int] | None,
    n_train: int | None,
    n_test: int | None,
    seed: int,
    normalize: str | None,
    channels: Channels,
) -> Dataset:
    kept = _kept_classes(source, classes)
    train, test = source.train, source.test or source.train
    rows_train, rows_test = _rows(source, kept, n_train, n_test, seed)
    x_train, x_test = train.images(rows_train), test.images(rows_test)
    _check_one_shape(source.name, x_train.shape[1:], x_test.shape[1:])
    x_train, x_test = _normalized(x_train, x_test, normalize)
    if channels == "last" and x_train.ndim == 4:
        x_train, x_test = np.moveaxis(x_train, 1, 3), np.moveaxis(x_test, 1, 3)
    y_train, labels_train = _targets(train, rows_train, kept)
    y_test, labels_test = _targets(test, rows_test, kept)
    return Dataset(
        x_train=jnp.asarray(x_train, dtype=float),
        y_train=jnp.asarray(y_train, dtype=float),
        x_test=jnp.asarray(x_test, dtype=float),
        y_test=jnp.asarray(y_test, dtype=float),
        labels_train=None if labels_train is None else jnp.asarray(labels_train),
        labels_test=None if labels_test is None else jnp.asarray(labels_test),
        classes=kept,
        name=source.name,
    )


def _check_one_shape(name: str, train: tuple[int, ...], test: tuple[int, ...]) -> None:
    """**Raises:** `ValueError` where training and test examples have not."""
    if train != test:
        raise ValueError(
            f"{name!r} has training examples of shape {train} and test examples of shape {test}, "
            "expected one shape."
        )


def _targets(
    examples: Examples, rows: np.ndarray, kept: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Of these rows, targets (n, k), and labels as indices into `kept`, where there are any."""
    chosen = examples.targets[rows]
    if not kept:
        return chosen, None
    index_of = {label: i for i, label in enumerate(kept)}
    labels = np.array([index_of[int(label)] for label in chosen])
    return np.eye(len(kept))[labels], labels


def _rows(
    source: Source, kept: tuple[int, ...], n_train: int | None, n_test: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the training and of the test examples."""
    generator = np.random.default_rng(seed)
    if source.test is None:
        return _split(source, kept, n_train, n_test, generator)
    # Two generators, so that the test set does not depend on `n_train`.
    for_train, for_test = generator.spawn(2)
    return (
        _drawn("train", n_train, source.train, kept, source.name, for_train),
        _drawn("test", n_test, source.test, kept, source.name, for_test),
    )


def _kept_classes(source: Source, classes: Sequence[int] | None) -> tuple[int, ...]:
    """The labels that are kept, in the order of the outputs; none of numbers to regress on."""
    parts = (source.train,) if source.test is None else (source.train, source.test)
    if not all(part.has_classes for part in parts):
        _check_numbers(source, parts, classes)
        return ()
    present = tuple(sorted({int(label) for part in parts for label in np.unique(part.targets)}))
    if classes is None:
        return present
    checks.sequence("classes", classes, "a sequence of labels")
    for label in classes:
        checks.integer("classes", label, least=0)
    kept = tuple(int(label) for label in classes)
    if not kept or len(set(kept)) != len(kept) or not set(kept) <= set(present):
        raise ValueError(
            f"`classes` is {classes!r}, expected different labels out of those of {source.name!r}: "
            f"{present}."
        )
    return kept


def _check_numbers(
    source: Source, parts: tuple[Examples, ...], classes: Sequence[int] | None
) -> None:
    """**Raises:** `ValueError` where targets are not all numbers of one size, or classes are asked
    for.
    """
    shapes = {"labels" if part.has_classes else part.targets.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"{source.name!r} has training and test targets of two kinds ({shapes}), expected "
            "labels, or floating-point numbers of one shape, in both."
        )
    if classes is not None:
        raise ValueError(
            f"`classes` is {classes!r}, but the targets of {source.name!r} are floating-point "
            "numbers, expected None: there are no labels to keep."
        )


def _split(
    source: Source,
    kept: tuple[int, ...],
    n_train: int | None,
    n_test: int | None,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a training and a test set out of one set of examples."""
    pools = _pools(source.train.targets, kept, generator)
    sizes = [len(pool) for pool in pools]
    available = sum(sizes)
    if n_test is None:
        left = available if n_train is None else available - n_train
        n_test = max(1, min(available // 5, left))
    if n_train is None:
        n_train = max(1, available - n_test)
    if n_train + n_test > available:
        raise ValueError(
            f"`n_train` + `n_test` is {n_train} + {n_test} = {n_train + n_test}, expected at most "
            f"{available}: {_no_more(kept)} in {source.name!r}."
        )
    wanted_train = _evenly(n_train, sizes)
    wanted_test = _evenly(n_test, [s - t for s, t in zip(sizes, wanted_train, strict=True)])
    train = np.concatenate([p[:a] for p, a in zip(pools, wanted_train, strict=True)])
    test = np.concatenate(
        [p[a : a + b] for p, a, b in zip(pools, wanted_train, wanted_test, strict=True)]
    )
    return generator.permutation(train), generator.permutation(test)


def _drawn(
    part: str,
    count: int | None,
    examples: Examples,
    kept: tuple[int, ...],
    name: str,
    generator: np.random.Generator,
) -> np.ndarray:
    """Rows of an official "train" or "test" set: `count` of them, or all of the classes kept."""
    pools = _pools(examples.targets, kept, generator)
    sizes = [len(pool) for pool in pools]
    available = sum(sizes)
    if available == 0:
        raise ValueError(
            f"`classes` is {kept}, expected a class that has examples in the official {part} set "
            f"of {name!r}."
        )
    if count is not None and count > available:
        raise ValueError(
            f"`n_{part}` is {count}, expected at most {available}: {_no_more(kept)} in the "
            f"official {part} set of {name!r}."
        )
    wanted = sizes if count is None else _evenly(count, sizes)
    rows = np.concatenate([pool[:n] for pool, n in zip(pools, wanted, strict=True)])
    return generator.permutation(rows)


def _no_more(kept: tuple[int, ...]) -> str:
    return f"{'the classes kept have' if kept else 'there are'} no more examples"


def _pools(
    targets: np.ndarray, kept: tuple[int, ...], generator: np.random.Generator
) -> list[np.ndarray]:
    """The rows of each class, in random order; of numbers to regress on, all rows together."""
    order = generator.permutation(len(targets))
    return [order[targets[order] == label] for label in kept] if kept else [order]


def _evenly(total: int, capacity: list[int]) -> list[int]:
    """How many examples each class gives, as even as the pools allow."""
    taken = [0] * len(capacity)
    while total > 0:
        open_classes = [i for i in range(len(capacity)) if taken[i] < capacity[i]]
        # What does not divide goes to the first classes, but only once nothing else is left.
        share = total // len(open_classes)
        for i in open_classes if share else open_classes[:total]:
            step = min(max(share, 1), capacity[i] - taken[i])
            taken[i] += step
            total -= step
    return taken


def _normalized(
    train: np.ndarray, test: np.ndarray, normalize: str | None
) -> tuple[np.ndarray, np.ndarray]:
    if normalize is None:
        return train, test
    mean = train.mean(dtype=np.float64)
    # What equal pixels can differ by from their mean.
    rounding = 1e-12 * abs(mean)
    if normalize == "unit-variance":
        std = train.std(dtype=np.float64)
        if std <= rounding:
            raise ValueError(
                "`normalize` is 'unit-variance' and all training pixels are equal, expected pixels "
                "that vary, or `normalize=None`."
            )
        return (train - mean) / std, (test - mean) / std

    def on_sphere(images: np.ndarray) -> np.ndarray:
        centered = images - mean
        axes = tuple(range(1, images.ndim))
        radius = np.sqrt(np.mean(centered**2, axis=axes, keepdims=True))
        if np.any(radius <= rounding):
            raise ValueError(
                "`normalize` is 'sphere' and an example has all pixels at the mean of the training "
                "pixels, expected examples that differ from it, or `normalize=None`."
            )
        return centered / radius

    return on_sphere(train), on_sphere(test)
