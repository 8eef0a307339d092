"""The type of structures: fields in an order, and the Python container that they stand for."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, final

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.types._base import Type, as_type
from koinon.types._kinds import STRUCT

MAX_FIELDS = 100_000

# A field's name may be anything that the notation can print and read back.
NAME_CHARACTERS = r"[^\s<>=,(){}*@\[\]?\x00-\x1f\x7f-\x9f\ud800-\udfff]"
_NAME = re.compile(NAME_CHARACTERS + "+")


@final
class StructType(Type):
    """The type of a structure: fields in an order, either all with names or all without.

    A structure may remember the Python container that it stands for, so that results come back as what the user
    wrote. The container is part of equality, not of the notation, nor of assignability.

    Args:
      elements: the fields, each a type or a `(name, type)` pair; anything that `to_type` reads serves as a type.
      container: the class of the Python container, or an instance of `PyTreeContainer`; None if there is none.

    Raises:
      KoinonValueError: if a name occurs twice or cannot be printed, some fields have names and others not, or the
        container cannot hold such fields.
      KoinonTypeError: if the container is no class.

    >>> from koinon.types import TensorType
    >>> t = StructType([("a", TensorType("int32")), ("items", TensorType("float32", (2,)))])
    >>> str(t), str(t.a), str(t["items"]), str(t[0]), t.fields()
    ('<a=int32,items=float32[2]>', 'int32', 'float32[2]', 'int32', ['a', 'items'])
    """

    __slots__ = ("_index", "_names", "_types", "container")
    __match_args__ = ("container",)

    kind = STRUCT
    container: Any
    _names: tuple[str, ...] | None
    _types: tuple[Type, ...]
    _index: dict[str, int]

    def __init__(self, elements: Iterable[Any], container: Any = None) -> None:
        names: list[str | None] = []
        types: list[Type] = []
        for element in elements.items() if isinstance(elements, Mapping) else elements:
            named = type(element) is tuple and len(element) == 2 and (element[0] is None or isinstance(element[0], str))
            names.append(element[0] if named else None)
            types.append(as_type(element[1] if named else element))
        if len(types) > MAX_FIELDS:
            raise KoinonValueError(f"A structure has at most {MAX_FIELDS} fields.", found=f"{len(types)} fields")
        object.__setattr__(self, "_types", tuple(types))
        object.__setattr__(self, "_names", _check_names(names))
        object.__setattr__(self, "_index", {name: i for i, name in enumerate(self._names or ())})
        object.__setattr__(self, "container", container)
        _check_container(container, self._names, types)
        self._freeze((self._names, self._types, container), types)

    @property
    def python_container(self) -> Any:
        """The same as `container`."""
        return self.container

    def items(self) -> list[tuple[str | None, Type]]:
        """Returns the fields in order, as pairs of a name (None if it has none) and a type."""
        return list(zip(self._names or (None,) * len(self._types), self._types, strict=True))

    def fields(self) -> list[str]:
        """Returns the names of the fields in order; nothing if they have none."""
        return list(self._names or ())

    @property
    def is_named(self) -> bool:
        """Whether the fields have names; an empty structure has none."""
        return self._names is not None

    def children(self) -> tuple[Type, ...]:
        """Returns the types of the fields."""
        return self._types

    def __len__(self) -> int:
        return len(self._types)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Type]:
        return iter(self._types)

    def __getitem__(self, key: str | int) -> Type:
        """Returns the type of a field, by its name or its position.

        Raises:
          KeyError: if no field has this name.
          IndexError: if there is no such position.
        """
        if isinstance(key, str):
            return self._types[self._index[key]]
        return self._types[operator.index(key)]

    def __getattr__(self, name: str) -> Type:
        # Reached only by names that the class does not have: a field called `items` is found as `t["items"]`.
        index = object.__getattribute__(self, "_index")
        if name not in index:
            raise AttributeError(f"The type {self.compact_representation(200)} has no field `{name}`.")
        return self._types[index[name]]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._index]

    def _arguments(self) -> tuple[Any, ...]:
        return (self.items() if self._names else list(self._types), self.container)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, StructType):
            return False
        return (
            self._hash == other._hash
            and self._names == other._names
            and self.container == other.container
            and self._types == other._types
        )

    __hash__ = Type.__hash__

    def _print(self, parts: list[str], indented: bool) -> str:
        fields = (
            parts if self._names is None else [f"{name}={part}" for name, part in zip(self._names, parts, strict=True)]
        )
        if not indented or not fields:
            return f"<{','.join(fields)}>"
        lines = ",\n".join(fields).replace("\n", "\n  ")
        return f"<\n  {lines}\n>"

    def _express(self, parts: list[str]) -> str:
        names = self._names or (None,) * len(parts)
        fields = ", ".join(
            part if name is None else f"({name!r}, {part})" for name, part in zip(names, parts, strict=True)
        )
        suffix = "" if self.container is None else f" as {getattr(self.container, '__name__', self.container)}"
        return f"StructType([{fields}]){suffix}"


def _check_names(names: list[str | None]) -> tuple[str, ...] | None:
    present = [name for name in names if name is not None]
    if not present:
        return None
    if len(present) < len(names):
        raise KoinonValueError(
            "The fields of a structure have either all a name or none.",
            found=f"{len(present)} fields with a name and {len(names) - len(present)} without",
            hint="name every field, or put those without a name into a structure of their own",
        )
    seen: set[str] = set()
    for name in present:
        if name in seen:
            raise KoinonValueError("A name occurs twice in a structure.", found=repr(name))
        if not _NAME.fullmatch(name):
            raise KoinonValueError(
                "This cannot be the name of a field.",
                expected="one or more characters, no white space, control characters or any of <>=,()*{}@[]?",
                found=repr(name),
            )
        seen.add(name)
    return tuple(present)


def _check_container(container: Any, names: tuple[str, ...] | None, types: list[Type]) -> None:
    if not isinstance(container, type):
        if container is not None and not hasattr(container, "build"):
            raise KoinonTypeError("A container is a class.", found=repr(container))
        return
    if not types:
        return
    if names is None and issubclass(container, Mapping):
        raise KoinonValueError(f"A {container.__name__} holds fields with names, and these have none.")
    if names is not None and issubclass(container, (list, tuple)) and not hasattr(container, "_fields"):
        raise KoinonValueError(f"A {container.__name__} holds fields without names, and these have some.")


def StructWithPythonType(elements: Iterable[Any], container: Any) -> StructType:
    """Returns the type of a structure that stands for a Python container.

    The same as `StructType(elements, container)`, under the name by which users of TFF know it.

    >>> from koinon.types import TensorType
    >>> StructWithPythonType([("a", TensorType("int32"))], dict)
    StructType([('a', TensorType(np.int32))]) as dict
    """
    return StructType(elements, container)
