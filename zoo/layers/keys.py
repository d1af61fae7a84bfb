"""Keys for random numbers, on their way to the layers that take one.

Every layer and network is called as those of Equinox are, `layer(a, *, key=None)`, so that it can
stand among them. The zoo's own layers draw nothing; containers hand a key on to those that do.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax.random as jr
from jaxtyping import Array, PRNGKeyArray

from zoo.common import checks


def called(layer: Callable[..., Any], a: Array, key: PRNGKeyArray | None) -> Any:
    """`layer(a)`, with the key where there is one and the layer takes it.

    **Raises:** `TypeError` where `key` is no key.
    """
    if key is None:
        return layer(a)
    checks.key("key", key)
    return layer(a, key=key) if _takes_key(layer) else layer(a)


def for_each(key: PRNGKeyArray | None, count: int) -> list[Any]:
    """A key for each of `count` layers, None where there is none.

    **Raises:** `TypeError` where `key` is no key.
    """
    if key is None:
        return [None] * count
    checks.key("key", key)
    return list(jr.split(key, count))


def _takes_key(layer: Any) -> bool:
    """Plain functions (`jnp.tanh`) do not, and those of C may not say."""
    try:
        return "key" in inspect.signature(layer).parameters
    except (TypeError, ValueError):
        return False
