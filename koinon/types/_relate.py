"""How two types relate: which can be used for which, and where they differ if not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from koinon._errors import KoinonTypeError, TypeNotAssignableError, TypesNotEquivalentError
from koinon.types._kinds import ABSTRACT, FEDERATED, FUNCTION, PLACEMENT, SEQUENCE, STRUCT, TENSOR

if TYPE_CHECKING:
    from koinon.types._base import Type
    from koinon.types._struct import StructType
    from koinon.types._types import FederatedType, FunctionType, SequenceType, TensorType

# Types of more fields than this are not printed whole in a message.
_MAX_PRINTED_FIELDS = 3


@dataclasses.dataclass(frozen=True)
class Difference:
    """The first place where one type cannot be used for another.

    Attributes:
      path: where it is: `.name` or `[i]` for a field, `*` for the elements of a sequence, `.parameter` and `.result`
        for those of a function; empty if the types differ at their top.
      expected: the type declared at this place; None if a function has no parameter.
      found: the type found at this place; None if a function has no parameter.
      reason: more about it, None if the two types say all.
    """

    path: str
    expected: Type | None
    found: Type | None
    reason: str | None = None

    def __str__(self) -> str:
        what = f"expected {_show(self.expected)}, found {_show(self.found)}"
        return f"{self.path or 'the top'}: {what if self.reason is None else self.reason}"

    def below(self, step: str) -> Difference:
        """Returns the same difference seen from one level further up."""
        return dataclasses.replace(self, path=step + self.path)

    def swapped(self) -> Difference:
        """Returns the same difference with the roles of the types exchanged."""
        return dataclasses.replace(self, expected=self.found, found=self.expected)


def _show(type_: Type | None) -> str:
    return "no parameter" if type_ is None else str(type_)


def first_difference(target: Type, source: Type) -> Difference | None:
    """Returns where `source` cannot be used for `target`, None if it can.

    Raises:
      KoinonTypeError: if the question reaches an abstract type: what that accepts is known only once it is replaced
        by a concrete one.

    >>> from koinon.types import parse
    >>> print(first_difference(parse("<a=<int32,float32[10]>>"), parse("<a=<int32,float32[12]>>")))
    .a[1]: expected float32[10], found float32[12]
    """
    if target.kind == ABSTRACT:
        raise KoinonTypeError(
            "An abstract type cannot be compared before it is replaced by a concrete one.", found=target
        )
    if target is source and not target.contains_kind(ABSTRACT):
        return None
    if target.kind != source.kind:
        return Difference("", target, source)
    return _RULES[target.kind](target, source)


def _tensor(target: TensorType, source: TensorType) -> Difference | None:
    if target.dtype is source.dtype and _shape_accepts(target.shape, source.shape):
        return None
    return Difference("", target, source)


def _shape_accepts(target: tuple[int | None, ...] | None, source: tuple[int | None, ...] | None) -> bool:
    if target is None or target == source:
        return True
    if source is None or len(target) != len(source):
        return False
    return all(expected is None or expected == found for expected, found in zip(target, source, strict=True))


def _struct(target: StructType, source: StructType) -> Difference | None:
    expected, found = target.fields(), source.fields()
    if found and expected != found:
        return Difference("", target, source, _names_differ(expected, found))
    if len(target) != len(source):
        return Difference("", target, source, f"expected {len(target)} fields, found {len(source)}")
    for position, (declared, given) in enumerate(zip(target.children(), source.children(), strict=True)):
        difference = first_difference(declared, given)
        if difference is not None:
            return difference.below(f".{expected[position]}" if expected else f"[{position}]")
    return None


def _names_differ(expected: list[str], found: list[str]) -> str:
    if not expected:
        return f"expected fields without names, found the names {_list(found)}"
    missing = [name for name in expected if name not in set(found)]
    extra = [name for name in found if name not in set(expected)]
    if not missing and not extra:
        return f"expected the fields in the order {_list(expected)}, found {_list(found)}"
    parts = [f"missing {_list(missing)}" if missing else "", f"unexpected {_list(extra)}" if extra else ""]
    return f"the names of the fields differ: {', '.join(part for part in parts if part)}"


def _list(names: list[str], limit: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown}, and {len(names) - limit} more"


def _sequence(target: SequenceType, source: SequenceType) -> Difference | None:
    difference = first_difference(target.element, source.element)
    return None if difference is None else difference.below("*")


def _federated(target: FederatedType, source: FederatedType) -> Difference | None:
    if target.placement is not source.placement:
        reason = f"expected a value at {target.placement}, found one at {source.placement}"
        return Difference("", target, source, reason)
    if target.all_equal and not source.all_equal:
        return Difference("", target, source, "expected the same value for all, found values that may differ")
    return first_difference(target.member, source.member)


def _function(target: FunctionType, source: FunctionType) -> Difference | None:
    if target.parameter is None or source.parameter is None:
        if target.parameter is not source.parameter:
            return Difference(".parameter", target.parameter, source.parameter)
    else:
        # A function can stand in for another if it takes at least what the other takes.
        difference = first_difference(source.parameter, target.parameter)
        if difference is not None:
            return difference.swapped().below(".parameter")
    difference = first_difference(target.result, source.result)
    return None if difference is None else difference.below(".result")


def _placement(target: Type, source: Type) -> None:
    return None


_RULES: dict[int, Callable[[Any, Any], Difference | None]] = {
    TENSOR: _tensor,
    STRUCT: _struct,
    SEQUENCE: _sequence,
    FEDERATED: _federated,
    FUNCTION: _function,
    PLACEMENT: _placement,
}


def check_assignable(target: Type, source: Type, *, what: str | None, made_in: str | None) -> None:
    """Raises TypeNotAssignableError unless `source` can be used for `target`."""
    difference = first_difference(target, source)
    if difference is not None:
        what = what or "A value of one type cannot be used where another type is declared."
        raise _error(TypeNotAssignableError, what, target, source, difference, made_in)


def check_equivalent(target: Type, source: Type, *, what: str | None, made_in: str | None) -> None:
    """Raises TypesNotEquivalentError unless each of the types can be used for the other."""
    difference = first_difference(target, source)
    if difference is None:
        backwards = first_difference(source, target)
        difference = None if backwards is None else backwards.swapped()
    if difference is not None:
        what = what or "Two types that had to accept each other do not."
        raise _error(TypesNotEquivalentError, what, target, source, difference, made_in)


_Error = TypeVar("_Error", bound=KoinonTypeError)


def _error(
    error_class: type[_Error], what: str, target: Type, source: Type, difference: Difference, made_in: str | None
) -> _Error:
    large = max(_count_fields(target), _count_fields(source)) > _MAX_PRINTED_FIELDS
    error = error_class(
        what,
        expected=None if large else target,
        found=None if large else source,
        differs=str(difference),
        made_in=made_in,
    )
    # The message leaves large types out, the attributes never do.
    error.expected, error.found = target, source
    return error


def _count_fields(type_: Type) -> int:
    own = len(type_.children()) if type_.kind == STRUCT else 0
    return own + sum(_count_fields(child) for child in type_.children())
