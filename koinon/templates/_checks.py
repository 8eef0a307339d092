"""Checks that the constructors of several templates share; each caller names its own classes of error."""

from __future__ import annotations

from typing import TypeVar

from koinon._errors import KoinonTypeError, TemplateError
from koinon.computation import Computation, PolymorphicComputation
from koinon.templates._signature import arguments_of, leaves
from koinon.types import FederatedType, FunctionType, PlacementLiteral, StructType, Type, first_difference

_Error = TypeVar("_Error", bound=KoinonTypeError)

# Types that print longer than this are left out of messages, which then say only where they differ.
_MAX_PRINTED = 120


def mismatch(error: type[_Error], what: str, target: Type, source: Type, hint: str | None = None) -> _Error:
    """An error about a type `source` that cannot be used for `target`, or that is not equivalent to it."""
    difference = first_difference(target, source)
    if difference is None and (backwards := first_difference(source, target)) is not None:
        difference = backwards.swapped()
    large = difference is not None and max(len(str(target)), len(str(source))) > _MAX_PRINTED
    made = error(
        what,
        expected=None if large else target,
        found=None if large else source,
        differs=None if difference is None else str(difference),
        hint=hint,
    )
    # The message leaves large types out, the attributes never do.
    made.expected, made.found = target, source
    return made


def check_computation(value: object, label: str, template: str) -> None:
    """Raises a TypeError unless a value is a `Computation`."""
    if isinstance(value, Computation):
        return
    kind = type(value)
    found = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, PolymorphicComputation):
        hint = "give the decorator the types of the parameters"
    else:
        hint = "decorate the function with `federated_computation` or `jax_computation`"
    raise KoinonTypeError(f"Expected koinon.Computation, found {found} as `{label}` of {template}.", hint=hint)


def check_returns_placed(state: Type, template: str, error: type[TemplateError]) -> None:
    """Raises `error` unless the state that `initialize` returns is a placed value."""
    if not isinstance(state, FederatedType):
        raise error(
            f"{template}: `initialize` must return a placed value.",
            expected="S@SERVER",
            found=state,
            hint="wrap the returned state in `federated_zip`, or place it with `federated_value` or `federated_eval`",
        )


def check_all_placed(signature: FunctionType, template: str, error: type[TemplateError]) -> None:
    """Raises `error` unless every argument and every result of `next` is placed."""
    unplaced = [leaf for leaf in leaves(signature.parameter) if not isinstance(leaf, FederatedType)]
    unplaced += [leaf for leaf in leaves(signature.result) if not isinstance(leaf, FederatedType)]
    if unplaced:
        raise error(
            f"{template}: every argument and every result of `next` must be placed.",
            expected="values at SERVER or CLIENTS only",
            found=f"{', '.join(map(str, unplaced))} in {signature}",
            hint="place constants with `federated_value(..., ko.SERVER)`",
        )


def check_placement(
    type_: Type, placement: PlacementLiteral, what: str, template: str, error: type[TemplateError]
) -> FederatedType:
    """The type, after raising `error` unless it is placed at `placement`; `what` names the value in the message."""
    if isinstance(type_, FederatedType) and type_.placement is placement:
        return type_
    if isinstance(type_, FederatedType):
        hint = f"place it at {placement}"
    elif isinstance(type_, StructType) and len(type_) == 0:
        hint = f"return `federated_value((), ko.{placement})` instead of `()`"
    else:
        hint = f"wrap it in `federated_zip`, so that it is one value at {placement}"
    raise error(
        f"{template}: {what} must be placed at {placement}.", expected=f"a value at {placement}", found=type_, hint=hint
    )


def check_argument_count(
    signature: FunctionType, counts: range, template: str, error: type[TemplateError]
) -> tuple[Type, ...]:
    """The types of the arguments of `next`, after raising `error` unless their number is one of `counts`."""
    found = arguments_of(signature)
    if len(found) in counts:
        return found
    expected = f"exactly {counts.start}" if len(counts) == 1 else f"at least {counts.start}"
    raise error(
        f"{template}: `next` must take {expected} arguments.",
        expected=f"{expected} arguments",
        found=f"{len(found)}: {signature.parameter}",
        hint="write one parameter of the Python function for each argument of the template",
    )
