"""The text of an expression: one line, or a page with one binding on each line."""

from __future__ import annotations

from koinon.computation._ir import (
    Block,
    Call,
    Expression,
    Intrinsic,
    Lambda,
    Literal,
    Local,
    Placement,
    Reference,
    Selection,
    Struct,
)
from koinon.types import StructType

# What a line of a page has for the type of a value.
TYPE_WIDTH = 72


def compact(node: Expression) -> str:
    """The expression on one line."""
    match node:
        case Reference():
            return node.name
        case Lambda():
            return f"({node.parameter_name or ''} -> {compact(node.body)})"
        case Call():
            argument = "" if node.argument is None else compact(node.argument)
            return f"{compact(node.function)}({argument})"
        case Block():
            bindings = ",".join(f"{name}={compact(value)}" for name, value in node.locals)
            return f"(let {bindings} in {compact(node.result)})"
        case Struct():
            fields = [f"{name}={compact(e)}" if name is not None else compact(e) for name, e in node.elements]
            return f"<{','.join(fields)}>"
        case Selection():
            return compact(node.source) + selector(node)
        case Intrinsic() | Local():
            return node.name
        case Literal():
            return str(node.value) if node.value.size <= 4 else f"{node.type}(...)"
        case Placement():
            return str(node.literal)


def selector(node: Selection) -> str:
    """The field that a selection takes, as `.name` or `[index]`."""
    source_type = node.source.type
    names = source_type.fields() if isinstance(source_type, StructType) else []
    return f".{names[node.index]}" if 0 <= node.index < len(names) else f"[{node.index}]"


def formatted(node: Expression, indent: int = 0) -> str:
    """The expression with one binding on each line, with its type, of which what is too long is left out."""
    pad = "  " * indent
    match node:
        case Lambda():
            return f"({node.parameter_name or ''} -> {formatted(node.body, indent)})"
        case Block():
            lines = [
                f"{pad}  {name}: {value.type.compact_representation(TYPE_WIDTH)} = {formatted(value, indent + 2)}"
                for name, value in node.locals
            ]
            return "(let\n" + "\n".join(lines) + f"\n{pad} in {formatted(node.result, indent)})"
        case _:
            return compact(node)
