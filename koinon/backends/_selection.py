"""Choosing the backend that runs computations."""

from __future__ import annotations

import contextlib

from koinon._errors import KoinonValueError
from koinon.backends._local import LocalBackend
from koinon.backends._reference import ReferenceBackend
from koinon.computation import Backend, current_backend, set_default_backend, using_backend

_NAMED: dict[str, Backend] = {"local": LocalBackend(), "reference": ReferenceBackend()}


def _find(backend: str | Backend) -> Backend:
    if not isinstance(backend, str):
        return backend
    if backend not in _NAMED:
        raise KoinonValueError(
            "There is no backend of this name.", expected=f"one of {', '.join(sorted(_NAMED))}", found=repr(backend)
        )
    return _NAMED[backend]


def use(backend: str | Backend) -> contextlib.AbstractContextManager[Backend]:
    """Runs computations on a backend within a `with` block, in this thread or task alone.

    Args:
      backend: `"local"`, `"reference"`, or a backend object such as `ko.backends.LocalBackend(...)`.

    Raises:
      KoinonValueError: where there is no backend of this name.
      KoinonTypeError: where the object cannot run computations.
    """
    return using_backend(_find(backend))


def set_default(backend: str | Backend) -> None:
    """Makes a backend the one that runs computations wherever no other is in use; at first that is `"local"`.

    Raises:
      KoinonValueError: where there is no backend of this name.
      KoinonTypeError: where the object cannot run computations.
    """
    set_default_backend(_find(backend))


def current() -> Backend:
    """The backend that runs computations here and now."""
    return current_backend()


set_default_backend(_NAMED["local"])
