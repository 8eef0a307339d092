"""The names of the flat leaves of a value: where each sits in it, as a user would write it."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterator

from koinon.types import (
    CLIENTS,
    SERVER,
    FederatedType,
    MappingContainer,
    PlacementLiteral,
    SequenceType,
    StructType,
    TensorType,
    Type,
)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A flat leaf of a value.

    Attributes:
      path: where it is; `len(path)` for the length of a sequence.
      type: the type of the leaf; of a sequence, that of one element.
      placement: where it lives; what is not placed is the server's.
      is_offset: whether it is no part of the value: where the rows of a sequence begin in their buffers.
    """

    path: str
    type: TensorType
    placement: PlacementLiteral
    is_offset: bool = False

    @property
    def placed_type(self) -> str:
        """The type of the leaf with its placement, in compact notation."""
        return f"{{{self.type}}}@CLIENTS" if self.placement is CLIENTS else f"{self.type}@SERVER"


def leaves_of(type_: Type, path: str = "", placement: PlacementLiteral = SERVER) -> Iterator[Leaf]:
    """The flat leaves of a value of a type, in order."""
    if isinstance(type_, FederatedType):
        yield from leaves_of(type_.member, path, type_.placement)
    elif isinstance(type_, StructType):
        for i, (name, field) in enumerate(type_.items()):
            yield from leaves_of(field, path + field_path(type_, i, name), placement)
    elif isinstance(type_, SequenceType):
        yield from leaves_of(type_.element, path, placement)
        int32 = TensorType("int32")
        yield Leaf(f"offset({path})", int32, placement, is_offset=True)
        yield Leaf(f"len({path})", int32, placement)
    elif isinstance(type_, TensorType):
        yield Leaf(path, type_, placement)
    else:
        raise TypeError(f"a value of type {type_} has no leaves")


def field_path(type_: StructType, index: int, name: str | None) -> str:
    """How a field is reached: `.name` in a named tuple, `['name']` in a mapping, `[index]` without a name."""
    if isinstance(type_.container, MappingContainer):
        return f"[{type_.container.keys[index]!r}]"
    if name is None:
        return f"[{index}]"
    return f"[{name!r}]" if type_.container in (dict, OrderedDict) else f".{name}"
