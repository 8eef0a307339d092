"""The compressing distributor: levels, bytes, and rounding without bias."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon.errors import KoinonTypeError, KoinonValueError
from koinon.learning import algorithms
from koinon.learning.models import ModelWeights
from koinon.learning.templates import build_quantized_broadcast_process
from koinon.types import TensorType, at_server
from tests import quadratics

VALUE = {
    "large": np.linspace(-3, 5, 35, dtype=np.float32).reshape(5, 7) ** 3,
    "half": np.linspace(0, 1, 9).astype(jnp.bfloat16),
    "count": np.arange(20, dtype=np.int32),
    "small": np.float32(0.123),
}


def nearest_level(x: np.ndarray, bits: int) -> np.ndarray:
    """The nearest of the evenly spaced levels between the extremes."""
    levels = np.linspace(x.min(), x.max(), 2**bits, dtype=np.float64)
    return levels[np.abs(x[..., None] - levels).argmin(axis=-1)]


@functools.cache
def make_receive(process: Any) -> Any:
    """The computation of what each of two clients receives; the clients' numbers tell that there are two."""
    value_type = process.next.type_signature.parameter[1].member

    @ko.federated_computation(process.state_type, at_server(value_type), ko.types.at_clients(jnp.int32))
    def distribute(state: Any, value: Any, number: Any) -> Any:
        output = process.next(state, value)
        received = ko.federated_map(lambda value, number: {"value": value, "n": number}, (output.result, number))
        return output.state, received, output.measurements

    return distribute


def receive(process: Any, value: Any, state: Any = None) -> tuple[Any, Any, Any]:
    """The new state, what each of two clients receives, and the measurements."""
    state, received, measured = make_receive(process)(process.initialize() if state is None else state, value, [0, 1])
    return state, [client["value"] for client in received], measured


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_clients_receive_the_nearest_levels_and_the_bytes_are_counted(bits: int) -> None:
    """Without randomness; what is small or holds no floats arrives as it was."""
    process = build_quantized_broadcast_process(ko.to_type(VALUE), bits=bits, stochastic=False, min_elements=9)
    _, (received, other), measured = receive(process, VALUE)
    errors = VALUE["large"] - np.asarray(received["large"])
    half_errors = np.asarray(VALUE["half"], np.float32) - np.asarray(received["half"], np.float32)

    np.testing.assert_allclose(received["large"], nearest_level(VALUE["large"], bits), rtol=1e-5, atol=1e-4)
    assert received["half"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(received["count"], VALUE["count"])
    assert float(received["small"]) == np.float32(0.123)
    jax.tree.map(np.testing.assert_array_equal, received, other)
    quantized = -(-35 * bits // 8) + 8 + -(-9 * bits // 8) + 8
    assert float(measured["bytes_per_client"]) == quantized + 20 * 4 + 4
    assert float(measured["uncompressed_bytes_per_client"]) == 35 * 4 + 9 * 2 + 20 * 4 + 4
    expected = np.sqrt((errors**2).sum() + (half_errors**2).sum())
    assert float(measured["quantization_error"]) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_stochastic_rounding_has_no_bias(backend: str) -> None:
    """The mean over rounds lies within five standard errors of the value; one round does not hit it."""
    rounds = 200 if backend == "local" else 3
    value = np.linspace(0.0, 1.0, 64, dtype=np.float32)
    process = build_quantized_broadcast_process(TensorType(jnp.float32, (64,)), bits=2)
    state, received = process.initialize(), []
    for _ in range(rounds):
        state, (one, _), _ = receive(process, value, state)
        received.append(np.asarray(one))
    levels = np.round(np.array(received) * 3) / 3

    np.testing.assert_allclose(received, levels, atol=1e-6)
    # A level is off by at most 1/3, so its variance is at most (1/3)^2 / 4.
    assert np.abs(np.mean(received, axis=0) - value).max() < 5 * (1 / 6) / np.sqrt(rounds)
    assert not np.array_equal(received[0], received[1])


def test_an_array_of_equal_numbers_arrives_as_it_was() -> None:
    """There is no step between extremes that are one."""
    process = build_quantized_broadcast_process(TensorType(jnp.float32, (100,)), bits=1)

    assert set(receive(process, np.full(100, 0.7, np.float32))[1][0].tolist()) == {float(np.float32(0.7))}


def test_a_learning_process_is_composed_with_it() -> None:
    """The clients of federated averaging train from what they receive; state and measurements are in their places."""
    model = quadratics.model(1.0)
    process = algorithms.build_weighted_fed_avg(
        model,
        optax.sgd(0.1),
        batch_size=1,
        model_distributor=build_quantized_broadcast_process(model.weights_type, bits=8),
    )
    state, metrics = process.next(process.initialize(), [quadratics.Parabola(1.0, 3.0, 1).data()])

    assert float(process.get_model_weights(state).trainable) == pytest.approx(1.2)
    assert set(metrics["distributor"]) == {"bytes_per_client", "uncompressed_bytes_per_client", "quantization_error"}
    assert isinstance(process.get_model_weights(state), ModelWeights)


@pytest.mark.parametrize("bits", [0, 3, 32, 8.0, True])
def test_other_numbers_of_bits_are_refused(bits: Any) -> None:
    """Only those that fill bytes."""
    with pytest.raises(KoinonValueError, match="bits"):
        build_quantized_broadcast_process(TensorType(jnp.float32), bits=bits)


@pytest.mark.parametrize(
    "type_", [at_server(jnp.float32), ko.types.SequenceType(jnp.float32), TensorType(jnp.float32, (None,))]
)
def test_only_unplaced_tensors_of_known_shapes_are_quantized(type_: Any) -> None:
    """A placed value, a sequence, and an unknown dimension."""
    with pytest.raises(KoinonTypeError):
        build_quantized_broadcast_process(type_)
