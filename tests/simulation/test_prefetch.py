"""Prefetching: the cohorts in their order, made in the background, bounded, and without anything left behind."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

import koinon as ko
from koinon._errors import KoinonValueError, UnknownClientError
from koinon.simulation import ClientData, GeneratedClientData


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("koinon-prefetch")]


@pytest.fixture(autouse=True)
def _no_thread_is_left_behind() -> Iterator[None]:
    """Every test begins and ends without a prefetching thread."""
    assert not threads()
    yield
    gc.collect()
    assert not threads()


def examples_of(client_id: int) -> Any:
    return np.full((1 + client_id % 4, 2), client_id, np.float32)


@pytest.mark.parametrize("buffer_size", [1, 3, 100])
@pytest.mark.parametrize("in_memory", [False, True])
def test_cohorts_come_in_order_and_are_those_of_cohort(buffer_size: int, in_memory: bool) -> None:
    """However many are made ahead, what comes out is what `cohort` would have given; it is on the device."""
    data: Any = GeneratedClientData(50, examples_of)
    if in_memory:
        data = ClientData.from_clients({client_id: examples_of(client_id) for client_id in range(50)})
    sample = ko.simulation.build_uniform_sampling_fn(data.client_ids, seed=3)
    selections = [sample(round_num, round_num % 7) for round_num in range(20)]
    cohorts = list(data.prefetch(selections, buffer_size))
    assert [cohort.client_ids for cohort in cohorts] == selections
    for cohort, ids in zip(cohorts, selections, strict=True):
        expected = data.cohort(ids)
        (rows,) = cohort.packed.on_device()
        assert isinstance(rows, jax.Array)
        for place in range(len(ids)):
            start, length = cohort.offsets[place], cohort.lengths[place]
            assert length == expected.lengths[place]
            np.testing.assert_array_equal(np.asarray(rows)[start : start + length], examples_of(ids[place]))


def test_clients_are_read_in_another_thread_and_only_so_far_ahead() -> None:
    """With the cohort in use, at most `buffer_size` more have been asked for."""
    read: list[tuple[int, str]] = []
    taken: list[int] = []

    def read_client(client_id: int) -> Any:
        read.append((client_id, threading.current_thread().name))
        return examples_of(client_id)

    def selections() -> Iterator[list[int]]:
        for client_id in range(10):
            taken.append(client_id)
            yield [client_id]

    data = GeneratedClientData(100, read_client, example_spec=(np.float32, (2,)))
    for position, cohort in enumerate(data.prefetch(selections(), buffer_size=2)):
        assert cohort.client_ids == [position]
        assert len(read) <= len(taken) <= position + 3
    assert [client_id for client_id, _ in read] == list(range(10))
    assert all(name.startswith("koinon-prefetch") for _, name in read)


def test_the_next_cohort_is_made_while_this_one_is_in_use() -> None:
    """The second cohort is read although nobody has asked for it yet."""
    was_read = threading.Event()

    def read_client(client_id: int) -> Any:
        if client_id == 1:
            was_read.set()
        return examples_of(client_id)

    cohorts = GeneratedClientData(2, read_client, example_spec=(np.float32, (2,))).prefetch([[0], [1]])
    assert next(cohorts).client_ids == [0]
    assert was_read.wait(timeout=10)
    assert [cohort.client_ids for cohort in cohorts] == [[1]]


def test_an_error_is_raised_where_its_cohort_was_due() -> None:
    """The cohorts before it are delivered; the error has the client's id; the thread ends."""

    def read_client(client_id: int) -> Any:
        if client_id == 2:
            raise OSError("the disk is on fire")
        return examples_of(client_id)

    cohorts = GeneratedClientData(5, read_client).prefetch([[0], [1], [3, 2], [4]], buffer_size=3)
    assert [next(cohorts).client_ids, next(cohorts).client_ids] == [[0], [1]]
    with pytest.raises(OSError, match="on fire") as caught:
        next(cohorts)
    assert caught.value.__notes__ == ["This happened with the examples of client 2."]
    assert not threads()
    unknown = GeneratedClientData(5, examples_of).prefetch([[0], [7]])
    next(unknown)
    with pytest.raises(UnknownClientError, match="no client 7"):
        next(unknown)


@pytest.mark.parametrize("end", ["close", "forget", "break"])
def test_stopping_early_ends_the_thread(end: str) -> None:
    """Closed, forgotten or left in a loop: the background work is over."""
    cohorts = GeneratedClientData(5, examples_of).prefetch(([i % 5] for i in itertools.count()), buffer_size=2)
    if end == "break":
        for _ in cohorts:
            break
    else:
        next(cohorts)
    if end == "close":
        cohorts.close()  # pyright: ignore[reportAttributeAccessIssue]
    del cohorts
    gc.collect()
    assert not threads()


def test_nothing_to_prefetch_is_an_empty_iterator() -> None:
    """And a buffer of no size is refused at once."""
    data = GeneratedClientData(5, examples_of)
    assert list(data.prefetch([])) == []
    with pytest.raises(KoinonValueError, match="buffer_size=0"):
        data.prefetch([[0]], buffer_size=0)


def test_the_background_uses_the_device_and_the_precision_of_the_foreground() -> None:
    """Settings of JAX that hold for one thread hold for the cohorts that it asks for."""
    data = GeneratedClientData(2, lambda client_id: np.full(3, 0.1))
    with jax.enable_x64(True), jax.default_device(jax.devices()[-1]):
        (cohort,) = data.prefetch([[0]])
    (rows,) = cohort.packed.on_device()
    assert rows.dtype == np.float64
    assert rows.devices() == {jax.devices()[-1]}
