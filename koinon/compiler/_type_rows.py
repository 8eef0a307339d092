"""Types as rows of a header: the compact notation, and the names of the containers, which the notation leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from koinon._errors import KoinonError
from koinon.compiler._wire import refuse
from koinon.computation import Batch
from koinon.types import (
    AbstractType,
    StructType,
    Type,
    container_name,
    parse,
    register_container,
    registered_container,
    transform_type_postorder,
    type_contains,
)

register_container("koinon.Batch", Batch)

MAX_COMMAS = 100_000
"""A type has no more dimensions and fields than this, and so is read or refused in bounded time and space."""


def type_row(type_: Type) -> list[Any]:
    """The row of a type: its notation, and for each structure in it, the innermost first, the name of its container."""
    containers: list[str | None] = []

    def note(part: Type) -> tuple[Type, bool]:
        if isinstance(part, StructType):
            containers.append(container_name(part.container))
        return part, False

    transform_type_postorder(type_, note)
    return [type_.compact_representation(), containers]


def read_type(row: Any, at: str) -> Type:
    """The type of a row.

    Args:
      row: what the header has.
      at: where it has it, for messages.

    Raises:
      SerializationError: where the row denotes no type.
    """
    match row:
        case [str() as text, list() as containers]:
            pass
        case _:
            refuse("A type is its notation and the names of its containers.", at=at, found=type(row).__name__)
    if text.count(",") > MAX_COMMAS:
        refuse("A type is too large.", at=at, expected=f"at most {MAX_COMMAS} commas", found=text.count(","))
    try:
        type_ = parse(text)
    except KoinonError as error:
        refuse(error.what, at=at, found=error.found)
    if type_contains(type_, lambda part: isinstance(part, AbstractType)):
        refuse("A type of a computation has no variables.", at=at, found=type_)
    if type_.compact_representation() != text:
        refuse("A type is not in canonical notation.", at=at, expected=type_, found=text)
    return _with_containers(type_, containers, at)


def _with_containers(type_: Type, containers: Sequence[Any], at: str) -> Type:
    remaining = iter(containers)

    def restore(part: Type) -> tuple[Type, bool]:
        if not isinstance(part, StructType):
            return part, False
        restored = struct_with_container(part.items(), next(remaining, None), at)
        return restored, restored.container is not None

    result, _ = transform_type_postorder(type_, restore)
    count = _count_structures(type_)
    if count != len(containers):
        refuse("A type names a container for each structure.", at=at, expected=f"{count} names", found=len(containers))
    return result


def _count_structures(type_: Type) -> int:
    count, pending = 0, [type_]
    while pending:
        current = pending.pop()
        count += isinstance(current, StructType)
        pending.extend(current.children())
    return count


def struct_with_container(fields: Sequence[tuple[str | None, Type]], name: Any, at: str) -> StructType:
    """The structure type of these fields, with the container that a name stands for.

    Raises:
      SerializationError: where the container does not hold such fields.
    """
    container = read_container(name, [field for field, _ in fields], at)
    try:
        return StructType([(field, type_) if field is not None else type_ for field, type_ in fields], container)
    except KoinonError as error:
        refuse(error.what, at=at, expected=error.expected, found=error.found)


def read_container(name: Any, fields: Sequence[str | None], at: str) -> type | None:
    """The container that a name stands for; None, the default container, where the name is not registered here."""
    if name is None:
        return None
    if not isinstance(name, str):
        refuse("The name of a container is text.", at=at, found=type(name).__name__)
    container = registered_container(name)
    declared = getattr(container, "_fields", None)
    if declared is not None and list(declared) != list(fields):
        refuse(
            f"The container {name} has other fields here than where it was written.",
            at=at,
            expected=", ".join(declared),
            found=", ".join(map(str, fields)),
        )
    return container
