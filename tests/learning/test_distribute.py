"""`DistributionProcess` and the broadcast."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.computation import to_value
from koinon.learning.templates import DistributionProcess, build_broadcast_process
from koinon.templates import (
    MeasuredProcess,
    MeasuredProcessOutput,
    TemplateInitFnParamNotEmptyError,
    TemplateNextFnNumArgsError,
    TemplateNotFederatedError,
    TemplateNotMeasuredProcessOutputError,
    TemplatePlacementError,
    TemplateStateNotAssignableError,
)
from koinon.types import FederatedType, SequenceType, StructType, TensorType, at_clients, at_server, to_type

INT, FLOAT = TensorType(jnp.int32), TensorType(jnp.float32)
STATE, VALUE = at_server(INT), at_server(FLOAT)


def server(value):
    """A constant at the server."""
    return ko.federated_value(value, ko.SERVER)


def next_of(fn, *types):
    """A `next` of these types, by default of a state and a value."""
    return ko.federated_computation(*(types or (STATE, VALUE)))(fn)


first = ko.federated_computation(lambda: server(0))
broadcast = next_of(lambda s, v: MeasuredProcessOutput(s, ko.federated_broadcast(v), server(())))


def test_every_client_receives_the_value(backend):
    """The broadcast sends a structure as it is, to as many clients as the round has."""
    value = {"w": np.float32([1, 2, 3]), "n": np.int32(7)}
    send = build_broadcast_process(to_type(value))

    @ko.federated_computation(at_server(to_type(value)), at_clients(FLOAT))
    def add_to_each(value, number):
        received = send.next(send.initialize(), value).result
        return ko.federated_map(lambda v, x: jnp.sum(v["w"]) + v["n"] + x, (received, number))

    assert [float(x) for x in add_to_each(value, [0.5, 1.5])] == [13.5, 14.5]


def test_the_broadcast_has_no_state_and_no_measurements():
    """Both are empty and placed."""
    process = build_broadcast_process(FLOAT)

    assert str(process.initialize.type_signature) == "( -> <>@SERVER)"
    assert str(process.next.type_signature) == (
        "(<state=<>@SERVER,value=float32@SERVER> -> <state=<>@SERVER,result=float32@CLIENTS,measurements=<>@SERVER>)"
    )


@pytest.mark.parametrize(
    "value_type", [SequenceType(FLOAT), at_server(FLOAT), to_type((at_server(FLOAT),)), np.float32], ids=str
)
def test_only_unplaced_tensors_and_structs_are_broadcast(value_type):
    """Neither a sequence, nor a placed type, nor a dtype."""
    with pytest.raises(TypeError, match="unplaced type of tensors or structs"):
        build_broadcast_process(value_type)


def test_a_distribution_may_have_a_state_and_change_the_type(backend):
    """Each round sends the difference to the last, in half precision."""

    @ko.federated_computation
    def initialize():
        return server(0.0)

    @ko.federated_computation(VALUE, VALUE)
    def next_fn(last, value):
        difference = ko.federated_map(lambda a, b: (a - b).astype(jnp.float16), (value, last))
        return MeasuredProcessOutput(value, ko.federated_broadcast(difference), difference)

    process = DistributionProcess(initialize, next_fn)
    state = process.next(process.initialize(), 3.0).state
    output = process.next(state, 5.0)

    assert float(output.measurements) == 2.0
    assert process.next.type_signature.result["result"] == FederatedType(
        TensorType(jnp.float16), ko.CLIENTS, all_equal=True
    )


def test_clients_may_receive_different_values():
    """The result need not be the same for all."""
    next_fn = next_of(
        lambda s, v: MeasuredProcessOutput(s, ko.federated_map(lambda x: 2 * x, ko.federated_broadcast(v)), server(()))
    )

    assert DistributionProcess(first, next_fn).next.type_signature.result["result"] == at_clients(FLOAT)


ILL_FORMED = {
    # in the order of the checks
    "initialize takes a parameter": (
        ko.federated_computation(STATE)(lambda s: s),
        broadcast,
        TemplateInitFnParamNotEmptyError,
    ),
    "next takes the state alone": (
        first,
        next_of(lambda s: MeasuredProcessOutput(s, s, s), STATE),
        TemplateNextFnNumArgsError,
    ),
    "the state does not go in": (
        ko.federated_computation(lambda: server(0.0)),
        broadcast,
        TemplateStateNotAssignableError,
    ),
    "the output is a tuple": (
        first,
        next_of(lambda s, v: (s, ko.federated_broadcast(v), server(()))),
        TemplateNotMeasuredProcessOutputError,
    ),
    "nothing is placed": (
        ko.jax_computation(lambda: jnp.int32(0)),
        ko.jax_computation(INT, FLOAT)(lambda s, v: MeasuredProcessOutput(s, v, ())),
        TemplateNotFederatedError,
    ),
    "the measurements are an unplaced number": (
        first,
        next_of(lambda s, v: MeasuredProcessOutput(s, ko.federated_broadcast(v), to_value(1.0))),
        TemplateNotFederatedError,
    ),
    "an argument is unplaced and one too many": (
        first,
        next_of(lambda s, v, w: MeasuredProcessOutput(s, ko.federated_broadcast(v), server(())), STATE, VALUE, FLOAT),
        TemplateNotFederatedError,
    ),
    "the state is at the clients": (
        ko.federated_computation(lambda: ko.federated_value(0, ko.CLIENTS)),
        next_of(
            lambda s, v: MeasuredProcessOutput(s, ko.federated_broadcast(v), server(())),
            FederatedType(INT, ko.CLIENTS, all_equal=True),
            VALUE,
        ),
        TemplatePlacementError,
    ),
    "next takes three arguments": (
        first,
        next_of(lambda s, v, w: MeasuredProcessOutput(s, ko.federated_broadcast(v), server(())), STATE, VALUE, VALUE),
        TemplateNextFnNumArgsError,
    ),
    "the value is at the clients": (
        first,
        next_of(lambda s, v: MeasuredProcessOutput(s, v, server(())), STATE, at_clients(FLOAT)),
        TemplatePlacementError,
    ),
    "the value is a struct of placed values": (
        first,
        next_of(
            lambda s, v: MeasuredProcessOutput(s, ko.federated_broadcast(v[0]), server(())),
            STATE,
            StructType([VALUE, VALUE]),
        ),
        TemplatePlacementError,
    ),
    "the result is at the server": (
        first,
        next_of(lambda s, v: MeasuredProcessOutput(s, v, server(()))),
        TemplatePlacementError,
    ),
    "the measurements are at the clients": (
        first,
        next_of(lambda s, v: MeasuredProcessOutput(s, ko.federated_broadcast(v), ko.federated_broadcast(v))),
        TemplatePlacementError,
    ),
    "the measurements are an unplaced empty tuple": (
        first,
        next_of(lambda s, v: MeasuredProcessOutput(s, ko.federated_broadcast(v), ())),
        TemplatePlacementError,
    ),
}


@pytest.mark.parametrize("case", ILL_FORMED)
def test_an_ill_formed_distribution_raises_the_error_of_its_contract(case):
    """Each violation has its own class, and the first in the order of the checks wins."""
    initialize, next_fn, error = ILL_FORMED[case]
    with pytest.raises(TypeError) as raised:
        DistributionProcess(initialize, next_fn)

    assert type(raised.value) is error


def test_what_is_no_computation_is_refused_by_name():
    """A Python function is not a computation."""
    with pytest.raises(TypeError, match=r"Expected .*\.Computation, .*"):
        DistributionProcess(first, lambda state, value: value)


def test_a_distribution_is_a_measured_process():
    """The argument count may be said, too."""
    assert isinstance(DistributionProcess(first, broadcast, next_is_multi_arg=True), MeasuredProcess)


def test_unplaced_results_are_listed():
    """The message names the types that are not placed."""
    initialize, next_fn, error = ILL_FORMED["the measurements are an unplaced number"]
    with pytest.raises(error, match=r"found      float32 in \(<s=int32@SERVER,v=float32@SERVER>"):
        DistributionProcess(initialize, next_fn)
