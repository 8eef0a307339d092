"""How a process prints: its template, its parts, and the types that flow between them."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from koinon.templates._signature import arguments_of
from koinon.types import FederatedType, FunctionType, SequenceType, StructType, Type

if TYPE_CHECKING:
    from koinon.templates._iterative import IterativeProcess

# A struct that prints longer than this gets a name, so that a signature stays on one line.
_INLINE_WIDTH = 40
_FIELDS_SHOWN = 6
_PLAIN_CONTAINERS = (None, dict, OrderedDict, tuple, list)


class _TypeNames:
    """Short names for the long struct types of one page, in the order in which they are met."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.definitions: list[str] = []

    def show(self, type_: Type | None) -> str:
        """The type in compact notation, with names in the place of long structs."""
        if type_ is None:
            return ""
        if isinstance(type_, FunctionType):
            return f"({self._show_expanded(type_.parameter)} -> {self._show_expanded(type_.result)})"
        if isinstance(type_, FederatedType):
            member = self.show(type_.member)
            return f"{member}@{type_.placement}" if type_.all_equal else f"{{{member}}}@{type_.placement}"
        if isinstance(type_, SequenceType):
            return f"{self.show(type_.element)}*"
        if isinstance(type_, StructType) and len(str(type_)) > _INLINE_WIDTH:
            return self._name(type_)
        return str(type_)

    def _show_expanded(self, type_: Type | None) -> str:
        # The arguments and results of a process are what its page is about: they are never hidden behind a name.
        if isinstance(type_, StructType):
            return f"<{self._fields(type_, len(type_))}>"
        return self.show(type_)

    def _fields(self, type_: StructType, shown: int) -> str:
        fields = [
            self.show(element) if name is None else f"{name}={self.show(element)}"
            for name, element in list(type_.items())[:shown]
        ]
        if len(type_) > shown:
            fields.append(f"... {len(type_) - shown} more")
        return ",".join(fields)

    def _name(self, type_: StructType) -> str:
        text = str(type_)
        if text not in self.names:
            self.names[text] = _letter(len(self.names))
            position = len(self.definitions)
            self.definitions.append("")
            shown = _FIELDS_SHOWN if len(type_) > _FIELDS_SHOWN + 1 else len(type_)
            container = "" if type_.container in _PLAIN_CONTAINERS else f"  ({type_.container.__name__})"
            self.definitions[position] = f"{self.names[text]} = <{self._fields(type_, shown)}>{container}"
        return self.names[text]


def _letter(index: int) -> str:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return letters[index % 26] + (str(index // 26) if index >= 26 else "")


def show_process(process: IterativeProcess) -> str:
    """The page of a process: what `repr` returns."""
    names = _TypeNames()
    lines = [type(process).__name__]
    lines.append(f"  initialize  {names.show(process.initialize.type_signature)}")
    lines.append(f"  next        {names.show(process.next.type_signature)}")
    _show_parts(process, names, lines, "  ")
    if names.definitions:
        lines.append("  where")
        lines.extend(f"    {definition}" for definition in names.definitions)
    return "\n".join(lines)


def _show_parts(process: IterativeProcess, names: _TypeNames, lines: list[str], indent: str) -> None:
    width = max(map(len, process.parts), default=0)
    for name, part in process.parts.items():
        lines.append(f"{indent}{name:<{width}}  {type(part).__name__}  {_show_flow(part, names)}")
        _show_parts(part, names, lines, indent + "  ")


def _show_flow(part: IterativeProcess, names: _TypeNames) -> str:
    """What goes through a part: its arguments but for the state, and its result but for state and measurements."""
    signature = part.next.type_signature
    given = [names.show(argument) for argument in arguments_of(signature)[1:]]
    result = signature.result
    if isinstance(result, StructType) and "result" in result.fields():
        result = result["result"]
    return f"{', '.join(given)} -> {names.show(result)}"
