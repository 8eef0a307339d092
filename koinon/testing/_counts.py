"""Counts that a test of speed can hold where a clock would flake: they are the same at each run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple

import jax

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_COMPILED = "/jax/core/compile/backend_compile_duration"


class FrameCount(NamedTuple):
    """How much Python of koinon a call ran.

    Attributes:
      total: the number of frames, which is the number of calls of functions written in koinon.
      deepest: the largest number of them that were on the stack at once.
    """

    total: int
    deepest: int


def count_frames(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> FrameCount:
    """Calls a function, and counts the Python frames of koinon that the call runs in this thread.

    Call the function once before, so that what is traced and compiled at the first call does not count.

    >>> import jax.numpy as jnp, koinon as ko
    >>> @ko.jax_computation(jnp.float32)
    ... def double(x):
    ...     return x + x
    >>> one = jnp.float32(1.0)
    >>> _ = double(one)
    >>> count = count_frames(double, one)
    >>> count.total <= 60, count.deepest <= 12
    (True, True)
    """
    total = depth = deepest = 0

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal total, depth, deepest
        if event not in ("call", "return") or not frame.f_code.co_filename.startswith(_PACKAGE):
            return
        if event == "return":
            depth -= 1
            return
        total += 1
        depth += 1
        deepest = max(deepest, depth)

    # This function's own return is not seen, since the profile is gone by then.
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        fn(*args, **kwargs)
    finally:
        sys.setprofile(before)
    return FrameCount(total, deepest)


class CompilationCount:
    """The number of programs that XLA compiled.

    Attributes:
      total: the number so far.
    """

    def __init__(self) -> None:
        self.total = 0

    def __repr__(self) -> str:
        return f"CompilationCount({self.total})"


@contextlib.contextmanager
def count_compilations() -> Iterator[CompilationCount]:
    """Counts the programs that XLA compiles within a `with` block, in all threads.

    >>> import jax, jax.numpy as jnp
    >>> double = jax.jit(lambda x: x + x)
    >>> one = jnp.float32(1.0)
    >>> with count_compilations() as first:
    ...     _ = double(one)
    >>> with count_compilations() as second:
    ...     _ = double(one)
    >>> first.total, second.total
    (1, 0)
    """
    count = CompilationCount()

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs, kwargs
        if event == _COMPILED:
            count.total += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
