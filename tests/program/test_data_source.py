"""Data sources: uniform cohorts without replacement, and iterators that go on where they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from koinon._errors import KoinonValueError
from koinon.program import Capability, DatasetDataSource, pytree_from_bytes, pytree_to_bytes
from koinon.simulation import ClientData, GeneratedClientData

DATA = ClientData.from_clients({client_id: np.full(client_id, client_id, np.int32) for client_id in range(20)})


def test_a_source_says_what_it_gives() -> None:
    """The type of its data and what it promises; its iterators agree."""
    source = DatasetDataSource(DATA)
    assert str(source.federated_type) == str(source.iterator().federated_type) == "{int32*}@CLIENTS"
    assert source.capabilities == [Capability.RANDOM_UNIFORM, Capability.SUPPORTS_REUSE]


def test_selections_are_distinct_clients_each_equally_often() -> None:
    """In 2,000 selections of 5 of 20, counts lie within five standard deviations of 500."""
    iterator = DatasetDataSource(DATA, seed=1).iterator()
    counts = np.zeros(20)
    for _ in range(2000):
        cohort = iterator.select(5)
        assert len(set(cohort.client_ids)) == len(cohort) == 5
        counts[list(cohort.client_ids)] += 1
    assert np.all(abs(counts - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75))


def test_a_saved_iterator_goes_on_with_the_same_clients() -> None:
    """Its state survives a container of bytes; the source may be another object with another seed."""
    iterator = DatasetDataSource(DATA, seed=7).iterator()
    for _ in range(3):
        iterator.select(2)
    state = pytree_from_bytes(pytree_to_bytes(iterator.state), iterator.state)
    resumed = DatasetDataSource(DATA, seed=0).iterator(state)
    assert [resumed.select(k).client_ids for k in (4, 0, 9)] == [iterator.select(k).client_ids for k in (4, 0, 9)]
    again = DatasetDataSource(DATA, seed=7).iterator()
    assert again.select(2).client_ids != iterator.select(2).client_ids
    assert again.state == {"num_selections": 1, "seed": 7}


@pytest.mark.parametrize("k", [None, -1, 21, 2.5])
def test_impossible_selections_are_refused_and_change_nothing(k: Any) -> None:
    """No number, a negative one, and more than there are."""
    iterator = DatasetDataSource(DATA).iterator()
    with pytest.raises(KoinonValueError, match="0 to 20 clients"):
        iterator.select(k)
    assert iterator.state["num_selections"] == 0
    with pytest.raises(KoinonValueError, match="seed"):
        DatasetDataSource(DATA, seed=-1)


def test_streamed_datasets_are_sources_too() -> None:
    """Of a million clients, those selected are read."""
    read: list[int] = []

    def examples_of(client_id: int) -> np.ndarray:
        read.append(client_id)
        return np.zeros(3, np.float32)

    source = DatasetDataSource(GeneratedClientData(1_000_000, examples_of, example_spec=np.float32))
    cohort = source.iterator().select(10)
    assert list(cohort.client_ids or ()) == read
    assert len(read) == 10
