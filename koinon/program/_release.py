"""Release managers: where a program hands its results out, and when."""

from __future__ import annotations

import collections
import datetime
import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from koinon._errors import KoinonTypeError, NotFilterableError
from koinon.program._leaves import is_key
from koinon.program._references import wait_for_values


@runtime_checkable
class ReleaseManager(Protocol):
    """Takes the values that a program releases: metrics, models, anything that leaves the computation."""

    def release(self, value: Any, key: Any) -> None:
        """Releases `value` under `key`, most often the number of the round."""
        ...


class LoggingReleaseManager:
    """Writes released values to a logger.

    Example:
      >>> LoggingReleaseManager().release({"loss": 0.5}, key=1)  # logged by "koinon.program" at level INFO
    """

    def __init__(self, logger: logging.Logger | None = None, level: int = logging.INFO) -> None:
        """Logs to `logger`, that of "koinon.program" if None, at `level`."""
        self._logger = logging.getLogger("koinon.program") if logger is None else logger
        self._level = level

    def release(self, value: Any, key: Any) -> None:
        """Logs `key` and `value`."""
        self._logger.log(self._level, "released %s: %s", key, host_copy(value))


class MemoryReleaseManager:
    """Keeps released values in memory, as copies on the host.

    Example:
      >>> manager = MemoryReleaseManager()
      >>> manager.release({"loss": 0.5}, key=1)
      >>> manager.values()[1]
      {'loss': 0.5}
    """

    def __init__(self) -> None:
        self._values: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()

    def values(self) -> collections.OrderedDict[Hashable, Any]:
        """The released values by key, in the order of their release."""
        return self._values.copy()

    def remove_all(self) -> None:
        """Forgets all values."""
        self._values.clear()

    def release(self, value: Any, key: Hashable) -> None:
        """Keeps `value`; one released before under the same key is replaced."""
        self._values[key] = host_copy(value)


class FilteringReleaseManager:
    """Hands on a part of each value to another release manager.

    `filter_fn` is asked for each item of the value, and gets its path: the tuple of the keys, indices and field names
    that lead to it, `()` for a value that is no container. Items for which it is false are left out, and so are
    containers of which nothing is left. If nothing at all is left, nothing is released. Containers are dicts, lists,
    tuples and NamedTuples; other values are items.

    Example:
      >>> memory = MemoryReleaseManager()
      >>> losses = FilteringReleaseManager(memory, lambda path: path[-1] == "loss")
      >>> losses.release({"train": {"loss": 0.5, "accuracy": 0.9}}, key=1)
      >>> memory.values()[1]
      {'train': {'loss': 0.5}}
    """

    def __init__(self, release_manager: ReleaseManager, filter_fn: Callable[[tuple[Any, ...]], bool]) -> None:
        """Hands on to `release_manager` what `filter_fn` lets through."""
        _check_release_manager(release_manager)
        self._release_manager = release_manager
        self._filter_fn = filter_fn

    def release(self, value: Any, key: Any) -> None:
        """Releases the part of `value` that the filter lets through.

        Raises:
          NotFilterableError: if some, but not all, fields of a NamedTuple are filtered out.
        """
        filtered = _filter(value, (), self._filter_fn)
        if filtered is not _NOTHING:
            self._release_manager.release(filtered, key)


class GroupingReleaseManager:
    """Hands each value to several release managers.

    Example:
      >>> managers = MemoryReleaseManager(), MemoryReleaseManager()
      >>> GroupingReleaseManager(managers).release(0.5, key=1)
      >>> [manager.values()[1] for manager in managers]
      [0.5, 0.5]
    """

    def __init__(self, release_managers: Sequence[ReleaseManager]) -> None:
        """Groups `release_managers`.

        Raises:
          ValueError: if there are none.
        """
        if not release_managers:
            raise ValueError("`release_managers` must have at least one release manager, and is empty.")
        for release_manager in release_managers:
            _check_release_manager(release_manager)
        self._release_managers = tuple(release_managers)

    def release(self, value: Any, key: Any) -> None:
        """Releases `value` to every manager, also to those after one that fails; then raises what was raised."""
        errors: list[Exception] = []
        for release_manager in self._release_managers:
            try:
                release_manager.release(value, key)
            except Exception as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise ExceptionGroup(f"{len(errors)} release managers failed to release the value of {key!r}.", errors)


class PeriodicReleaseManager:
    """Hands on a value from time to time.

    With the periodicity 3, the third, the sixth, the ninth value. With a `timedelta`, a value that comes at least so
    long after the last that was handed on (at first: after the manager was made). What is counted are the calls since
    the manager was made: a program that is restarted counts anew.

    Example:
      >>> memory = MemoryReleaseManager()
      >>> manager = PeriodicReleaseManager(memory, 3)
      >>> for key in range(1, 8):
      ...     manager.release("a value", key)
      >>> list(memory.values())
      [3, 6]
    """

    def __init__(self, release_manager: ReleaseManager, periodicity: int | datetime.timedelta) -> None:
        """Hands on to `release_manager` every `periodicity` calls, or once a period of that length.

        Raises:
          ValueError: if `periodicity` is less than one, or shorter than one second.
        """
        _check_release_manager(release_manager)
        self._release_manager = release_manager
        if isinstance(periodicity, datetime.timedelta):
            _check_at_least_one(periodicity.total_seconds(), "periodicity")
        else:
            _check_at_least_one(periodicity, "periodicity")
        self._periodicity = periodicity
        self._count = 0
        self._last_time = time.monotonic()

    def release(self, value: Any, key: Any) -> None:
        """Releases `value` if it is time."""
        self._count += 1
        if isinstance(self._periodicity, datetime.timedelta):
            now = time.monotonic()
            is_time = now >= self._last_time + self._periodicity.total_seconds()
            if is_time:
                self._last_time = now
        else:
            is_time = self._count % self._periodicity == 0
        if is_time:
            self._release_manager.release(value, key)


class DelayedReleaseManager:
    """Hands on values from the `delay`-th on.

    Example:
      >>> memory = MemoryReleaseManager()
      >>> manager = DelayedReleaseManager(memory, 3)
      >>> for key in range(1, 6):
      ...     manager.release("a value", key)
      >>> list(memory.values())
      [3, 4, 5]
    """

    def __init__(self, release_manager: ReleaseManager, delay: int) -> None:
        """Hands on to `release_manager` from call number `delay` on.

        Raises:
          ValueError: if `delay` is less than one.
        """
        _check_release_manager(release_manager)
        self._release_manager = release_manager
        _check_at_least_one(delay, "delay")
        self._delay = delay
        self._count = 0

    def release(self, value: Any, key: Any) -> None:
        """Releases `value`, if the delay is over."""
        self._count += 1
        if self._count >= self._delay:
            self._release_manager.release(value, key)


def host_copy(value: Any) -> Any:
    """The value with its JAX arrays copied to NumPy arrays, which later rounds do not change or free.

    NumPy arrays are copied too. PRNG keys stay JAX arrays, and references become what they refer to.
    """
    return jax.tree.map(
        lambda leaf: np.array(leaf) if isinstance(leaf, jax.Array | np.ndarray) and not is_key(leaf) else leaf,
        wait_for_values(value),
    )


_NOTHING = object()


def _filter(value: Any, path: tuple[Any, ...], filter_fn: Callable[[tuple[Any, ...]], bool]) -> Any:
    """The items of `value` that pass, in its containers; `_NOTHING` if there are none."""
    if isinstance(value, Mapping) and value:
        passed = {key: _filter(child, (*path, key), filter_fn) for key, child in value.items()}
        kept = {key: child for key, child in passed.items() if child is not _NOTHING}
        if isinstance(value, collections.OrderedDict):
            return collections.OrderedDict(kept) or _NOTHING
        return kept or _NOTHING
    if isinstance(value, list | tuple) and value:
        steps = getattr(value, "_fields", range(len(value)))
        # `tree` paths of NamedTuples go by field name, and so do ours.
        children = [_filter(child, (*path, step), filter_fn) for step, child in zip(steps, value, strict=True)]
        kept = [child for child in children if child is not _NOTHING]
        if not kept:
            return _NOTHING
        if hasattr(value, "_fields"):
            _check_all_fields(value, children, path)
            return type(value)(*kept)
        return kept if isinstance(value, list) else tuple(kept)
    return value if filter_fn(path) else _NOTHING


def _check_all_fields(value: Any, children: list[Any], path: tuple[Any, ...]) -> None:
    missing = [field for field, child in zip(value._fields, children, strict=True) if child is _NOTHING]
    if missing:
        raise NotFilterableError(
            f"The filter takes away fields of the NamedTuple {type(value).__name__} at {path}.",
            expected=f"all of the fields {list(value._fields)}, or none",
            found=f"a filter that takes away {missing}",
            hint="release the NamedTuple as a dict (`value._asdict()`), or filter it as a whole",
        )


def _check_release_manager(release_manager: Any) -> None:
    if not isinstance(release_manager, ReleaseManager):
        raise KoinonTypeError(
            "A release manager was expected.",
            expected="an object with a method `release(value, key)`",
            found=type(release_manager).__name__,
        )


def _check_at_least_one(number: Any, name: str) -> None:
    if isinstance(number, bool) or not isinstance(number, int | float | np.integer):
        raise KoinonTypeError(f"`{name}` must be a number.", found=type(number).__name__)
    if number < 1:
        raise ValueError(f"`{name}` must be at least 1; found {number}.")
