"""`ClientWorkProcess`: what clients do on their own data."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.computation import to_value
from koinon.learning.templates import (
    ClientDataTypeError,
    ClientResult,
    ClientResultTypeError,
    ClientStateWorkOutput,
    ClientWorkProcess,
    GetHparamsTypeError,
    SetHparamsTypeError,
)
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
STATE, VALUE, DATA = at_server(INT), at_clients(FLOAT), at_clients(SequenceType(FLOAT))


class LookAlike(NamedTuple):
    """Another class with the fields of the right one."""

    update: Any
    update_weight: Any


def server(value):
    """A constant at the server."""
    return ko.federated_value(value, ko.SERVER)


def work(value, data):
    """The distances of a client's numbers to a value, added, and their count."""
    total = data.reduce(jnp.float32(0.0), lambda carry, x: carry + (x - value))
    return ClientResult(total, data.length.astype(jnp.float32))


def next_of(fn, *types):
    """A `next` of these types, by default of a state, a value and data."""
    return ko.federated_computation(*(types or (STATE, VALUE, DATA)))(fn)


first = ko.federated_computation(lambda: server(0))
good_next = next_of(lambda s, v, d: MeasuredProcessOutput(s, ko.federated_map(work, (v, d)), server(())))


def test_clients_work_on_their_own_data(backend):
    """One result per client, in its container, however long each client's data is."""
    process = ClientWorkProcess(first, good_next)
    data = [[1.0, 2.0, 6.0], [], [4.0]]
    output = process.next(process.initialize(), [1.0, 1.0, 2.0], data)

    assert [type(result) for result in output.result] == [ClientResult] * 3
    assert [float(result.update) for result in output.result] == [6.0, 0.0, 2.0]
    assert [float(result.update_weight) for result in output.result] == [3.0, 0.0, 1.0]


def test_data_may_be_a_struct_of_sequences(backend):
    """A client has several sequences."""
    data_type = at_clients(StructType([("a", SequenceType(FLOAT)), ("b", SequenceType(INT))], dict))

    def count(value, data):
        return ClientResult(value + data["a"].length, data["b"].length)

    next_fn = next_of(
        lambda s, v, d: MeasuredProcessOutput(s, ko.federated_map(count, (v, d)), server(())), STATE, VALUE, data_type
    )
    process = ClientWorkProcess(first, next_fn)
    output = process.next(process.initialize(), [0.0], [{"a": [1.0, 2.0], "b": [1, 2, 3]}])

    assert (float(output.result[0].update), int(output.result[0].update_weight)) == (2.0, 3)


def test_a_result_may_have_no_weight():
    """An empty weight is a weight: k-means has none."""
    next_fn = next_of(
        lambda s, v, d: MeasuredProcessOutput(
            s, ko.federated_map(lambda x, data: ClientResult(x, ()), (v, d)), server(())
        )
    )

    assert str(ClientWorkProcess(first, next_fn).next.type_signature.result["result"]) == (
        "{<update=float32,update_weight=<>>}@CLIENTS"
    )


def result_with(result=None, measurements=None, state=None):
    """A `next` whose output has other fields than the good one."""

    def next_fn(s, v, d):
        good = ko.federated_map(work, (v, d))
        return MeasuredProcessOutput(
            s if state is None else state(s),
            good if result is None else result(v, d),
            server(()) if measurements is None else measurements(v),
        )

    return next_of(next_fn)


def data_of(data_type):
    """A `next` that takes other data."""

    def next_fn(s, v, d):
        return MeasuredProcessOutput(s, ko.federated_map(lambda x: ClientResult(x, x), v), server(()))

    return next_of(next_fn, STATE, VALUE, data_type)


def with_arguments(*types):
    """A `next` of other arguments, which returns what is right."""

    def next_fn(arguments):
        result = ko.federated_value(ClientResult(np.float32(0), np.float32(0)), ko.CLIENTS)
        return MeasuredProcessOutput(arguments[0], result, server(()))

    return next_of(next_fn, StructType([(f"x{i}", type_) for i, type_ in enumerate(types)]))


CLIENT_STATE = FederatedType(INT, ko.CLIENTS, all_equal=True)
first_at_clients = ko.federated_computation(lambda: ko.federated_value(0, ko.CLIENTS))
unplaced_first = ko.jax_computation(lambda: jnp.int32(0))

ILL_FORMED = {
    # in the order of the checks
    "initialize takes a parameter": (
        ko.federated_computation(STATE)(lambda s: s),
        good_next,
        TemplateInitFnParamNotEmptyError,
    ),
    "the state does not go in": (
        ko.federated_computation(lambda: server(0.0)),
        good_next,
        TemplateStateNotAssignableError,
    ),
    "the state does not come back": (
        first,
        result_with(state=lambda s: server(0.0)),
        TemplateStateNotAssignableError,
    ),
    "the output is a tuple": (
        first,
        next_of(lambda s, v, d: (s, ko.federated_map(work, (v, d)), server(()))),
        TemplateNotMeasuredProcessOutputError,
    ),
    "the state is unplaced, and the rest as well": (
        unplaced_first,
        ko.jax_computation(INT, FLOAT)(lambda s, v: MeasuredProcessOutput(s, v, ())),
        TemplateNotFederatedError,
    ),
    "the state is at the clients, and an argument unplaced": (
        first_at_clients,
        with_arguments(CLIENT_STATE, VALUE, FLOAT),
        TemplatePlacementError,
    ),
    "an argument is unplaced, and one is missing": (
        first,
        with_arguments(STATE, FLOAT),
        TemplateNotFederatedError,
    ),
    "the measurements are an unplaced number": (
        first,
        result_with(measurements=lambda v: to_value(1.0)),
        TemplateNotFederatedError,
    ),
    "next takes two arguments": (first, with_arguments(STATE, DATA), TemplateNextFnNumArgsError),
    "next takes four arguments": (first, with_arguments(STATE, VALUE, VALUE, DATA), TemplateNextFnNumArgsError),
    "the value is at the server": (first, with_arguments(STATE, at_server(FLOAT), DATA), TemplatePlacementError),
    "the data is at the server": (
        first,
        with_arguments(STATE, VALUE, at_server(SequenceType(FLOAT))),
        TemplatePlacementError,
    ),
    "the data is a tensor": (first, data_of(VALUE), ClientDataTypeError),
    "the data is a struct with a tensor": (
        first,
        data_of(at_clients(StructType([SequenceType(FLOAT), FLOAT]))),
        ClientDataTypeError,
    ),
    "the result is not zipped": (first, result_with(lambda v, d: ClientResult(v, v)), TemplatePlacementError),
    "the result is at the server": (
        first,
        result_with(lambda v, d: server(ClientResult(np.float32(0), np.float32(0)))),
        TemplatePlacementError,
    ),
    "the result is another named tuple": (
        first,
        result_with(lambda v, d: ko.federated_zip(LookAlike(v, v))),
        ClientResultTypeError,
    ),
    "the result is a number": (first, result_with(lambda v, d: v), ClientResultTypeError),
    "the measurements are at the clients": (first, result_with(measurements=lambda v: v), TemplatePlacementError),
    "the measurements are an unplaced empty tuple": (
        first,
        result_with(measurements=lambda v: ()),
        TemplatePlacementError,
    ),
}


@pytest.mark.parametrize("case", ILL_FORMED)
def test_an_ill_formed_client_work_raises_the_error_of_its_contract(case):
    """Each violation has its own class, and the first in the order of the checks wins."""
    initialize, next_fn, error = ILL_FORMED[case]
    with pytest.raises(TypeError) as raised:
        ClientWorkProcess(initialize, next_fn)

    assert type(raised.value) is error


def test_what_is_no_computation_is_refused_by_name():
    """A Python function is not a computation."""
    for arguments in [(lambda: 0, good_next), (first, lambda s, v, d: s)]:
        with pytest.raises(TypeError, match=r"Expected .*\.Computation, .*"):
            ClientWorkProcess(*arguments)


def test_without_hyperparameters_there_is_nothing_to_get_or_set(backend):
    """The getter returns nothing and the setter changes nothing."""
    process = ClientWorkProcess(first, good_next, next_is_multi_arg=True)

    assert process.get_hparams(process.initialize()) == {}
    assert int(process.set_hparams(3, {})) == 3
    assert str(process.set_hparams.type_signature) == "(<state=int32,hparams=<>> -> int32)"
    assert isinstance(process, MeasuredProcess)


def test_hyperparameters_are_read_from_the_state_and_written_into_it(backend):
    """On the unplaced state, as it comes from `initialize`."""
    get = ko.jax_computation(INT)(lambda state: {"steps": state})
    set_ = ko.jax_computation(INT, get.type_signature.result)(lambda state, hparams: hparams["steps"])
    process = ClientWorkProcess(first, good_next, get_hparams_fn=get, set_hparams_fn=set_)

    assert process.get_hparams is get
    assert process.set_hparams is set_
    assert int(process.get_hparams(process.set_hparams(process.initialize(), {"steps": 5}))["steps"]) == 5


takes_nothing = ko.jax_computation(lambda: jnp.int32(0))
takes_float = ko.jax_computation(FLOAT)(lambda state: state)
takes_one = ko.jax_computation(INT)(lambda state: state)


@pytest.mark.parametrize(
    ("get", "error"),
    [
        (takes_nothing, GetHparamsTypeError),
        (takes_float, GetHparamsTypeError),
        # The state is unplaced.
        (ko.federated_computation(STATE)(lambda state: state), GetHparamsTypeError),
    ],
)
def test_a_getter_that_does_not_take_the_state_is_refused(get, error):
    """The state as it comes from `initialize` must go in."""
    with pytest.raises(error, match="must accept the state"):
        ClientWorkProcess(first, good_next, get_hparams_fn=get)


@pytest.mark.parametrize(
    "set_",
    [
        takes_nothing,
        takes_one,
        ko.jax_computation(INT, INT, INT)(lambda state, a, b: state),
        ko.jax_computation(FLOAT, INT)(lambda state, hparams: hparams),
        ko.jax_computation(INT, FLOAT)(lambda state, hparams: hparams),
    ],
)
def test_a_setter_that_does_not_take_and_return_the_state_is_refused(set_):
    """Two arguments, the state first, and the state again."""
    with pytest.raises(SetHparamsTypeError):
        ClientWorkProcess(first, good_next, set_hparams_fn=set_)


def test_the_hyperparameters_of_getter_and_setter_are_not_compared():
    """As in TFF, the type of the second argument is free."""
    set_ = ko.jax_computation(INT, FLOAT)(lambda state, hparams: state)

    assert ClientWorkProcess(first, good_next, set_hparams_fn=set_).set_hparams is set_


def test_hyperparameter_functions_that_are_no_computations_are_refused():
    """Python functions are not computations."""
    with pytest.raises(TypeError, match=r"Expected .*\.Computation, .*`get_hparams_fn`"):
        ClientWorkProcess(first, good_next, get_hparams_fn=lambda state: {})
    with pytest.raises(TypeError, match=r"Expected .*\.Computation, .*`set_hparams_fn`"):
        ClientWorkProcess(first, good_next, set_hparams_fn=lambda state, hparams: state)


COUNT = at_clients(INT)
new_client = ko.jax_computation(lambda: jnp.int32(0))


def stateful_next(count_type=COUNT, new_count=None, output=ClientStateWorkOutput):
    """A client work in which every client counts its participations."""

    def next_fn(s, v, c, d):
        counted = ko.federated_map(lambda n: n + 1, c) if new_count is None else new_count(c)
        return output(s, counted, ko.federated_map(work, (v, d)), server(()))

    return next_of(next_fn, STATE, VALUE, count_type, DATA)


def test_clients_may_keep_a_state_between_rounds(backend):
    """Whoever drives the process gives every client the state that it returned."""
    process = ClientWorkProcess(first, stateful_next(), client_state_fn=new_client)
    fresh = process.initialize_client_state()
    state = process.initialize()
    one = process.next(state, [0.0, 0.0], [fresh, fresh], [[1.0], [2.0]])
    two = process.next(one.state, [0.0, 0.0], [one.client_state[1], fresh], [[2.0], [3.0]])

    assert [int(count) for count in one.client_state] == [1, 1]
    assert [int(count) for count in two.client_state] == [2, 1]
    assert [float(result.update) for result in two.result] == [2.0, 3.0]
    assert process.client_state_type == INT


def test_without_client_state_there_is_none():
    """The ordinary form says so."""
    process = ClientWorkProcess(first, good_next)

    assert process.client_state_type is None
    assert process.initialize_client_state is None


@pytest.mark.parametrize(
    ("next_fn", "client_state_fn", "error"),
    [
        (good_next, new_client, TemplateNotMeasuredProcessOutputError),
        (stateful_next(), None, TemplateNotMeasuredProcessOutputError),
        (stateful_next(), takes_one, TemplateInitFnParamNotEmptyError),
        (stateful_next(), ko.jax_computation(lambda: jnp.float32(0.0)), TemplateStateNotAssignableError),
        (stateful_next(), first_at_clients, TemplateNotFederatedError),
        (
            stateful_next(new_count=lambda c: ko.federated_map(lambda n: 1.0 * n, c)),
            new_client,
            TemplateStateNotAssignableError,
        ),
        (stateful_next(new_count=ko.federated_sum), new_client, TemplatePlacementError),
        (
            stateful_next(at_server(INT), new_count=lambda c: ko.federated_broadcast(c)),
            new_client,
            TemplatePlacementError,
        ),
    ],
)
def test_an_ill_formed_client_state_is_refused(next_fn, client_state_fn, error):
    """It goes in as it comes out, at the clients, and from a computation of one client's first state."""
    with pytest.raises(TypeError) as raised:
        ClientWorkProcess(first, next_fn, client_state_fn=client_state_fn)

    assert type(raised.value) is error


def test_a_client_result_is_not_read_as_a_dtype_and_a_shape():
    """A named tuple of a dtype and an empty tuple is a struct."""
    assert str(to_type(ClientResult(np.float32, ()))) == "<update=float32,update_weight=<>>"
