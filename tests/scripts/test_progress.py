"""The bars of a study: in a narrow terminal the times are whole, off a terminal there are none."""

import dataclasses
import io
import re

import pytest
from rich.console import Console

from scripts.study import PRESETS
from scripts.study.cells import groups
from scripts.study.progress import Meter

CONFIG = PRESETS["paper"]
CELL = groups(CONFIG)[-1][0]


def shown(*, is_terminal):
    console = Console(file=io.StringIO(), width=80, force_terminal=is_terminal, color_system=None)
    with Meter(CONFIG, {CELL: 100.0}, console) as meter:
        meter.started("process 1", CELL, "kernel")
        meter.started("process 1", CELL, "order 3")
        meter.finished(CELL)
    return console.file.getvalue()


def test_a_narrow_terminal_shows_the_part_the_count_and_the_times():
    without_codes = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(is_terminal=True))
    last = without_codes.replace("\r", "\n").rstrip("\n").split("\n")[-2:]
    text = "\n".join(last)
    assert "1/1" in text
    assert "order 3: WideResNet-10 gelu" in text
    assert text.count("0:00:0") >= 2
    assert max(len(line) for line in last) <= 80


@pytest.mark.parametrize("count", [1, 2])
def test_only_what_tells_cells_apart_is_named(count):
    config = dataclasses.replace(CONFIG, activations=("gelu", "tanh")[:count])
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with Meter(config, {CELL: 100.0}, console) as meter:
        meter.started("process 1", CELL, "kernel")
        meter.finished(CELL)
    assert (" gelu " in console.file.getvalue()) == (count == 2)


def test_off_a_terminal_it_is_silent():
    assert shown(is_terminal=False) == ""
