r"""The convolution of one image, fast inside loops on CPU and native on accelerators.

    z[o, p] = sum_{c, q} w[o, c, q] a[c, stride p + q - low]

(a cross-correlation, as everywhere in deep learning), over any number of spatial axes. Positions
outside the image are 0 ("SAME", "VALID") or taken periodically ("CIRCULAR").

XLA's own convolution on CPU is many times slower inside `lax.map`, `scan` and `while` than outside
(`finite-width benchmark --parts convolution` measures it), and every ODE solve and every tile
of a kernel is such a loop. So on CPU the patches are gathered by slices and multiplied in one
matrix product; elsewhere, and by whoever knows that there is no loop (`outside_loops`),
`lax.conv_general_dilated` is used.
"""

import contextlib
import contextvars
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.common import checks

Padding = Literal["SAME", "VALID", "CIRCULAR"]
PADDINGS: tuple[Padding, ...] = ("SAME", "VALID", "CIRCULAR")

_MOST_SLICES = 128
"""Each is an operation to compile; of more positions of a kernel windows are taken by axis."""

_OUTSIDE_LOOPS = contextvars.ContextVar("outside_loops", default=False)


@contextlib.contextmanager
def outside_loops() -> Iterator[None]:
    """What is traced in here runs in no loop: XLA's own convolution is the faster one on CPU too.

    To be entered inside the function that is compiled, which must be told of it by a static
    argument: a compiled function does not ask again.
    """
    token = _OUTSIDE_LOOPS.set(True)
    try:
        yield
    finally:
        _OUTSIDE_LOOPS.reset(token)


def are_outside_loops() -> bool:
    """Whether this is traced within `outside_loops()`."""
    return _OUTSIDE_LOOPS.get()


def convolve(
    image: Float[Array, "in_channels *space"],
    weight: Float[Array, "out_channels in_channels *kernel"],
    *,
    stride: Sequence[int],
    padding: Padding,
) -> Float[Array, "out_channels *out_space"]:
    """Convolves one channel-first image with a kernel.

    **Arguments:**

    - `image`: (C_in, *space).
    - `weight`: (C_out, C_in, *kernel), a kernel axis for each spatial axis.
    - `stride`: one step for each spatial axis.
    - `padding`: "SAME" is XLA's: output length ceil(n / stride), what is padded is shared evenly
      and the odd one goes to the end; "CIRCULAR" pads as much, periodically; "VALID" does not pad.

    **Returns:** (C_out, *out_space), see `output_space`.
    """
    image, pads = _wrapped(image, weight.shape[2:], stride, padding)
    dtype = jnp.result_type(image, weight)
    native = functools.partial(_native, stride=tuple(stride), pads=pads)
    if are_outside_loops():
        return native(image.astype(dtype), weight.astype(dtype))
    return jax.lax.platform_dependent(
        image.astype(dtype),
        weight.astype(dtype),
        cpu=functools.partial(_by_patches, stride=tuple(stride), pads=pads),
        default=native,
    )


def patches(
    image: Float[Array, "in_channels *space"],
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Padding,
) -> Float[Array, "positions size"]:
    """What each output position of a convolution sees, as a vector over (*kernel, in_channels).

    `patches(...) @ kernel_matrix(weight).T` is `convolve`, positions flat and channels last.
    """
    image, pads = _wrapped(image, tuple(kernel), stride, padding)
    return window_patches(jnp.pad(image, ((0, 0), *pads)), kernel=kernel, stride=stride)


def window_patches(
    image: Float[Array, "in_channels *space"],
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int] | None = None,
) -> Float[Array, "positions size"]:
    """The same without padding: all windows that lie inside the image, of entries that are
    `dilation` (default: 1) apart.
    """
    dilation = (1,) * len(kernel) if dilation is None else dilation
    extent = [(size - 1) * apart + 1 for size, apart in zip(kernel, dilation, strict=True)]
    out = _window_space(image.shape[1:], extent, stride)
    # Channels last: what is copied are runs of channels, and the product needs no transposition.
    last = jnp.moveaxis(image, 0, -1)
    if math.prod(kernel) > _MOST_SLICES:
        windows = _windows_by_axis(last, out, kernel, stride, dilation)
        return windows.reshape(math.prod(out), -1)
    offsets = [range(0, reach, apart) for reach, apart in zip(extent, dilation, strict=True)]
    slices = [
        last[tuple(map(_every, offset, out, stride))] for offset in itertools.product(*offsets)
    ]
    return jnp.concatenate(slices, axis=-1).reshape(math.prod(out), -1)


def _windows_by_axis(
    last: Float[Array, "*space in_channels"],
    out: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Float[Array, "..."]:
    """The windows (*out, *kernel, in_channels), one axis after the other: as many slices as the sum
    of the kernel's lengths, where its positions are their product.
    """
    of_axes = zip(out, kernel, stride, dilation, strict=True)
    for axis, (length, size, step, apart) in enumerate(of_axes):
        before = (slice(None),) * axis
        slices = [last[(*before, _every(q * apart, length, step))] for q in range(size)]
        last = jnp.stack(slices, axis=-2)
    return last


def kernel_matrix(
    weight: Float[Array, "out_channels in_channels *kernel"],
) -> Float[Array, "out_channels size"]:
    """The weights as a matrix on `patches`."""
    return jnp.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)


def cotangent_patches(
    cotangent: Float[Array, "out_channels *out_space"], *, kernel: Sequence[int], padding: Padding
) -> Float[Array, "in_positions size"]:
    """What each input position of a convolution of stride 1 sees of its output's cotangent.

    A vector over (*kernel, out_channels), in the order of `cotangent_matrix`: their product is the
    cotangent of the input, positions flat and channels last, without a scatter.
    """
    pads = []
    for n, k in zip(cotangent.shape[1:], kernel, strict=True):
        low, high = pads_of(n, k, 1, padding)
        pads.append((k - 1 - low, k - 1 - high))
    mode = "wrap" if padding == "CIRCULAR" else "constant"
    padded = jnp.pad(cotangent, ((0, 0), *pads), mode=mode)
    return window_patches(padded, kernel=kernel, stride=(1,) * len(kernel))


def cotangent_matrix(
    matrix: Float[Array, "out_channels size"], *, kernel: Sequence[int]
) -> Float[Array, "cotangent_size in_channels"]:
    """A `kernel_matrix` as it acts on `cotangent_patches`: transposed, and the kernel reversed."""
    full = matrix.reshape(matrix.shape[0], *kernel, -1)
    reverse = jnp.flip(full, axis=tuple(range(1, full.ndim - 1)))
    return jnp.moveaxis(reverse, 0, -2).reshape(-1, full.shape[-1])


def output_space(
    space: Sequence[int], *, kernel: Sequence[int], stride: Sequence[int], padding: Padding
) -> tuple[int, ...]:
    """The spatial shape of a convolution's output.

    **Raises:** `ValueError` where a "VALID" kernel is longer than the image.
    """
    lengths = []
    for n, k, s in zip(space, kernel, stride, strict=True):
        if padding != "VALID":
            lengths.append(math.ceil(n / s))
        elif k <= n:
            lengths.append((n - k) // s + 1)
        else:
            raise ValueError(
                f"`kernel_size` is {tuple(kernel)} on an image of {tuple(space)} positions with "
                '`padding="VALID"`, expected a kernel no longer than the image.'
            )
    return tuple(lengths)


def pads_of(length: int, kernel: int, stride: int, padding: Padding) -> tuple[int, int]:
    """How many positions are padded before and after one axis."""
    if padding == "VALID":
        return 0, 0
    total = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


def per_axis(name: str, value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """One positive integer for each spatial axis.

    **Raises:** `ValueError` for other numbers, or another number of them.
    """
    if not isinstance(value, Sequence):
        checks.integer(name, value)
        return (int(value),) * axes
    if len(value) != axes:
        raise ValueError(f"`{name}` is {value!r}, expected one integer or {axes}, one an axis.")
    for i, entry in enumerate(value):
        checks.integer(f"{name}[{i}]", entry)
    return tuple(int(entry) for entry in value)


def _wrapped(
    image: Array, kernel: tuple[int, ...], stride: Sequence[int], padding: Padding
) -> tuple[Array, tuple[tuple[int, int], ...]]:
    """The image, padded where that is periodic, and the zeros that are still to be padded."""
    pads = tuple(
        pads_of(n, k, s, padding) for n, k, s in zip(image.shape[1:], kernel, stride, strict=True)
    )
    if padding != "CIRCULAR":
        return image, pads
    return jnp.pad(image, ((0, 0), *pads), mode="wrap"), ((0, 0),) * len(pads)


def _native(image: Array, weight: Array, *, stride: tuple[int, ...], pads: tuple) -> Array:
    return jax.lax.conv_general_dilated(image[None], weight, stride, pads)[0]


def _by_patches(image: Array, weight: Array, *, stride: tuple[int, ...], pads: tuple) -> Array:
    """One slice for each position of the kernel, then one matrix product."""
    image, kernel = jnp.pad(image, ((0, 0), *pads)), weight.shape[2:]
    product = window_patches(image, kernel=kernel, stride=stride) @ kernel_matrix(weight).T
    out = _window_space(image.shape[1:], kernel, stride)
    return jnp.moveaxis(product.reshape(*out, -1), -1, 0)


def _window_space(
    space: Sequence[int], kernel: Sequence[int], stride: Sequence[int]
) -> tuple[int, ...]:
    """How many windows lie inside, along each axis."""
    return tuple((n - k) // s + 1 for n, k, s in zip(space, kernel, stride, strict=True))


def _every(start: int, length: int, step: int) -> slice:
    return slice(start, start + (length - 1) * step + 1, step)
