"""The containers that a serialized type may name.

A name stands for a class that this program has registered; nothing is ever imported because of a name that was read.
"""

from __future__ import annotations

import collections
import re

from koinon._errors import KoinonTypeError, KoinonValueError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,199}")

_classes: dict[str, type] = {
    "OrderedDict": collections.OrderedDict,
    "dict": dict,
    "list": list,
    "tuple": tuple,
}
_names: dict[type, str] = {cls: name for name, cls in _classes.items()}


def register_container(name: str, cls: type) -> type:
    """Makes a container survive serialization, under a name that does not change.

    Serialized computations name their containers. A container without a name, and a name that the reading program has
    not registered, become the default container: an `OrderedDict` where the fields have names, else a tuple.

    Args:
      name: the name that is written, such as `"myproject.TrainingState"`; letters, digits, `_`, `.` and `-`.
      cls: a class that `StructType` takes as a container, such as a NamedTuple or a dataclass.

    Returns:
      The class.

    Raises:
      KoinonValueError: where the name is malformed or stands for another class, or the class has another name.
      KoinonTypeError: where `cls` is no class.

    >>> from typing import NamedTuple
    >>> class Moments(NamedTuple):
    ...     first: float
    ...     second: float
    >>> register_container("example.Moments", Moments).__name__
    'Moments'
    """
    if not isinstance(cls, type):
        raise KoinonTypeError("A container is a class.", found=repr(cls))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise KoinonValueError(
            "This cannot be the name of a container.",
            expected="a letter or `_`, then letters, digits, `_`, `.` and `-`, 200 at most",
            found=repr(name),
        )
    if _classes.get(name, cls) is not cls:
        raise KoinonValueError(
            f"The name {name!r} stands for another container.",
            expected=_classes[name].__qualname__,
            found=cls.__qualname__,
        )
    if _names.get(cls, name) != name:
        raise KoinonValueError(
            f"The container {cls.__qualname__} is registered under another name.", expected=_names[cls], found=name
        )
    _classes[name] = cls
    _names[cls] = name
    return cls


def container_name(container: object) -> str | None:
    """The name under which a container is registered, None if it is not, or is not a class at all."""
    return _names.get(container) if isinstance(container, type) else None


def registered_container(name: str) -> type | None:
    """The container that a name stands for, None if no such name is registered."""
    return _classes.get(name)
