"""The next cohorts, made in the background while the program works with this one."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Hashable, Iterable, Iterator

import jax

from koinon._errors import KoinonValueError
from koinon._threads import carry_settings
from koinon.computation import Cohort


def prefetch_cohorts(
    make_cohort: Callable[[Iterable[Hashable]], Cohort], selections: Iterable[Iterable[Hashable]], buffer_size: int
) -> Iterator[Cohort]:
    """The cohorts of `selections` in their order, up to `buffer_size` of them ahead, each on the device already.

    Args:
      make_cohort: makes a cohort of client ids.
      selections: the client ids of each cohort; taken in the thread of the caller.
      buffer_size: how many cohorts, besides the one in use, may exist at a time.

    Raises:
      KoinonValueError: if `buffer_size` is not positive.
    """
    if buffer_size < 1:
        raise KoinonValueError("At least one cohort has to be prefetched.", found=f"buffer_size={buffer_size}")
    return _prefetch(carry_settings(lambda ids: _on_device(make_cohort(ids))), selections, buffer_size)


def _prefetch(
    make_cohort: Callable[[Iterable[Hashable]], Cohort], selections: Iterable[Iterable[Hashable]], buffer_size: int
) -> Iterator[Cohort]:
    # One worker keeps the order, and a task for each cohort, rather than a thread that waits at a full queue, leaves
    # nothing behind to be woken up when the caller stops early.
    executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="koinon-prefetch")
    pending: collections.deque[concurrent.futures.Future[Cohort]] = collections.deque()
    try:
        for client_ids in selections:
            pending.append(executor.submit(make_cohort, client_ids))
            if len(pending) > buffer_size:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def _on_device(cohort: Cohort) -> Cohort:
    jax.block_until_ready(cohort.packed.on_device())
    return cohort
