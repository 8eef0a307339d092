"""`MeasuredProcess`: a step with a result and measurements."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest

import koinon as ko
from koinon.templates import (
    MeasuredProcess,
    MeasuredProcessOutput,
    TemplateInitFnParamNotEmptyError,
    TemplateNextFnNumArgsError,
    TemplateNotMeasuredProcessOutputError,
    TemplateStateNotAssignableError,
)
from koinon.types import TensorType, at_server

INT, FLOAT = TensorType(jnp.int32), TensorType(jnp.float32)

zero = ko.jax_computation(lambda: jnp.int32(0))


class LookAlike(NamedTuple):
    """Another class with the fields of the right one."""

    state: Any
    result: Any
    measurements: Any


def measured(fn, *types):
    """A `next` of a count and a value, whose output `fn` makes."""
    return ko.jax_computation(INT, *(types or (FLOAT,)))(fn)


def test_a_step_returns_state_result_and_measurements(backend):
    """The output comes back in its own container, field by field."""
    process = MeasuredProcess(
        zero, measured(lambda count, value: MeasuredProcessOutput(count + 1, value**2, {"value": value}))
    )
    output = process.next(process.initialize(), 3.0)

    assert isinstance(output, MeasuredProcessOutput)
    assert int(output.state) == 1
    assert float(output.result) == 9.0
    assert {name: float(value) for name, value in output.measurements.items()} == {"value": 3.0}


def test_measurements_may_be_empty_and_unplaced():
    """Only templates of placed processes ask for placed measurements."""
    process = MeasuredProcess(zero, measured(lambda count, value: MeasuredProcessOutput(count, value, ())))

    assert str(process.next.type_signature.result) == "<state=int32,result=float32,measurements=<>>"


def test_a_process_of_a_state_alone_is_a_measured_process():
    """`next` need not take more than the state."""
    next_fn = ko.jax_computation(INT)(lambda count: MeasuredProcessOutput(count + 1, count, ()))

    assert MeasuredProcess(zero, next_fn).state_type == INT


OUTPUTS = {
    "a tuple": lambda s, v: (s, v, ()),
    "an OrderedDict of the same names": lambda s, v: collections.OrderedDict(state=s, result=v, measurements=()),
    "another NamedTuple of the same names": lambda s, v: LookAlike(s, v, ()),
    "the state alone": lambda s, v: s,
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_anything_else_than_a_measured_process_output_is_refused(case):
    """The container is recognised by identity."""
    with pytest.raises(TemplateNotMeasuredProcessOutputError, match="must return a `MeasuredProcessOutput`"):
        MeasuredProcess(zero, measured(OUTPUTS[case]))


def test_a_zipped_output_is_refused_because_its_state_does_not_come_back():
    """A placed struct is no struct of placed values."""
    first = ko.federated_computation(lambda: ko.federated_value(0, ko.SERVER))

    @ko.federated_computation(at_server(INT))
    def next_fn(state):
        return ko.federated_zip(MeasuredProcessOutput(state, state, state))

    with pytest.raises(TemplateStateNotAssignableError, match="without `federated_zip`"):
        MeasuredProcess(first, next_fn)


def test_a_state_that_is_itself_an_output_must_come_back_as_the_field_state():
    """The whole result may not pass for the state."""
    first = ko.jax_computation(lambda: MeasuredProcessOutput(jnp.int32(0), jnp.int32(0), jnp.int32(0)))
    same = ko.jax_computation(first.type_signature.result)(lambda state: state)
    with pytest.raises(TemplateStateNotAssignableError):
        MeasuredProcess(first, same)


@pytest.mark.parametrize(
    ("initialize", "next_fn", "next_is_multi_arg", "error"),
    [
        (
            ko.jax_computation(INT)(lambda x: x),
            measured(lambda s, v: MeasuredProcessOutput(s, v, ())),
            None,
            TemplateInitFnParamNotEmptyError,
        ),
        (zero, ko.jax_computation(lambda: jnp.int32(0)), None, TemplateNextFnNumArgsError),
        (
            zero,
            ko.jax_computation(INT)(lambda s: MeasuredProcessOutput(s, s, ())),
            True,
            TemplateNextFnNumArgsError,
        ),
        (zero, measured(lambda s, v: MeasuredProcessOutput(v, s, ())), None, TemplateStateNotAssignableError),
        # Both the container and the state are wrong: the state is checked first, as in the base template.
        (zero, measured(lambda s, v: (v, s, ())), None, TemplateStateNotAssignableError),
    ],
)
def test_the_checks_of_the_iterative_process_come_first(initialize, next_fn, next_is_multi_arg, error):
    """A measured process that breaks the base contract raises its errors."""
    with pytest.raises(TypeError) as raised:
        MeasuredProcess(initialize, next_fn, next_is_multi_arg)

    assert type(raised.value) is error
