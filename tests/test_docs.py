"""The blocks of the pages run, and the API pages list every public name."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(name: str, count: int) -> str:
    """Runs the Python blocks of a page, of which there are `count`; returns the page."""
    page = (ROOT / "docs" / f"{name}.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == count
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile("\n".join(blocks), f"{name}.md", "exec"), {"__name__": name})
    return page


@pytest.mark.long
def test_the_page_on_own_models_runs(float32, unchecked, capsys):
    pytest.importorskip("flax")
    page = run("own_models", 4)
    (shown,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    assert capsys.readouterr().out == shown


@pytest.mark.long
def test_the_page_on_networks_runs(float32, unchecked, capsys):
    page = run("networks", 6)
    (shown,) = (text for text in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if "CNN" in text)
    assert capsys.readouterr().out == shown


@pytest.mark.long
def test_the_page_on_infinite_width_runs(float32, unchecked):
    run("infinite_width", 5)


@pytest.mark.long
def test_the_page_on_kernels_runs(float32, unchecked):
    run("kernels", 4)


@pytest.mark.long
def test_the_page_on_linearity_runs(float32, unchecked):
    run("linearity", 6)


@pytest.mark.long
def test_the_page_on_dynamics_runs(float32, unchecked):
    run("dynamics", 2)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::solvers.ValidityWarning")
def test_the_page_on_finite_width_runs(float32, unchecked):
    run("finite_width", 1)


@pytest.mark.parametrize("package", ["zoo", "corrections", "solvers"])
def test_every_public_name_is_on_its_api_page(package):
    page = (ROOT / "docs" / "api" / f"{package}.md").read_text()
    listed = set(re.findall(rf"^::: {package}\.(\w+)$", page, flags=re.MULTILINE))
    module = importlib.import_module(package)
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    # A function and the file it is in may share a name: `zoo.summary`.
    assert listed == public
