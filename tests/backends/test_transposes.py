"""Matrices with few columns, carried transposed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon.backends._estimate import equations
from koinon.backends._rewrite import rewritten
from koinon.backends._transposes import transpose_carries
from koinon.computation._sequence_primitives import reduce, reduce_p

INPUTS, CLASSES = 40, 6

Update = Callable[[Any, Any, Any], tuple[Any, Any]]


def loss(w: Any, x: Any, y: Any) -> Any:
    """The cross-entropy of a perceptron."""
    logits = jax.nn.relu(x @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1))


def training(update: Update) -> Any:
    """Some steps of an optimizer, and by how much they change the weights."""

    def train(w: Any, x: Any, y: Any, steps: Any) -> Any:
        def step(index: Any, carry: Any) -> Any:
            w, momentum = carry
            gradient = jax.grad(loss)(w, x[index], y[index])
            both = jax.tree.map(update, w, gradient, momentum)
            is_pair = {"is_leaf": lambda pair: isinstance(pair, tuple)}
            return tuple([jax.tree.map(lambda pair, i=i: pair[i], both, **is_pair) for i in range(2)])

        trained, _ = reduce(steps, (w, jax.tree.map(jnp.zeros_like, w)), step)
        change = jax.tree.map(jnp.subtract, w, trained)
        is_finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(change)]).all()
        return jax.tree.map(lambda leaf: jnp.where(is_finite, leaf, 0), change), is_finite

    return train


def sgd(w: Any, g: Any, m: Any) -> tuple[Any, Any]:
    """Gradient descent."""
    return w - 0.1 * g, m


def heavy_ball(w: Any, g: Any, m: Any) -> tuple[Any, Any]:
    """With momentum and weight decay."""
    m = 0.9 * m + g
    return w - 0.1 * m - 0.01 * w, m


def rms(w: Any, g: Any, m: Any) -> tuple[Any, Any]:
    """With a step size for each weight, of a gradient that is clipped by its norm."""
    g = g * jnp.minimum(1, 0.5 / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(g))), 1e-6))
    m = 0.9 * m + 0.1 * g * g
    return w - 0.01 * jnp.where(m > 1e-12, g / (jnp.sqrt(m) + 1e-3), 0), m


def by_row(w: Any, g: Any, m: Any) -> tuple[Any, Any]:
    """Something that needs the matrix as it is: each row of the gradient is sorted."""
    return w - 0.1 * jnp.sort(g, -1), m


@pytest.fixture(name="arguments")
def fixture_arguments() -> tuple[Any, ...]:
    """Weights, batches, labels, and how many steps to take."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, INPUTS), "b1": (INPUTS,), "w2": (INPUTS, CLASSES), "b2": (CLASSES,)}
    w = {name: (rng.normal(size=shape) / 3).astype(np.float32) for name, shape in shapes.items()}
    return w, rng.normal(size=(4, 5, 8)).astype(np.float32), rng.integers(0, CLASSES, (4, 5)), np.int32(3)


def run(closed: Any, arguments: Any) -> list[Any]:
    """The results of a program."""
    return jax.jit(lambda *leaves: jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *leaves))(
        *jax.tree.leaves(arguments)
    )


def carried(closed: Any) -> list[tuple[int, ...]]:
    """The shapes of what the fold of a program carries."""
    (fold,) = [eqn for eqn in equations(closed.jaxpr) if eqn.primitive is reduce_p]
    return [var.aval.shape for var in fold.outvars]


@pytest.mark.parametrize("update", [sgd, heavy_ball, rms])
def test_the_last_layer_is_carried_transposed_and_keeps_its_values(update: Update, arguments: Any) -> None:
    """With its momentum; the first layer, which has many columns, stays as it is. No transposition is left of it."""
    closed = jax.make_jaxpr(training(update))(*arguments)
    transposed = transpose_carries(closed)

    assert rewritten(closed.jaxpr).count("transposed_carries") == 1
    assert (CLASSES, INPUTS) in carried(transposed)
    assert (INPUTS, CLASSES) not in carried(transposed) or update is sgd
    assert (8, INPUTS) in carried(transposed)
    for expected, found in zip(run(closed, arguments), run(transposed, arguments), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_clients_side_by_side_keep_their_values(arguments: Any) -> None:
    """The fold runs under `vmap` with a number of steps for each client."""
    w, x, y, _ = arguments
    closed = jax.make_jaxpr(training(heavy_ball))(*arguments)
    transposed = transpose_carries(closed)

    def of_client(program: Any) -> Any:
        leaves = jax.tree.leaves((w, x, y))
        return jax.vmap(lambda n: jax.core.eval_jaxpr(program.jaxpr, program.consts, *leaves, n))(jnp.arange(4))

    for expected, found in zip(of_client(closed), of_client(transposed), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_what_needs_the_matrix_itself_gets_it(arguments: Any) -> None:
    """Where as many transpositions would remain nothing changes."""
    closed = jax.make_jaxpr(training(by_row))(*arguments)

    assert rewritten(closed.jaxpr).count("transposed_carries") == 0
    assert transpose_carries(closed) is closed


@pytest.mark.parametrize(
    "update",
    [
        lambda w, scale: jnp.where(w > 0, w, scale.T),
        lambda w, scale: w - 0.1 * jnp.broadcast_to(scale.T, w.shape),
        lambda w, scale: w - 0.1 * jnp.sum(w, 1, keepdims=True) * scale.T,
    ],
)
def test_the_transpose_of_a_row_may_be_spread_over_the_matrix(update: Any) -> None:
    """What is transposed besides the matrix need not have its shape."""
    rng = np.random.default_rng(1)

    def program(w: Any, scale: Any, x: Any, steps: Any) -> Any:
        def step(_: Any, w: Any) -> Any:
            return update(w - 0.1 * (x.T @ jnp.tanh(x @ w)), scale)

        return reduce(steps, w, step)

    shapes = (INPUTS, CLASSES), (1, INPUTS), (5, INPUTS)
    inputs = (*[rng.normal(size=shape).astype(np.float32) for shape in shapes], np.int32(3))
    closed = jax.make_jaxpr(program)(*inputs)

    np.testing.assert_allclose(run(transpose_carries(closed), inputs)[0], run(closed, inputs)[0], rtol=2e-5, atol=2e-6)


def test_a_sum_over_no_dimension_keeps_the_matrix_as_it_is() -> None:
    """Inside of a fold and after it, as in code for arrays of any rank."""
    rng = np.random.default_rng(2)

    def program(w: Any, x: Any, steps: Any) -> Any:
        def step(_: Any, w: Any) -> Any:
            return w - 0.1 * (x.T @ jnp.tanh(x @ w)) / (1 + jnp.sum(w, axis=()) ** 2)

        w = reduce(steps, w, step)
        return w.sum(axis=()), w.max(axis=()).reshape(-1)

    inputs = rng.normal(size=(INPUTS, CLASSES)).astype(np.float32), np.ones((5, INPUTS), np.float32), np.int32(3)
    closed = jax.make_jaxpr(program)(*inputs)

    for found, expected in zip(run(transpose_carries(closed), inputs), run(closed, inputs), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_a_fold_inside_a_call_is_found(arguments: Any) -> None:
    """Training that its user has compiled."""
    closed = jax.make_jaxpr(jax.jit(training(sgd)))(*arguments)
    transposed = transpose_carries(closed)

    assert (CLASSES, INPUTS) in carried(transposed)
    for expected, found in zip(run(closed, arguments), run(transposed, arguments), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_a_change_that_is_not_finite_is_noticed(arguments: Any) -> None:
    """Checks and choices of what a fold has made are taken on the transposes, and come out the same."""
    w, x, y, steps = arguments
    x[1, 2] = np.nan
    closed = jax.make_jaxpr(training(sgd))(w, x, y, steps)

    *change, is_finite = run(transpose_carries(closed), (w, x, y, steps))
    assert not is_finite
    assert all(not np.any(leaf) for leaf in change)
