"""Solves under a kernel in float32: errors against float64, and times, beside those of programs.

What a solve is held to is one compiled program in float32 that returns the same arrays and checks
nothing: a Cholesky factor and its solves, or, at finite times, eigenvectors and their products.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from corrections import ntk
from corrections.symmetric.layouts import RoundingWarning
from scripts import runtime
from scripts.benchmark import solve_problems as programs
from scripts.benchmark.solve_problems import images, Numbers, Problem, smooth
from scripts.benchmark.timing import Comparison, seconds_in_turn
from solvers import ensemble, kernel_regression, mse_flow, posterior
from zoo import MLP
from zoo.common.precision import full_precision

SIZES = (500, 2000)
_TEST_SIZE = 200
LIMIT = (math.inf,)
_TIMES = (10.0, 1e3)
"""In units of n / lambda_max."""


class Solve(NamedTuple):
    """A solve by both.

    - `ours`, `program`: calls without arguments; `read` takes the numbers from our result.
    - `of_program`: what the program is.
    - `exact`: the numbers in float64; `scales`: the names and sizes of what errors are relative to.
    - `derived`: adds numbers that either's give.
    - `shared`: a part of both that is not counted.
    """

    name: str
    ours: Callable[[], Any]
    read: Callable[[Any], Numbers]
    program: Callable[[], Numbers]
    of_program: str
    exact: Numbers
    scales: dict[str, tuple[str, float]]
    derived: Callable[[Numbers], Numbers] = lambda numbers: numbers
    shared: Callable[[], Any] | None = None


def solves(
    repeats: int, sizes: Sequence[int] = SIZES, root: Path | None = None
) -> Iterator[Comparison]:
    """Each solve at each number of training points, on images (of MNIST, from `root`) and on a
    line: times, the least of `repeats`, and errors.
    """
    for n in sizes:
        m = min(_TEST_SIZE, n)
        for make in (lambda n=n, m=m: images(n, m, root), lambda n=n, m=m: smooth(n, m)):
            with runtime.single_precision():
                problem = make()
                found = [row for solve in _solves(problem) for row in _rows(solve, repeats)]
            yield from found


def _solves(problem: Problem) -> Iterator[Solve]:
    for noise in problem.noises:
        yield _posterior(problem, noise)
        yield _ensemble(problem, noise, LIMIT)
        yield _flow(problem, noise, LIMIT)
        yield _regression(problem, noise)
    n = len(problem.y)
    largest = float(jnp.linalg.eigvalsh(problem.ntk[:n, :n])[-1])
    ts = tuple(time * n / largest for time in _TIMES)
    yield _ensemble(problem, 0.0, ts)
    yield _flow(problem, 0.0, ts)


def _rows(solve: Solve, repeats: int) -> Iterator[Comparison]:
    program = full_precision(solve.program)
    timed = [solve.ours, program, *([solve.shared] if solve.shared else [])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RoundingWarning)
        result = solve.ours()
        took = [min(times) for times in seconds_in_turn(timed, repeats)]
    shared = sum(took[2:])
    beside = f", beside {1e3 * shared:.0f} ms of its kernel" if shared else ""
    yield Comparison(
        f"{solve.name}{beside}, dropped {int(result.dropped)}",
        took[0] - shared,
        f"float32 program, {solve.of_program}",
        took[1] - shared,
    )
    sides = [solve.derived(numbers) for numbers in (solve.read(result), program())]
    for what, (of, scale) in solve.scales.items():
        exact = solve.exact[what]
        ours, theirs = (
            float(np.max(np.abs(np.asarray(side[what], np.float64) - exact))) / scale
            for side in sides
        )
        yield Comparison(
            f"  error of {what}, of {of} = {scale:.3g}", ours, "the same", theirs, "error"
        )


def _posterior(problem: Problem, noise: float) -> Solve:
    y, kernel = problem.y, problem.nngp
    n, k = y.shape
    variance = noise * _mean_diagonal(kernel, n)
    of_train, across, of_test = kernel[:n, :n], kernel[n:, :n], kernel[n:, n:]

    def ours() -> Any:
        return posterior(of_train, y, kernel_test=across, kernel_test_test=of_test, noise=variance)

    def read(found: Any) -> Numbers:
        return {
            "mean": found.train.mean,
            "covariance": found.train.covariance,
            "test mean": found.test.mean,
            "test covariance": found.test.covariance,
            "evidence": found.log_marginal_likelihood,
        }

    of_mean, of_covariance = _largest("|y|", y), _largest("the prior variance", kernel)
    of_std = ("the prior std", of_covariance[1] ** 0.5)
    return Solve(
        f"posterior, {_settings(problem, noise)}",
        ours,
        read,
        lambda: programs.posterior_by_cholesky(kernel, y, jnp.float32(variance)),
        "Cholesky",
        _with_stds(programs.exact_posterior(kernel, y, variance)),
        {
            "mean": of_mean,
            "std": of_std,
            "covariance": of_covariance,
            "test mean": of_mean,
            "test std": of_std,
            "test covariance": of_covariance,
            "evidence": ("its observations", float(n * k)),
        },
        _with_stds,
    )


def _with_stds(numbers: Numbers) -> Numbers:
    covariances = {"std": "covariance", "test std": "test covariance"}
    return numbers | {
        std: np.sqrt(np.maximum(np.diagonal(numbers[of]), 0)) for std, of in covariances.items()
    }


def _ensemble(problem: Problem, noise: float, ts: tuple[float, ...]) -> Solve:
    y, nngp, theta = problem.y, problem.nngp, problem.ntk
    n = len(y)
    ridge = noise * _mean_diagonal(theta, n)
    rows, x, x_test = theta[:, :n], problem.x[:n], problem.x[n:]
    times = jnp.asarray(ts)

    def ours() -> Any:
        kernels = (lambda *_: nngp, lambda *_: rows)
        return ensemble(*kernels, x, y, times, x_test=x_test, diag_reg=ridge)

    def program() -> Numbers:
        if ts == LIMIT:
            return programs.ensemble_by_cholesky(theta, nngp, y, jnp.float32(ridge))
        return programs.ensemble_by_eigenvectors(theta, nngp, y, times)

    return Solve(
        f"ensemble, {_settings(problem, noise, ts)}",
        ours,
        lambda found: {"mean": found.points.mean, "covariance": found.points.covariance},
        program,
        _program(ts),
        programs.exact_ensemble(theta, nngp, y, ridge, ts),
        {"mean": _largest("|y|", y), "covariance": _largest("the prior variance", nngp)},
    )


def _flow(problem: Problem, noise: float, ts: tuple[float, ...]) -> Solve:
    y, theta = problem.y, problem.ntk
    n = len(y)
    ridge = noise * _mean_diagonal(theta, n)
    of_train, across = theta[:n, :n], theta[n:, :n]
    times = jnp.asarray(ts)

    def program() -> Numbers:
        if ts == LIMIT:
            return programs.fit_by_cholesky(theta, y, jnp.float32(ridge))
        return programs.fit_by_eigenvectors(theta, y, times)

    def read(found: Any) -> Numbers:
        outputs = jnp.concatenate([found.train, found.test], axis=1)
        return {"outputs": outputs, "coefficients": found.final}

    def derived(numbers: Numbers) -> Numbers:
        a = numbers["coefficients"]
        return numbers | {"equation": programs.backward_error(of_train, ridge, a, y)}

    exact: Numbers = {"outputs": programs.exact_fit(theta, y, ridge, ts), "equation": 0.0}
    scales = {"outputs": _largest("|y|", y)}
    if ts == LIMIT:
        scales["equation"] = ("|A| |a| + |y|", 1.0)
    name = f"mse_flow, {_settings(problem, noise, ts)}"
    return Solve(
        name,
        lambda: mse_flow(of_train, y, times, kernel_test=across, diag_reg=ridge),
        read,
        program,
        _program(ts),
        exact,
        scales,
        derived,
    )


def _regression(problem: Problem, noise: float) -> Solve:
    x, y = problem.x, problem.y
    n, k = y.shape
    model = MLP(x.shape[1], k, width=64, depth=1, bias_std=0.1, key=jr.key(1))
    points = [x[:n], x[n:]]

    def rows() -> list[Array]:
        train = ntk(model, points[0], outputs="mean")
        return [train, ntk(model, points[1], points[0], outputs="mean")]

    kernel, start = jnp.concatenate(rows()), jax.vmap(model)(x)
    ridge = noise * _mean_diagonal(kernel, n)
    missing = y - start[:n]
    moved = programs.exact_fit(kernel, missing, ridge, LIMIT)[0]

    def read(found: Any) -> Numbers:
        outputs = jnp.concatenate([found.train, found.test])
        return {"outputs": outputs, "residual": found.residual, "norm": found.norm}

    return Solve(
        f"kernel_regression, {_settings(problem, noise)}",
        lambda: kernel_regression(model, points[0], y, points[1], ridge=ridge, outputs="mean"),
        read,
        lambda: programs.regression_by_cholesky(model, x, rows(), y, jnp.float32(ridge)),
        _program(LIMIT),
        {"outputs": np.asarray(start, np.float64) + moved},
        {"outputs": _largest("|y - f_0|", missing)},
        shared=rows,
    )


def _settings(problem: Problem, noise: float, ts: tuple[float, ...] = LIMIT) -> str:
    n = len(problem.y)
    at = "" if ts == LIMIT else f", {len(ts)} finite times"
    return f"{problem.name}, n = {n}, noise {noise:g}{at}"


def _program(ts: tuple[float, ...]) -> str:
    return "Cholesky" if ts == LIMIT else "eigenvectors"


def _mean_diagonal(kernel: Array, n: int) -> float:
    return float(jnp.mean(jnp.diagonal(kernel[:n, :n])))


def _largest(name: str, array: Array) -> tuple[str, float]:
    return f"max {name}", float(jnp.max(jnp.abs(array)))
