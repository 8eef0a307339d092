"""The protocol of factories, and factories that forget weights."""

from __future__ import annotations

import copy
import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.aggregators import (
    DifferentiallyPrivateFactory,
    KrumFactory,
    MeanFactory,
    PrivateQuantileEstimationProcess,
    SumFactory,
    UnweightedAggregationFactory,
    UnweightedMeanFactory,
    WeightedAggregationFactory,
    add_measurements,
    as_weighted_aggregator,
    clipping_factory,
    excluding_non_finite_factory,
    zeroing_factory,
)
from koinon.errors import KoinonTypeError
from koinon.templates import AggregationProcess
from koinon.types import SequenceType, TensorType, at_clients, to_type
from tests.contracts.aggregators import AGGREGATORS

FLOAT = TensorType(jnp.float32)


def measure(*values):
    """A measurement of nothing."""
    return {"none": ko.federated_value(0, ko.SERVER)}


UNWEIGHTED = {
    "sum": SumFactory(),
    "mean": UnweightedMeanFactory(),
    "clipped": clipping_factory(1.0, SumFactory()),
    "zeroed": zeroing_factory(1.0, UnweightedMeanFactory()),
    "measured": add_measurements(SumFactory(), client_measurement_fn=lambda v: measure(v)),
}
WEIGHTED = {
    "mean": MeanFactory(),
    "as weighted": as_weighted_aggregator(SumFactory()),
    "clipped": clipping_factory(1.0, MeanFactory()),
    "zeroed": zeroing_factory(1.0, as_weighted_aggregator(SumFactory())),
    "measured": add_measurements(MeanFactory(), client_measurement_fn=lambda v, w: measure(v, w)),
}
STRUCTURE = to_type({"a": TensorType(jnp.float32, (2,)), "b": (TensorType(jnp.float16), ())})


@pytest.mark.parametrize("name", UNWEIGHTED)
@pytest.mark.parametrize("value_type", [FLOAT, STRUCTURE], ids=str)
def test_unweighted_factories_make_unweighted_processes_of_the_values_type(name, value_type):
    """A factory knows its weightedness before it makes anything."""
    factory = UNWEIGHTED[name]
    process = factory.create(value_type)

    assert isinstance(factory, UnweightedAggregationFactory)
    assert isinstance(process, AggregationProcess)
    assert not process.is_weighted
    assert process.next.type_signature.parameter[1] == at_clients(value_type)
    assert process.next.type_signature.result["result"].member == value_type


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("weight_type", [FLOAT, TensorType(jnp.int32)], ids=str)
def test_weighted_factories_make_weighted_processes_of_the_values_type(name, weight_type):
    """The weights stand third."""
    factory = WEIGHTED[name]
    process = factory.create(STRUCTURE, weight_type)

    assert isinstance(factory, WeightedAggregationFactory)
    assert process.is_weighted
    assert process.next.type_signature.parameter[2] == at_clients(weight_type)
    assert process.next.type_signature.result["result"].member == STRUCTURE


@pytest.mark.parametrize("name", UNWEIGHTED)
def test_the_state_type_is_closed_under_next(name):
    """What `initialize` and `next` return is what `next` takes."""
    process = UNWEIGHTED[name].create(STRUCTURE)

    assert process.initialize.type_signature.result == process.state_type
    assert process.next.type_signature.result["state"] == process.state_type


NO_VALUE_TYPES = [np.float32, jnp.float32(1.0), at_clients(FLOAT), SequenceType(FLOAT), to_type((at_clients(FLOAT),))]


@pytest.mark.parametrize("value_type", NO_VALUE_TYPES, ids=str)
@pytest.mark.parametrize("name", UNWEIGHTED)
def test_a_factory_is_given_an_unplaced_tensor_or_struct_type(name, value_type):
    """Neither a dtype, nor a value, nor a placed type, nor a sequence."""
    with pytest.raises(TypeError):
        UNWEIGHTED[name].create(value_type)


@pytest.mark.parametrize("weight_type", NO_VALUE_TYPES, ids=str)
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weighted_factory_is_given_an_unplaced_type_of_weights(name, weight_type):
    """Neither a dtype, nor a value, nor a placed type, nor a sequence."""
    with pytest.raises(TypeError):
        WEIGHTED[name].create(FLOAT, weight_type)


def test_a_dtype_is_answered_with_the_remedy():
    """The message says how to make a type of it."""
    with pytest.raises(TypeError, match=r"(?s)TensorType or StructType.*ko\.to_type"):
        SumFactory().create(np.float32)


def test_weights_are_forgotten(backend):
    """The wrapped process aggregates as if there were no weights."""
    plain = UnweightedMeanFactory().create(FLOAT)
    weighted = as_weighted_aggregator(UnweightedMeanFactory()).create(FLOAT, FLOAT)
    values = [1.0, 2.0, 6.0]

    expected = plain.next(plain.initialize(), values)
    output = weighted.next(weighted.initialize(), values, [np.nan, 0.0, 100.0])

    assert float(output.result) == float(expected.result) == 3.0
    assert output.measurements == expected.measurements


def test_weights_may_be_empty(backend):
    """A client work without weights composes with a weighted aggregator."""
    process = as_weighted_aggregator(SumFactory()).create(FLOAT, to_type(()))

    assert float(process.next(process.initialize(), [1.0, 2.0], [(), ()]).result) == 3.0


@pytest.mark.parametrize("argument", [MeanFactory(), None, SumFactory])
def test_only_an_unweighted_factory_is_made_weighted(argument):
    """Not a weighted one, not nothing, not a class."""
    with pytest.raises(TypeError, match="must be an unweighted factory"):
        as_weighted_aggregator(argument)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_factory_prints_as_the_call_that_made_it(name):
    """With the public name of the row, and the factories inside, not as an object at an address."""
    text = repr(AGGREGATORS[name].make())

    assert name.split()[0] in text
    assert not re.search(r" object at |\n|\b_[A-Z]", text)


def test_arguments_print_as_they_were_given():
    """Nested factories and processes too; also of a factory that a user wrote, and of one that is frozen."""

    class Mine(UnweightedAggregationFactory):
        def __init__(self, scale, *, inner):
            del scale, inner

        def create(self, value_type):
            return SumFactory().create(value_type)

    @dataclasses.dataclass(frozen=True)
    class Frozen(Mine):
        scale: float

    norm = PrivateQuantileEstimationProcess.no_noise(1.0, 0.5, 0.2)
    made = zeroing_factory(norm, Mine(2, inner=KrumFactory(1, num_selected=None)), norm_order=2.0)

    assert repr(made) == (
        "zeroing_factory(<PrivateQuantileEstimationProcess>, "
        f"{Mine.__qualname__}(2, inner=KrumFactory(1, num_selected=None)), norm_order=2.0)"
    )
    assert repr(DifferentiallyPrivateFactory.local(1.0, 10, clip=0.5)) == (
        "DifferentiallyPrivateFactory.local(1.0, 10, clip=0.5)"
    )
    assert repr(Frozen(0.5)) == f"{Frozen.__qualname__}(scale=0.5)"
    assert repr(copy.copy(made)) == repr(made)


def test_an_error_names_the_factory_that_was_passed():
    """By the call that made it."""
    with pytest.raises(KoinonTypeError, match=r"zeroing_factory\(1\.0, SumFactory\(\)\)"):
        excluding_non_finite_factory(zeroing_factory(1.0, SumFactory()))
    with pytest.raises(KoinonTypeError, match="the class MeanFactory"):
        clipping_factory(1.0, MeanFactory)
