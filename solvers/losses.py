r"""Losses: functions of one example's outputs f (k,) and target y (k,).

L = 1/D sum_examples l(f(x), y),       g = dL/df      (the residual carries the 1/D)
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from corrections import loss_function
from corrections.loss_function import LossFunction
from zoo.common import checks


class Loss(eqx.Module):
    """A loss that also knows which targets it accepts."""

    @abc.abstractmethod
    def __call__(self, f: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, ""]:
        """The loss of one example."""

    @abc.abstractmethod
    def check_targets(self, y: Float[Array, "n k"]) -> None:
        """**Raises:** `ValueError` where `y` is not a set of targets for this loss."""


class MeanSquaredError(Loss):
    """l(f, y) = 1/2 |f - y|^2, summed over outputs."""

    def __call__(self, f: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, ""]:
        return 0.5 * jnp.sum((f - y) ** 2)

    def check_targets(self, y: Float[Array, "n k"]) -> None:
        """Any finite targets will do."""


class CrossEntropy(Loss):
    """l(f, y) = - sum_k y_k log softmax(f)_k with y smoothed to (1 - s) y + s / k.

    **Arguments:**

    - `label_smoothing`: s in [0, 1).

    **Raises:** `ValueError` for a smoothing outside [0, 1).
    """

    label_smoothing: float = eqx.field(static=True, default=0.0)

    def __check_init__(self) -> None:
        checks.nonnegative_number("label_smoothing", self.label_smoothing)
        if self.label_smoothing >= 1:
            raise ValueError(
                f"`label_smoothing` is {self.label_smoothing!r}, expected a number in [0, 1)."
            )

    def __call__(self, f: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, ""]:
        s = self.label_smoothing
        return _cross_entropy(f, (1 - s) * y + s / y.shape[-1])

    def check_targets(self, y: Float[Array, "n k"]) -> None:
        """**Raises:** `ValueError` unless each row of `y` holds probabilities of two classes or
        more, which sum to 1.
        """
        _check_probabilities("CrossEntropy", y)


@jax.custom_jvp
def _cross_entropy(f: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, ""]:
    return -jnp.sum(y * _log_softmax(f))


@_cross_entropy.defjvp
def _cross_entropy_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """With dl/df_i = p_i sum_{j != i} y_j - y_i sum_{j != i} p_j, of which nothing cancels for
    labels: in p - y the residual of an example that is fitted is lost in rounding.
    """
    (f, y), (df, dy) = primals, tangents
    p = jax.nn.softmax(f)
    slope = p * _sum_of_others(y) - y * _sum_of_others(p)
    return _cross_entropy(f, y), jnp.sum(slope * df) - jnp.sum(_log_softmax(f) * dy)


def _log_softmax(f: Float[Array, " k"]) -> Float[Array, " k"]:
    """Also where one probability is 1 to rounding: its logarithm is minus the sum of the others."""
    below = f - jax.lax.stop_gradient(jnp.max(f))
    return below - jnp.log1p(jnp.min(_sum_of_others(jnp.exp(below))))


def _sum_of_others(v: Float[Array, " k"]) -> Float[Array, " k"]:
    """sum_{j != i} v_j of numbers >= 0, without cancellation: it is lost for the largest only."""
    is_largest = jnp.arange(v.shape[0]) == jnp.argmax(v)
    rest = jnp.sum(jnp.where(is_largest, 0, v))
    largest = jnp.sum(jnp.where(is_largest, v, 0))
    return jnp.where(is_largest, rest, largest + (rest - v))


class Brier(Loss):
    """l(f, y) = |softmax(f) - y|^2, summed over classes.

    Source: Brier (1950).
    """

    def __call__(self, f: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, ""]:
        return jnp.sum((jax.nn.softmax(f) - y) ** 2)

    def check_targets(self, y: Float[Array, "n k"]) -> None:
        """**Raises:** `ValueError` unless each row of `y` holds probabilities of two classes or
        more, which sum to 1.
        """
        _check_probabilities("Brier", y)


class Hinge(Loss):
    """The margin loss: for k >= 2 classes that of Crammer & Singer,

        l(f, y) = max(0, 1 + max_{j != c} f_j - f_c),      c the class of the one-hot row y,

    for one output max(0, 1 - y f) with y in {-1, 1}. At its kinks the gradient is one of the two
    sides': (f_c - max f_j) = 1 counts as the flat side, and the first of equal largest f_j is
    taken.

    Source: Crammer & Singer (2001), "On the algorithmic implementation of multiclass kernel-based
    vector machines", eq. 4.
    """

    def __call__(self, f: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, ""]:
        if f.shape[0] == 1:
            return _positive_part(1 - (y * f)[0])
        is_class = y > 0.5
        rivals = jnp.where(is_class, jnp.full_like(f, -jnp.inf), f)
        rival = f[jnp.argmax(rivals)]  # not a maximum: that splits its gradient between ties
        return _positive_part(1 + rival - jnp.sum(jnp.where(is_class, f, 0)))

    def check_targets(self, y: Float[Array, "n k"]) -> None:
        """**Raises:** `ValueError` unless each row of `y` is one-hot, or 1 or -1 for one output."""
        values = checks.concrete(y)
        if values is None:
            return
        if y.shape[-1] == 1:
            off, expected = np.flatnonzero(np.abs(values[:, 0]) != 1), "1 or -1 for one output"
        else:
            one_hot = np.all((values == 0) | (values == 1), axis=-1) & (values.sum(axis=-1) == 1)
            off, expected = np.flatnonzero(~one_hot), "one-hot rows"
        _check_rows("Hinge", values, off, expected)


def _positive_part(value: Array) -> Array:
    return jnp.where(value > 0, value, 0)


def _check_probabilities(loss: str, y: Float[Array, "n k"]) -> None:
    """**Raises:** `ValueError` unless rows of `y` hold probabilities of at least two classes."""
    if y.shape[-1] < 2:
        raise ValueError(
            f"`y` has shape {y.shape}, expected a column for each of at least two classes: "
            f"{loss} of one class is constant."
        )
    values = checks.concrete(y)
    if values is None:
        return
    off = np.flatnonzero(np.any(values < 0, axis=-1) | (np.abs(np.sum(values, axis=-1) - 1) > 1e-4))
    expected = "probabilities, a one-hot row say: entries >= 0 that sum to 1"
    _check_rows(loss, values, off, expected)


def _check_rows(loss: str, values: np.ndarray, off: np.ndarray, expected: str) -> None:
    """**Raises:** `ValueError` that shows the first of the rows that are `off`."""
    if off.size:
        raise ValueError(
            f"`y` does not hold labels for {loss}: row {off[0]} is "
            f"{np.array2string(values[off[0]], threshold=10)} ({off.size} of {len(values)} "
            f"rows like it), expected {expected}."
        )


def mean_loss(
    loss: LossFunction,
    f: Float[Array, "n k"],
    y: Float[Array, "n k"],
    weights: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """L = 1/D sum_examples w l(f, y), with weights w = 1 unless they are given."""
    losses = jax.vmap(loss)(f, y)
    return jnp.mean(losses if weights is None else weights * losses)


def loss_and_residual(
    loss: LossFunction,
    f: Float[Array, "n k"],
    y: Float[Array, "n k"],
    weights: Float[Array, " n"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, "n k"]]:
    """L and g = dL/df, as `mean_loss` and `residual` have them."""
    losses, g = jax.vmap(jax.value_and_grad(loss))(f, y)
    if weights is not None:
        losses, g = weights * losses, weights[:, None] * g
    return jnp.mean(losses), g / f.shape[0]


def residual(
    loss: LossFunction,
    f: Float[Array, "n k"],
    y: Float[Array, "n k"],
    weights: Float[Array, " n"] | None = None,
) -> Float[Array, "n k"]:
    """g = dL/df, the 1/D and the weights included."""
    return loss_and_residual(loss, f, y, weights)[1]


def one_hot_labels(loss: LossFunction, y: Any, classes: int | None) -> Any:
    """Integer labels (n,) as one-hot rows for a loss of classes; all else as it came.

    Without `classes` there are as many as the largest label says.

    **Raises:** `ValueError` for labels outside 0 .. classes - 1.
    """
    if not isinstance(loss, CrossEntropy | Brier | Hinge) or classes == 1:
        return y
    labels = checks.concrete(y)
    if labels is None or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        return y
    count = max(int(labels.max(initial=0)) + 1, 2) if classes is None else classes
    outside = np.flatnonzero((labels < 0) | (labels >= count))
    if outside.size:
        raise ValueError(
            f"`y` holds the label {labels[outside[0]]} (at index {outside[0]}), expected labels "
            f"from 0 to {count - 1}, or one-hot rows (n, {count})."
        )
    return np.equal(labels[:, None], np.arange(count)).astype(float)


def check_targets(
    loss: LossFunction, y: Any, shape: tuple[int, int], *, because: str
) -> Float[Array, "n k"]:
    """`y` as targets for `loss`, of the shape (n, k) that they have `because` of something.

    Integer labels (n,) become one-hot rows for the losses of classes.

    **Raises:** as `corrections.loss_function.check_targets`; `ValueError` for targets that `loss`
    does not accept.
    """
    y = one_hot_labels(loss, y, shape[1])
    if not isinstance(loss, Loss):
        return loss_function.check_targets(loss, y, shape, because=because)
    # These are scalar: a trace that says so takes longer than a solve of some hundred points.
    targets = loss_function.target_array(y, shape, because=because)
    loss.check_targets(targets)
    return targets
