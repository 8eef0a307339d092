"""Contexts in which a program runs: calls of computations return at once, with references to what will come of them."""

from __future__ import annotations

import abc
import asyncio
import concurrent.futures
from collections.abc import Iterator
from typing import Any, final

import jax

from koinon._errors import ContextError, KoinonTypeError, KoinonValueError
from koinon._threads import carry_settings
from koinon.computation import Backend, Computation, Unpacked, current_backend, using_backend
from koinon.program._references import MaterializableValueReference
from koinon.types import SERVER, FederatedType, StructType, TensorType, Type, from_container, to_container


class FederatedContext(abc.ABC):
    """A backend for programs: what it returns are structures of `MaterializableValueReference`s.

    Program logic is written against this class alone, and then runs in every context: on this machine, or wherever
    some context sends computations.
    """

    @abc.abstractmethod
    def invoke(self, computation: Computation, argument: Any) -> Any:
        """Begins to run a computation; see `NativeFederatedContext.invoke`."""


def check_in_federated_context() -> None:
    """Checks that computations run in a `FederatedContext` here and now.

    Raises:
      ContextError: if they do not.
    """
    backend = current_backend()
    if not isinstance(backend, FederatedContext):
        raise ContextError(
            "A program must run in a federated context.",
            expected="a FederatedContext",
            found=repr(backend),
            hint="`with ko.backends.use(ko.program.NativeFederatedContext()): ...`",
        )


def contains_only_server_placed_data(type_: Type) -> bool:
    """Whether a type is a structure of nothing but tensors and values placed at the server.

    Example:
      >>> from koinon.types import parse
      >>> contains_only_server_placed_data(parse("<float32@SERVER,int32>"))
      True
      >>> contains_only_server_placed_data(parse("<{float32}@CLIENTS>"))
      False
    """
    if isinstance(type_, StructType):
        return all(map(contains_only_server_placed_data, type_.children()))
    return isinstance(type_, TensorType) or (isinstance(type_, FederatedType) and type_.placement is SERVER)


@final
class NativeFederatedContext(FederatedContext):
    """Runs programs on a backend of this process, one computation after the other, in a thread of its own.

    Meanwhile the program goes on: it releases the metrics of a round, or writes a checkpoint, while the next round is
    computed.

    Example:
      >>> import asyncio, jax.numpy as jnp, koinon as ko
      >>> @ko.federated_computation(ko.types.at_clients(jnp.float32))
      ... def total(values):
      ...     return ko.federated_sum(values)
      >>> with ko.backends.use(NativeFederatedContext()):
      ...     reference = total([1.0, 2.0])
      >>> reference
      NativeValueReference(float32)
      >>> float(asyncio.run(reference.get_value()))
      3.0
    """

    def __init__(self, backend: Backend | None = None) -> None:
        """Runs on `backend`; on the one in use here and now, if None.

        Raises:
          KoinonTypeError: if the backend is itself a federated context.
        """
        self._backend = current_backend() if backend is None else backend
        if isinstance(self._backend, FederatedContext):
            raise KoinonTypeError("A federated context runs on a backend, not on another context.")
        # One worker: computations run in the order of their calls, so that an argument which refers to the result of
        # an earlier call is there when it is needed.
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="koinon-program")

    def __repr__(self) -> str:
        return f"NativeFederatedContext({self._backend!r})"

    def invoke(self, computation: Computation, argument: Any) -> Any:
        """Begins to run a computation.

        Args:
          computation: the computation; its result is a structure of tensors and values placed at the server.
          argument: its argument, in which references may stand for the values of the server.

        Returns:
          The result, in its containers, with a reference in place of each tensor.

        Raises:
          KoinonValueError: if the result is of another kind. Other errors are raised where the result is asked for.
        """
        result_type = computation.type_signature.result
        if not contains_only_server_placed_data(result_type):
            raise KoinonValueError(
                "What a program computes must be placed at the server.",
                expected="a structure of tensors and of values placed at the server",
                found=result_type,
                hint="aggregate what the clients have",
            )
        references: list[NativeValueReference] = []
        result = _references(result_type, references)
        self._executor.submit(carry_settings(self._run), computation, argument, references)
        return result

    def _run(self, computation: Computation, argument: Any, references: list[NativeValueReference]) -> None:
        try:
            # Of the worker's thread: with the context itself in use, a call inside of the backend would wait for us.
            with using_backend(self._backend):
                result = self._backend.invoke(computation, _resolved(argument))
            values = list(_leaves(computation.type_signature.result, result))
        except BaseException as error:
            for reference in references:
                reference.future.set_exception(error)
            return
        # Each reference has its own value only: one to a metric must not keep the state of its round alive.
        for reference, value in zip(references, values, strict=True):
            reference.future.set_result(value)


@final
class NativeValueReference(MaterializableValueReference):
    """A reference to a value that a `NativeFederatedContext` computes.

    Attributes:
      future: what becomes the value.
    """

    def __init__(self, type_signature: Type) -> None:
        self.future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._type_signature = type_signature

    @property
    def type_signature(self) -> Type:
        """The type of the value."""
        return self._type_signature

    async def get_value(self) -> Any:
        """The value, when it is computed."""
        # Shielded: a program that stops waiting must not take the value away from others.
        return await asyncio.shield(asyncio.wrap_future(self.future))

    def __repr__(self) -> str:
        return f"NativeValueReference({self._type_signature})"


def _references(type_: Type, references: list[NativeValueReference]) -> Any:
    """A result with references for its leaves, which are appended to `references`."""
    if isinstance(type_, FederatedType):
        return _references(type_.member, references)
    if isinstance(type_, StructType):
        return to_container(type_, [_references(child, references) for child in type_.children()])
    references.append(NativeValueReference(type_))
    return references[-1]


def _leaves(type_: Type, value: Any) -> Iterator[Any]:
    """The leaves of a result, in the order of `_references`."""
    if isinstance(type_, FederatedType):
        yield from _leaves(type_.member, value)
    elif isinstance(type_, StructType):
        for child_type, child in zip(type_.children(), from_container(type_, value), strict=True):
            yield from _leaves(child_type, child)
    else:
        yield value


def _resolved(argument: Any) -> Any:
    """An argument with its references replaced by their values."""
    if isinstance(argument, Unpacked):
        return Unpacked(tuple([_resolved(value) for value in argument.arguments]))
    return jax.tree.map(lambda leaf: leaf.future.result() if isinstance(leaf, NativeValueReference) else leaf, argument)
