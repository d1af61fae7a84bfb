"""How the cells run: as users run, and in as much memory as they need."""

from collections.abc import Iterator

import equinox as eqx
import jax
import pytest

USUAL = {"jax_numpy_rank_promotion": "allow", "jax_numpy_dtype_promotion": "standard"}
STRICT = {"jax_numpy_rank_promotion": "raise", "jax_numpy_dtype_promotion": "strict"}


@pytest.fixture(autouse=True)
def as_users(unchecked: None, float32: None) -> Iterator[None]:
    """JAX's defaults, and no check of annotations."""
    for name, value in USUAL.items():
        jax.config.update(name, value)
    yield
    for name, value in STRICT.items():
        jax.config.update(name, value)


_COMPILED: list[str] = []
"""The function whose programs are in memory."""


@pytest.fixture(autouse=True)
def programs_of_one_function(request: pytest.FixtureRequest) -> None:
    """Frees the programs of the function before: see `compiled_programs`."""
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    cell = params.get("cell")
    if cell is not None and cell.computes and cell.function not in _COMPILED:
        _COMPILED[:] = [cell.function]
        eqx.clear_caches()
        jax.clear_caches()
