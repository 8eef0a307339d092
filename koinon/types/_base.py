"""What all types have in common: immutability, equality, printing, relations.

Each instance knows the hash, the depth and the kinds of types inside itself from its construction on, so that no
question about a type walks it twice, and nothing recurses deeper than `MAX_DEPTH`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NoReturn

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.types import _relate
from koinon.types._elide import elided
from koinon.types._kinds import ABSTRACT

MAX_DEPTH = 200

_converters: list[Callable[[object], Type]] = []


def register_converter(to_type: Callable[[object], Type]) -> None:
    """Sets what interprets a constructor's arguments; `to_type` builds these classes, so it cannot be imported here."""
    _converters[:] = [to_type]


def as_type(spec: object) -> Type:
    """Returns the type that a constructor's argument describes."""
    return spec if isinstance(spec, Type) else _converters[0](spec)


class Type(abc.ABC):
    """The base of all types.

    A type is an immutable value: equal types are interchangeable, and any type can be the key of a dictionary.
    `str` gives the compact notation that `koinon.types.parse` reads; `repr` gives the expression that builds it.
    """

    __slots__ = ("__weakref__", "_depth", "_hash", "_kinds", "_text")

    kind: ClassVar[int]

    _depth: int
    _hash: int
    _kinds: int
    _text: str | None

    def _freeze(self, key: object, children: Iterable[Type] = ()) -> None:
        depth, kinds = 0, self.kind
        for child in children:
            depth = max(depth, child._depth)
            kinds |= child._kinds
        if depth >= MAX_DEPTH:
            raise KoinonValueError(f"A type may be nested at most {MAX_DEPTH} levels deep.")
        object.__setattr__(self, "_depth", depth + 1)
        object.__setattr__(self, "_kinds", kinds)
        object.__setattr__(self, "_hash", hash((self.kind, key)))
        object.__setattr__(self, "_text", None)

    @abc.abstractmethod
    def children(self) -> tuple[Type, ...]:
        """Returns the types directly inside this one, in the order in which they print."""

    @abc.abstractmethod
    def _arguments(self) -> tuple[Any, ...]:
        """The arguments that construct this type; equal types have equal arguments."""

    @abc.abstractmethod
    def _print(self, parts: list[str], indented: bool) -> str:
        """The notation of this type, of that of its children."""

    @abc.abstractmethod
    def _express(self, parts: list[str]) -> str:
        """The Python expression for this type, of those for its children."""

    def _fold(self, combine: Callable[[Type, list[str]], str], known: dict[int, str]) -> str:
        """Combines texts from the leaves up; a loop, because a type may be deeper than the stack has room."""
        pending: list[Type] = [self]
        while pending:
            current = pending[-1]
            missing = [child for child in current.children() if id(child) not in known]
            if missing:
                pending.extend(missing)
            else:
                known[id(current)] = combine(current, [known[id(child)] for child in current.children()])
                pending.pop()
        return known[id(self)]

    def contains_kind(self, kinds: int) -> bool:
        """Whether this type, or one inside it, is of one of these kinds; a fast form of `type_contains`."""
        return bool(self._kinds & kinds)

    def compact_representation(self, width: int | None = None) -> str:
        """Returns the notation of this type on one line, without spaces after commas.

        Args:
          width: at most so many characters, as far as leaving out the fields of structures can do it: the innermost
            print as `<...>`, which `koinon.types.parse` does not read. None for the whole type.

        >>> from koinon.types import StructType, TensorType, at_clients
        >>> pair = at_clients(StructType([("a", TensorType("int32")), ("b", StructType([TensorType("float32")] * 9))]))
        >>> pair.compact_representation(40)
        '{<a=int32,b=<...>>}@CLIENTS'
        """
        if self._text is None:
            object.__setattr__(self, "_text", self._fold(lambda type_, parts: type_._print(parts, indented=False), {}))
        text = str(self._text)
        return text if width is None or len(text) <= width else elided(self, width)

    def formatted_representation(self) -> str:
        """Returns the notation of this type with one line for each field of a structure.

        >>> from koinon.types import StructType, TensorType
        >>> print(StructType([("a", TensorType("int32")), ("b", StructType([]))]).formatted_representation())
        <
          a=int32,
          b=<>
        >
        """
        return self._fold(lambda type_, parts: type_._print(parts, indented=True), {})

    def is_assignable_from(self, source: Type) -> bool:
        """Whether a value of type `source` can be used where this type is declared.

        Dtypes are never widened; shapes are, into unknown dimensions; Python containers do not matter; a structure
        without names serves for one with names; an all-equal value serves for one that need not be; functions are
        contravariant in their parameter.

        Raises:
          KoinonTypeError: if `source` is no type, or an abstract type has to be compared.

        >>> from koinon.types import TensorType
        >>> TensorType("float32", (None,)).is_assignable_from(TensorType("float32", (3,)))
        True
        """
        if self == source and not self._kinds & ABSTRACT:
            return True
        return _relate.first_difference(self, _check_is_type(source)) is None

    def check_assignable_from(self, source: Type, *, what: str | None = None, made_in: str | None = None) -> None:
        """Raises unless a value of type `source` can be used where this type is declared.

        Args:
          source: the type of the value.
          what: the first sentence of the message.
          made_in: where the code that is to blame was written.

        Raises:
          TypeNotAssignableError: if not; it says at which path inside the two types they differ.
        """
        _relate.check_assignable(self, _check_is_type(source), what=what, made_in=made_in)

    def is_equivalent_to(self, other: Type) -> bool:
        """Whether each of the two types can be used where the other is declared.

        >>> from koinon.types import StructType, TensorType
        >>> StructType([("a", TensorType("int32"))], dict).is_equivalent_to(StructType([("a", TensorType("int32"))]))
        True
        """
        return self.is_assignable_from(other) and other.is_assignable_from(self)

    def check_equivalent_to(self, other: Type, *, what: str | None = None, made_in: str | None = None) -> None:
        """Raises unless each of the two types can be used where the other is declared.

        Args:
          other: the type to compare with.
          what: the first sentence of the message.
          made_in: where the code that is to blame was written.

        Raises:
          TypesNotEquivalentError: if not; it says at which path inside the two types they differ.
        """
        _relate.check_equivalent(self, _check_is_type(other), what=what, made_in=made_in)

    def is_identical_to(self, other: Type) -> bool:
        """Whether the types are equal, containers included; the same as `==`."""
        return self == other

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Type):
            # Not NotImplemented: a NumPy dtype would then say that it equals a tensor type of this dtype.
            return False
        return self._hash == other._hash and self.kind == other.kind and self._arguments() == other._arguments()

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return self.compact_representation()

    def __repr__(self) -> str:
        return self._fold(lambda type_, parts: type_._express(parts), {})

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"A type is immutable: cannot set `{name}`.")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"A type is immutable: cannot delete `{name}`.")

    def __copy__(self) -> Type:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Type:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments()


def _check_is_type(other: object) -> Type:
    if not isinstance(other, Type):
        raise KoinonTypeError("Only types can be compared.", expected="a koinon type", found=repr(other))
    return other
