"""The function being traced: its bindings, and where in a user's code it is at."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import sys
import traceback
from collections.abc import Iterator
from types import FrameType

from koinon._errors import ContextError, KoinonError, TracingError
from koinon.computation import _ir as ir

# Frames of these packages are not where a user wrote anything.
_NOT_OF_USERS = frozenset([__name__.split(".")[0], "jax", "numpy", "optax", "contextlib", "functools"])


class Builder:
    """The bindings of the function being traced, in order."""

    def __init__(self, parent: Builder | None) -> None:
        self.bindings: list[tuple[str, ir.Expression]] = []
        self._names: Iterator[int] = parent._names if parent is not None else itertools.count()

    def fresh_name(self) -> str:
        """A name that nothing else in the outermost traced computation has."""
        return f"v{next(self._names)}"

    def bind(self, expression: ir.Expression) -> ir.Reference:
        """Binds an expression to a fresh name, so that it is computed once however often it is used."""
        name = self.fresh_name()
        self.bindings.append((name, expression))
        return ir.Reference(name, expression.type)

    def block(self, result: ir.Expression) -> ir.Expression:
        """The result within the bindings made so far."""
        return ir.Block(tuple(self.bindings), result) if self.bindings else result


_builder: contextvars.ContextVar[Builder | None] = contextvars.ContextVar("koinon_builder", default=None)


@contextlib.contextmanager
def building() -> Iterator[Builder]:
    """Traces into a new builder within a `with` block.

    Raises:
      TracingError: in the place of an error of JAX about a traced value among its operands.
    """
    builder = Builder(_builder.get())
    token = _builder.set(builder)
    try:
        yield builder
    except TypeError as error:
        refusal = _refusal_behind(error)
        if refusal is None:
            raise
        raise refusal.with_traceback(error.__traceback__) from None
    finally:
        _builder.reset(token)


def _refusal_behind(error: TypeError) -> TracingError | None:
    """What a traced value, or this package for it, says where JAX says that an operand is none of its own."""
    if isinstance(error, KoinonError) or f"<class '{__package__}._value.Value'>" not in str(error):
        return None
    context: BaseException | None = error
    while context is not None:
        if isinstance(context, TracingError):
            return context
        context = context.__cause__ or context.__context__
    locations = [_location(frame) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return TracingError(
        "A traced value cannot be an operand of a function of JAX or numpy.",
        made_in=next((location for location in reversed(locations) if location is not None), None),
        hint="apply a function where it is: ko.federated_map(fn, value), or aggregate it: ko.federated_mean(value)",
    )


@contextlib.contextmanager
def not_building() -> Iterator[None]:
    """Within a `with` block, computations run instead of being traced: the inside of a JAX function."""
    token = _builder.set(None)
    try:
        yield
    finally:
        _builder.reset(token)


def tracing() -> bool:
    """Whether a federated computation is being traced."""
    return _builder.get() is not None


def traced_function() -> object:
    """What identifies the outermost function that is being traced; None where none is."""
    builder = _builder.get()
    return None if builder is None else builder._names


def current_builder(operator: str) -> Builder:
    """The builder in use, for an operator that has a meaning only while a computation is traced."""
    builder = _builder.get()
    if builder is None:
        raise ContextError(
            f"`{operator}` has a meaning only inside a function decorated with @ko.federated_computation.",
            hint="move the call into such a function, and call that",
        )
    return builder


def user_location() -> str | None:
    """The file and line of the nearest caller outside this package."""
    frame = sys._getframe(1)
    while frame is not None:
        location = _location(frame)
        if location is not None:
            return location
        frame = frame.f_back
    return None


def _location(frame: FrameType) -> str | None:
    """The file and line that a frame is at; None where no user wrote it."""
    if frame.f_globals.get("__name__", "").split(".")[0] in _NOT_OF_USERS:
        return None
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
