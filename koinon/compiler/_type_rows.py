"""Types as rows of a header: each type once, its parts before it, with the names of the containers.

"float32[?,3]"                             a tensor, or `placement`, in the compact notation
["struct", [[name, type], ...], container] ["federated", type, placement, all_equal]
["sequence", type]                         ["function", parameter, result]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from koinon._errors import KoinonError
from koinon.compiler._wire import refuse
from koinon.computation import Batch
from koinon.types import (
    CLIENTS,
    SERVER,
    FederatedType,
    FunctionType,
    PlacementType,
    SequenceType,
    StructType,
    TensorType,
    Type,
    container_name,
    parse,
    register_container,
    registered_container,
)

register_container("koinon.Batch", Batch)

MAX_PARTS = 200_000
"""How many types there may be inside one, those that occur several times counted as often."""

_MAX_NOTATION = 1000
_PLACEMENTS = {str(placement): placement for placement in (CLIENTS, SERVER)}


def type_row(type_: Type, position: Callable[[Type], int]) -> Any:
    """The row of a type.

    Args:
      type_: the type.
      position: the position of a part of it in the table.
    """
    match type_:
        case StructType():
            return ["struct", [[name, position(part)] for name, part in type_.items()], container_name(type_.container)]
        case SequenceType():
            return ["sequence", position(type_.element)]
        case FederatedType():
            return ["federated", position(type_.member), str(type_.placement), type_.all_equal]
        case FunctionType():
            parameter = None if type_.parameter is None else position(type_.parameter)
            return ["function", parameter, position(type_.result)]
        case _:
            return type_.compact_representation()


class TypeSizes(dict[Type, int]):
    """The number of types in a type, itself included, those that occur several times counted as often."""

    def __missing__(self, type_: Type) -> int:
        size = self[type_] = 1 + sum([self[part] for part in type_.children()])
        return size


class TypeReader:
    """Reads the rows of types, one after the other.

    Attributes:
      types: the types read so far.
      used: the positions of those that are a part of another.
      sizes: how large they are.
    """

    def __init__(self) -> None:
        self.types: list[Type] = []
        self.used: set[int] = set()
        self.sizes = TypeSizes()

    def read(self, row: Any) -> None:
        """Reads the next row.

        Raises:
          SerializationError: where the row denotes no type.
        """
        at = f"types[{len(self.types)}]"
        try:
            type_ = self._notation(row, at) if isinstance(row, str) else self._compound(row, at)
        except KoinonError as error:
            refuse(error.what, at=at, expected=error.expected, found=error.found)
        if self.sizes[type_] > MAX_PARTS:
            refuse("A type is too large.", at=at, expected=f"at most {MAX_PARTS} parts", found=self.sizes[type_])
        self.types.append(type_)

    def _notation(self, text: str, at: str) -> Type:
        type_ = parse(text) if len(text) <= _MAX_NOTATION else None
        if not isinstance(type_, (TensorType, PlacementType)) or type_.compact_representation() != text:
            refuse("A tensor is expected, in canonical notation.", at=at, found=repr(text)[:100])
        return type_

    def _compound(self, row: Any, at: str) -> Type:
        match row:
            case ["struct", list() as fields, container]:
                if not all(isinstance(field, list) and len(field) == 2 for field in fields):
                    refuse("A field of a structure is a name and a type.", at=at)
                names = [name for name, _ in fields]
                if not all(name is None or isinstance(name, str) for name in names):
                    refuse("The name of a field is text.", at=at)
                parts = [self._part(position, at) for _, position in fields]
                return StructType(list(zip(names, parts, strict=True)), read_container(container, names, at))
            case ["sequence", element]:
                return SequenceType(self._part(element, at))
            case ["federated", member, str() as placement, bool() as all_equal] if placement in _PLACEMENTS:
                return FederatedType(self._part(member, at), _PLACEMENTS[placement], all_equal)
            case ["function", parameter, result]:
                taken = None if parameter is None else self._part(parameter, at)
                return FunctionType(taken, self._part(result, at))
            case _:
                refuse("There is no type of this kind.", at=at, found=repr(row)[:100])

    def _part(self, position: Any, at: str) -> Type:
        if type(position) is not int or not 0 <= position < len(self.types):
            refuse("A part of a type comes before it.", at=at, expected=f"below {len(self.types)}", found=position)
        self.used.add(position)
        return self.types[position]


def read_container(name: Any, fields: Sequence[str | None], at: str) -> type | None:
    """The container that a name stands for; None, the default container, where the name is not registered here."""
    if name is None:
        return None
    if not isinstance(name, str):
        refuse("The name of a container is text.", at=at, found=repr(name)[:100])
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
