"""Concrete types as instances of types with variables."""

from __future__ import annotations

import pytest

from koinon import _errors as errors
from koinon.types import check_concrete_instance_of, parse


@pytest.mark.parametrize(
    ("concrete", "generic"),
    [
        ("int32", "int32"),
        ("int32", "T"),
        ("(int32 -> int32)", "(T -> T)"),
        ("(<int32,float32> -> <int32,float32>)", "(<T,U> -> <T,U>)"),
        ("(<a=int32> -> <a=int32>)", "(T -> T)"),
        ("({int32}@CLIENTS -> int32@SERVER)", "({T}@CLIENTS -> T@SERVER)"),
        ("(int32@CLIENTS -> int32@SERVER)", "({T}@CLIENTS -> T@SERVER)"),
        ("(<{int32}@CLIENTS,(int32 -> int8)> -> {int8}@CLIENTS)", "(<{T}@CLIENTS,(T -> U)> -> {U}@CLIENTS)"),
        ("(int32* -> int32*)", "(T* -> T*)"),
        ("( -> int32)", "( -> T)"),
        ("(int32[3] -> int32[?])", "(T -> T)"),
        ("placement", "placement"),
    ],
)
def test_instances_are_accepted(concrete: str, generic: str) -> None:
    """Some substitution of the variables gives the concrete type, or one that accepts it."""
    check_concrete_instance_of(parse(concrete), parse(generic))


@pytest.mark.parametrize(
    ("concrete", "generic", "error"),
    [
        ("(T -> int32)", "(T -> int32)", errors.NotConcreteTypeError),
        ("int32", "float32", errors.MismatchedStructureError),
        ("int32", "<T>", errors.MismatchedStructureError),
        ("<int32>", "<T,T>", errors.MismatchedStructureError),
        ("<a=int32>", "<b=T>", errors.MismatchedStructureError),
        ("( -> int32)", "(T -> int32)", errors.MismatchedStructureError),
        ("int32@SERVER", "T@CLIENTS", errors.MismatchedStructureError),
        ("{int32}@CLIENTS", "T@CLIENTS", errors.MismatchedStructureError),
        ("(<int32,float32> -> int32)", "(<T,T> -> T)", errors.MismatchedConcreteTypesError),
        ("(int32 -> float32)", "(T -> T)", errors.UnassignableConcreteTypesError),
        ("(int32[?] -> int32[3])", "(T -> T)", errors.UnassignableConcreteTypesError),
        ("(<int32,(float32 -> int8)> -> int8)", "(<T,(T -> U)> -> U)", errors.UnassignableConcreteTypesError),
        ("( -> <int32,int32>)", "( -> <T,T>)", errors.MissingDefiningUsageError),
    ],
)
def test_other_types_are_refused(concrete: str, generic: str, error: type[Exception]) -> None:
    """Each way to be no instance has its class, all of which are type errors."""
    with pytest.raises(error) as info:
        check_concrete_instance_of(parse(concrete), parse(generic))

    assert isinstance(info.value, errors.KoinonTypeError)
    assert type(info.value) is error
