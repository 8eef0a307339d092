"""Durable writing of files: a reader sees the old contents or the new ones, never a mixture."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

from koinon._errors import ProgramStateWriteError

_TEMPORARY_NAME = re.compile(r"\.(?P<target>.+)\.[0-9a-f]{16}\.tmp")


def temporary_target(name: str) -> str | None:
    """The name of the file that a temporary file called `name` was to become; None for any other name."""
    match = _TEMPORARY_NAME.fullmatch(name)
    return None if match is None else match["target"]


def write_atomically(path: str, chunks: Iterable[Any]) -> None:
    """Writes `chunks` (bytes-like) to a temporary file beside `path`, makes it durable, and gives it its name.

    A name that did not exist before is taken back when the directory could not be made durable: a save that failed
    leaves nothing behind that looks saved.

    Raises:
      ProgramStateWriteError: if the operating system refuses a step; the file at `path` is as it was before.
    """
    directory, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(directory, f".{name}.{secrets.token_hex(8)}.tmp")
    existed = os.path.lexists(path)
    with _write_errors(path):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                for chunk in chunks:
                    _write_all(descriptor, chunk)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        try:
            sync_directory(directory)
        except BaseException:
            if not existed:
                with contextlib.suppress(OSError):
                    os.unlink(path)
            raise


def append_durably(path: str, data: bytes) -> None:
    """Appends `data` to the existing file at `path`; on failure the file is cut back to its former size.

    Raises:
      ProgramStateWriteError: if the operating system refuses a step.
    """
    with _write_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            try:
                _write_all(descriptor, data)
                os.fsync(descriptor)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def make_directory(path: str) -> None:
    """Makes the directory `path` and its missing parents."""
    with _write_errors(path):
        os.makedirs(path, exist_ok=True)


def sync_directory(directory: str) -> None:
    """Makes the names in `directory` durable, not only the contents of its files."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, chunk: Any) -> None:
    view = memoryview(chunk).cast("B")
    while view:
        # A write may take fewer bytes than it was given, for example on a disk that is nearly full.
        written = os.write(descriptor, view)
        view = view[written:]


@contextlib.contextmanager
def _write_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ProgramStateWriteError(path, error) from error
