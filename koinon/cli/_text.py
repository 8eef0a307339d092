"""Long lines of types on narrow terminals."""

from __future__ import annotations

import re

_BREAKS = re.compile(r"(?<=[,>)]) |(?<=,)|(?= -> )")


def wrap_types(text: str, width: int) -> str:
    """The lines of a text, those that are wider than `width` broken after commas and before arrows, and indented."""
    return "\n".join(wrapped for line in text.splitlines() for wrapped in _wrap(line, max(width, 40)))


def _wrap(line: str, width: int) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()) + 6)
    lines, current = [], ""
    for piece in _pieces(line):
        if current.strip() and len(current) + len(piece.rstrip()) > width:
            lines.append(current.rstrip())
            current = indent + piece.lstrip()
        else:
            current += piece
    return [*lines, current.rstrip()]


def _pieces(line: str) -> list[str]:
    ends = [match.end() for match in _BREAKS.finditer(line) if match.end() > 0]
    return [line[start:end] for start, end in zip([0, *ends], [*ends, len(line)], strict=True)]
