"""Architectures of a user's own: named, checked, built, told apart by their source."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from scripts.architectures import ARCHITECTURES, imported, Layer
from scripts.study import from_file, prepare, read, run, StudyConfig
from scripts.study.cells import groups
from scripts.study.command import parse
from scripts.study.config_file import from_choices
from scripts.study.examples import Examples
from scripts.study.infinite import InfiniteKernels, Limits
from scripts.study.networks import draw
from scripts.study.plan import estimates
from tests.scripts.studies import quiet, small
from zoo import load, NTK, parameters

SOURCE = """
import math

import equinox as eqx
import jax
import jax.numpy as jnp

import zoo

SIGNATURE = "in_shape, out_size, *, width, depth, activation, parameterization, key"


class Plain(eqx.Module):
    weights: list

    def __call__(self, x):
        x = x.ravel()
        for weight in self.weights[:-1]:
            x = jnp.tanh(weight @ x)
        return self.weights[-1] @ x


def plain(in_shape, out_size, *, width, depth, activation, parameterization, key):
    sizes = [math.prod(in_shape), *[width] * depth, out_size]
    keys = jax.random.split(key, depth + 1)
    pairs = zip(keys, sizes, sizes[1:])
    return Plain([jax.random.normal(k, (b, a)) / a**0.5 for k, a, b in pairs])


def mlp(in_shape, out_size, **options):
    return zoo.MLP(math.prod(in_shape), out_size, **options)


def one_output_more(in_shape, out_size, **options):
    return mlp(in_shape, out_size + 1, **options)


def no_model(in_shape, out_size, **options):
    return 3


def failing(in_shape, out_size, **options):
    raise RuntimeError("out of luck")


class Mixed(eqx.Module):
    layer: zoo.MLP
    scale: jax.Array

    def __call__(self, x):
        return self.scale * self.layer(x)


def mixed(in_shape, out_size, **options):
    return Mixed(mlp(in_shape, out_size, **options), jnp.ones(()))


def positional(x, y):
    return None
"""
IMAGES = Examples((1, 8, 8), 3)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of a user's in the working folder, which is on no path; gone afterwards."""
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "mine.py").write_text(SOURCE)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder / "mine.py"
    sys.modules.pop("mine", None)


def drawn(config, examples=IMAGES):
    """The network of each cell of a study."""
    return {
        c.parameterization: draw(config, examples, c) for group in groups(config) for c in group
    }


def test_a_mapping_functions_and_strings_name_the_same_study(tmp_path, mine):
    plain = imported("mine:plain")
    as_text = small(tmp_path, architectures=("MLP", "Other=mine:plain"))
    assert small(tmp_path, architectures={"MLP": "MLP", "Other": plain}) == as_text
    assert small(tmp_path, architectures={"MLP": "MLP", "Other": "mine:plain"}) == as_text
    assert small(tmp_path, architectures=("MLP", plain)).architectures == ("MLP", "mine:plain")
    file = tmp_path / "study.toml"
    file.write_text('[architectures]\nMLP = "MLP"\nOther = "mine:plain"\n')
    assert from_file(file).architectures == as_text.architectures
    words = ["--architectures", "MLP", "Other=mine:plain"]
    assert parse(words).config.architectures == as_text.architectures
    assert [one.name for one in as_text.networks] == ["MLP", "Other"]
    assert [c.family.label for g in groups(as_text) for c in g][-1] == "Other-1"


def test_the_command_of_a_study_names_the_function(tmp_path, mine):
    config = StudyConfig(out=tmp_path, architectures={"Other": imported("mine:plain")})
    words = config.command().split()
    assert words[words.index("--architectures") + 1] == "Other=mine:plain"
    assert parse(words[2:]).config == config


def test_a_changed_source_is_another_study(tmp_path, mine):
    config = small(tmp_path, name=None, architectures=("mine:plain",))
    there, folder = config.choices(), config.folder
    assert set(there["sources"]) == {"plain"}
    assert config.differences(json.loads(json.dumps(there))) == []
    mine.write_text(SOURCE + "\n# changed\n")
    (difference,) = config.differences(there)
    assert difference.startswith("`sources`")
    assert config.folder != folder
    assert "sources" not in small(tmp_path).choices()


def test_choices_are_read_where_the_function_is_not(tmp_path):
    """A report of somebody else's study."""
    config = from_choices({**small(tmp_path).choices(), "architectures": ["x=not.here:at_all"]})
    assert config.networks[0].name == "x"
    with pytest.raises(
        ValueError, match=r"`architectures` has not\.here:at_all, whose module cann"
    ):
        config.choices()


REFUSED = [
    ("vit", "`architectures` is 'vit', expected one of 'MLP', 'CNN', 'WideResNet', or a function"),
    ("a b:c", "`architectures` is 'a b:c', expected one of"),
    ("__main__:make", "none of the script that runs"),
    ("MLP=mine:plain", "expected a function of another name than the zoo's MLP"),
    ("nowhere:make", "whose module cannot be imported (ModuleNotFoundError: No module named 'now"),
    ("mine:missing", "mine.py has no such one, expected a function missing(in_shape, out_size, *"),
    ("mine:SIGNATURE", "mine.py has no such one, expected a function SIGNATURE(in_shape"),
    ("mine:positional", "which cannot be called so (got an unexpected keyword argument 'width'"),
    ("mine:one_output_more", "whose model gives outputs (4,) for an example (1, 8, 8)"),
    ("mine:no_model", "which makes no network that can be studied"),
    ("mine:failing", "RuntimeError: out of luck"),
    ("mine:mixed", "has parameters outside zoo layers"),
]


@pytest.mark.parametrize(("entry", "message"), REFUSED, ids=[entry for entry, _ in REFUSED])
def test_what_is_no_architecture_is_named_before_any_work(tmp_path, mine, entry, message):
    out = tmp_path / "runs"
    with pytest.raises(ValueError, match=re.escape(message)) as found:
        prepare(small(out, architectures=(entry,)))
    assert "`architectures`" in str(found.value)
    assert "expected" in str(found.value)
    assert not out.exists()


@pytest.mark.parametrize("function", [lambda *a, **k: None, jax.jit(lambda x: x), len])
def test_a_function_that_cannot_be_imported_or_read_is_refused(tmp_path, function):
    with pytest.raises(ValueError, match="`architectures` "):
        prepare(small(tmp_path / "runs", architectures={"x": function}))


def test_two_of_one_name_are_refused(tmp_path):
    config = small(tmp_path, architectures=("a:make", "b:make"))
    with pytest.raises(ValueError, match="expected one 'make': 'name=module:function' gives"):
        config.check()


def test_a_zoo_network_made_by_a_function_is_the_zoos(tmp_path, mine):
    """Its own parameterization by the argument, as learning rates of the same program."""
    options = {"parameterizations": ("NTK", "STANDARD"), "widths": (8,), "bias_std": 0.0}
    own = drawn(small(tmp_path, architectures=("mine:mlp",), **options))
    zoos = drawn(small(tmp_path, architectures=("MLP",), **options))
    for name in ("NTK", "STANDARD"):
        for a, b in zip(jax.tree.leaves(own[name]), jax.tree.leaves(zoos[name]), strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.allclose(*(jax.tree.leaves(own[n].metric)[0] for n in ("NTK", "STANDARD")))


def test_without_layers_of_the_zoo_all_learning_rates_are_one(tmp_path, mine):
    options = {"parameterizations": ("STANDARD",), "widths": (8,), "architectures": ("mine:plain",)}
    (network,) = drawn(small(tmp_path, **options)).values()
    assert [leaf.shape for leaf in jax.tree.leaves(network.model)] == [(8, 64), (3, 8)]
    assert all(float(rate) == 1 for rate in jax.tree.leaves(network.metric))
    key = jr.fold_in(jr.key(0), 8)
    first = jr.normal(jr.split(key, 2)[0], (8, 64), jnp.float32) / 8
    np.testing.assert_allclose(jax.tree.leaves(network.model)[0], first, rtol=1e-6)


def test_estimates_of_a_function_are_those_of_its_parameters(tmp_path, mine):
    config = small(tmp_path, architectures=("MLP", "mine:plain"), widths=(16,))
    zoos, own = estimates(config, IMAGES)
    assert (own.label, own.field) == ("plain-1", "widths")
    for quantity in ("compile_s", "cell_s", "gib"):
        assert getattr(own, quantity) == pytest.approx(getattr(zoos, quantity), rel=1e-12)


@pytest.mark.parametrize(("name", "size"), [("MLP", 3), ("CNN", 2), ("WideResNet", 10)])
def test_layers_that_are_counted_are_those_of_the_network(name, size):
    """Against the zoo's networks, whose biases are left out."""
    architecture = ARCHITECTURES[name]
    layers = architecture.costs((3, 8, 8), 5, width=4, depth=size, activation="tanh")
    model = architecture.make(
        (3, 8, 8),
        5,
        width=4,
        depth=size,
        activation="tanh",
        parameterization=NTK,
        key=jr.key(0),
    )
    leaves = jax.tree.leaves(parameters(model))
    assert sorted(one.parameters for one in layers) == sorted(leaf.size for leaf in leaves)
    assert all(isinstance(one, Layer) for one in layers)


@pytest.mark.long
def test_a_study_of_ones_own_runs_in_processes_and_says_what_is_left_out(tmp_path, mine):
    config = small(
        tmp_path / "runs",
        architectures={"MLP": "MLP", "Own": imported("mine:plain")},
        widths=(8,),
        devices=2,
        infinite_width=True,
    )
    console = quiet()
    found = run(config, console=console)
    assert bool(found["finished"].all())
    assert found["architecture"].values.tolist() == ["MLP-1", "Own-1"]
    assert found["no_limit"].squeeze().values.tolist()[0] == ""
    errors = found["test_rmse"].sel(solve="infinite NTK", time=3.0).squeeze(drop=True)
    assert np.isfinite(errors.sel(architecture="MLP-1"))
    assert np.isnan(errors.sel(architecture="Own-1"))
    said = " ".join(console.file.getvalue().split())
    assert "No kernel of infinite width for Own-1: `model` is Plain, which has no rule" in said
    assert read(config.folder).identical(found)
    mine.write_text(SOURCE + "\n# changed\n")
    with pytest.raises(ValueError, match="holds a study of other choices:\n  `sources`"):
        prepare(dataclasses.replace(config, devices=1))


def test_a_network_of_ones_own_has_the_limit_of_its_layers(tmp_path, mine):
    """The zoo's MLP, made by a function, is predicted at infinite width as the zoo's is."""
    config = small(tmp_path, architectures=("MLP", "mine:mlp"), parameterizations=("STANDARD",))
    data = load("digits", classes=(0, 1, 2), n_train=6, n_test=6)
    cells = [group[0] for group in groups(config)]
    limits = Limits(config, data, tmp_path)
    zoos, own = (limits.kernels(cell) for cell in (cells[0], cells[-1]))
    assert isinstance(zoos, InfiniteKernels)
    assert isinstance(own, InfiniteKernels)
    np.testing.assert_allclose(own.ntk, zoos.ntk, rtol=1e-12)
    assert own.power == zoos.power == -1


def test_the_example_of_the_docs_is_an_architecture(tmp_path, mine):
    """It has a kernel of infinite width, as the docs' sentence on layers without a rule implies."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "study.md").read_text()
    (block,) = re.findall(r"```python\n# my/module.py\n(.*?)```", page, flags=re.DOTALL)
    mine.write_text(block)
    options = {"depths": (2,), "widths": (8,), "parameterizations": ("NTK",)}
    config = small(tmp_path, architectures={"ResMLP": "mine:make_model"}, **options)
    study = prepare(config)
    (cell,) = groups(config)[0]
    assert isinstance(Limits(config, study.data, tmp_path).kernels(cell), InfiniteKernels)
    count = sum(leaf.size for leaf in jax.tree.leaves(drawn(config)["NTK"].model))
    assert count == 64 * 8 + 8 * 8 + 8 * 3
