"""Release managers: what is handed on, and when."""

from __future__ import annotations

import collections
import datetime
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon._errors import KoinonTypeError, NotFilterableError
from koinon.program import (
    DelayedReleaseManager,
    FilteringReleaseManager,
    GroupingReleaseManager,
    LoggingReleaseManager,
    MemoryReleaseManager,
    PeriodicReleaseManager,
    ReleaseManager,
)


class Pair(NamedTuple):
    left: Any
    right: Any


class Failing:
    """A release manager that cannot release."""

    def release(self, value: Any, key: Any) -> None:
        raise RuntimeError(f"cannot release {key}")


def released_keys(manager: Any, memory: Any, keys: Any) -> list[int]:
    for key in keys:
        manager.release(key * 10, key)
    assert list(memory.values().values()) == [key * 10 for key in memory.values()]
    return list(memory.values())


def test_anything_with_a_release_method_is_a_release_manager() -> None:
    """Users need not derive from a class of the library."""
    assert isinstance(Failing(), ReleaseManager)
    assert not isinstance(object(), ReleaseManager)


@pytest.mark.parametrize(
    "make",
    [
        lambda inner: FilteringReleaseManager(inner, lambda _: True),
        lambda inner: GroupingReleaseManager([MemoryReleaseManager(), inner]),
        lambda inner: PeriodicReleaseManager(inner, 1),
        lambda inner: DelayedReleaseManager(inner, 1),
    ],
)
@pytest.mark.parametrize("wrong", [None, 1, "a", []])
def test_what_is_wrapped_must_be_a_release_manager(make: Any, wrong: Any) -> None:
    """A wrapper around something else is an error at once, and a TypeError."""
    with pytest.raises(KoinonTypeError, match=r"release\(value, key\)"):
        make(wrong)


def test_values_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Key and value are written to the logger of the package."""
    with caplog.at_level(logging.INFO, "koinon.program"):
        LoggingReleaseManager().release({"loss": 0.5}, 7)
    assert caplog.messages == ["released 7: {'loss': 0.5}"]


def test_values_are_logged_where_the_user_says(caplog: pytest.LogCaptureFixture) -> None:
    """Logger and level can be chosen."""
    with caplog.at_level(logging.DEBUG, "mine"):
        LoggingReleaseManager(logging.getLogger("mine"), logging.DEBUG).release(1, 2)
    assert caplog.record_tuples == [("mine", logging.DEBUG, "released 2: 1")]


def test_memory_keeps_values_by_key_until_they_are_removed() -> None:
    """Values come in the order of release; the same key replaces; what is returned is the user's own."""
    manager = MemoryReleaseManager()
    for key, value in [("b", 1), ("a", 2), ("b", 3)]:
        manager.release(value, key)
    assert list(manager.values().items()) == [("b", 3), ("a", 2)]
    manager.values().clear()
    assert len(manager.values()) == 2
    manager.remove_all()
    assert not manager.values()


def test_memory_keeps_copies_on_the_host() -> None:
    """A value does not change with the program's arrays, and does not hold device memory."""
    manager = MemoryReleaseManager()
    mutable = np.zeros(2)
    manager.release({"jax": jnp.ones(2), "numpy": mutable, "key": jax.random.key(0)}, 1)
    mutable += 1
    kept = manager.values()[1]
    assert isinstance(kept["jax"], np.ndarray)
    assert kept["numpy"].tolist() == [0, 0]
    assert jnp.issubdtype(kept["key"].dtype, jax.dtypes.prng_key)


VALUE = {"a": [1, (2, 3)], "b": Pair(4, {"c": 5}), "empty": {}}


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (lambda path: True, VALUE),
        (lambda path: path == ("a", 0), {"a": [1]}),
        (lambda path: path == ("a", 1, 1), {"a": [(3,)]}),
        (lambda path: path[0] == "b", {"b": Pair(4, {"c": 5})}),
        (lambda path: path == ("empty",), {"empty": {}}),
    ],
)
def test_a_filter_keeps_items_by_path_in_their_containers(keep: Any, expected: Any) -> None:
    """Items that do not pass, and containers of which nothing is left, are taken away."""
    memory = MemoryReleaseManager()
    FilteringReleaseManager(memory, keep).release(VALUE, 1)
    assert memory.values() == {1: expected}
    assert type(memory.values()[1].get("b")) in (Pair, type(None))


def test_filtering_keeps_an_ordered_dict() -> None:
    """The kinds of containers do not change."""
    memory = MemoryReleaseManager()
    value = collections.OrderedDict(z=1, a=2, m=3)
    FilteringReleaseManager(memory, lambda path: path != ("a",)).release(value, 1)
    assert memory.values()[1] == collections.OrderedDict(z=1, m=3)
    assert type(memory.values()[1]) is collections.OrderedDict


@pytest.mark.parametrize("value", [1, None, [], {}, VALUE, Pair(1, 2), "text"])
def test_nothing_is_released_when_all_is_filtered(value: Any) -> None:
    """The inner manager is not called at all."""
    FilteringReleaseManager(Failing(), lambda _: False).release(value, 1)


def test_a_value_without_containers_has_the_empty_path() -> None:
    """A single number passes or not by the path `()`."""
    memory, paths = MemoryReleaseManager(), []
    FilteringReleaseManager(memory, lambda path: not paths.append(path)).release(1.5, 1)
    assert (paths, memory.values()) == ([()], {1: 1.5})


def test_a_named_tuple_cannot_lose_a_field() -> None:
    """Taking away some fields is an error that names them and the way out."""
    manager = FilteringReleaseManager(Failing(), lambda path: path[-1] != "left")
    with pytest.raises(NotFilterableError, match=r"Pair at \('b',\)(.|\n)*\['left'\](.|\n)*_asdict"):
        manager.release(VALUE, 1)


def test_a_group_releases_to_all() -> None:
    """Every member gets the value and the key."""
    memories = [MemoryReleaseManager(), MemoryReleaseManager()]
    GroupingReleaseManager(memories).release(5, 1)
    assert [memory.values() for memory in memories] == [{1: 5}, {1: 5}]


def test_a_group_releases_to_all_before_it_fails() -> None:
    """One member that fails does not keep the value from those after it; one error is raised, or all."""
    memory = MemoryReleaseManager()
    with pytest.raises(RuntimeError, match="cannot release 1"):
        GroupingReleaseManager([Failing(), memory]).release(5, 1)
    assert memory.values() == {1: 5}
    with pytest.raises(ExceptionGroup) as caught:
        GroupingReleaseManager([Failing(), Failing()]).release(5, 1)
    assert len(caught.value.exceptions) == 2


def test_a_group_has_members() -> None:
    """An empty group is an error."""
    with pytest.raises(ValueError, match="at least one"):
        GroupingReleaseManager([])


@pytest.mark.parametrize(("periodicity", "expected"), [(1, [*range(10)]), (3, [2, 5, 8]), (11, [])])
def test_a_period_counts_calls(periodicity: int, expected: list[int]) -> None:
    """With the periodicity 3, of ten values the third, sixth and ninth are released."""
    memory = MemoryReleaseManager()
    assert released_keys(PeriodicReleaseManager(memory, periodicity), memory, range(10)) == expected


def test_a_period_of_time_counts_from_the_last_release(monkeypatch: Any) -> None:
    """A value is released when three seconds have passed since the manager was made, or since the last release."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    memory = MemoryReleaseManager()
    manager = PeriodicReleaseManager(memory, datetime.timedelta(seconds=3))
    for elapsed in [1, 2.9, 3, 5, 5.9, 6.5, 9, 9.5]:
        now = 100.0 + elapsed
        manager.release(None, elapsed)
    assert list(memory.values()) == [3, 6.5, 9.5]


def test_a_delay_counts_calls() -> None:
    """With the delay 3, all values from the third on are released."""
    memory = MemoryReleaseManager()
    assert released_keys(DelayedReleaseManager(memory, 3), memory, range(6)) == [2, 3, 4, 5]


@pytest.mark.parametrize("wrong", [0, -1, datetime.timedelta(seconds=0.5)])
def test_periods_are_at_least_one(wrong: Any) -> None:
    """A period or delay below one is an error."""
    with pytest.raises(ValueError, match="at least 1"):
        PeriodicReleaseManager(MemoryReleaseManager(), wrong)
    if isinstance(wrong, int):
        with pytest.raises(ValueError, match="at least 1"):
            DelayedReleaseManager(MemoryReleaseManager(), wrong)


@pytest.mark.parametrize("wrong", [None, "3", True])
def test_periods_are_numbers(wrong: Any) -> None:
    """Something else than a number is a TypeError."""
    with pytest.raises(KoinonTypeError, match="must be a number"):
        PeriodicReleaseManager(MemoryReleaseManager(), wrong)
