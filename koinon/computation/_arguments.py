"""Matching the arguments of a call to the one parameter of a computation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from koinon._errors import ArgumentError
from koinon.types import StructType, Type


class Unpacked:
    """The arguments of a call, one for each field of the parameter: what a backend gets of a call with several.

    Attributes:
      arguments: the arguments, in the order of the fields.
    """

    __slots__ = ("arguments",)

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments


def match_arguments(parameter: Type | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Matches the arguments of a call to the one parameter: None, the parameter itself, or `Unpacked` fields."""
    if parameter is None:
        if args or kwargs:
            raise ArgumentError("Was not expecting any arguments.", found=_count(args, kwargs))
        return None
    if len(args) == 1 and not kwargs:
        if isinstance(parameter, StructType) and len(parameter) == 1 and _is_field(parameter, args[0]):
            return Unpacked(args)
        return args[0]
    if not args and not kwargs:
        raise ArgumentError(f"Declared a parameter of type {parameter}, but got no arguments.")
    if not isinstance(parameter, StructType):
        raise ArgumentError(
            "A computation of one parameter takes one argument.", expected=parameter, found=_count(args, kwargs)
        )
    if not kwargs and len(args) == len(parameter):
        return Unpacked(args)
    return Unpacked(match_names([name for name, _ in parameter.items()], args, kwargs, parameter))


def match_names(
    names: Sequence[str | None], args: tuple[Any, ...], kwargs: dict[str, Any], expected: object
) -> tuple[Any, ...]:
    """The arguments of a call in the order of the names of the parameters, as Python matches them."""
    if len(args) > len(names):
        raise ArgumentError(
            f"The computation takes {len(names)} arguments.", expected=expected, found=_count(args, kwargs)
        )
    for name in names[: len(args)]:
        if name in kwargs:
            raise ArgumentError(
                f"The argument {name!r} was given twice.", expected=expected, found=_count(args, kwargs)
            )
    for name in kwargs:
        if name not in names:
            raise ArgumentError(
                f"The computation has no parameter {name!r}.", expected=expected, found=_count(args, kwargs)
            )
    matched = list(args)
    for i, name in enumerate(names[len(args) :], len(args)):
        if name is None or name not in kwargs:
            raise ArgumentError(
                f"The argument {name or f'[{i}]'!r} is missing.", expected=expected, found=_count(args, kwargs)
            )
        matched.append(kwargs[name])
    return tuple(matched)


def _is_field(parameter: StructType, argument: Any) -> bool:
    """Whether an argument is the one field of a struct of one, rather than the struct."""
    type_ = getattr(argument, "type_signature", None)
    if isinstance(type_, Type):
        return not parameter.is_assignable_from(type_)
    return not isinstance(argument, (tuple, list, dict)) and not hasattr(argument, "__dataclass_fields__")


def _count(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    positional = "1 positional argument" if len(args) == 1 else f"{len(args)} positional arguments"
    return f"{positional}, and {', '.join(kwargs)}" if kwargs else positional
