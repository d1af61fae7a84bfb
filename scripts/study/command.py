"""The arguments of `finite-width study`: a preset, a file, and fields on top of them."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from scripts.study import plan
from scripts.study.config import StudyConfig
from scripts.study.config_file import from_file, preset
from scripts.study.examples import by_name, Examples, outlined


@dataclass(frozen=True)
class StudyCommand:
    """Trains real networks, predicts them, and reports where the predictions hold.

    Choices come from a preset (one on the command line in place of the file's), then from a file,
    then from the command line. The same command on the same choices goes on where it was stopped.
    """

    config: tyro.conf.OmitArgPrefixes[StudyConfig]
    preset: Literal["quick", "default", "paper"] = "default"
    """The study to start from."""
    file: Path | None = None
    """TOML or YAML with fields of the study (and `preset`)."""
    dry_run: bool = False
    """Print what the study would compute, its estimated time and memory, and stop."""


@dataclass(frozen=True)
class Parsed:
    """A study that was asked for.

    - `config`: checked, its budget too but for a dry run.
    - `examples`: of a dry run, whose plan alone is wanted.
    """

    config: StudyConfig
    examples: Examples | None = None

    @property
    def is_dry_run(self) -> bool:
        """Whether only its plan is wanted."""
        return self.examples is not None

    def dry_run(self) -> None:
        """Prints the cells of the study with what each is estimated to take."""
        assert self.examples is not None
        from rich.console import Console

        from scripts.console import ready

        ready(Console()).print(plan.table(self.config, self.examples))


def parse(arguments: Sequence[str]) -> Parsed:
    """The study that the arguments ask for.

    **Raises:** `ValueError` for a preset, a file, a field or a budget that makes no sense; of a dry
    run also for a file of examples, and `OSError` where it cannot be read;
    `SystemExit` where tyro has said what is wrong.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset")
    early.add_argument("--file", type=Path)
    first, _ = early.parse_known_args(arguments)
    base = None if first.preset is None else preset(first.preset)
    if first.file is not None:
        base = from_file(first.file, base)
    command = tyro.cli(
        StudyCommand,
        args=arguments,
        prog="finite-width study",
        default=StudyCommand(config=StudyConfig() if base is None else base),
    )
    config = command.config
    config.check()
    config.sources()
    if command.dry_run:
        return Parsed(config, _would_run(config))
    examples = by_name(config)
    goes_on = (config.folder / "config.json").exists()
    # What goes on, or has examples of unknown size, is looked at once they have been read.
    if examples is not None and not goes_on:
        found, devices = plan.estimates(config, examples), plan.device_count(config)
        plan.check_budget(config, found, devices, examples.outputs)
    return Parsed(config)


def _would_run(config: StudyConfig) -> Examples:
    """The examples of a study, once all is checked that its run would refuse and that needs no
    work.
    """
    examples = outlined(config)
    if config.sources():
        from scripts.study.networks import check_own

        check_own(config, examples)
    return examples
