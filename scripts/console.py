"""Consoles for long work: what is printed may go unread, or where few characters are known."""

import io
import os
import sys

from rich.console import Console


class PatientConsole(Console):
    """Goes on in silence where its reader has left: `study | head` computes to the end."""

    def on_broken_pipe(self) -> None:
        """Hears of it from Rich, whose own answer is to exit."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def ready(console: Console | None = None) -> Console:
    """The console (default: a patient one on the terminal), with what its stream cannot encode
    replaced: the answer of an hour's work is worth more than a sign in it.
    """
    console = PatientConsole() if console is None else console
    replace_unencodable(console.file)
    return console


def replace_unencodable(stream: object) -> None:
    """Has a text stream write "?" for what its encoding lacks, where it would raise."""
    raises = ("strict", "surrogateescape")
    if isinstance(stream, io.TextIOWrapper) and stream.errors in raises:
        stream.reconfigure(errors="replace")
