"""A round as a function of JAX: gradients, `jit` and forward mode go through it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko

EXAMPLE = ko.to_type({"x": (np.float32, (2,)), "y": np.float32})
CLIENT_RATE = 0.1


def cohort() -> Any:
    """Three clients with 3, 1 and 4 examples of one linear law."""
    rng = np.random.default_rng(0)
    sizes = np.array([3, 1, 4])
    x = rng.normal(size=(8, 2)).astype(np.float32)
    y = x @ np.array([1.0, -2.0], np.float32)
    packed = ko.PackedSequences(EXAMPLE, [x, y], np.cumsum(sizes) - sizes, sizes)
    return ko.Cohort(packed, np.arange(3))


def gradient(w: Any, x: Any, y: Any, mask: Any) -> Any:
    """The gradient of the mean squared error over the examples of a batch that are there."""
    error = jnp.where(mask, x @ w - y, 0.0)
    return 2 * (error @ x) / mask.sum()


@ko.jax_computation((np.float32, (2,)), ko.types.SequenceType(EXAMPLE))
def local_training(w: Any, data: Any) -> Any:
    """One epoch of gradient descent in batches of two; how the weights changed."""

    def step(w: Any, batch: Any) -> Any:
        return w - CLIENT_RATE * gradient(w, batch.examples["x"], batch.examples["y"], batch.mask)

    return w - data.batch(2).reduce(w, step)


@ko.federated_computation(
    ko.types.at_server((np.float32, (2,))),
    ko.types.at_server(np.float32),
    ko.types.at_clients(ko.types.SequenceType(EXAMPLE)),
)
def averaging(w: Any, server_rate: Any, data: Any) -> Any:
    """Federated averaging with a server learning rate."""
    deltas = ko.federated_map(local_training, (ko.federated_broadcast(w), data))
    return ko.federated_map(lambda w, rate, delta: w - rate * delta, (w, server_rate, ko.federated_mean(deltas)))


def loss_after_rounds(server_rate: Any) -> Any:
    """The loss over all examples after two rounds from zero."""
    data = cohort()
    w = jnp.zeros(2)
    for _ in range(2):
        w = averaging(w, server_rate, data)
    x, y = data.packed.buffers
    return jnp.mean((jnp.asarray(x) @ w - y) ** 2)


def by_hand(server_rate: Any) -> Any:
    """The same in plain JAX, with exact partial batches."""
    data = cohort()
    x, y = (jnp.asarray(buffer) for buffer in data.packed.buffers)
    w = jnp.zeros(2)
    for _ in range(2):
        deltas = []
        for start, size in zip(data.offsets.tolist(), data.lengths.tolist(), strict=True):
            v = w
            for first in range(start, start + size, 2):
                last = min(first + 2, start + size)
                v = v - CLIENT_RATE * gradient(v, x[first:last], y[first:last], jnp.ones(last - first, bool))
            deltas.append(w - v)
        w = w - server_rate * jnp.stack(deltas).mean(0)
    return jnp.mean((x @ w - y) ** 2)


def test_the_gradient_through_rounds_is_that_of_the_same_program_by_hand() -> None:
    """Reverse mode through two rounds equals reverse mode through a plain JAX program, partial batches included."""
    expected, found = jax.grad(by_hand)(1.0), jax.grad(loss_after_rounds)(jnp.float32(1.0))

    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_forward_mode_and_jit_go_through_a_round() -> None:
    """`jax.jvp` and `jax.jit` of a function that calls a computation give what calling it gives."""
    value, tangent = jax.jvp(loss_after_rounds, (jnp.float32(0.7),), (jnp.float32(1.0),))

    np.testing.assert_allclose(value, by_hand(0.7), rtol=1e-5)
    np.testing.assert_allclose(tangent, jax.grad(by_hand)(0.7), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(loss_after_rounds)(jnp.float32(0.7)), by_hand(0.7), rtol=1e-5)


def test_the_server_learning_rate_can_be_learned_by_gradient_descent() -> None:
    """Descent on the server's rate, by gradients through rounds, lowers the loss that the rounds reach."""
    step = jax.jit(jax.value_and_grad(loss_after_rounds))
    rate, losses = jnp.float32(1.0), []
    for _ in range(30):
        loss, slope = step(rate)
        losses.append(float(loss))
        rate = rate - 0.2 * slope

    assert losses[-1] < 0.7 * losses[0]
    assert float(rate) > 1.0
    np.testing.assert_allclose(losses[-1], by_hand(losses and float(rate + 0.2 * slope)), rtol=1e-4)


def test_gradients_reach_the_values_of_the_clients() -> None:
    """The gradient of a mean with respect to the clients' values is one over their number."""
    mean = ko.federated_computation(ko.types.at_clients(np.float32))(lambda values: ko.federated_mean(values))

    gradients = jax.grad(lambda values: mean(list(values)))(jnp.arange(4.0))

    np.testing.assert_allclose(gradients, np.full(4, 0.25))


@ko.jax_computation(np.float32, ko.types.SequenceType(np.int32))
def doubled_as_often_as_the_first_says(x: Any, counts: Any) -> Any:
    """A fold over as many elements as an element says."""
    first = counts.take(1).reduce(0, lambda total, count: total + count)
    return counts.take(first).reduce(x, lambda total, _: total * 2.0)


def test_a_fold_whose_trip_count_is_data_is_bounded_by_the_sequence() -> None:
    """Reverse mode passes a fold over elements of which data says how many: there are no more than the sequence has."""
    for first, slope in ((2, 4.0), (0, 1.0), (9, 8.0)):
        found = jax.grad(lambda x, first=first: doubled_as_often_as_the_first_says(x, [first, 5, 7]))(jnp.float32(1.0))

        assert float(found) == slope


def test_a_fold_without_a_bound_refuses_reverse_mode_with_a_hint() -> None:
    """The reference bounds no fold: reverse mode raises, and the message says what does."""
    with ko.backends.use("reference"), pytest.raises(ko.errors.UnboundedLoopError, match="static bound"):
        jax.grad(lambda x: doubled_as_often_as_the_first_says(x, [2, 5, 7]))(jnp.float32(1.0))
