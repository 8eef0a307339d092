"""Matching the arguments of a call to the one parameter of a computation."""

from __future__ import annotations

from typing import Any

from koinon._errors import ArgumentError
from koinon.types import StructType, Type


class Unpacked:
    """The arguments of a call, one for each field of the parameter."""

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
        is_struct_of_one = isinstance(parameter, StructType) and len(parameter) == 1
        return args[0] if not is_struct_of_one or not _is_field(parameter, args[0]) else Unpacked(args)
    if not args and not kwargs:
        raise ArgumentError(f"Declared a parameter of type {parameter}, but got no arguments.")
    if not isinstance(parameter, StructType):
        raise ArgumentError("A computation of one parameter takes one argument.", expected=parameter, found=_count(args, kwargs))
    if not kwargs and len(args) == len(parameter):
        return Unpacked(args)
    names = [name for name, _ in parameter.items()]
    return Unpacked(_match_by_name(parameter, names, args, kwargs))


def _match_by_name(
    parameter: StructType, names: list[str | None], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    if len(args) > len(names):
        raise ArgumentError(
            f"The computation takes {len(names)} arguments.", expected=parameter, found=_count(args, kwargs)
        )
    given: dict[str | None, Any] = dict(kwargs)
    for name in names[: len(args)]:
        if name in given:
            raise ArgumentError(f"The argument {name!r} was given twice.", expected=parameter)
    unused = [name for name in kwargs if name not in names]
    if unused:
        raise ArgumentError(f"The computation has no parameter {unused[0]!r}.", expected=parameter)
    missing = [name or f"[{i}]" for i, name in enumerate(names) if i >= len(args) and name not in given]
    if missing:
        raise ArgumentError(f"The argument {missing[0]!r} is missing.", expected=parameter)
    return (*args, *[given[name] for name in names[len(args) :]])


def _is_field(parameter: StructType, argument: Any) -> bool:
    """Whether an argument is the one field of a struct of one, rather than the struct."""
    type_ = getattr(argument, "type_signature", None)
    if isinstance(type_, Type):
        return not parameter.is_assignable_from(type_)
    return not isinstance(argument, (tuple, list, dict)) and not hasattr(argument, "__dataclass_fields__")


def _count(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    names = f" and {', '.join(kwargs)}" if kwargs else ""
    return f"{len(args)} positional arguments{names}"
