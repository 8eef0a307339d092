"""`add_measurements`."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

import koinon as ko
from koinon.aggregators import MeanFactory, SumFactory, UnweightedMeanFactory, add_measurements, clipping_factory
from koinon.types import TensorType

FLOAT = TensorType(jnp.float32)


def largest(value):
    """The largest of the clients' values."""
    return {"largest": ko.federated_max(value)}


def run(factory, *arguments):
    """The output of the first step, on scalars."""
    process = factory.create(*[FLOAT] * len(arguments))
    return process.next(process.initialize(), *arguments)


def test_clients_values_are_measured(backend):
    """The function aggregates by itself; the result is that of the inner aggregation."""
    output = run(add_measurements(SumFactory(), client_measurement_fn=largest), [1.0, 5.0, 3.0])

    assert float(output.result) == 9.0
    assert {name: float(value) for name, value in output.measurements.items()} == {"largest": 5.0}


def test_the_result_is_measured(backend):
    """The function is given the result at the server."""

    def square(result):
        return {"square": ko.federated_map(lambda x: x * x, result)}

    output = run(add_measurements(SumFactory(), server_measurement_fn=square), [1.0, 2.0])

    assert float(output.measurements["square"]) == 9.0


def test_weights_are_measured_with_the_values(backend):
    """The function of a weighted aggregation takes both."""
    factory = add_measurements(
        MeanFactory(), client_measurement_fn=lambda value, weight: {"heaviest": ko.federated_max(weight)}
    )
    output = run(factory, [1.0, 2.0], [3.0, 1.0])

    assert float(output.result) == 1.25
    assert float(output.measurements["heaviest"]) == 3.0


def test_new_measurements_stand_beside_those_of_the_inner_aggregation(backend):
    """In the order inner, clients, server; a name that occurs twice keeps the newest."""
    factory = add_measurements(
        clipping_factory(2.0, SumFactory()),
        client_measurement_fn=largest,
        server_measurement_fn=lambda result: {"clipped_count": result},
    )
    output = run(factory, [1.0, 5.0])

    assert list(output.measurements) == ["clipping", "clipping_norm", "clipped_count", "largest"]
    assert float(output.measurements["clipped_count"]) == 3.0


def test_measurements_may_come_zipped(backend):
    """The function may return one placed struct with names."""
    factory = add_measurements(
        UnweightedMeanFactory(),
        server_measurement_fn=lambda result: ko.federated_map(lambda x: {"half": x / 2, "twice": 2 * x}, result),
    )
    output = run(factory, [4.0])

    assert list(output.measurements) == ["mean_value", "mean_count", "half", "twice"]
    assert float(output.measurements["half"]) == 2.0


def test_the_state_is_that_of_the_inner_aggregation():
    """Measuring keeps nothing."""
    inner = clipping_factory(2.0, SumFactory()).create(FLOAT)
    wrapped = add_measurements(clipping_factory(2.0, SumFactory()), client_measurement_fn=largest).create(FLOAT)

    assert wrapped.state_type == inner.state_type


def test_measurements_need_names():
    """A tuple cannot stand beside named measurements."""
    factory = add_measurements(SumFactory(), server_measurement_fn=lambda r: ko.federated_zip((r, r)))
    with pytest.raises(TypeError, match="must have names"):
        factory.create(FLOAT)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: add_measurements(SumFactory()), ValueError),
        (lambda: add_measurements(SumFactory(), client_measurement_fn=lambda v, w: {}), ValueError),
        (lambda: add_measurements(MeanFactory(), client_measurement_fn=lambda v: {}), ValueError),
        (lambda: add_measurements(MeanFactory(), server_measurement_fn=lambda r, s: {}), ValueError),
        (lambda: add_measurements(None, client_measurement_fn=lambda v: {}), TypeError),
    ],
)
def test_functions_of_the_wrong_arity_and_other_mistakes_are_refused(make, error):
    """One parameter for an unweighted aggregation, two for a weighted one, one for the server."""
    with pytest.raises(error):
        make()
