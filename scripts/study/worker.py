"""A process that computes cells for a study; `workers.ProcessWorker` starts it.

It reads the config, then the data and the cells, as pickles from its standard input, and writes
pairs (kind, what) as pickles to its standard output. It ends with the process that started it.
"""

import os
import pickle
import sys
import threading
import traceback
from typing import BinaryIO

STARTED, FINISHED, FAILED = "started", "finished", "failed"
"""A part of a cell starts (its name), a cell is finished (its values), or has failed (a message and
a traceback).
"""


def main() -> None:
    """Computes the cells that standard input asks for."""
    os.environ.setdefault("EQX_ON_ERROR", "nan")  # before equinox is imported
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no message
    config = pickle.load(sys.stdin.buffer)

    from scripts import runtime
    from scripts.study.cell import compute
    from scripts.study.infinite import Limits

    runtime.use_compilation_cache()
    runtime.set_precision(config.precision)
    data, cells, shared = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    limits = Limits(config, data, shared)

    def started(part: str) -> None:
        runtime.make_room_for_programs()
        _send(messages, STARTED, part)

    for cell in cells:
        try:
            values = compute(config, data, cell, limits, started)
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            _send(messages, FAILED, (message, traceback.format_exc()))
        else:
            _send(messages, FINISHED, values)


def _send(messages: BinaryIO, kind: str, what: object) -> None:
    pickle.dump((kind, what), messages)
    messages.flush()


def _end_with_parent() -> None:
    """Standard input ends when the parent does, however that was."""
    sys.stdin.buffer.read()
    os._exit(1)
