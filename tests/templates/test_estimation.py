"""`EstimationProcess`: a state that can be read."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

import koinon as ko
from koinon.templates import (
    EstimateNotAssignableError,
    EstimationProcess,
    IterativeProcess,
    TemplateInitFnParamNotEmptyError,
    TemplateNextFnNumArgsError,
    TemplateStateNotAssignableError,
)
from koinon.types import TensorType, at_clients, at_server

FLOAT = TensorType(jnp.float32)
STATE, VALUE = at_server(FLOAT), at_clients(FLOAT)

first = ko.federated_computation(lambda: ko.federated_value(1.0, ko.SERVER))
add_sum = ko.federated_computation(STATE, VALUE)(
    lambda state, value: ko.federated_map(lambda a, b: a + b, (state, ko.federated_sum(value)))
)
report_twice = ko.federated_computation(STATE)(lambda state: ko.federated_map(lambda x: 2.0 * x, state))
square = ko.federated_computation(STATE)(lambda estimate: ko.federated_map(lambda x: x * x, estimate))


def test_the_report_reads_the_state(backend):
    """The estimate follows the state through `next`."""
    process = EstimationProcess(first, add_sum, report_twice)
    state = process.next(process.initialize(), [1.0, 2.0])

    assert float(process.report(process.initialize())) == 2.0
    assert float(process.report(state)) == 2.0 * (1.0 + 1.0 + 2.0)


def test_map_composes_the_report_and_keeps_the_rest(backend):
    """The mapped process has the same state and another estimate."""
    process = EstimationProcess(first, add_sum, report_twice)
    mapped = process.map(square)

    assert mapped.initialize is process.initialize
    assert mapped.next is process.next
    assert float(mapped.report(mapped.initialize())) == 4.0


def test_map_may_change_the_type_of_the_estimate():
    """What is mapped only has to accept the estimate."""
    to_int = ko.federated_computation(STATE)(lambda x: ko.federated_map(lambda y: y.astype(jnp.int32), x))
    mapped = EstimationProcess(first, add_sum, report_twice).map(to_int)

    assert mapped.report.type_signature.result == at_server(TensorType(jnp.int32))


def test_the_state_may_be_unplaced():
    """Estimations are not bound to places."""
    zero = ko.jax_computation(lambda: jnp.float32(0.0))
    same = ko.jax_computation(FLOAT)(lambda x: x)

    assert EstimationProcess(zero, same, same).state_type == FLOAT


int_report = ko.federated_computation(at_server(TensorType(jnp.int32)))(lambda x: x)

ILL_FORMED = {
    "initialize takes a parameter": (report_twice, add_sum, report_twice, None, TemplateInitFnParamNotEmptyError),
    "next takes nothing": (first, first, report_twice, None, TemplateNextFnNumArgsError),
    "next takes one argument, several are said": (first, square, report_twice, True, TemplateNextFnNumArgsError),
    "next takes another state": (first, int_report, report_twice, None, TemplateStateNotAssignableError),
    "report takes another state": (first, add_sum, int_report, None, TemplateStateNotAssignableError),
    "report takes nothing": (first, add_sum, first, None, TemplateStateNotAssignableError),
}


@pytest.mark.parametrize("case", ILL_FORMED)
def test_an_ill_formed_estimation_raises_the_error_of_its_contract(case):
    """Each violation has its own class."""
    *arguments, error = ILL_FORMED[case]
    with pytest.raises(TypeError) as raised:
        EstimationProcess(*arguments)

    assert type(raised.value) is error


def test_a_report_that_is_no_computation_is_refused_by_name():
    """A Python function is not a computation, nor is one without declared types."""
    with pytest.raises(TypeError, match=r"Expected .*\.Computation, .*`report_fn`"):
        EstimationProcess(first, add_sum, lambda state: state)


@pytest.mark.parametrize("fn", [int_report, first])
def test_map_refuses_a_function_that_does_not_accept_the_estimate(fn):
    """Another parameter type, or none."""
    with pytest.raises(EstimateNotAssignableError, match="must accept its estimate"):
        EstimationProcess(first, add_sum, report_twice).map(fn)


def test_map_refuses_what_is_no_computation():
    """A Python function is not a computation."""
    with pytest.raises(TypeError, match=r"Expected .*\.Computation, .*"):
        EstimationProcess(first, add_sum, report_twice).map(lambda x: x)


def test_an_estimation_is_an_iterative_process():
    """It can be driven like any other."""
    assert isinstance(EstimationProcess(first, add_sum, report_twice), IterativeProcess)
