"""`AggregationProcess`: from the clients to the server."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

import koinon as ko
from koinon.computation import to_value
from koinon.templates import (
    AggregationNotFederatedError,
    AggregationPlacementError,
    AggregationProcess,
    AggregationValueTypeMismatchError,
    MeasuredProcess,
    MeasuredProcessOutput,
    TemplateInitFnParamNotEmptyError,
    TemplateNextFnNumArgsError,
    TemplateNotFederatedError,
    TemplateNotMeasuredProcessOutputError,
    TemplatePlacementError,
    TemplateStateNotAssignableError,
)
from koinon.types import FederatedType, StructType, TensorType, at_clients, at_server

INT, FLOAT = TensorType(jnp.int32), TensorType(jnp.float32)
STATE, VALUE = at_server(INT), at_clients(FLOAT)


def server(value):
    """A constant at the server."""
    return ko.federated_value(value, ko.SERVER)


def next_of(fn, *types):
    """A `next` of these types, by default of an unweighted sum."""
    return ko.federated_computation(*(types or (STATE, VALUE)))(fn)


first = ko.federated_computation(lambda: server(0))
first_at_clients = ko.federated_computation(lambda: ko.federated_value(0, ko.CLIENTS))
first_pair = ko.federated_computation(lambda: (server(0), server(0)))
unplaced_first = ko.jax_computation(lambda: jnp.int32(0))

summing = next_of(lambda s, v: MeasuredProcessOutput(s, ko.federated_sum(v), server(())))


def test_the_clients_values_are_aggregated_at_the_server(backend):
    """A process that counts its rounds and sums."""

    @ko.federated_computation(STATE, VALUE)
    def next_fn(state, value):
        counted = ko.federated_map(lambda n: n + 1, state)
        return MeasuredProcessOutput(counted, ko.federated_sum(value), counted)

    process = AggregationProcess(first, next_fn)
    output = process.next(process.next(process.initialize(), [1.0]).state, [1.0, 2.0, 4.0])

    assert float(output.result) == 7.0
    assert int(output.measurements) == 2


@pytest.mark.parametrize(
    ("types", "is_weighted"),
    [((STATE, VALUE), False), ((STATE, VALUE, VALUE), True), ((STATE, VALUE, VALUE, VALUE), False)],
)
def test_a_process_of_three_arguments_is_weighted(types, is_weighted):
    """Weighted means exactly one argument more than the state and the values."""
    parameter = StructType([(f"x{i}", type_) for i, type_ in enumerate(types)])
    next_fn = next_of(lambda xs: MeasuredProcessOutput(xs[0], ko.federated_sum(xs[1]), server(())), parameter)

    assert AggregationProcess(first, next_fn).is_weighted is is_weighted


def test_the_weight_may_be_placed_anywhere():
    """Arguments after the second are not checked, as in TFF."""
    next_fn = next_of(lambda s, v, w: MeasuredProcessOutput(s, ko.federated_sum(v), w), STATE, VALUE, at_server(FLOAT))

    assert AggregationProcess(first, next_fn).is_weighted


def test_a_process_may_change_the_type_of_the_values_if_it_says_so(backend):
    """An aggregation that counts the clients has an integer result."""

    @ko.federated_computation(STATE, VALUE)
    def count(state, value):
        ones = ko.federated_map(lambda x: jnp.int32(1), value)
        return MeasuredProcessOutput(state, ko.federated_sum(ones), server(()))

    with pytest.raises(AggregationValueTypeMismatchError, match=r"expected +float32\n +found +int32"):
        AggregationProcess(first, count)
    process = AggregationProcess(first, count, allow_type_change=True)

    assert int(process.next(process.initialize(), [1.0, 2.0]).result) == 2


def test_a_result_may_be_narrower_than_the_values():
    """The result must be usable where the values are, not be of the same type."""
    wide = at_clients(TensorType(jnp.float32, (None,)))
    next_fn = next_of(lambda s, v: MeasuredProcessOutput(s, server(jnp.zeros(3)), server(())), STATE, wide)

    assert AggregationProcess(first, next_fn).next.type_signature.result["result"] == at_server(
        TensorType(jnp.float32, (3,))
    )


def test_several_arguments_are_implied():
    """`next_is_multi_arg` may be given and changes nothing where it is True."""
    assert AggregationProcess(first, summing, next_is_multi_arg=True).state_type == STATE


ILL_FORMED = {
    # in the order of the checks
    "initialize takes a parameter": (
        ko.federated_computation(STATE)(lambda s: s),
        summing,
        TemplateInitFnParamNotEmptyError,
    ),
    "next takes the state alone": (
        first,
        next_of(lambda s: MeasuredProcessOutput(s, s, s), STATE),
        TemplateNextFnNumArgsError,
    ),
    "next takes nothing": (first, first, TemplateNextFnNumArgsError),
    "the state does not go in": (
        ko.federated_computation(lambda: server(0.0)),
        summing,
        TemplateStateNotAssignableError,
    ),
    "the state does not come back": (
        first,
        next_of(lambda s, v: MeasuredProcessOutput(server(0.0), ko.federated_sum(v), server(()))),
        TemplateStateNotAssignableError,
    ),
    "the output is a tuple": (
        first,
        next_of(lambda s, v: (s, ko.federated_sum(v), server(()))),
        TemplateNotMeasuredProcessOutputError,
    ),
    "the output is zipped": (
        first,
        next_of(lambda s, v: ko.federated_zip(MeasuredProcessOutput(s, ko.federated_sum(v), server(())))),
        TemplateStateNotAssignableError,
    ),
    "nothing is placed": (
        unplaced_first,
        ko.jax_computation(INT, FLOAT)(lambda s, v: MeasuredProcessOutput(s, v, ())),
        AggregationNotFederatedError,
    ),
    "the state is a struct of placed values": (
        first_pair,
        next_of(
            lambda s, v: MeasuredProcessOutput(s, ko.federated_sum(v), server(())),
            first_pair.type_signature.result,
            VALUE,
        ),
        AggregationNotFederatedError,
    ),
    "the measurements are an unplaced number": (
        first,
        next_of(lambda s, v: MeasuredProcessOutput(s, ko.federated_sum(v), to_value(1.0))),
        AggregationNotFederatedError,
    ),
    "an argument is unplaced": (
        first,
        next_of(lambda s, v, w: MeasuredProcessOutput(s, ko.federated_sum(v), server(())), STATE, VALUE, FLOAT),
        AggregationNotFederatedError,
    ),
    "the state is at the clients": (
        first_at_clients,
        next_of(
            lambda s, v: MeasuredProcessOutput(s, ko.federated_sum(v), server(())),
            FederatedType(INT, ko.CLIENTS, all_equal=False),
            VALUE,
        ),
        AggregationPlacementError,
    ),
    "next takes the state in a struct and nothing else": (
        first,
        next_of(lambda xs: MeasuredProcessOutput(xs[0], xs[0], xs[0]), StructType([("s", STATE)])),
        TemplateNextFnNumArgsError,
    ),
    "the values are at the server": (
        first,
        next_of(lambda s, v: MeasuredProcessOutput(s, v, server(())), STATE, at_server(FLOAT)),
        AggregationPlacementError,
    ),
    "the values are a struct of placed values": (
        first,
        next_of(
            lambda s, v: MeasuredProcessOutput(s, ko.federated_sum(v[0]), server(())),
            STATE,
            StructType([VALUE, VALUE]),
        ),
        AggregationPlacementError,
    ),
    "the result is at the clients": (
        first,
        next_of(lambda s, v: MeasuredProcessOutput(s, v, server(()))),
        AggregationPlacementError,
    ),
    "the result is a struct of placed values": (
        first,
        next_of(lambda s, v: MeasuredProcessOutput(s, (ko.federated_sum(v),), server(()))),
        AggregationPlacementError,
    ),
    "the measurements are at the clients": (
        first,
        next_of(lambda s, v: MeasuredProcessOutput(s, ko.federated_sum(v), v)),
        AggregationPlacementError,
    ),
    "the measurements are an unplaced empty tuple": (
        first,
        next_of(lambda s, v: MeasuredProcessOutput(s, ko.federated_sum(v), ())),
        AggregationPlacementError,
    ),
    "the result has another type than the values": (
        first,
        next_of(lambda s, v: MeasuredProcessOutput(s, s, server(()))),
        AggregationValueTypeMismatchError,
    ),
}


@pytest.mark.parametrize("case", ILL_FORMED)
def test_an_ill_formed_aggregation_raises_the_error_of_its_contract(case):
    """Each violation has its own class, and the first in the order of the checks wins."""
    initialize, next_fn, error = ILL_FORMED[case]
    with pytest.raises(TypeError) as raised:
        AggregationProcess(initialize, next_fn)

    assert type(raised.value) is error


def test_what_is_no_computation_is_refused_by_name():
    """A Python function is not a computation."""
    with pytest.raises(TypeError, match=r"Expected .*\.Computation, .*"):
        AggregationProcess(lambda: 0, summing)


def test_an_aggregation_is_a_measured_process():
    """The templates specialise each other, and so do their errors."""
    assert isinstance(AggregationProcess(first, summing), MeasuredProcess)
    assert issubclass(AggregationNotFederatedError, TemplateNotFederatedError)
    assert issubclass(AggregationPlacementError, TemplatePlacementError)


def test_unplaced_measurements_are_answered_with_the_remedy():
    """The message says what to write instead of `()`."""
    initialize, next_fn, error = ILL_FORMED["the measurements are an unplaced empty tuple"]
    with pytest.raises(error, match=r"`measurements` of `next` must be placed at SERVER") as raised:
        AggregationProcess(initialize, next_fn)

    assert "try        return `federated_value((), ko.SERVER)` instead of `()`" in str(raised.value)
