import jax
import jax.numpy as jnp
import numpy as np
import pytest

import solvers
from scripts.study import run
from scripts.study.losses import LOSSES
from scripts.study.report.answer import scope
from solvers import Loss
from tests.scripts.studies import quiet, small
from tests.scripts.study_data import study_data
from zoo import load

TARGETS = jnp.eye(3)[jnp.array([0, 2, 1])]
F = jnp.array([[0.3, -0.2, 0.1], [1.0, 0.5, 0.2], [-0.4, 0.9, 0.0]])


def test_all_losses_of_the_solvers_are_those_of_the_study():
    of_solvers = (getattr(solvers, name) for name in dir(solvers))
    kinds = {
        kind.__name__ for kind in of_solvers if isinstance(kind, type) and issubclass(kind, Loss)
    }
    assert {loss.kind for loss in LOSSES.values()} == kinds - {"Loss"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cross_entropy", lambda f, y: -np.log(np.exp(f[y == 1]) / np.exp(f).sum())[0]),
        ("mean_squared_error", lambda f, y: 0.5 * ((f - y) ** 2).sum()),
        ("brier", lambda f, y: ((np.exp(f) / np.exp(f).sum() - y) ** 2).sum()),
        ("hinge", lambda f, y: max(0.0, 1 + f[y == 0].max() - f[y == 1][0])),
    ],
)
def test_a_name_is_the_loss_that_it_says(name, expected):
    found = jax.vmap(LOSSES[name].function)(F, TARGETS)
    pairs = zip(np.asarray(F), np.asarray(TARGETS), strict=True)
    np.testing.assert_allclose(found, [expected(f, y) for f, y in pairs], rtol=1e-6)


def test_only_losses_of_any_targets_take_numbers():
    numbers = jnp.array([[0.5, -2.0, 3.0]])
    for loss in LOSSES.values():
        if loss.takes_numbers:
            loss.function.check_targets(numbers)
        else:
            with pytest.raises(ValueError, match="`y` does not hold labels for"):
                loss.function.check_targets(numbers)


def test_the_report_says_what_a_reader_has_to_know_of_a_loss():
    data = study_data()
    assert not any("hinge" in sentence for sentence in scope(data).sentences)
    data = data.assign_coords(loss=["hinge"])
    assert any(
        sentence.startswith("The gradient of the hinge") for sentence in scope(data).sentences
    )


@pytest.mark.long
def test_brier_and_hinge_are_studied(tmp_path):
    """Against the flow under the network's own kernel, which the frozen NTK is."""
    config = small(tmp_path, losses=("brier", "hinge"), widths=(32,), times=(0.3, 1.0))
    found = run(config, console=quiet()).squeeze(drop=True)
    assert bool((found["outcome"] == "").all())
    data = load("digits", classes=(0, 1, 2), n_train=6, n_test=6)
    loss_of = {"brier": solvers.Brier(), "hinge": solvers.Hinge()}
    for name, loss in loss_of.items():
        here = found.sel(loss=name)
        logits = here["test_logits"].values
        assert np.isfinite(logits).all()
        expected = [jnp.mean(jax.vmap(loss)(f, data.y_test)) for f in logits[0]]
        np.testing.assert_allclose(here["test_loss"].sel(solve="network"), expected, rtol=1e-9)
        moved = np.abs(logits[0, -1] - logits[0, 0]).max()
        assert np.abs(logits[1, -1] - logits[0, -1]).max() < 0.1 * moved
