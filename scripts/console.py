"""A console for long work: what is printed may go unread."""

import os
import sys

from rich.console import Console


class PatientConsole(Console):
    """Goes on in silence where its reader has left: `study | head` computes to the end."""

    def on_broken_pipe(self) -> None:
        """Hears of it from Rich, whose own answer is to exit."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
