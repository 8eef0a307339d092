"""How large a table of expressions may be, once each row is put in the place of every reference to it.

The checker and the engines walk expressions and compare their types; what they do for a computation is bounded here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from koinon._errors import SerializationError

MAX_DEPTH = 200
"""How deep expressions may be nested: what reads them calls itself for each level."""

MAX_NODES = 50_000
"""How many expressions there may be, those that occur several times counted as often."""

MAX_PARTS = 20_000_000
"""How many parts the types of all expressions may have together."""


def row_children(row: Sequence[Any]) -> Iterator[int]:
    """The positions of the direct subexpressions of a row."""
    match row:
        case ["lambda", _, _, body]:
            yield body
        case ["call", function, argument]:
            yield function
            if argument is not None:
                yield argument
        case ["block", values, result]:
            yield from (value for _, value in values)
            yield result
        case ["struct", elements, _]:
            yield from (element for _, element in elements)
        case ["selection", source, _]:
            yield source


class Measure:
    """Measures rows one after the other, subexpressions first."""

    def __init__(self) -> None:
        self._depths: list[int] = []
        self._counts: list[int] = []
        self._parts: list[int] = []

    def add(self, row: Sequence[Any], parts: int) -> None:
        """Measures the next row.

        Args:
          row: the row.
          parts: the number of parts of the type of its expression.

        Raises:
          SerializationError: where it is too deep or too large.
        """
        children = list(row_children(row))
        depth = 1 + max([self._depths[child] for child in children], default=0)
        count = 1 + sum([self._counts[child] for child in children])
        if depth > MAX_DEPTH:
            raise SerializationError(
                "A computation is nested too deeply.",
                expected=f"at most {MAX_DEPTH} levels",
                hint="call fewer computations from within each other",
            )
        if count > MAX_NODES:
            raise SerializationError("A computation is too large.", expected=f"at most {MAX_NODES} expressions")
        parts += sum([self._parts[child] for child in children])
        if parts > MAX_PARTS:
            raise SerializationError("The types of a computation are too large.", expected=f"at most {MAX_PARTS} parts")
        self._depths.append(depth)
        self._counts.append(count)
        self._parts.append(parts)
