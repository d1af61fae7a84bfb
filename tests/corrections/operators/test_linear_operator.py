"""Operators of the library among those of lineax, against their dense matrices."""

import functools

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from corrections import extreme_eigenvalues, LossHessian, ntk, NTKOperator, spectrum
from solvers import CrossEntropy, KernelBlocks, max_learning_rate
from tests.models import inputs, tanh_mlp
from zoo import parameters

X = inputs(4)
Y = jax.nn.softmax(jnp.cos(jnp.arange(8.0).reshape(4, 2)))


def features(x1, x2):
    return jnp.tanh(x1) @ jnp.tanh(x2).T


NAMES = ("NTKOperator", "coefficient", "LossHessian", "KernelBlocks")


@functools.cache
def operator_named(name):
    if name == "KernelBlocks":
        return KernelBlocks(features, X, batch_size=3)
    model = tanh_mlp(width=3)
    if name == "LossHessian":
        return LossHessian(model, X, Y, loss=CrossEntropy())
    kernel = NTKOperator(model, X)
    direction = jax.tree.map(jnp.cos, parameters(model))
    return kernel.coefficient([direction], 1) if name == "coefficient" else kernel


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_what_lineax_makes_of_an_operator_is_what_it_makes_of_its_matrix(name):
    operator = operator_named(name)
    matrix = operator.as_matrix()
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), operator.in_structure())
    flat, unravel = ravel_pytree(zeros)
    vector = unravel(jnp.cos(jnp.arange(flat.size)))
    for made, expected in (
        (operator, matrix),
        (operator.T, matrix.T),
        (operator + 2.0 * operator, 3 * matrix),
        (operator / 2.0 - operator, -matrix / 2),
        (operator @ operator, matrix @ matrix),
        (lx.linearise(operator), matrix),
        (lx.materialise(operator), matrix),
        (lx.conj(operator), matrix),
    ):
        found = ravel_pytree(made.mv(vector))[0]
        np.testing.assert_allclose(found, expected @ ravel_pytree(vector)[0], atol=1e-12)
    stored = lx.MatrixLinearOperator(matrix)
    for read in (lx.diagonal, lx.tridiagonal):
        for found, expected in zip(
            jax.tree.leaves(read(operator)), jax.tree.leaves(read(stored)), strict=True
        ):
            np.testing.assert_allclose(found, expected, atol=1e-13)
    assert lx.is_symmetric(operator)
    assert lx.is_positive_semidefinite(operator) == (name in ("NTKOperator", "KernelBlocks"))
    assert not lx.is_diagonal(operator)


@pytest.mark.parametrize("name", ["NTKOperator", "KernelBlocks"])
def test_lineax_solves_with_a_kernel(name):
    operator = operator_named(name)
    structure = operator.in_structure()
    ridge = operator + 0.1 * lx.IdentityLinearOperator(structure)
    ridge = lx.TaggedLinearOperator(ridge, lx.positive_semidefinite_tag)
    right = jnp.cos(jnp.arange(float(operator.in_size()))).reshape(structure.shape)
    found = lx.linear_solve(ridge, right, lx.CG(rtol=1e-12, atol=1e-12)).value
    matrix = operator.as_matrix()
    expected = jnp.linalg.solve(matrix + 0.1 * jnp.eye(len(matrix)), right.ravel())
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-9)


@pytest.mark.long
def test_spectra_and_rates_take_any_operator_of_lineax():
    model = tanh_mlp(width=3)
    dense = ntk(model, X)
    largest = jnp.linalg.eigvalsh(dense.reshape(8, 8))[-1]
    kernel = NTKOperator(model, X)
    twice = lx.TaggedLinearOperator(kernel + kernel, lx.positive_semidefinite_tag)
    assert float(max_learning_rate(twice)) == pytest.approx(float(4 / largest), rel=1e-6)
    blocks = KernelBlocks(features, X, batch_size=3)
    exact = jnp.linalg.eigvalsh(features(X, X))[::-1]
    found = spectrum(blocks, count=2, matvecs=8)
    np.testing.assert_allclose(found.eigenvalues[:2], exact[:2], rtol=1e-8)
    extreme = extreme_eigenvalues(blocks, 2).values
    np.testing.assert_allclose(extreme, exact[:2], rtol=1e-8)
    with pytest.raises(ValueError, match=r"`kernel` acts on .*, expected vectors"):
        spectrum(operator_named("LossHessian"))
