"""The type of structures."""

from __future__ import annotations

import collections
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon import _errors as errors
from koinon.types import StructType, StructWithPythonType, TensorType, parse
from koinon.types import _struct as implementation
from tests import strategies

INT32, FLOAT32 = TensorType(np.int32), TensorType(np.float32)


class Point(NamedTuple):
    """A named tuple."""

    x: object
    y: object


def test_fields_are_found_by_name_position_and_attribute() -> None:
    """The three ways give the same type."""
    type_ = StructType([("a", INT32), ("b", FLOAT32)])

    assert type_.a is type_["a"] is type_[0] is INT32
    assert type_.b is type_["b"] is type_[-1] is FLOAT32


def test_fields_can_be_listed() -> None:
    """Items, names, types and length are in the order of the fields."""
    named = StructType([("b", INT32), ("a", FLOAT32)])
    unnamed = StructType([INT32, FLOAT32])

    assert named.items() == [("b", INT32), ("a", FLOAT32)]
    assert named.fields() == ["b", "a"]
    assert named.is_named
    assert unnamed.items() == [(None, INT32), (None, FLOAT32)]
    assert unnamed.fields() == []
    assert not unnamed.is_named
    assert list(named) == list(unnamed) == [INT32, FLOAT32]
    assert len(named) == len(unnamed) == 2


def test_items_build_the_type_again() -> None:
    """Both forms of `items` are accepted, and so is a mapping."""
    for type_ in (StructType([("a", INT32), ("b", FLOAT32)]), StructType([INT32, FLOAT32]), StructType([])):
        assert StructType(type_.items()) == type_
    assert StructType({"a": np.int32, "b": np.float32}) == parse("<a=int32,b=float32>")


def test_names_of_methods_are_names_of_fields() -> None:
    """The attribute stays the method, the index is the field."""
    type_ = StructType([("items", INT32), ("container", FLOAT32), ("_names", INT32), ("mean", FLOAT32)])

    assert type_.items()[0] == ("items", INT32)
    assert (type_["items"], type_["container"], type_["_names"]) == (INT32, FLOAT32, INT32)
    assert type_.container is None
    assert type_.mean is FLOAT32
    assert str(type_) == "<items=int32,container=float32,_names=int32,mean=float32>"


def test_fields_that_are_not_there_are_errors_of_python() -> None:
    """A missing attribute, name or position raises what Python users expect."""
    type_ = StructType([("a", INT32)])

    with pytest.raises(AttributeError, match=r"<a=int32> has no field `b`"):
        _ = type_.b
    with pytest.raises(KeyError):
        _ = type_["b"]
    with pytest.raises(IndexError):
        _ = type_[1]
    with pytest.raises(TypeError):
        _ = type_[1.0]  # pyright: ignore[reportArgumentType]


def test_an_empty_structure_is_true_and_has_no_names() -> None:
    """`if type_` asks whether there is a type, not whether it has fields."""
    assert StructType([])
    assert len(StructType([])) == 0
    assert StructType([]).fields() == []


def test_fields_are_completed_in_interactive_use() -> None:
    """`dir` lists the fields among the attributes."""
    assert {"alpha", "items"} <= set(dir(StructType([("alpha", INT32)])))


@pytest.mark.parametrize("name", ["Dense_0", "layers/0", "0", "a.b", "a-b", "ω", "'", '"', "int32", "x:y", "~", "\\"])
def test_keys_of_pytrees_are_names(name: str) -> None:
    """What the notation can print and read back may be a name."""
    type_ = StructType([(name, INT32), ("other", INT32)])

    assert type_[name] is INT32
    assert parse(str(type_)) == type_


@pytest.mark.parametrize("name", ["", " ", "a b", "a\n", "\x00", "\x7f", "\u2003", "\ud800", *"<>=,(){}*@[]?"])
def test_names_that_the_notation_cannot_carry_are_refused(name: str) -> None:
    """White space, control characters and the characters of the grammar are in no name."""
    with pytest.raises(errors.KoinonValueError, match="cannot be the name of a field"):
        StructType([(name, INT32)])


def test_duplicate_names_are_refused() -> None:
    """A name tells one field."""
    with pytest.raises(errors.KoinonValueError, match="occurs twice") as info:
        StructType([("a", INT32), ("b", INT32), ("a", FLOAT32)])

    assert info.value.found == "'a'"


@pytest.mark.parametrize("elements", [[("a", INT32), FLOAT32], [INT32, ("a", FLOAT32)], [("a", INT32), (None, INT32)]])
def test_names_for_some_fields_only_are_refused(elements) -> None:
    """Either all fields have a name or none; TFF allows the mixture, and cannot return such values."""
    with pytest.raises(errors.KoinonValueError, match="either all a name or none") as info:
        StructType(elements)

    assert "1 fields with a name and 1 without" in str(info.value)


def test_too_many_fields_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a declared limit, so that a text cannot ask for any amount of memory."""
    monkeypatch.setattr(implementation, "MAX_FIELDS", 3)

    assert len(StructType([INT32] * 3)) == 3
    with pytest.raises(errors.KoinonValueError, match="at most 3 fields"):
        StructType([INT32] * 4)


def test_containers_are_part_of_equality() -> None:
    """Types with different containers, or none, are different; with the same they are equal."""
    elements = [("a", INT32)]
    containers = [None, dict, collections.OrderedDict, collections.UserDict]

    types = [StructType(elements, container) for container in containers]

    assert len(set(types)) == len(types)
    assert StructType(elements, dict) == StructWithPythonType(elements, dict)
    assert hash(StructType(elements, dict)) == hash(StructWithPythonType(elements, dict))
    assert [type_.container for type_ in types] == [type_.python_container for type_ in types] == containers


def test_look_alike_named_tuples_are_different_containers() -> None:
    """A container is its class, not its name."""
    elements = [("x", INT32), ("y", INT32)]
    twin = collections.namedtuple("Point", ["x", "y"])

    assert StructType(elements, Point) != StructType(elements, twin)


def test_containers_that_cannot_hold_the_fields_are_refused() -> None:
    """A list has no names and a dictionary has nothing else."""
    for container in (list, tuple):
        with pytest.raises(errors.KoinonValueError, match="holds fields without names"):
            StructType([("a", INT32)], container)
    for container in (dict, collections.OrderedDict):
        with pytest.raises(errors.KoinonValueError, match="holds fields with names"):
            StructType([INT32], container)


@pytest.mark.parametrize("container", [{}, "dict", 3])
def test_containers_are_classes(container) -> None:
    """An instance does not serve."""
    with pytest.raises(errors.KoinonTypeError, match="container is a class"):
        StructType([], container)


def test_elements_are_anything_that_describes_a_type() -> None:
    """A dtype, a pair of dtype and shape, an array or a container may be an element."""
    type_ = StructType([("a", np.float32), ("b", (np.int32, (2,))), ("c", np.zeros(3, np.int8)), ("d", [np.int32])])

    assert str(type_) == "<a=float32,b=int32[2],c=int8[3],d=<int32>>"


@given(st.lists(st.tuples(strategies.field_names(), strategies.tensor_types()), unique_by=lambda field: field[0]))
def test_structures_are_ordered_dictionaries_of_types(elements) -> None:
    """Whatever the names, items come back in order and each name finds its type."""
    type_ = StructType(elements)

    assert type_.items() == elements
    assert all(type_[name] == element for name, element in elements)
