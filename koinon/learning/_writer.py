"""Writing while computing."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable
from typing import Any

from koinon._threads import carry_settings


class Writer:
    """Does what is to be written one after the other, while the next round runs; used in a `with` block.

    Once something has failed, nothing more is written: a checkpoint says that all rounds up to its own were released.
    """

    def __init__(self) -> None:
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="koinon-writer")
        self._pending: collections.deque[concurrent.futures.Future[None]] = collections.deque()
        self._failed = False

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._executor.shutdown()

    def submit(self, write: Callable[..., None], *args: Any) -> None:
        """Has `write(*args)` called when what was submitted before is done, of which at most one may still run.

        Raises:
          Exception: what an earlier call has raised.
        """
        self._wait(leave=1)
        # With the settings of the caller, so that a release manager may run computations on the backend in use.
        self._pending.append(self._executor.submit(self._write, carry_settings(write), args))

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
          Exception: what a call has raised.
        """
        self._wait(leave=0)

    def _write(self, write: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self._failed:
            return
        try:
            write(*args)
        except BaseException:
            self._failed = True
            raise

    def _wait(self, leave: int) -> None:
        while len(self._pending) > leave:
            concurrent.futures.wait([self._pending[0]])
            self._pending.popleft().result()
