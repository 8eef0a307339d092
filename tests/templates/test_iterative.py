"""`IterativeProcess`: the contract of a state and a step."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.computation import to_value
from koinon.templates import (
    IterativeProcess,
    TemplateInitFnParamNotEmptyError,
    TemplateNextFnNumArgsError,
    TemplateStateNotAssignableError,
    is_stateful,
)
from koinon.types import StructType, TensorType, to_type

INT, FLOAT = TensorType(jnp.int32), TensorType(jnp.float32)

zero = ko.jax_computation(lambda: jnp.int32(0))
add_one = ko.jax_computation(INT)(lambda state: state + 1)
add_value = ko.jax_computation(INT, INT)(lambda state, value: state + value)
add_and_tell = ko.jax_computation(INT, INT)(lambda state, value: (state + value, 2.0 * value))
no_argument = ko.jax_computation(lambda: jnp.int32(1))


def test_a_process_of_a_state_alone_steps_through_its_states(backend):
    """The state that `next` returns can be given to it again."""
    process = IterativeProcess(zero, add_one)
    state = process.initialize()
    for _ in range(5):
        state = process.next(state)

    assert int(state) == 5


def test_next_may_take_more_than_the_state_and_return_more(backend):
    """The state is the first of several arguments and of several results."""
    process = IterativeProcess(zero, add_and_tell)
    state, told = process.next(process.initialize(), 3)

    assert (int(state), float(told)) == (3, 6.0)


def test_attributes_are_what_was_given():
    """The two computations are kept as they are, and a process that is not composed has no parts."""
    process = IterativeProcess(zero, add_one)

    assert process.initialize is zero
    assert process.next is add_one
    assert process.state_type == INT
    assert dict(process.parts) == {}


def test_the_state_type_is_what_next_takes_not_what_initialize_returns():
    """A state may widen to an unknown dimension."""
    wide = TensorType(jnp.float32, (None,))
    process = IterativeProcess(
        ko.jax_computation(lambda: jnp.zeros(3)), ko.jax_computation(wide)(lambda state: 2.0 * state)
    )

    assert process.state_type == wide


def test_the_whole_parameter_is_the_state_where_it_fits():
    """A struct of two numbers is a state of two numbers, not a state and an argument."""
    pair = ko.jax_computation(lambda: {"a": jnp.int32(1), "b": jnp.int32(1)})
    fibonacci = ko.jax_computation(pair.type_signature.result)(
        lambda state: {"a": state["b"], "b": state["a"] + state["b"]}
    )

    assert IterativeProcess(pair, fibonacci).state_type == pair.type_signature.result


@pytest.mark.parametrize("next_is_multi_arg", [None, True])
def test_a_state_and_an_argument_are_accepted_where_several_arguments_may_be(next_is_multi_arg):
    """The first of several arguments is the state, whether this is said or inferred."""
    assert IterativeProcess(zero, add_value, next_is_multi_arg).state_type == INT


@pytest.mark.parametrize("next_is_multi_arg", [None, False])
def test_a_single_state_is_accepted_where_one_argument_may_be(next_is_multi_arg):
    """The only argument is the state, whether this is said or inferred."""
    assert IterativeProcess(zero, add_one, next_is_multi_arg).state_type == INT


float_state = ko.jax_computation(FLOAT)(lambda state: state)
to_float = ko.jax_computation(INT)(lambda state: 1.0 * state)
state_second = ko.jax_computation(INT)(lambda state: (1.0, state))
nothing_back = ko.jax_computation(INT)(lambda state: ())
pair_state = ko.jax_computation(lambda: (jnp.int32(0), jnp.int32(0)))
pair_step = ko.jax_computation(to_type((INT, INT)))(lambda state: state)
takes_one = ko.jax_computation(INT)(lambda x: x)
polymorphic = ko.jax_computation(lambda x: x)

ILL_FORMED = {
    "next takes a float, the state is an int": (zero, float_state, None, TemplateStateNotAssignableError),
    "initialize takes a parameter": (takes_one, add_one, None, TemplateInitFnParamNotEmptyError),
    "initialize takes a parameter and next is no computation": (
        takes_one,
        lambda state: state,
        None,
        TemplateInitFnParamNotEmptyError,
    ),
    "next takes nothing": (zero, no_argument, None, TemplateNextFnNumArgsError),
    "next takes nothing, one argument is said": (zero, no_argument, False, TemplateNextFnNumArgsError),
    "next takes nothing, several arguments are said": (zero, no_argument, True, TemplateNextFnNumArgsError),
    "next takes one argument, several are said": (zero, add_one, True, TemplateNextFnNumArgsError),
    "next takes several arguments, one is said": (zero, add_value, False, TemplateStateNotAssignableError),
    "the whole parameter is the state, several are said": (
        pair_state,
        pair_step,
        True,
        TemplateStateNotAssignableError,
    ),
    "next returns another state": (zero, to_float, None, TemplateStateNotAssignableError),
    "next returns the state second": (zero, state_second, None, TemplateStateNotAssignableError),
    "next returns nothing": (zero, nothing_back, None, TemplateStateNotAssignableError),
}


@pytest.mark.parametrize("case", ILL_FORMED)
def test_an_ill_formed_process_raises_the_error_of_its_contract(case):
    """Each violation has its own class, and the first in the order of the checks wins."""
    initialize, next_fn, next_is_multi_arg, error = ILL_FORMED[case]
    with pytest.raises(TypeError) as raised:
        IterativeProcess(initialize, next_fn, next_is_multi_arg)

    assert type(raised.value) is error


@pytest.mark.parametrize(
    ("initialize", "next_fn", "found"),
    [
        (lambda: 0, add_one, "function as `initialize_fn`"),
        (polymorphic, add_one, "PolymorphicComputation as `initialize_fn`"),
        (zero, lambda state: state, "function as `next_fn`"),
        (zero, polymorphic, "PolymorphicComputation as `next_fn`"),
        (zero, None, "NoneType as `next_fn`"),
    ],
)
def test_what_is_no_computation_is_refused_by_name(initialize, next_fn, found):
    """A Python function is not a computation, nor is one without declared types."""
    with pytest.raises(TypeError, match=rf"Expected .*\.Computation, .*{found}"):
        IterativeProcess(initialize, next_fn)


def test_a_state_that_does_not_come_back_is_explained_part_by_part():
    """The message says what was expected and found, at which path they differ, and what to do."""
    state = StructType([("n", INT), ("w", TensorType(jnp.float32, (2,)))], dict)
    first = ko.jax_computation(lambda: {"n": jnp.int32(0), "w": jnp.zeros(2)})
    grow = ko.jax_computation(state)(lambda s: {"n": s["n"], "w": jnp.zeros(3)})
    with pytest.raises(TemplateStateNotAssignableError) as raised:
        IterativeProcess(first, grow)

    what, expected, found, differs, hint = str(raised.value).splitlines()
    assert what == "IterativeProcess: `next` must return a state that it accepts back."
    assert expected.split() == ["expected", "<n=int32,w=float32[2]>"]
    assert found.split() == ["found", "<n=int32,w=float32[3]>"]
    assert differs.split() == "differs at .w: expected float32[2], found float32[3]".split()
    assert hint.split()[:3] == ["try", "return", "a"]


@pytest.mark.parametrize(
    ("state", "stateful"),
    [
        ((), False),
        ({"a": (), "b": {"c": ()}}, False),
        (np.float32(0.0), True),
        ({"a": (), "b": np.int32(1)}, True),
    ],
)
@pytest.mark.parametrize("placed", [False, True])
def test_a_process_is_stateful_if_its_state_holds_any_tensor(state, stateful, placed):
    """Structs without leaves hold nothing, however they are nested and placed."""
    if placed:
        initialize = ko.federated_computation(lambda: ko.federated_value(state, ko.SERVER))
    else:
        initialize = (
            ko.federated_computation(lambda: to_value(state)) if not stateful else ko.jax_computation(lambda: state)
        )
    keep = ko.federated_computation(initialize.type_signature.result)(lambda s: s)

    assert is_stateful(IterativeProcess(initialize, keep)) is stateful
