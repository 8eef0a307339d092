"""Work in other threads, that means what it would mean in this one."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import jax


def carry_settings(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` for use in another thread: with the backend, JAX's default device and the precision in use here and now.

    All of these are settings of a thread, and a new thread begins without them.
    """
    config: Any = jax.config
    device, enable_x64 = config.jax_default_device, config.jax_enable_x64
    context = contextvars.copy_context()

    def call(*args: Any) -> Any:
        with contextlib.ExitStack() as stack:
            # Only what differs: a setting of a thread makes JAX compile anew, even where it has the global value.
            if config.jax_default_device != device:
                stack.enter_context(jax.default_device(device))
            if config.jax_enable_x64 != enable_x64:
                stack.enter_context(jax.enable_x64(enable_x64))
            return context.copy().run(fn, *args)

    return call


def run_all(fn: Callable[[int], Any], count: int, threads: int) -> list[Any]:
    """`fn(0)` to `fn(count - 1)`, on this thread and on others that are free to help.

    This thread goes on until nothing is left, so that calls from inside one another, and from several threads, all come
    to an end, whoever has the helpers. Then an exception of `fn` is raised.

    Args:
      fn: the work, given the number of the piece.
      count: the number of pieces.
      threads: the most threads at once, this one included.
    """
    results: list[Any] = [None] * count
    numbers = itertools.count()
    job = [fn]

    def work() -> None:
        while (number := next(numbers)) < count:
            results[number] = job[0](number)

    helpers = min(threads, count) - 1
    help_out = carry_settings(work)
    futures = list(map(_pool(max(1, helpers)).submit, itertools.repeat(help_out, helpers)))
    try:
        work()
    finally:
        # One that no thread has begun has nothing left to do; one that a thread has begun ends by itself.
        started = list(itertools.filterfalse(Future.cancel, futures))
        wait(started)
        # What is cancelled waits in a queue for a thread to throw it away, and must not keep the arrays of a round.
        done = results[:]
        results.clear()
        job.clear()
    for future in started:
        future.result()
    return done


@functools.cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="koinon")
