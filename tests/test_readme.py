"""The README's example works when pasted, and does not fall behind the code."""

import re
from pathlib import Path

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def python_blocks():
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_example_runs_and_shows_what_it_says(capsys):
    (example,) = python_blocks()
    assert len(example.strip().splitlines()) <= 16
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("[")[0].strip() for line in printed] == ["2", "3", "4"]
    frozen, moved, moved_twice = (
        [float(n) for n in line.split("[")[1].rstrip("]").split()] for line in printed
    )
    assert frozen[1] > 4 * moved[1] > 16 * moved_twice[1]


def test_its_links_and_commands_exist():
    root = Path(__file__).resolve().parents[1]
    makefile = (root / "Makefile").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (root / target).exists(), target
    for command in re.findall(r"`make ([a-z][a-z-]*)|^make ([a-z-]*)", README, flags=re.MULTILINE):
        name = "".join(command)
        assert f"\n{name}:" in makefile, name
