"""The machine under a run: precision, JAX's compilation cache, and a record of both."""

import contextlib
import gc
import importlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

Precision = Literal["float32", "float64"]

_PACKAGES = ("finite-width", "jax", "jaxlib", "equinox", "diffrax", "numpy", "scikit-learn")
_FAST_COMPILATION = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
)


@contextlib.contextmanager
def precision(dtype: Precision) -> Iterator[None]:
    """Sets JAX's default float type for the block, and puts the former one back."""
    before = jnp.result_type(float) == jnp.float64
    set_precision(dtype)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def set_precision(dtype: Precision) -> None:
    """Sets JAX's default float type."""
    jax.config.update("jax_enable_x64", dtype == "float64")


def single_precision() -> AbstractContextManager[Any]:
    """A block of this thread in which JAX works in 32 bits, whatever it does elsewhere."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(False)
    return importlib.import_module("jax.experimental").enable_x64(False)  # of older JAX


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a second run is fast.

    The folder is `$JAX_COMPILATION_CACHE_DIR` where that is set, else `finite-width/jax` in the
    user's cache folder.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(cache / "finite-width" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def with_fast_compilation(flags: str) -> str:
    """`XLA_FLAGS` with those by which a CPU compiles in about half the time what then takes twice
    as long; flags that are set already stay as they are.
    """
    added = [flag for flag in _FAST_COMPILATION if flag.split("=")[0] not in flags]
    return " ".join([*flags.split(), *added])


def make_room_for_programs(share: float = 0.6) -> None:
    """Drops compiled programs where more than this share of the process's memory map is taken.

    Linux lets a process have 65530 maps, and a program compiled for a CPU takes hundreds to
    thousands: without room for the next one XLA ends the process.
    """
    try:
        most = int(Path("/proc/sys/vm/max_map_count").read_bytes())
        taken = Path("/proc/self/maps").read_bytes().count(b"\n")
    except (OSError, ValueError):  # another system
        return
    if taken > share * most:
        eqx.clear_caches()
        jax.clear_caches()
        gc.collect()


def provenance() -> dict[str, Any]:
    """Versions, devices and the state of the source tree: what a result was computed with."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "xla flags": os.environ.get("XLA_FLAGS") or "none",
        "git": _git_state(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state() -> str | None:
    """The commit of the source tree, "+changes" where it has uncommitted ones; None elsewhere."""
    root = Path(__file__).resolve().parent.parent

    def git(*args: str) -> str:
        command = ["git", "-C", str(root), *args]
        said = subprocess.run(command, capture_output=True, check=True).stdout
        return os.fsdecode(said).strip()  # a path, which need not be text

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None  # installed into the tree of another project
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
