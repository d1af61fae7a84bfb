"""The command line: `finite-width`, the same as `python -m scripts` in a clone.

What a command needs is imported when it is asked for, and what is wrong with a study shows before
JAX is imported.
"""

import argparse
import ast
import errno
import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

# Run-time checks inside compiled programs are callbacks into Python, and JAX keeps no program with
# callbacks in its compilation cache. Every input is checked before it gets there. This has to
# stand before equinox is imported.
os.environ.setdefault("EQX_ON_ERROR", "nan")


def reproductions(folder: Path) -> dict[str, str]:
    """The commands that are modules of `scripts.reproduce`, in its folder: those with a constant
    `REPRODUCTION`, found without importing any. Each says what it does in the first line of its
    docstring.
    """
    found = {}
    for file in sorted(folder.glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assigned = [t for node in tree.body if isinstance(node, ast.Assign) for t in node.targets]
        if any(isinstance(t, ast.Name) and t.id == "REPRODUCTION" for t in assigned):
            said = (ast.get_docstring(tree) or "").partition("\n")[0].rstrip(".")
            found[file.stem.replace("_", "-")] = said[:1].lower() + said[1:]
    return found


COMMANDS = {
    "study": "train networks, predict them and report where the predictions hold",
    "report": "rebuild the report of a study, or compare several",
    "benchmark": "speed, as ratios against the naive way in the same run",
} | reproductions(Path(__file__).parent / "reproduce")

Config = TypeVar("Config")
Work = Callable[[], object]
"""What a command does, once everything about it has been checked."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns the exit status: 0, 1 for work that failed in part, 2 for arguments that make no sense
    or results that cannot be written (what was finished is kept), or 130 after Ctrl-C (the same).
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="finite-width",
        description="Studies of wide networks and their predictions.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:18}{what}" for name, what in COMMANDS.items())
        + "\n\n`finite-width COMMAND --help` lists what can be chosen.",
    )
    parser.add_argument("command", choices=tuple(COMMANDS), metavar="COMMAND")
    command = parser.parse_args(given[:1]).command
    try:
        from rich.console import Console
        from rich.markup import escape

        from scripts.console import replace_unencodable

        for stream in (sys.stdout, sys.stderr):
            replace_unencodable(stream)
        try:
            work = _prepared(command, given[1:])
        except (ValueError, TypeError, OSError, ImportError) as error:
            if _is_of_the_study_extra(error):
                raise
            Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
            return 2
    except ModuleNotFoundError as error:
        if not _is_of_the_study_extra(error):
            raise
        raise SystemExit(
            f"The command line needs the package {error.name!r}, which is not installed, expected "
            "`pip install 'finite-width[study]'`."
        ) from error
    try:
        work()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read what is printed has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, RuntimeError, ValueError) as error:
        status = _SAID.get(type(error).__name__, 2 if isinstance(error, OSError) else None)
        if status is None:
            raise
        Console(stderr=True).print(f"[bold red]error:[/] {escape(_told(error))}", highlight=False)
        return status
    return 0


_SAID = {"StudyError": 1, "OtherStudyError": 2}
"""Errors of work that are told without a traceback, beside those of files, with the exit status."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def _told(error: Exception) -> str:
    if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
        return str(error)
    return (
        f"{error}. Results cannot be written. What was finished before is kept: make room, or give "
        "leave to write, and the same command goes on."
    )


_STUDY_EXTRA = ("filelock", "h5netcdf", "h5py", "jinja2", "matplotlib", "pandas", "rich", "sklearn")


def _is_of_the_study_extra(error: BaseException) -> bool:
    names = (*_STUDY_EXTRA, "tyro", "xarray", "yaml")
    return isinstance(error, ModuleNotFoundError) and error.name in names


def _prepared(command: str, arguments: Sequence[str]) -> Work:
    """The work that a command asks for; whatever is wrong with it shows here, before it starts."""
    if command == "study":
        from scripts.study.command import parse

        work = parse(arguments)
        if work.is_dry_run:
            return work.dry_run
        from scripts import runtime
        from scripts.study import execute, prepare

        runtime.use_compilation_cache()
        runtime.set_precision(work.config.precision)
        return functools.partial(execute, prepare(work.config))

    import tyro

    from scripts import runtime

    def parsed(config_type: type[Config]) -> Config:
        return tyro.cli(config_type, args=arguments, prog=f"finite-width {command}")

    runtime.use_compilation_cache()
    if command == "report":
        from scripts.study.report import ReportConfig, run_report

        config = parsed(ReportConfig)
        config.check()
        return functools.partial(run_report, config)
    if command == "benchmark":
        from scripts.benchmark import benchmark, BenchmarkConfig

        config = parsed(BenchmarkConfig)
        runtime.set_precision(config.precision)
        config.check()
        return functools.partial(benchmark, config)
    module = importlib.import_module(f"scripts.reproduce.{command.replace('-', '_')}")
    config = parsed(module.REPRODUCTION.config)
    runtime.set_precision(config.precision)
    return functools.partial(module.REPRODUCTION.execute, module.REPRODUCTION.prepare(config))


if __name__ == "__main__":
    sys.exit(main())
