"""What the type of a `next` consists of."""

from __future__ import annotations

from collections.abc import Iterator

from koinon.types import FunctionType, StructType, Type


def arguments_of(signature: FunctionType) -> tuple[Type, ...]:
    """The types of the arguments: the fields of the parameter, or the parameter itself where it is no struct."""
    parameter = signature.parameter
    if isinstance(parameter, StructType):
        return parameter.children()
    return () if parameter is None else (parameter,)


def output_of(signature: FunctionType, field: str) -> Type:
    """The type of a field of the result, which has this field."""
    result = signature.result
    assert isinstance(result, StructType)
    return result[field]


def leaves(type_: Type | None) -> Iterator[Type]:
    """The types at the leaves of a struct, or the type itself; an empty struct has none."""
    if isinstance(type_, StructType):
        for element in type_:
            yield from leaves(element)
    elif type_ is not None:
        yield type_
