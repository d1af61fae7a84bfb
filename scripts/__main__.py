"""The command line: `python -m scripts`, the same as `finite-width`."""

import os
import sys

# Run-time checks inside compiled programs are callbacks into Python, and JAX keeps no program with
# callbacks in its compilation cache. Every input is checked before it gets there. This has to
# stand before equinox is imported.
os.environ.setdefault("EQX_ON_ERROR", "nan")

try:
    import tyro
    from rich.console import Console
except ImportError as error:
    raise SystemExit(
        f"The command line needs the package {error.name!r}, which is not installed, expected "
        "`pip install 'finite-width[study]'`."
    ) from error

from scripts import runtime  # noqa: E402
from scripts.study import StudyConfig, run  # noqa: E402


def main() -> int:
    """Runs a subcommand; returns the exit status."""
    runtime.use_compilation_cache()
    config = tyro.extras.subcommand_cli_from_dict({"study": StudyConfig})
    try:
        run(config)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
