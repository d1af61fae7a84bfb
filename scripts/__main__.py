"""The command line: `python -m scripts`, the same as `finite-width`."""

import functools
import os
import sys
from collections.abc import Callable

# Run-time checks inside compiled programs are callbacks into Python, and JAX keeps no program with
# callbacks in its compilation cache. Every input is checked before it gets there. This has to
# stand before equinox is imported.
os.environ.setdefault("EQX_ON_ERROR", "nan")

try:
    import tyro
    from rich.console import Console
    from rich.markup import escape

    from scripts import runtime
    from scripts.benchmark import benchmark, BenchmarkConfig
    from scripts.reproduce import CoordinateCheckConfig, InfiniteWidthConfig, LinearityConfig
    from scripts.reproduce.coordinate_check import (
        execute as execute_coordinate_check,
        prepare as prepare_coordinate_check,
    )
    from scripts.reproduce.infinite_width import (
        execute as execute_infinite_width,
        prepare as prepare_infinite_width,
    )
    from scripts.reproduce.linearity import (
        execute as execute_linearity,
        prepare as prepare_linearity,
    )
    from scripts.study import execute, prepare, StudyConfig
except ModuleNotFoundError as error:
    if str(error.name).startswith("scripts"):
        raise
    raise SystemExit(
        f"The command line needs the package {error.name!r}, which is not installed, expected "
        "`pip install 'finite-width[study]'`."
    ) from error

COMMANDS = {
    "study": StudyConfig,
    "benchmark": BenchmarkConfig,
    "coordinate-check": CoordinateCheckConfig,
    "infinite-width": InfiniteWidthConfig,
    "linearity": LinearityConfig,
}
Config = (
    StudyConfig | BenchmarkConfig | CoordinateCheckConfig | InfiniteWidthConfig | LinearityConfig
)


def main() -> int:
    """Runs a subcommand.

    Returns the exit status: 0, 2 for arguments that make no sense (nothing was done), or 130 after
    Ctrl-C (what was finished is kept).
    """
    runtime.use_compilation_cache()
    config = tyro.extras.subcommand_cli_from_dict(COMMANDS)
    with runtime.precision(config.precision):
        try:
            start = _prepared(config)
        except (ValueError, TypeError, OSError, ImportError) as error:
            Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
            return 2
        try:
            start()
        except KeyboardInterrupt:
            return 130
    return 0


def _prepared(config: Config) -> Callable[[], object]:
    """The work that `config` asks for; whatever is wrong with it shows here, before it starts."""
    if isinstance(config, StudyConfig):
        return functools.partial(execute, prepare(config))
    if isinstance(config, CoordinateCheckConfig):
        return functools.partial(execute_coordinate_check, prepare_coordinate_check(config))
    if isinstance(config, InfiniteWidthConfig):
        return functools.partial(execute_infinite_width, prepare_infinite_width(config))
    if isinstance(config, LinearityConfig):
        return functools.partial(execute_linearity, prepare_linearity(config))
    config.check()
    return functools.partial(benchmark, config)


if __name__ == "__main__":
    sys.exit(main())
