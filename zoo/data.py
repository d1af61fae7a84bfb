"""Small labelled image sets, split and normalised the same way every time."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zoo import checks

NORMALIZATIONS = ("unit-variance", "sphere", None)


class Dataset(eqx.Module):
    """Training and test examples with one-hot targets.

    Images are channel-first (C, H, W). `labels_*` are indices into `classes`, which holds the
    labels that the source uses; `y_*` is their one-hot form.
    """

    x_train: Float[Array, "n c h w"]
    y_train: Float[Array, "n k"]
    x_test: Float[Array, "m c h w"]
    y_test: Float[Array, "m k"]
    labels_train: Int[Array, " n"]
    labels_test: Int[Array, " m"]
    classes: tuple[int, ...] = eqx.field(static=True)
    name: str = eqx.field(static=True)


def load(
    name: str,
    *,
    classes: Sequence[int] | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    normalize: str | None = "unit-variance",
) -> Dataset:
    """Loads a data set: shuffles by `seed`, balances the classes, splits, normalises.

    **Arguments:**

    - `name`: "digits", the 1797 handwritten digits of 8x8 pixels that ship with scikit-learn.
    - `classes`: the labels to keep, in the order of the outputs (default: all).
    - `n_train`, `n_test`: number of training and test examples, disjoint, spread over the classes
      as evenly as whole numbers allow. Default: `n_test` takes a fifth (or what `n_train`
      leaves, where that is less), `n_train` the rest.
    - `seed`: of the shuffle; the same seed gives the same split.
    - `normalize`: "unit-variance" subtracts the mean of all training pixels and divides by their
      standard deviation; "sphere" subtracts that mean and scales every example to |x|^2 = its
      number of entries; None leaves the pixels as they are.

    **Raises:** `ValueError` for an unknown name, class or normalisation, and where there are fewer
    examples than asked for; `ImportError` where the package that ships the data is missing.
    """
    checks.choice("name", name, DATASETS)
    checks.choice("normalize", normalize, NORMALIZATIONS)
    checks.integer("seed", seed, least=0)
    images, labels = _SOURCES[name]()
    kept = _kept_classes(name, labels, classes)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    pools = [order[labels[order] == label] for label in kept]
    available = sum(len(pool) for pool in pools)
    for argument, count in (("n_train", n_train), ("n_test", n_test)):
        if count is not None:
            checks.integer(argument, count)
    if n_test is None:
        left = available if n_train is None else available - n_train
        n_test = max(1, min(available // 5, left))
    if n_train is None:
        n_train = max(1, available - n_test)
    wanted_train, wanted_test = _spread(n_train, n_test, pools, name)

    train = np.concatenate([p[:a] for p, a in zip(pools, wanted_train, strict=True)])
    test = np.concatenate(
        [p[a : a + b] for p, a, b in zip(pools, wanted_train, wanted_test, strict=True)]
    )
    train, test = generator.permutation(train), generator.permutation(test)
    index_of = {label: i for i, label in enumerate(kept)}
    x_train, x_test = _normalized(images[train], images[test], normalize)
    labels_train = jnp.asarray([index_of[int(label)] for label in labels[train]])
    labels_test = jnp.asarray([index_of[int(label)] for label in labels[test]])
    one_hot = jnp.eye(len(kept))
    return Dataset(
        x_train=jnp.asarray(x_train, dtype=float),
        y_train=one_hot[labels_train],
        x_test=jnp.asarray(x_test, dtype=float),
        y_test=one_hot[labels_test],
        labels_train=labels_train,
        labels_test=labels_test,
        classes=kept,
        name=name,
    )


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'The data set "digits" ships with scikit-learn, which is not installed, expected '
            "`pip install 'finite-width[study]'` (or `pip install scikit-learn`)."
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    return np.asarray(pixels).reshape(-1, 1, 8, 8), np.asarray(labels)


_SOURCES: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {"digits": _load_digits}

DATASETS = tuple(_SOURCES)
"""The names that `load` knows."""


def _kept_classes(name: str, labels: np.ndarray, classes: Sequence[int] | None) -> tuple[int, ...]:
    present = tuple(int(label) for label in np.unique(labels))
    if classes is None:
        return present
    for label in classes:
        checks.integer("classes", label, least=0)
    kept = tuple(int(label) for label in classes)
    if not kept or len(set(kept)) != len(kept) or not set(kept) <= set(present):
        raise ValueError(
            f"`classes` is {classes!r}, expected different labels out of those of {name!r}: "
            f"{present}."
        )
    return kept


def _spread(
    n_train: int, n_test: int, pools: list[np.ndarray], name: str
) -> tuple[list[int], list[int]]:
    """How many training and test examples each class gives, as even as the pools allow."""

    def evenly(total: int, capacity: list[int]) -> list[int]:
        taken = [0] * len(capacity)
        while total > 0:
            open_classes = [i for i in range(len(capacity)) if taken[i] < capacity[i]]
            share, extra = divmod(total, len(open_classes))
            for rank, i in enumerate(open_classes):
                step = min(share + (rank < extra), capacity[i] - taken[i])
                taken[i] += step
                total -= step
        return taken

    sizes = [len(pool) for pool in pools]
    if n_train + n_test > sum(sizes):
        raise ValueError(
            f"`n_train` + `n_test` is {n_train} + {n_test} = {n_train + n_test}, expected at most "
            f"{sum(sizes)}: the classes kept of {name!r} have no more examples."
        )
    train = evenly(n_train, sizes)
    return train, evenly(n_test, [s - t for s, t in zip(sizes, train, strict=True)])


def _normalized(
    train: np.ndarray, test: np.ndarray, normalize: str | None
) -> tuple[np.ndarray, np.ndarray]:
    if normalize is None:
        return train, test
    mean = train.mean()
    if normalize == "unit-variance":
        std = train.std()
        return (train - mean) / std, (test - mean) / std

    def on_sphere(images: np.ndarray) -> np.ndarray:
        centered = images - mean
        axes = tuple(range(1, images.ndim))
        return centered / np.sqrt(np.mean(centered**2, axis=axes, keepdims=True))

    return on_sphere(train), on_sphere(test)
