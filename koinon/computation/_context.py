"""What a call means right now: a node of the computation being traced, or a run on the backend in use."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, Protocol

from koinon._errors import ContextError, KoinonTypeError


class Backend(Protocol):
    """What runs computations."""

    def invoke(self, computation: Any, argument: Any) -> Any:
        """Runs a computation.

        Args:
          computation: a `Computation`.
          argument: None where the computation takes no parameter; `Unpacked` where the user gave an argument for each
            field of its parameter; else the value of its one parameter, in the containers in which the user gave it.

        Returns:
          The result in the containers of the result type.
        """
        ...


_backend: contextvars.ContextVar[Backend | None] = contextvars.ContextVar("koinon_backend", default=None)
_default_backend: list[Backend] = []


def current_backend() -> Backend:
    """The backend in use in this thread of execution, or the default one."""
    backend = _backend.get()
    if backend is not None:
        return backend
    if not _default_backend:
        raise ContextError(
            "No backend is installed to run a computation.", hint="import koinon, or call ko.backends.set_default(...)"
        )
    return _default_backend[0]


def set_default_backend(backend: Backend) -> None:
    """Makes a backend the one that runs computations wherever no other is in use."""
    check_backend(backend)
    _default_backend[:] = [backend]


def check_backend(backend: object) -> None:
    """Checks that an object can run computations."""
    if not callable(getattr(backend, "invoke", None)):
        raise KoinonTypeError(
            "A backend must have a method `invoke(computation, argument)`.",
            found=f"{type(backend).__name__} {backend!r}",
        )


@contextlib.contextmanager
def using_backend(backend: Backend) -> Iterator[Backend]:
    """Runs computations on a backend within a `with` block."""
    check_backend(backend)
    token = _backend.set(backend)
    try:
        yield backend
    finally:
        _backend.reset(token)
