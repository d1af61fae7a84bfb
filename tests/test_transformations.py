"""Which transformations of JAX each public function takes, against differences and loops.

The tables here are those of docs/api/transformations.md, and hold every public function of
`corrections` and `solvers` that computes something from arrays.
"""

import inspect
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest

import corrections
import solvers
from tests.models import inputs, tanh_mlp
from tests.test_public_entries import CALLING, OF_PARAMETERS
from zoo import parameters

N, K, M = 4, 2, 3
POINTS = jnp.cos(jnp.arange(3.0 * (N + M)).reshape(N + M, 3))
Y = jnp.cos(jnp.arange(8.0).reshape(N, K))
CLASSES = jax.nn.softmax(Y)
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def gaussian_kernel(s, a=POINTS[:N], b=POINTS[:N]):
    """Positive for every s > 0, and no multiple of itself."""
    return jnp.exp(-jnp.sum((a[:, None] - b[None]) ** 2, -1) / (2 * s**2))


def operator(s):
    return lx.MatrixLinearOperator(gaussian_kernel(s), lx.positive_semidefinite_tag)


def ensemble(s):
    kernels = (lambda a, b: gaussian_kernel(s, a, b), lambda a, b: gaussian_kernel(2 * s, a, b))
    return solvers.ensemble(*kernels, POINTS[:N], Y, [1.0, jnp.inf]).points.mean


OF_KERNELS = {
    "gradient_flow": lambda s: (
        solvers.gradient_flow(
            gaussian_kernel(s), CLASSES, [1.0, 3.0], loss=solvers.CrossEntropy(), **TIGHT
        ).train
    ),
    "gradient_descent": lambda s: (
        solvers.gradient_descent(
            gaussian_kernel(s), CLASSES, [2, 5], loss=solvers.CrossEntropy(), learning_rate=0.1 * s
        ).train
    ),
    "mse_flow": lambda s: (
        solvers.mse_flow(gaussian_kernel(s), Y, [1.0, jnp.inf], diag_reg=0.1 * s).train
    ),
    "mse_descent": lambda s: (
        solvers.mse_descent(gaussian_kernel(s), Y, [2, 9], learning_rate=0.1 * s).train
    ),
    "mse_flow_operator": lambda s: (
        solvers.mse_flow_operator(operator(s), Y, [1.0, jnp.inf], diag_reg=0.1, rtol=1e-10).train
    ),
    "posterior": lambda s: solvers.posterior(gaussian_kernel(s), Y, noise=0.1 * s).train.mean,
    "ensemble": ensemble,
    "max_learning_rate": lambda s: solvers.max_learning_rate(gaussian_kernel(s)),
    "catapult_map": lambda s: solvers.catapult_map(s, s, width=10, learning_rate=0.1, steps=3).f,
    "spectrum": lambda s: corrections.spectrum(gaussian_kernel(s)).eigenvalues,
    "extreme_eigenvalues": lambda s: (
        corrections.extreme_eigenvalues(operator(s), 2, rtol=1e-8).values
    ),
    "spectral_density": lambda s: (
        corrections.spectral_density(operator(s), matvecs=3, samples=2).nodes
    ),
    "kernel_target_alignment": lambda s: corrections.kernel_target_alignment(gaussian_kernel(s), Y),
    "kernel_distance": lambda s: corrections.kernel_distance(
        gaussian_kernel(s), gaussian_kernel(2.0)
    ),
    "kernel_velocity": lambda s: corrections.kernel_velocity(
        jnp.stack([gaussian_kernel(s), gaussian_kernel(2 * s)]), jnp.array([0.0, 1.0])
    ),
    "taylor_coefficients": lambda s: jnp.stack(
        corrections.taylor_coefficients(jnp.sin, s * Y, [jnp.cos(Y), s * Y], 2)
    ),
    "Gaussian": lambda s: solvers.Gaussian(Y, gaussian_kernel(s)).sample(jr.key(0), 2),
    "KernelBlocks": lambda s: solvers.KernelBlocks(
        lambda a, b: gaussian_kernel(s, a, b), POINTS[:N], batch_size=3
    ).mv(Y),
}


def of_model(call):
    """A function of the scale of the parameters."""

    def fn(s):
        model = jax.tree.map(lambda p: s * p if eqx.is_inexact_array(p) else p, MODEL)
        return call(model, X, Y)

    return fn


MODEL, X = tanh_mlp(width=4), inputs(N)
OF_MODELS = {
    name: of_model(call)
    for name, call in (CALLING | OF_PARAMETERS).items()
    if name not in ("contraction_summary", "initial_state", "interpolate")
}
OF_MODELS["interpolate"] = of_model(
    lambda m, x, y: jax.tree.leaves(
        parameters(corrections.interpolate(m, jax.tree.map(jnp.cos, m), 0.3))
    )
)
CALLS = OF_KERNELS | OF_MODELS

EAGER = {"train", "train_ensemble", "spawn", "width_expansion"}
"""They look at numbers between their steps, and say so under `jax.jit`."""
FORWARD = {
    "compare_predictions",
    "extreme_eigenvalues",
    "gradient_descent",
    "gradient_flow",
    "hessian_norm",
    "hierarchy_flow",
    "jacobian_norm",
    "mse_flow_operator",
    "parameter_flow",
    "width_expansion_descent",
}
"""Their loops are as long as they need: forward derivatives only."""
FROZEN = {"taylorize"}
"""Derivatives in the parameters that move, and none in those that it is expanded about."""
NOTHING_TO_TRANSFORM = {
    "contraction_summary",
    "training_phase",
    "initial_state",
    "log_spaced",
    "scale_by_metric",
}
"""A word, a list, a table, or what does nothing with arrays yet."""
FAST = {"ntk", "kernel_target_alignment", "catapult_map"}

NAMES = [pytest.param(n, marks=() if n in FAST else pytest.mark.long) for n in sorted(CALLS)]


def flat(fn):
    def of(s):
        leaves = [leaf for leaf in jax.tree.leaves(fn(s)) if eqx.is_inexact_array(leaf)]
        return jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])

    return of


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n in NAMES if n.values[0] not in EAGER])
def test_programs_loops_and_derivatives(name):
    fn, h = flat(CALLS[name]), 1e-4
    one, other = jnp.asarray(1.0), jnp.asarray(1.1)
    here = fn(one)
    close = {"rtol": 1e-7, "atol": 1e-9 * float(jnp.max(jnp.abs(here)))}
    np.testing.assert_allclose(jax.jit(fn)(one), here, **close)
    batched = jax.jit(jax.vmap(fn))(jnp.stack([one, other]))
    np.testing.assert_allclose(batched, jnp.stack([here, fn(other)]), **close)
    if name in FROZEN:
        return
    # Central differences, of two steps: to fourth order in h.
    wide, narrow = ((fn(one + d) - fn(one - d)) / (2 * d) for d in (2 * h, h))
    expected = (4 * narrow - wide) / 3
    scale = float(jnp.max(jnp.abs(expected)))
    slope = jax.jit(lambda s: jax.jvp(fn, (s,), (jnp.ones(()),))[1])(one)
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-6 * scale)
    weights = jnp.cos(jnp.arange(len(here), dtype=here.dtype))
    gradient = jax.jit(jax.grad(lambda s: jnp.sum(weights * fn(s))))
    if name in FORWARD:
        with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
            gradient(one)
    else:
        whole = float(jnp.sum(jnp.abs(expected)))
        np.testing.assert_allclose(
            gradient(one), jnp.sum(weights * expected), rtol=1e-5, atol=1e-6 * whole
        )


@pytest.mark.parametrize("name", sorted(EAGER & CALLS.keys()))
def test_what_looks_at_numbers_says_so_under_jit(name):
    with pytest.raises(ValueError, match=r"is being traced|inside `jax.jit`"):
        jax.jit(flat(CALLS[name]))(jnp.asarray(1.0))


def test_the_tables_hold_every_public_function():
    found = {
        name
        for package in (corrections, solvers)
        for name, value in vars(package).items()
        if inspect.isfunction(value)
    }
    assert found - NOTHING_TO_TRANSFORM <= CALLS.keys()
    assert CALLS.keys() | {"train_ensemble"} >= EAGER | FORWARD | FROZEN


def test_the_page_says_what_the_tables_say():
    page = Path(__file__).parents[1] / "docs" / "api" / "transformations.md"
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page.read_text(), re.MULTILINE))
    for name in CALLS:
        jit, vmap, jvp, grad = (cell.strip() for cell in rows[name].split("|"))
        program = "no" if name in EAGER else "yes"
        derivative = "of what moves" if name in FROZEN else program
        assert (jit, vmap, jvp) == (program, program, derivative), name
        assert grad == ("no" if name in FORWARD else derivative), name
