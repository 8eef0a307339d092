"""Types on a line of a limited width, where structures that do not fit print as `<...>`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from koinon.types._kinds import STRUCT

if TYPE_CHECKING:
    from koinon.types._base import Type
    from koinon.types._struct import StructType

_ELIDED = "<...>"


class _Part:
    """A part of a type as it is printed; a structure shows none of its fields until it is opened."""

    __slots__ = ("parts", "type")

    def __init__(self, type_: Type) -> None:
        self.type = type_
        self.parts: list[_Part] = [] if type_.kind == STRUCT else [_Part(child) for child in type_.children()]

    def is_closed(self) -> bool:
        return len(self.parts) < len(self.type.children())

    def text(self) -> str:
        texts = [part.text() for part in self.parts]
        if not self.is_closed():
            return self.type._print(texts, indented=False)
        struct: StructType = self.type  # pyright: ignore[reportAssignmentType]
        names = struct.fields()[: len(texts)]
        fields = [f"{name}={text}" for name, text in zip(names, texts, strict=True)] if names else texts
        return f"<{','.join([*fields, '...'])}>"

    def closed(self) -> list[_Part]:
        """The outermost structures that are closed, in the order in which they print."""
        if self.is_closed():
            return [self]
        return [inner for part in self.parts for inner in part.closed()]

    def open(self, room: int, *, in_part: bool) -> int:
        """Shows the fields if the text then grows by at most `room`, if need be the first of them; returns by how much.

        Args:
          room: by how much the text may grow.
          in_part: whether some fields are better than none.
        """
        self.parts = [_Part(child) for child in self.type.children()]
        growth = len(self.text()) - len(_ELIDED)
        if growth <= room:
            return growth
        shown, growth = self.parts if in_part else [], 0
        self.parts = []
        names = self.type.fields() if in_part else []  # pyright: ignore[reportAttributeAccessIssue]
        for i, part in enumerate(shown):
            field = len(part.text()) + len(",") + (len(names[i]) + len("=") if names else 0)
            if growth + field > room:
                break
            self.parts.append(part)
            growth += field
        return growth


def elided(type_: Type, width: int) -> str:
    """The notation of a type that is longer than `width`, with as many of its structures as fit, the outermost first.

    Of structures at one level those that need little room come first. An outermost structure shows at least the first
    of its fields, as far as there is room; any other is shown whole, or as `<...>`.
    """
    root = _Part(type_)
    room = width - len(root.text())
    level, outermost = root.closed(), True
    while level:
        level.sort(key=lambda part: len(str(part.type)))
        for i, part in enumerate(level):
            share = room // (len(level) - i) if outermost else room
            room -= part.open(share, in_part=outermost)
        level = [inner for part in level for opened in part.parts for inner in opened.closed()]
        outermost = False
    return root.text()
