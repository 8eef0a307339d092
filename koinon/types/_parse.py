"""Reads the compact notation back into a type.

    type      = atom { "*" | "@" place }
    atom      = dtype [ "[" [ size { "," size } ] "]" ] | "'" dtype "'(shape=None)" | "placement" | Label
              | "<" [ field { "," field } ] ">" | "{" type "}" "@" place | "(" [ type ] "->" type ")"
    field     = [ name "=" ] type
    size      = number | "?"
    place     = "CLIENTS" | "SERVER"

White space may stand between any two tokens. The reader keeps its own stack, reads every character a bounded number
of times, and so answers any text, however long or deep, in linear time with a type or a `TypeSyntaxError`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import NoReturn

from koinon._errors import KoinonError, KoinonTypeError, TypeSyntaxError
from koinon.types._base import MAX_DEPTH, Type
from koinon.types._dtypes import dtype_from_name
from koinon.types._placements import CLIENTS, SERVER, PlacementLiteral
from koinon.types._struct import MAX_FIELDS, NAME_CHARACTERS, StructType
from koinon.types._types import (
    MAX_DIMENSION,
    MAX_RANK,
    AbstractType,
    FederatedType,
    FunctionType,
    PlacementType,
    SequenceType,
    TensorType,
)

# Possessive quantifiers: a word that fails to match is never tried again at its shorter prefixes.
_SPACE = re.compile(r"\s*+")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*+")
_DTYPE = re.compile(r"key<[a-z]++>|[a-z][a-z0-9_]*+")
_FIELD = re.compile(rf"({NAME_CHARACTERS}++)\s*+=")
_SIZE = re.compile(r"\?|0|[1-9][0-9]*+")

_PLACEMENTS = {placement.name: placement for placement in (CLIENTS, SERVER)}
_MAX_DIGITS = len(str(MAX_DIMENSION))


@dataclasses.dataclass(slots=True)
class _Frame:
    """A bracket that is still open, and what was read inside it."""

    bracket: str
    start: int
    types: list[Type] = dataclasses.field(default_factory=list)
    names: list[str] = dataclasses.field(default_factory=list)
    arrow: bool = False


def parse(text: str) -> Type:
    """Returns the type that `text` denotes: the inverse of `str`.

    Python containers are not part of the notation, so that the structures of the result have none. The indented form
    of `formatted_representation` is read as well.

    Args:
      text: a type in the compact notation.

    Raises:
      TypeSyntaxError: if the text denotes no type; its `position` says where reading stopped.
      KoinonTypeError: if `text` is not a string.

    >>> parse("(<float32@SERVER,{int32*}@CLIENTS> -> float32@SERVER)").result
    FederatedType(TensorType(np.float32), PlacementLiteral('server'), True)
    """
    if not isinstance(text, str):
        raise KoinonTypeError("Only text can be parsed.", expected="str", found=type(text).__name__)
    return _Parser(text).read()


class _Parser:
    """One reading of one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._open: list[_Frame] = []

    def read(self) -> Type:
        while True:
            start, type_ = self._read_atom()
            while type_ is not None:
                type_ = self._read_postfixes(start, type_)
                if not self._open:
                    if self._peek():
                        self._fail("The type ends here, and more text follows.")
                    return type_
                start, type_ = self._continue_frame(self._open[-1], type_)

    def _read_atom(self) -> tuple[int, Type | None]:
        """Reads a type without brackets, or opens a bracket (and returns no type)."""
        character = self._peek()
        start = self._position
        if character == "<":
            frame = self._push(character)
            if self._peek() == ">":
                return self._close_struct(frame)
            self._read_name(frame)
            return start, None
        if character == "{":
            self._push(character)
            return start, None
        if character == "(":
            frame = self._push(character)
            if self._accept("->"):
                frame.arrow = True
            return start, None
        return start, self._read_word(start, character)

    def _continue_frame(self, frame: _Frame, type_: Type) -> tuple[int, Type | None]:
        """Puts a type into the innermost open bracket; returns that bracket's type if it closes here."""
        if frame.bracket == "<":
            if len(frame.types) >= MAX_FIELDS:
                self._fail(f"A structure has at most {MAX_FIELDS} fields.")
            frame.types.append(type_)
            if self._accept(","):
                self._read_name(frame)
                return frame.start, None
            if self._peek() == ">":
                return self._close_struct(frame)
            self._fail("Expected `,` or `>` after a field.")
        if frame.bracket == "{":
            if not self._accept("}"):
                self._fail("Expected `}`.")
            if not self._accept("@"):
                self._fail("Expected `@` and a placement after `}`.")
            placement = self._read_placement()
            self._open.pop()
            return frame.start, self._build(frame.start, lambda: FederatedType(type_, placement, all_equal=False))
        if not frame.arrow:
            if not self._accept("->"):
                self._fail("Expected `->` after the parameter of a function.")
            frame.arrow = True
            frame.types.append(type_)
            return frame.start, None
        if not self._accept(")"):
            self._fail("Expected `)` after the result of a function.")
        self._open.pop()
        parameter = frame.types[0] if frame.types else None
        return frame.start, self._build(frame.start, lambda: FunctionType(parameter, type_))

    def _read_postfixes(self, start: int, type_: Type) -> Type:
        while True:
            if self._accept("*"):
                inner = type_
                type_ = self._build(start, lambda inner=inner: SequenceType(inner))
            elif self._accept("@"):
                inner, placement = type_, self._read_placement()
                type_ = self._build(
                    start, lambda inner=inner, place=placement: FederatedType(inner, place, all_equal=True)
                )
            else:
                return type_

    def _close_struct(self, frame: _Frame) -> tuple[int, Type]:
        self._position += 1
        self._open.pop()
        elements = list(zip(frame.names, frame.types, strict=True)) if frame.names else frame.types
        return frame.start, self._build(frame.start, lambda: StructType(elements))

    def _read_name(self, frame: _Frame) -> None:
        self._skip_space()
        match = _FIELD.match(self._text, self._position)
        if match is None:
            if frame.names:
                self._fail("Expected a name: the fields before this one have one.")
            return
        if len(frame.names) < len(frame.types):
            self._fail("A field has a name, and those before it have none.")
        frame.names.append(match[1])
        self._position = match.end()

    def _read_word(self, start: int, character: str) -> Type:
        if character == "'":
            return self._read_unknown_rank(start)
        match = _DTYPE.match(self._text, start)
        if match is None:
            return self._read_label(start)
        word = match[0]
        self._position = match.end()
        if word == "placement":
            return PlacementType()
        dtype = dtype_from_name(word)
        if dtype is None:
            self._fail("There is no dtype of this name.", at=start)
        shape = self._read_shape() if self._accept("[") else ()
        return self._build(start, lambda: TensorType(dtype, shape))

    def _read_label(self, start: int) -> Type:
        match = _WORD.match(self._text, start)
        if match is None or not match[0][0].isupper():
            self._fail("Expected a type." if start < len(self._text) else "The text ends where a type was expected.")
        self._position = match.end()
        return AbstractType(match[0])

    def _read_unknown_rank(self, start: int) -> Type:
        self._position += 1
        match = _DTYPE.match(self._text, self._position)
        dtype = None if match is None else dtype_from_name(match[0])
        if match is None or dtype is None:
            self._fail("There is no dtype of this name.")
        self._position = match.end()
        for token in ("'", "(", "shape", "=", "None", ")"):
            if not self._accept(token):
                self._fail("Expected `'(shape=None)` after a quoted dtype.")
        return self._build(start, lambda: TensorType(dtype, None))

    def _read_shape(self) -> tuple[int | None, ...]:
        sizes: list[int | None] = []
        if self._accept("]"):
            return ()
        while len(sizes) < MAX_RANK:
            self._skip_space()
            match = _SIZE.match(self._text, self._position)
            if match is None:
                self._fail("Expected a dimension: a number, or `?` where it is unknown.")
            size = None
            if match[0] != "?":
                size = int(match[0]) if len(match[0]) <= _MAX_DIGITS else MAX_DIMENSION + 1
                if size > MAX_DIMENSION:
                    self._fail("A dimension is at most 2**31 - 1.")
            sizes.append(size)
            self._position = match.end()
            if self._accept("]"):
                return tuple(sizes)
            if not self._accept(","):
                self._fail("Expected `,` or `]` after a dimension.")
        self._fail(f"A shape has at most {MAX_RANK} dimensions.")

    def _read_placement(self) -> PlacementLiteral:
        self._skip_space()
        match = _WORD.match(self._text, self._position)
        placement = None if match is None else _PLACEMENTS.get(match[0])
        if match is None or placement is None:
            self._fail("Expected a placement: CLIENTS or SERVER.")
        self._position = match.end()
        return placement

    def _push(self, bracket: str) -> _Frame:
        if len(self._open) >= MAX_DEPTH:
            self._fail(f"A type may be nested at most {MAX_DEPTH} levels deep.")
        frame = _Frame(bracket, self._position)
        self._open.append(frame)
        self._position += 1
        return frame

    def _build(self, start: int, construct: Callable[[], Type]) -> Type:
        try:
            return construct()
        except KoinonError as error:
            self._fail(error.what, at=start)

    def _skip_space(self) -> None:
        match = _SPACE.match(self._text, self._position)
        self._position = self._position if match is None else match.end()

    def _peek(self) -> str:
        self._skip_space()
        return self._text[self._position : self._position + 1]

    def _accept(self, token: str) -> bool:
        self._skip_space()
        found = self._text.startswith(token, self._position)
        if found:
            self._position += len(token)
        return found

    def _fail(self, what: str, *, at: int | None = None) -> NoReturn:
        raise TypeSyntaxError(what, text=self._text, position=self._position if at is None else at) from None
