"""Every test runs in float64, with strict promotion, and with the annotated shapes checked."""

from collections.abc import Iterator

import equinox as eqx
import jax
import jaxtyping
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

jaxtyping.install_import_hook(["zoo", "corrections", "solvers"], "beartype.beartype")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switches the check of annotations off, as it is for users: for tests of error messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def float32() -> Iterator[None]:
    """Runs a test in JAX's own default, 32 bits."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(autouse=True, scope="module")
def compiled_programs() -> Iterator[None]:
    """Frees a file's compiled programs after it.

    Each takes several memory mappings, of which a process on Linux has 65 530 (`vm.max_map_count`):
    without this a whole run of the suite takes them all, and XLA crashes on the next.
    """
    yield
    eqx.clear_caches()
    jax.clear_caches()
