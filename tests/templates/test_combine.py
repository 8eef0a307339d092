"""Measured processes in a row and side by side."""

from __future__ import annotations

import collections

import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.templates import (
    IterativeProcess,
    MeasuredProcess,
    MeasuredProcessOutput,
    TemplateNextFnNumArgsError,
    TemplatePlacementError,
    chain_measured_processes,
    concatenate_measured_processes,
)
from koinon.types import FederatedType, TensorType, at_clients, at_server

INT, FLOAT = TensorType(jnp.int32), TensorType(jnp.float32)
count_zero = ko.federated_computation(lambda: ko.federated_value(0, ko.SERVER))


def counting(type_, transform):
    """A process that counts its rounds, transforms its argument, and measures the rounds before this one."""

    @ko.federated_computation(at_server(INT), type_)
    def next_fn(state, value):
        return MeasuredProcessOutput(ko.federated_map(lambda n: n + 1, state), transform(value), state)

    return MeasuredProcess(count_zero, next_fn)


double = counting(at_clients(FLOAT), lambda v: ko.federated_map(lambda x: 2.0 * x, v))
add_one = counting(at_clients(FLOAT), lambda v: ko.federated_map(lambda x: x + 1.0, v))
total = counting(at_clients(FLOAT), ko.federated_sum)
negate = counting(at_server(FLOAT), lambda v: ko.federated_map(lambda x: -x, v))


def test_a_chain_applies_its_processes_in_order(backend):
    """h(x) = negate(total(add_one(double(x)))), with all states and measurements by name."""
    chain = chain_measured_processes({"double": double, "add_one": add_one, "total": total, "negate": negate})
    values = [1.0, 2.0, 3.0]
    output = chain.next(chain.next(chain.initialize(), values).state, values)

    assert float(output.result) == -sum(2.0 * x + 1.0 for x in values)
    assert {name: int(n) for name, n in output.state.items()} == dict.fromkeys(output.state, 2)
    assert {name: int(n) for name, n in output.measurements.items()} == dict.fromkeys(output.state, 1)
    assert list(output.state) == ["double", "add_one", "total", "negate"]


def test_the_order_of_a_chain_matters(backend):
    """Doubling before adding is not adding before doubling."""
    one_way = chain_measured_processes({"f": double, "g": add_one, "h": total})
    other_way = chain_measured_processes({"g": add_one, "f": double, "h": total})

    assert float(one_way.next(one_way.initialize(), [3.0]).result) == 7.0
    assert float(other_way.next(other_way.initialize(), [3.0]).result) == 8.0


def test_a_chain_has_the_type_of_its_ends():
    """The argument is the first process's, the result the last one's."""
    chain = chain_measured_processes(collections.OrderedDict(f=double, g=total))

    assert str(chain.next.type_signature) == (
        "(<state=<f=int32,g=int32>@SERVER,value={float32}@CLIENTS>"
        " -> <state=<f=int32,g=int32>@SERVER,result=float32@SERVER,measurements=<f=int32,g=int32>@SERVER>)"
    )
    assert dict(chain.parts) == {"f": double, "g": total}


def test_a_chain_of_one_is_that_process(backend):
    """Chaining needs no second process."""
    chain = chain_measured_processes({"only": total})

    assert float(chain.next(chain.initialize(), [1.0, 2.0]).result) == 3.0


def vectors(shape, transform):
    """A process over float vectors at the server."""
    return counting(at_server(TensorType(jnp.float32, shape)), transform)


def test_a_process_of_unknown_size_accepts_the_result_of_a_fixed_one(backend):
    """The argument of the next must be assignable from the result of the one before, not the other way round."""
    fixed = vectors((3,), lambda v: v)
    any_size = vectors((None,), lambda v: ko.federated_map(lambda x: jnp.sum(x), v))
    chain = chain_measured_processes({"fixed": fixed, "any": any_size})

    assert float(chain.next(chain.initialize(), np.float32([1, 2, 3])).result) == 6.0


def test_a_process_of_fixed_size_does_not_accept_the_result_of_an_unknown_one():
    """The other way round is the error."""
    fixed, any_size = vectors((3,), lambda v: v), vectors((None,), lambda v: v)
    with pytest.raises(TypeError, match=r"`fixed` does not accept the result of `any`") as raised:
        chain_measured_processes({"any": any_size, "fixed": fixed})

    assert "float32[?]@SERVER" in str(raised.value)


def test_concatenated_processes_have_their_own_arguments_and_results(backend):
    """The results are a struct of placed values, in more than one place."""
    both = concatenate_measured_processes({"sums": total, "doubles": double})
    output = both.next(both.initialize(), {"sums": [1.0, 2.0], "doubles": [3.0, 4.0]})

    assert float(output.result["sums"]) == 3.0
    assert [float(x) for x in output.result["doubles"]] == [6.0, 8.0]
    assert {name: int(n) for name, n in output.state.items()} == {"sums": 1, "doubles": 1}
    assert str(both.next.type_signature.result) == (
        "<state=<sums=int32,doubles=int32>@SERVER,result=<sums=float32@SERVER,doubles={float32}@CLIENTS>,"
        "measurements=<sums=int32,doubles=int32>@SERVER>"
    )


def at_clients_state():
    """A process whose state is at the clients."""
    initialize = ko.federated_computation(lambda: ko.federated_value(0, ko.CLIENTS))
    state = FederatedType(INT, ko.CLIENTS, all_equal=True)
    next_fn = ko.federated_computation(state, at_clients(FLOAT))(
        lambda s, v: MeasuredProcessOutput(s, v, ko.federated_value((), ko.SERVER))
    )
    return MeasuredProcess(initialize, next_fn)


def unplaced():
    """A process without any placement."""
    next_fn = ko.jax_computation(INT, FLOAT)(lambda s, v: MeasuredProcessOutput(s, v, ()))
    return MeasuredProcess(ko.jax_computation(lambda: jnp.int32(0)), next_fn)


def weighted():
    """A process of three arguments."""
    next_fn = ko.federated_computation(at_server(INT), at_clients(FLOAT), at_clients(FLOAT))(
        lambda s, v, w: MeasuredProcessOutput(s, v, s)
    )
    return MeasuredProcess(count_zero, next_fn)


def empty_measurements():
    """A process whose measurements are an unplaced empty tuple."""
    next_fn = ko.federated_computation(at_server(INT), at_clients(FLOAT))(lambda s, v: MeasuredProcessOutput(s, v, ()))
    return MeasuredProcess(count_zero, next_fn)


def only_iterative():
    """A process without measurements."""
    return IterativeProcess(count_zero, ko.federated_computation(at_server(INT))(lambda s: s))


@pytest.mark.parametrize("combine", [chain_measured_processes, concatenate_measured_processes])
@pytest.mark.parametrize(
    ("make", "error"),
    [
        (at_clients_state, TemplatePlacementError),
        (unplaced, TemplatePlacementError),
        (empty_measurements, TemplatePlacementError),
        (weighted, TemplateNextFnNumArgsError),
        (only_iterative, TypeError),
        (lambda: "double", TypeError),
    ],
)
def test_processes_that_do_not_combine_are_refused(combine, make, error):
    """States and measurements at one place, two arguments, measured processes only."""
    with pytest.raises(error):
        combine({"double": double, "other": make()})


@pytest.mark.parametrize("combine", [chain_measured_processes, concatenate_measured_processes])
def test_no_process_is_refused(combine):
    """There is nothing to combine in an empty mapping, nor is a list a mapping."""
    with pytest.raises(ValueError, match="no process"):
        combine({})
    with pytest.raises(TypeError, match="mapping"):
        combine([double, total])
