"""`CenteredClippingFactory`; see also `test_robust_contract.py`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.aggregators import CenteredClippingFactory
from koinon.types import TensorType

VECTOR = TensorType(jnp.float32, (3,))


def clip(difference, bound):
    """A vector scaled down to a norm."""
    length = np.linalg.norm(difference)
    return difference if length <= bound else difference * bound / length


def test_it_follows_the_definition_over_rounds():
    """Two iterations in each of three rounds, from the center of the round before; numpy in float64."""
    rng = np.random.default_rng(0)
    process = CenteredClippingFactory(0.7, iterations=2).create(VECTOR)
    state = process.initialize()
    center = np.zeros(3)
    for _ in range(3):
        clients = rng.normal([1.0, 0.0, -1.0], 1.0, (6, 3)).astype(np.float32)
        for _ in range(2):
            clipped = sum(np.linalg.norm(client - center) > 0.7 for client in clients)
            center = center + np.mean([clip(client - center, 0.7) for client in clients], axis=0)
        output = process.next(state, list(clients))
        state = output.state

        np.testing.assert_allclose(output.result, center, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(state["center"], output.result)
        assert int(output.measurements["clipped_count"]) == clipped
    kept = process.next(state, [np.float32([np.nan, 0, 0])] * 6)

    np.testing.assert_array_equal(kept.result, state["center"])  # over nobody it is the last result


def test_each_iteration_is_an_exchange_with_the_clients():
    """Which sends the center down."""
    for iterations in (1, 3):
        process = CenteredClippingFactory(1.0, iterations).create(VECTOR)
        phases = ko.compiler.cost_report(process.next, clients=5).phases

        assert [phase.bytes_down for phase in phases if phase.bytes_up] == [12] * iterations


@pytest.mark.parametrize("arguments", [(0.0,), (-1.0,), (float("inf"),), (float("nan"),), (1.0, 0)])
def test_numbers_out_of_range_are_refused(arguments):
    """The bound is positive, and there is an iteration."""
    with pytest.raises(ValueError, match="must be positive"):
        CenteredClippingFactory(*arguments)


@pytest.mark.parametrize("arguments", [(1,), ("1",), (1.0, 1.0), (1.0, True), (1.0, 1, 2.0)])
def test_arguments_of_another_type_are_refused(arguments):
    """An int is no norm."""
    with pytest.raises(TypeError, match="must be a"):
        CenteredClippingFactory(*arguments)
