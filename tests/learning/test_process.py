"""`LearningProcess`: what users drive round by round."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.learning.templates import (
    ClientStateLearningOutput,
    GetHparamsTypeError,
    GetModelWeightsTypeSignatureError,
    LearningProcess,
    LearningProcessOutput,
    LearningProcessOutputError,
    LearningProcessPlacementError,
    LearningProcessSequenceTypeError,
    SetHparamsTypeError,
    SetModelWeightsTypeSignatureError,
)
from koinon.templates import (
    IterativeProcess,
    TemplateInitFnParamNotEmptyError,
    TemplateNextFnNumArgsError,
    TemplateNotFederatedError,
    TemplateStateNotAssignableError,
)
from koinon.types import FederatedType, SequenceType, StructType, TensorType, at_clients, at_server

INT, FLOAT = TensorType(jnp.int32), TensorType(jnp.float32)
STATE, DATA = at_server(INT), at_clients(SequenceType(FLOAT))


def server(value):
    """A constant at the server."""
    return ko.federated_value(value, ko.SERVER)


def add_total(state, data):
    """The state plus the total of all data, rounded down."""
    total = ko.federated_map(lambda xs: xs.reduce(jnp.float32(0.0), lambda carry, x: carry + x), data)
    rounded = ko.federated_map(lambda x: x.astype(jnp.int32), ko.federated_sum(total))
    return ko.federated_map(lambda a, b: a + b, (state, rounded))


def next_of(fn, *types):
    """A `next` of these types, by default of a state and data."""
    return ko.federated_computation(*(types or (STATE, DATA)))(fn)


first = ko.federated_computation(lambda: server(0))
good_next = next_of(lambda s, d: LearningProcessOutput(add_total(s, d), ko.federated_map(lambda x: {"before": x}, s)))
get = ko.jax_computation(INT)(lambda state: {"weights": state})
put = ko.jax_computation(INT, get.type_signature.result)(lambda state, weights: weights["weights"])


def test_a_process_is_driven_round_by_round(backend):
    """State and metrics come back in their container."""
    process = LearningProcess(first, good_next, get, put)
    one = process.next(process.initialize(), [[1.0, 2.0], [4.0]])
    two = process.next(one.state, [[5.0]])

    assert isinstance(two, LearningProcessOutput)
    assert (int(one.state), int(two.state)) == (7, 12)
    assert int(two.metrics["before"]) == 7


def test_weights_are_read_from_and_written_into_the_unplaced_state(backend):
    """On what `initialize` and `next` return to Python."""
    process = LearningProcess(first, good_next, get, put)
    state = process.set_model_weights(process.initialize(), {"weights": 5})

    assert int(process.get_model_weights(state)["weights"]) == 5
    assert int(process.next(state, [[1.0]]).state) == 6


def test_attributes_are_what_was_given():
    """The computations are kept as they are."""
    process = LearningProcess(first, good_next, get, put, get_hparams_fn=get, set_hparams_fn=put)

    assert (process.initialize, process.next) == (first, good_next)
    assert (process.get_model_weights, process.set_model_weights) == (get, put)
    assert (process.get_hparams, process.set_hparams) == (get, put)
    assert process.state_type == STATE
    assert isinstance(process, IterativeProcess)


def test_without_hyperparameters_there_is_nothing_to_get_or_set(backend):
    """The getter returns nothing and the setter changes nothing."""
    process = LearningProcess(first, good_next, get, put)

    assert process.get_hparams(process.initialize()) == {}
    assert int(process.set_hparams(3, {})) == 3


def test_data_may_be_a_struct_of_sequences():
    """A client has several sequences."""
    data = at_clients(StructType([("a", SequenceType(FLOAT)), ("b", StructType([SequenceType(INT)]))]))
    next_fn = next_of(lambda s, d: LearningProcessOutput(s, server(())), STATE, data)

    assert LearningProcess(first, next_fn, get, put).next.type_signature.parameter[1] == data


def returns(output):
    """A `next` with another output."""
    return next_of(lambda s, d: output(s, d))


def takes(*types):
    """A `next` with other arguments."""
    fields = StructType([(f"x{i}", type_) for i, type_ in enumerate(types)])
    return next_of(lambda xs: LearningProcessOutput(xs[0], server(())), fields)


unplaced_output = ko.jax_computation(INT)(lambda s: LearningProcessOutput(s, ()))
get_float = ko.jax_computation(FLOAT)(lambda state: state)
CLIENTS_STATE = FederatedType(INT, ko.CLIENTS, all_equal=True)
first_at_clients = ko.federated_computation(lambda: ko.federated_value(0, ko.CLIENTS))
first_pair = ko.federated_computation(lambda: (server(0), server(0)))
takes_nothing = ko.jax_computation(lambda: jnp.int32(0))

ILL_FORMED = {
    # in the order of the checks
    "initialize takes a parameter": (
        (ko.federated_computation(STATE)(lambda s: s), good_next, get, put),
        TemplateInitFnParamNotEmptyError,
    ),
    "next takes nothing": ((first, first, get, put), TemplateNextFnNumArgsError),
    "the state does not go in": (
        (ko.federated_computation(lambda: server(0.0)), good_next, get, put),
        TemplateStateNotAssignableError,
    ),
    "the state does not come back": (
        (first, returns(lambda s, d: LearningProcessOutput(server(0.0), server(()))), get, put),
        TemplateStateNotAssignableError,
    ),
    "nothing is placed": ((takes_nothing, unplaced_output, get, put), LearningProcessPlacementError),
    "the state is at the clients": (
        (first_at_clients, takes(CLIENTS_STATE, DATA), get, put),
        LearningProcessPlacementError,
    ),
    "the state is a struct of placed values": (
        (
            first_pair,
            next_of(lambda s, d: LearningProcessOutput(s, server(())), first_pair.type_signature.result, DATA),
            get,
            put,
        ),
        LearningProcessPlacementError,
    ),
    "the output is a tuple": ((first, returns(lambda s, d: (s, server(()))), get, put), LearningProcessOutputError),
    "the output is the state alone": (
        (first, next_of(lambda s: s, STATE), get, put),
        LearningProcessOutputError,
    ),
    "next takes the state alone": (
        (first, next_of(lambda s: LearningProcessOutput(s, server(())), STATE), get, put),
        TemplateNextFnNumArgsError,
    ),
    "next takes three arguments": ((first, takes(STATE, DATA, DATA), get, put), TemplateNextFnNumArgsError),
    "the data is at the server": (
        (first, takes(STATE, at_server(SequenceType(FLOAT))), get, put),
        LearningProcessPlacementError,
    ),
    "the data is unplaced": ((first, takes(STATE, SequenceType(FLOAT)), get, put), LearningProcessPlacementError),
    "the data is a tensor": ((first, takes(STATE, at_clients(FLOAT)), get, put), LearningProcessSequenceTypeError),
    "the data is a struct with a tensor": (
        (first, takes(STATE, at_clients(StructType([SequenceType(FLOAT), FLOAT]))), get, put),
        LearningProcessSequenceTypeError,
    ),
    "the metrics are at the clients": (
        (first, returns(lambda s, d: LearningProcessOutput(s, ko.federated_broadcast(s))), get, put),
        LearningProcessPlacementError,
    ),
    "the metrics are an unplaced empty tuple": (
        (first, returns(lambda s, d: LearningProcessOutput(s, ())), get, put),
        LearningProcessPlacementError,
    ),
    "get_model_weights takes another state": (
        (first, good_next, get_float, put),
        GetModelWeightsTypeSignatureError,
    ),
    "get_model_weights takes nothing": (
        (first, good_next, takes_nothing, put),
        GetModelWeightsTypeSignatureError,
    ),
    "get_model_weights takes the placed state": (
        (first, good_next, ko.federated_computation(STATE)(lambda s: s), put),
        GetModelWeightsTypeSignatureError,
    ),
    "set_model_weights takes nothing": (
        (first, good_next, get, takes_nothing),
        SetModelWeightsTypeSignatureError,
    ),
    "set_model_weights takes the state alone": ((first, good_next, get, get), SetModelWeightsTypeSignatureError),
    "set_model_weights takes another state": (
        (first, good_next, get, ko.jax_computation(FLOAT, INT)(lambda s, w: w)),
        SetModelWeightsTypeSignatureError,
    ),
    "set_model_weights returns another state": (
        (first, good_next, get, ko.jax_computation(INT, FLOAT)(lambda s, w: w)),
        SetModelWeightsTypeSignatureError,
    ),
}


@pytest.mark.parametrize("case", ILL_FORMED)
def test_an_ill_formed_learning_process_raises_the_error_of_its_contract(case):
    """Each violation has its own class, and the first in the order of the checks wins."""
    arguments, error = ILL_FORMED[case]
    with pytest.raises(TypeError) as raised:
        LearningProcess(*arguments)

    assert type(raised.value) is error


@pytest.mark.parametrize("position", range(4))
def test_what_is_no_computation_is_refused_by_name(position):
    """A Python function is not a computation."""
    arguments = [first, good_next, get, put]
    arguments[position] = lambda *args: args
    names = ["initialize_fn", "next_fn", "get_model_weights", "set_model_weights"]
    with pytest.raises(TypeError, match=rf"Expected .*\.Computation, .*`{names[position]}`"):
        LearningProcess(*arguments)


def test_hyperparameters_are_checked_last():
    """Against the unplaced state that `initialize` returns."""
    with pytest.raises(GetHparamsTypeError):
        LearningProcess(first, good_next, get, put, get_hparams_fn=get_float)
    with pytest.raises(SetHparamsTypeError):
        LearningProcess(first, good_next, get, put, set_hparams_fn=get)


def test_weights_belong_to_the_state_that_next_takes():
    """Where it is wider than the one that `initialize` returns, the narrow one is refused."""
    narrow, wide = TensorType(jnp.float32, (3,)), TensorType(jnp.float32, (None,))
    initialize = ko.federated_computation(lambda: server(np.zeros(3, np.float32)))
    next_fn = next_of(lambda s, d: LearningProcessOutput(s, server(())), at_server(wide), DATA)
    identity = {type_: ko.jax_computation(type_)(lambda s: s) for type_ in (narrow, wide)}
    replace = {type_: ko.jax_computation(type_, type_)(lambda s, w: w) for type_ in (narrow, wide)}

    assert LearningProcess(initialize, next_fn, identity[wide], replace[wide]).state_type == at_server(wide)
    with pytest.raises(GetModelWeightsTypeSignatureError):
        LearningProcess(initialize, next_fn, identity[narrow], replace[wide])
    with pytest.raises(SetModelWeightsTypeSignatureError):
        LearningProcess(initialize, next_fn, identity[wide], replace[narrow])


new_client = ko.jax_computation(lambda: jnp.int32(0))
COUNT = at_clients(INT)


def stateful(new_count=lambda c: ko.federated_map(lambda n: n + 1, c), count_type=COUNT):
    """A `next` in which every client counts its participations."""
    return next_of(
        lambda s, c, d: ClientStateLearningOutput(add_total(s, d), new_count(c), server(())), STATE, count_type, DATA
    )


def test_clients_may_keep_a_state_between_rounds(backend):
    """The states go in and come out, one per client of the cohort."""
    process = LearningProcess(first, stateful(), get, put, client_state_fn=new_client)
    fresh = process.initialize_client_state()
    one = process.next(process.initialize(), [fresh, fresh], [[1.0], [2.0]])
    two = process.next(one.state, [one.client_state[0], fresh, fresh], [[1.0], [2.0], [3.0]])

    assert [int(count) for count in two.client_state] == [2, 1, 1]
    assert int(two.state) == 9
    assert process.client_state_type == INT
    assert LearningProcess(first, good_next, get, put).client_state_type is None


@pytest.mark.parametrize(
    ("next_fn", "client_state_fn", "error"),
    [
        (good_next, new_client, LearningProcessOutputError),
        (stateful(), None, LearningProcessOutputError),
        (stateful(), get, TemplateInitFnParamNotEmptyError),
        (stateful(), first, TemplateNotFederatedError),
        (stateful(), ko.jax_computation(lambda: jnp.float32(0)), TemplateStateNotAssignableError),
        (stateful(lambda c: ko.federated_map(lambda n: 1.0 * n, c)), new_client, TemplateStateNotAssignableError),
        (stateful(ko.federated_sum), new_client, LearningProcessPlacementError),
        (stateful(ko.federated_broadcast, at_server(INT)), new_client, LearningProcessPlacementError),
    ],
)
def test_an_ill_formed_client_state_is_refused(next_fn, client_state_fn, error):
    """It goes in as it comes out, at the clients, and from a computation of one client's first state."""
    with pytest.raises(TypeError) as raised:
        LearningProcess(first, next_fn, get, put, client_state_fn=client_state_fn)

    assert type(raised.value) is error
