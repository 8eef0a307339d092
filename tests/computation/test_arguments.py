"""Tests of the calling convention: one parameter, and the ways to give its fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import koinon as ko
from koinon.computation._arguments import Unpacked, match_arguments
from koinon.errors import ArgumentError
from koinon.types import StructType, TensorType


class Pair(NamedTuple):
    """Two fields."""

    a: Any
    b: Any


minus = ko.jax_computation(lambda a, b: a - b, np.float32, np.int32)
last = ko.jax_computation(lambda pair: pair["b"], {"a": np.float32, "b": np.int32})
inner = ko.jax_computation(lambda s: s["a"], {"a": np.float32})
alone = ko.jax_computation(lambda x: x, np.float32)
nothing = ko.jax_computation(lambda: 1)


@pytest.mark.parametrize(
    "call",
    [
        *(lambda f: f(5.0, 2), lambda f: f(5.0, b=2), lambda f: f(b=2, a=5.0), lambda f: f({"b": 2, "a": 5.0})),
        *(lambda f: f((5.0, 2)), lambda f: f([5.0, 2]), lambda f: f(Pair(5.0, 2))),
    ],
)
def test_the_fields_of_the_parameter_are_given_in_many_ways(call: Callable[[Any], Any], backend: str) -> None:
    """By position, by name, or as one argument: a tuple, a list, a dict, or a named tuple."""
    assert float(call(minus)) == 3.0
    assert int(call(last)) == 2


def test_a_mapping_is_matched_by_name_and_never_by_position(backend: str) -> None:
    """TFF matches a dict by position, so that values are swapped silently; koinon does not."""
    assert float(minus({"b": 1, "a": 10.0})) == 9.0
    assert float(minus(Pair(b=1, a=10.0))) == 9.0


@pytest.mark.parametrize(
    ("call", "message", "found"),
    [
        (lambda f: f(), "Declared a parameter of type <a=float32,b=int32>, but got no arguments.", None),
        (lambda f: f(1.0, 2, 3), "The computation takes 2 arguments.", "3 positional arguments"),
        (lambda f: f(1.0, 2, a=3), "The argument 'a' was given twice.", "2 positional arguments, and a"),
        (lambda f: f(1.0, a=3), "The argument 'a' was given twice.", "1 positional argument, and a"),
        (lambda f: f(1.0, c=3), "The computation has no parameter 'c'.", "1 positional argument, and c"),
        (lambda f: f(a=1.0, b=2, c=3), "The computation has no parameter 'c'.", "0 positional arguments, and a, b, c"),
        (lambda f: f(a=1.0), "The argument 'b' is missing.", "0 positional arguments, and a"),
        (lambda f: f(b=1), "The argument 'a' is missing.", "0 positional arguments, and b"),
        (lambda f: f({"a": 1.0}), "The names in a structure are not those of its type.", "missing 'b'"),
        (
            lambda f: f({"a": 1.0, "c": 1, "b": 2}),
            "The names in a structure are not those of its type.",
            "unexpected 'c'",
        ),
        (lambda f: f((1.0,)), "A structure has another number of fields than its type.", "1 values in a tuple"),
        (lambda f: f(1.0), "A structure was expected.", "a value of <class 'float'>"),
    ],
)
def test_a_wrong_call_says_which_argument(call: Callable[[Any], Any], message: str, found: Any, backend: str) -> None:
    """Count, names, and repetition are checked, each with its sentence, what was expected and what was found."""
    with pytest.raises(ArgumentError) as caught:
        call(minus)
    assert isinstance(caught.value, TypeError)
    assert caught.value.what == message
    assert caught.value.found == found


def test_a_computation_without_a_parameter_takes_no_arguments() -> None:
    """Positional and named arguments are refused."""
    for call in (lambda: nothing(1), lambda: nothing(x=1)):
        with pytest.raises(ArgumentError, match="Was not expecting any arguments"):
            call()


def test_a_parameter_that_is_no_struct_takes_one_argument() -> None:
    """Two arguments are refused, and so is a name: the parameter has none."""
    for call in (lambda: alone(1.0, 2.0), lambda: alone(x=1.0)):
        with pytest.raises(ArgumentError, match="A computation of one parameter takes one argument") as caught:
            call()
        assert caught.value.expected == TensorType(np.float32)


@pytest.mark.parametrize("call", [lambda f: f(2.0), lambda f: f({"a": 2.0}), lambda f: f(a=2.0), lambda f: f((2.0,))])
def test_a_struct_of_one_field_is_given_as_itself_or_as_its_field(call: Callable[[Any], Any]) -> None:
    """One argument is the struct where it is a container, and else its field."""
    assert float(call(inner)) == 2.0


def test_matching_gives_the_fields_in_order() -> None:
    """What engines get: the whole argument, or `Unpacked` fields in the order of the type."""
    parameter = StructType([("x", np.int32), ("y", np.int32)])
    whole = object()
    assert match_arguments(parameter, (whole,), {}) is whole
    matched = match_arguments(parameter, (), {"y": 2, "x": 1})
    assert isinstance(matched, Unpacked)
    assert matched.arguments == (1, 2)
    unnamed = match_arguments(StructType([np.int32, np.int32]), (1, 2), {})
    assert unnamed.arguments == (1, 2)
    with pytest.raises(ArgumentError, match=r"The argument '\[1\]' is missing|has no parameter"):
        match_arguments(StructType([np.int32, np.int32]), (1,), {"b": 2})
    assert match_arguments(None, (), {}) is None
