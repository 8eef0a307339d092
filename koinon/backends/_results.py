"""Results of an engine as a user sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from koinon.computation._arguments import match_arguments
from koinon.computation._flat import to_user, unflatten
from koinon.computation._views import PackedView
from koinon.types import FederatedType, FunctionType, SequenceType, StructType, Type, to_container


def leave_engine(type_: Type, value: Any, leave: Callable[[FederatedType | FunctionType, Any], Any]) -> Any:
    """The result of a computation in a user's containers; `leave` converts what is placed, and functions."""
    if isinstance(type_, (FederatedType, FunctionType)):
        return leave(type_, value)
    if isinstance(type_, StructType):
        children = [leave_engine(field, v, leave) for (_, field), v in zip(type_.items(), value, strict=True)]
        return to_container(type_, children)
    return result_to_user(type_, value)


def result_to_user(type_: Type, value: Any) -> Any:
    """A result without placement, and without functions, in a user's containers: a sequence as a list of elements."""
    if isinstance(type_, StructType):
        children = [result_to_user(field, v) for (_, field), v in zip(type_.items(), value, strict=True)]
        return to_container(type_, children)
    if isinstance(type_, SequenceType):
        return elements_of(type_, value.packed())
    return value


def elements_of(type_: SequenceType, view: PackedView) -> list[Any]:
    """The elements of a sequence that has been computed."""
    start, count = int(view.offset), int(view.length)
    rows = [_rows(buffer, start, start + count) for buffer in view.buffers]
    return [to_user(type_.element, unflatten(type_.element, [leaf[i] for leaf in rows])) for i in range(count)]


def _rows(buffer: Any, start: int, stop: int) -> list[jax.Array]:
    if jax.dtypes.issubdtype(buffer.dtype, jax.dtypes.extended):
        return list(buffer[start:stop])
    # By way of numpy: a slice of an array of JAX is a program of its own for every length.
    return jax.device_put(list(np.asarray(buffer)[start:stop]))


class FunctionResult:
    """A function that a computation returned; it is called like a computation.

    Attributes:
      type_signature: its type, a `FunctionType`.
    """

    def __init__(self, type_: FunctionType, function: Callable[[Any], Any]) -> None:
        self.type_signature = type_
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the function."""
        return self._function(match_arguments(self.type_signature.parameter, args, kwargs))

    def __repr__(self) -> str:
        return f"FunctionResult({self.type_signature})"
