"""Functions of a symmetric matrix and their derivatives, against matrix exponentials, solves and
roots that know nothing of eigenvectors.
"""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from corrections.symmetric.matrix_functions import eigenbasis, Relaxation, SquareRoot
from solvers.closed_form.mse import Steps
from tests.models import inputs

N, C = 5, 2
ROTATION = jnp.linalg.qr(inputs(N, N, seed=1))[0]
COLUMNS, WEIGHTS = inputs(N, C, seed=2), inputs(N, C, seed=3)
DIRECTIONS = jnp.stack([a + a.T for a in (inputs(N, N, seed=4), inputs(N, N, seed=5))])

SPECTRA = {
    "apart": [1.0, 2.0, 3.0, 4.0, 5.0],
    "equal": [1.0, 1.0, 1.0, 2.0, 2.0],
    "close": [1.0, 1 + 1e-9, 1 + 1e-5, 2.0, 2 + 1e-4],
    "wide": [1e-3, 1e-3, 0.1, 0.1 + 1e-7, 3.0],
}


def symmetric(values):
    matrix = ROTATION @ jnp.diag(jnp.array(values)) @ ROTATION.T
    return (matrix + matrix.T) / 2


def relaxation(matrix, t):
    """(1 - e^{-K t}) / K without its inverse: a block of an exponential."""
    block = jnp.block([[-matrix, jnp.eye(N)], [jnp.zeros((N, 2 * N))]])
    return jax.scipy.linalg.expm(block * t, max_squarings=32)[:N, N:]


def stepped(matrix, count=6, rate=0.1, momentum=0.5):
    """What descent has made of unit residuals, step by step."""
    learned = velocity = jnp.zeros((N, N))
    for _ in range(count):
        velocity = momentum * velocity + rate * (jnp.eye(N) - matrix @ learned)
        learned = learned + velocity
    return learned


def root(matrix):
    """The symmetric root by Newton's iteration of Denman & Beavers."""
    y, z = matrix, jnp.eye(N)
    for _ in range(25):
        y, z = (y + jnp.linalg.inv(z)) / 2, (z + jnp.linalg.inv(y)) / 2
    return y


def steps(count=6, rate=0.1, momentum=0.5):
    bits = jnp.array([(count >> i) & 1 for i in range(4)], bool)
    return Steps(bits, jnp.asarray(rate), jnp.asarray(momentum))


FUNCTIONS = {
    "relaxation, early": (lambda: Relaxation(jnp.asarray(0.7)), lambda m: relaxation(m, 0.7)),
    "relaxation, late": (lambda: Relaxation(jnp.asarray(8.0)), lambda m: relaxation(m, 8.0)),
    "inverse": (lambda: Relaxation(jnp.asarray(jnp.inf)), jnp.linalg.inv),
    "steps": (steps, stepped),
    "root": (SquareRoot, root),
}

NESTINGS = {
    "forward over forward": lambda f: jax.jacfwd(jax.jacfwd(f)),
    "forward over reverse": jax.hessian,
    "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f)),
    "reverse over reverse": lambda f: jax.jacrev(jax.jacrev(f)),
    "compiled on the way": lambda f: jax.jacrev(jax.jit(jax.jacrev(jax.jit(f)))),
}


def pair(function, spectrum):
    """Ours and the truth as functions of two numbers that move the matrix."""
    made, of_matrix = FUNCTIONS[function]
    matrix = symmetric(SPECTRA[spectrum])

    def moved(s):
        return matrix + jnp.tensordot(s, DIRECTIONS, axes=1)

    def ours(s):
        return jnp.sum(WEIGHTS * eigenbasis(moved(s)).apply(made(), COLUMNS))

    return ours, lambda s: jnp.sum(WEIGHTS * (of_matrix(moved(s)) @ COLUMNS))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_value_and_first_derivatives(function, spectrum):
    ours, expected = pair(function, spectrum)
    at = jnp.zeros(2)
    np.testing.assert_allclose(jax.jit(ours)(at), jax.jit(expected)(at), rtol=1e-10)
    gradient = jax.jit(jax.grad(expected))(at)
    largest = jnp.abs(gradient).max()
    for found in (jax.jit(jax.grad(ours))(at), jax.jit(jax.jacfwd(ours))(at)):
        np.testing.assert_allclose(found, gradient, atol=1e-10 * largest)


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("function", ["relaxation, late", "inverse"])
def test_second_derivatives_in_every_nesting(function, spectrum, nesting):
    """Close eigenvalues cost their distance squared, at most (1e-5)^2."""
    ours, expected = pair(function, spectrum)
    at = jnp.zeros(2)
    hessian = jax.jit(jax.jacfwd(jax.jacfwd(expected)))(at)
    found = jax.jit(NESTINGS[nesting](ours))(at)
    np.testing.assert_allclose(found, hessian, atol=1e-9 * jnp.abs(hessian).max())


@pytest.mark.long
def test_derivatives_in_time_and_mixed():
    matrix = symmetric(SPECTRA["equal"])

    def value(of):
        return lambda s, t: jnp.sum(WEIGHTS * (of(matrix + s * DIRECTIONS[0], t) @ COLUMNS))

    ours = value(lambda m, t: eigenbasis(m).apply(Relaxation(t), jnp.eye(N)))
    expected = value(relaxation)
    at = jnp.zeros(()), jnp.asarray(2.0)
    for derivative in (
        lambda f: jax.grad(f, 1),
        lambda f: jax.grad(jax.grad(f), 1),
        lambda f: jax.grad(jax.grad(f, 1)),
        lambda f: jax.jacfwd(jax.grad(f, 1)),
        lambda f: jax.grad(jax.grad(f, 1), 1),
    ):
        found, right = jax.jit(derivative(ours))(*at), jax.jit(derivative(expected))(*at)
        np.testing.assert_allclose(found, right, rtol=1e-9)


@pytest.mark.long
def test_at_infinity_the_derivative_in_time_is_zero():
    matrix = symmetric(SPECTRA["equal"])
    found = jax.grad(lambda t: jnp.sum(eigenbasis(matrix).apply(Relaxation(t), COLUMNS)))
    assert float(found(jnp.asarray(jnp.inf))) == 0


def test_third_derivatives_are_refused_in_every_nesting():
    ours, _ = pair("inverse", "equal")
    for third in (
        jax.jacfwd(jax.jacfwd(jax.jacfwd(ours))),
        jax.jacrev(jax.hessian(ours)),
        jax.jacfwd(jax.jit(jax.jacrev(jax.jacrev(ours)))),
    ):
        with pytest.raises(NotImplementedError, match="one of third order was asked for"):
            jax.jit(third)(jnp.zeros(2))


@pytest.mark.long
def test_what_cannot_be_told_from_zero_is_left_out_and_counted():
    """A matrix of rank 2 is inverted in its range; derivatives are those of that inverse."""
    features = inputs(6, 2, seed=7)
    y = inputs(6, 1, seed=8)

    def inverted(scale):
        basis = eigenbasis((features * scale[None]) @ (features * scale[None]).T)
        return basis.apply(Relaxation(jnp.asarray(jnp.inf)), y), basis

    scale = jnp.array([1.0, 2.0])
    found, basis = inverted(scale)
    kernel = (features * scale[None]) @ (features * scale[None]).T
    np.testing.assert_allclose(found, np.linalg.pinv(kernel, hermitian=True) @ y, rtol=1e-10)
    assert int(basis.dropped(Relaxation(jnp.asarray(jnp.inf)))) == 4
    assert bool(basis.positive)

    def by_least_squares(scale):
        f = features * scale[None]
        return jnp.sum(f @ jnp.linalg.solve(f.T @ f, jnp.linalg.solve(f.T @ f, f.T @ y)))

    for derivative, rtol in ((jax.grad, 1e-9), (jax.hessian, 1e-7)):
        slope = jax.jit(derivative(lambda s: jnp.sum(inverted(s)[0])))(scale)
        expected = jax.jit(derivative(by_least_squares))(scale)
        np.testing.assert_allclose(slope, expected, atol=rtol * jnp.abs(expected).max())


def test_derivative_at_close_eigenvalues_at_30_digits():
    """D f(K)[E] where eigenvalues differ by 1e-12, by mpmath's exponential of twice the size."""
    values = [0.5, 0.5 + 1e-12, 1.0, 1.0, 2.0]
    matrix, t = symmetric(values), 3.0
    tangent = DIRECTIONS[0]

    def relaxed(matrix):
        return eigenbasis(matrix).apply(Relaxation(jnp.asarray(t)), jnp.eye(N))

    _, found = jax.jit(lambda m, e: jax.jvp(relaxed, (m,), (e,)))(matrix, tangent)
    with mpmath.workdps(30):
        k, e = (mpmath.matrix(np.asarray(a).tolist()) for a in (matrix, tangent))
        size = 3 * N  # f(K) is a block of exp([[-K, 1], [0, 0]] t), and so is its derivative
        block = mpmath.zeros(size)
        for i in range(N):
            for j in range(N):
                block[i, j] = block[N + i, N + j] = -k[i, j]
                block[i, N + j] = -e[i, j]
            block[N + i, 2 * N + i] = 1
        whole = mpmath.expm(block * t)
        expected = np.array([[float(whole[i, 2 * N + j]) for j in range(N)] for i in range(N)])
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_scale_does_not_matter():
    """Homogeneous of degree -1, -1/2: the same digits at 1e-20 and 1e20, in float32."""
    matrix, columns = symmetric(SPECTRA["wide"]).astype("float32"), COLUMNS.astype("float32")
    inverse = Relaxation(jnp.asarray(jnp.inf, "float32"))
    for scale in (1e-20, 1e20):
        scaled = eigenbasis(matrix * jnp.float32(scale))
        np.testing.assert_allclose(
            scaled.apply(inverse, columns) * jnp.float32(scale),
            eigenbasis(matrix).apply(inverse, columns),
            rtol=2e-3,  # condition 3000 in float32
        )
        assert int(scaled.dropped(inverse)) == 0
        assert bool(scaled.positive)


@pytest.mark.long
def test_zero_is_a_matrix():
    basis = eigenbasis(jnp.zeros((3, 3)))
    assert bool(basis.positive)
    ones = jnp.ones((3, 1))
    for t, dropped, expected in ((2.0, 0, 2.0), (jnp.inf, 3, 0.0)):
        relaxation = Relaxation(jnp.asarray(t))
        assert int(basis.dropped(relaxation)) == dropped
        np.testing.assert_array_equal(basis.apply(relaxation, ones), expected)
    slope = jax.grad(lambda m: jnp.sum(eigenbasis(m).apply(Relaxation(jnp.asarray(2.0)), ones)))
    np.testing.assert_allclose(slope(jnp.zeros((3, 3))), -2.0, rtol=1e-12)  # -t^2 / 2 at 0
