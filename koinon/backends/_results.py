"""Results of an engine as a user sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from koinon.computation._arguments import match_arguments
from koinon.computation._flat import to_user, unflatten
from koinon.computation._sequence import PackedView
from koinon.computation._transfer import fields_of, local_value
from koinon.types import (
    FederatedType,
    FunctionType,
    SequenceType,
    StructType,
    Type,
    contains_federated_types,
    to_container,
)


def leave_engine(type_: Type, value: Any, leave: Callable[[FederatedType, Any], Any]) -> Any:
    """The result of a computation in a user's containers; `leave` converts what is placed."""
    if isinstance(type_, FederatedType):
        return leave(type_, value)
    if isinstance(type_, StructType) and contains_federated_types(type_):
        children = [leave_engine(field, v, leave) for (_, field), v in zip(type_.items(), value, strict=True)]
        return to_container(type_, children)
    return result_to_user(type_, value)


def result_to_user(type_: Type, value: Any) -> Any:
    """A result that is not placed in a user's containers: a sequence as a list of its elements."""
    if isinstance(type_, StructType):
        children = [result_to_user(field, v) for (_, field), v in zip(type_.items(), value, strict=True)]
        return to_container(type_, children)
    if isinstance(type_, SequenceType):
        return elements_of(type_, value.packed())
    if isinstance(type_, FunctionType):
        return FunctionResult(type_, value)
    return value


def elements_of(type_: SequenceType, view: PackedView) -> list[Any]:
    """The elements of a sequence that has been computed."""
    start, count = int(view.offset), int(view.length)
    rows = [jax.device_get(buffer[start : start + count]) for buffer in view.buffers]
    return [to_user(type_.element, unflatten(type_.element, [leaf[i] for leaf in rows])) for i in range(count)]


class FunctionResult:
    """A function that a computation returned."""

    def __init__(self, type_: FunctionType, function: Callable[[Any], Any]) -> None:
        self.type_signature = type_
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the function."""
        parameter = self.type_signature.parameter
        argument = match_arguments(parameter, args, kwargs)
        if parameter is None:
            return result_to_user(self.type_signature.result, self._function(None))
        values = tuple([local_value(t, v, path) for path, t, v in fields_of(parameter, argument)])
        return result_to_user(
            self.type_signature.result, self._function(values if isinstance(parameter, StructType) else values[0])
        )

    def __repr__(self) -> str:
        return f"FunctionResult({self.type_signature})"
