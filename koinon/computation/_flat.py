"""Values of a type as flat lists of arrays, and back.

Inside koinon a value has one form, given by its type alone: a tensor is an array, a struct is a tuple of its fields,
and a sequence is a `Sequence`. Containers of the user appear only at the boundary, by `to_user` and `from_user`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from typing import Any

from koinon._errors import ArgumentError
from koinon.computation._sequence import Sequence
from koinon.computation._views import PackedView
from koinon.types import (
    FederatedType,
    SequenceType,
    StructType,
    TensorType,
    Type,
    from_container,
    to_container,
)


def leaf_types(type_: Type) -> tuple[TensorType, ...]:
    """The types of the flat leaves of a value; a sequence has its buffers, then its offset and its length."""
    if isinstance(type_, TensorType):
        return (type_,)
    if isinstance(type_, StructType):
        return tuple(leaf for _, field in type_.items() for leaf in leaf_types(field))
    if isinstance(type_, SequenceType):
        buffers = tuple(
            TensorType(leaf.dtype, (None, *leaf.shape) if leaf.shape is not None else None)
            for leaf in leaf_types(type_.element)
        )
        return (*buffers, TensorType("int32"), TensorType("int32"))
    if isinstance(type_, FederatedType):
        return leaf_types(type_.member)
    raise TypeError(f"a value of type {type_} has no leaves")


def flatten(type_: Type, value: Any) -> list[Any]:
    """The flat leaves of a value in koinon's own form."""
    leaves: list[Any] = []
    _flatten_into(type_, value, leaves)
    return leaves


def _flatten_into(type_: Type, value: Any, leaves: list[Any]) -> None:
    if isinstance(type_, StructType):
        for (_, field), child in zip(type_.items(), value, strict=True):
            _flatten_into(field, child, leaves)
    elif isinstance(type_, SequenceType):
        view = value.packed()
        leaves.extend((*view.buffers, view.offset, view.length))
    else:
        leaves.append(value)


def unflatten(type_: Type, leaves: Seq[Any]) -> Any:
    """The value in koinon's own form that has these flat leaves."""
    iterator = iter(leaves)
    value = _unflatten(type_, iterator)
    if next(iterator, iterator) is not iterator:
        raise ValueError(f"more leaves than a value of type {type_} has")
    return value


def _unflatten(type_: Type, leaves: Iterator[Any]) -> Any:
    if isinstance(type_, TensorType):
        return next(leaves)
    if isinstance(type_, StructType):
        return tuple([_unflatten(field, leaves) for _, field in type_.items()])
    if isinstance(type_, SequenceType):
        buffers = tuple([next(leaves) for _ in leaf_types(type_.element)])
        return Sequence(PackedView(type_.element, buffers, next(leaves), next(leaves)))
    raise TypeError(f"a value of type {type_} has no leaves")


def to_user(type_: Type, value: Any) -> Any:
    """The value with the containers of its type, as a user sees it."""
    if isinstance(type_, StructType):
        return to_container(
            type_, [to_user(field, child) for (_, field), child in zip(type_.items(), value, strict=True)]
        )
    return value


def from_user(type_: Type, value: Any, leaf: Callable[[Type, Any, str], Any], path: str = "") -> Any:
    """The value in koinon's own form of what a user gave.

    Args:
      type_: the type that the value must have.
      value: containers as a user writes them; mappings match by name.
      leaf: converts what is no struct, given its type, the value and its path.
      path: where the value sits in the whole, for messages.
    """
    if isinstance(type_, StructType):
        return tuple([from_user(field, child, leaf, at) for at, field, child in fields_at(type_, value, path)])
    return leaf(type_, value, path)


def fields_at(type_: StructType, value: Any, path: str) -> list[tuple[str, Type, Any]]:
    """The path, the type and the value of each field of a struct as a user gave it; `path` is that of the struct."""
    try:
        children = from_container(type_, value)
    except ArgumentError as error:
        raise ArgumentError(
            error.what,
            expected=error.expected,
            found=error.found,
            differs=path or error.differs,
            made_in=error.made_in,
            hint=error.hint,
        ) from None
    return [
        (f"{path}.{name}" if name is not None else f"{path}[{i}]", field, child)
        for i, ((name, field), child) in enumerate(zip(type_.items(), children, strict=True))
    ]
