"""Tests of packed datasets and cohorts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon._jax import aligned_empty
from koinon.computation import ClientRows
from koinon.errors import CardinalityError, KoinonTypeError, UnknownClientError
from koinon.types import SequenceType, TensorType, at_clients

FLOAT = TensorType(np.float32)


def packed(lengths: list[int]) -> ko.PackedSequences:
    """Clients with the numbers 0, 1, 2, ... back to back."""
    offsets = np.cumsum([0, *lengths[:-1]])
    return ko.PackedSequences(FLOAT, [np.arange(sum(lengths), dtype=np.float32)], offsets, np.array(lengths))


total = ko.federated_computation(
    lambda data: ko.federated_map(lambda s: s.reduce(jnp.float32(0), lambda c, x: c + x), data),
    at_clients(SequenceType(FLOAT)),
)


def totals(cohort: Any) -> list[float]:
    """The sum of the examples of each client."""
    return [float(x) for x in total(cohort)]


def test_a_cohort_is_a_choice_of_clients_in_order(backend: str) -> None:
    """Any order, the same client twice, empty clients, and no client at all."""
    data = packed([3, 0, 2, 4])
    assert totals(ko.Cohort(data, np.array([0, 1, 2, 3]))) == [0 + 1 + 2, 0, 3 + 4, 5 + 6 + 7 + 8]
    assert totals(ko.Cohort(data, np.array([2, 0, 2]))) == [7, 3, 7]
    assert totals(ko.Cohort(data, np.array([], np.int32))) == []


def test_a_cohort_says_how_much_it_has() -> None:
    """The texts count clients and examples."""
    data = packed([3, 0, 2])
    cohort = ko.Cohort(data, np.array([2, 1]), ["c", "b"])
    assert repr(data) == "PackedSequences(float32*, 3 clients, 5 examples)"
    assert repr(cohort) == "Cohort(2 of 3 clients, 2 examples)"
    assert (len(cohort), data.num_clients, cohort.client_ids) == (2, 3, ["c", "b"])
    assert (cohort.offsets.tolist(), cohort.lengths.tolist()) == ([3, 3], [2, 0])


def test_a_dataset_without_examples_has_sums_of_nothing(backend: str) -> None:
    """No row to read, and no row is read."""
    assert totals(ko.Cohort(packed([0, 0]), np.array([1, 0]))) == [0, 0]


def test_the_values_of_buffers_between_clients_are_never_read(backend: str) -> None:
    """Rows that belong to nobody, NaN here, do not touch any client, nor do those of others."""
    rows = np.array([np.nan, 1, 2, np.nan, np.nan, 3], np.float32)
    data = ko.PackedSequences(FLOAT, [rows], np.array([1, 5]), np.array([2, 1]))
    batched = ko.federated_computation(
        lambda d: ko.federated_map(lambda s: s.batch(4).reduce(jnp.float32(0), lambda c, b: c + b.examples.sum()), d),
        at_clients(SequenceType(FLOAT)),
    )
    # Rows of a batch without an example repeat the first example: 1 + 2 + 1 + 1, and 3 four times.
    assert [float(x) for x in batched(ko.Cohort(data, np.array([0, 1])))] == [5.0, 12.0]


def test_offsets_and_lengths_are_two_vectors() -> None:
    """Another shape is a ValueError."""
    for offsets, lengths in [([0, 1], [1]), ([[0]], [[1]]), (0, 1)]:
        with pytest.raises(CardinalityError, match="two vectors with one entry per client"):
            ko.PackedSequences(FLOAT, [np.zeros(3, np.float32)], np.array(offsets), np.array(lengths))


@pytest.mark.parametrize(
    ("buffers", "offsets", "lengths", "message"),
    [
        ([], [0], [1], "one buffer for each leaf"),
        ([np.zeros(3, np.float32)] * 2, [0], [1], "one buffer for each leaf"),
        ([np.zeros(3, np.float64)], [0], [1], "has another dtype or shape"),
        ([np.zeros((3, 1), np.float32)], [0], [1], "has another dtype or shape"),
        ([np.float32(3)], [0], [1], "has another dtype or shape"),
        ([np.zeros(3, np.float32)], [0, 2], [2, 2], "outside the buffers"),
        ([np.zeros(3, np.float32)], [-1], [2], "outside the buffers"),
        ([np.zeros(3, np.float32)], [1], [-1], "outside the buffers"),
    ],
)
def test_buffers_have_the_declared_examples(buffers: Any, offsets: Any, lengths: Any, message: str) -> None:
    """A wrong dtype, shape or range is found when the data are packed, not when they are read."""
    with pytest.raises((KoinonTypeError, CardinalityError), match=message):
        ko.PackedSequences(FLOAT, buffers, np.array(offsets), np.array(lengths))


@pytest.mark.parametrize("rows", [5, 4096])
def test_writing_into_what_a_dataset_was_made_of_does_not_change_it(rows: int, backend: str) -> None:
    """Neither before the data are on a device nor afterwards, in arrays with room after the last example or without."""
    buffer = aligned_empty((rows,), np.float32)
    buffer[:] = 1
    offsets, lengths = np.array([0, 3], np.int32), np.array([3, 2], np.int32)
    data = ko.PackedSequences(FLOAT, [buffer], offsets, lengths)
    buffer[:], offsets[:], lengths[:] = 2, 1, 1
    cohort = ko.Cohort(data, np.array([0, 1]))
    assert totals(cohort) == [3, 2]
    buffer[:] = 4
    assert totals(cohort) == [3, 2]
    assert data.buffers[0].tolist() == [1] * rows
    assert not data.buffers[0].flags.writeable


@pytest.mark.parametrize("rows", [5, 4096])
def test_the_device_shares_the_copy_of_an_array_that_can_be_written_to(rows: int) -> None:
    """There is one copy, and not another one for the device."""
    data = ko.PackedSequences(FLOAT, [np.ones(rows, np.float32)], np.array([0]), np.array([5]))
    (placed,) = data.on_device()
    assert placed.unsafe_buffer_pointer() == data.buffers[0].ctypes.data
    assert data.buffers[0].shape == (rows,)


def test_an_array_that_cannot_be_written_to_is_not_copied() -> None:
    """With room after the last example a CPU device shares the user's own array."""
    buffer = aligned_empty((4096,), np.float32)
    buffer[:] = 1
    buffer.flags.writeable = False
    data = ko.PackedSequences(FLOAT, [buffer], np.array([0]), np.array([5]))
    assert data.buffers[0] is buffer
    assert data.on_device()[0].unsafe_buffer_pointer() == buffer.ctypes.data


@pytest.mark.parametrize("indices", [[2], [-1], [0, 5]])
def test_a_cohort_has_clients_of_the_dataset(indices: list[int]) -> None:
    """A position outside the dataset is an UnknownClientError, also a negative one."""
    with pytest.raises(UnknownClientError, match="has no client at position") as caught:
        ko.Cohort(packed([1, 2]), np.array(indices))
    assert isinstance(caught.value, ValueError)


def test_the_examples_of_a_cohort_may_be_keys(backend: str) -> None:
    """A dataset of PRNG keys is packed like another."""
    keys = jax.random.split(jax.random.key(0), 3)
    type_ = TensorType(keys.dtype)
    data = ko.PackedSequences(type_, [keys], np.array([0, 1]), np.array([1, 2]))
    draw = ko.federated_computation(
        lambda d: ko.federated_map(lambda s: s.reduce(jnp.float32(0), lambda c, k: c + jax.random.uniform(k)), d),
        at_clients(SequenceType(type_)),
    )
    numbers = [float(jax.random.uniform(key)) for key in keys]
    np.testing.assert_allclose(
        [float(x) for x in draw(ko.Cohort(data, np.array([1, 0])))], [numbers[1] + numbers[2], numbers[0]]
    )


def test_stacked_values_of_clients_are_read_one_by_one() -> None:
    """`ClientRows` count, iterate and index like a list, in the containers of the type."""
    rows = ClientRows(
        ko.to_type({"a": np.int32, "b": np.float32}), [np.arange(4, dtype=np.int32), np.ones(4, np.float32)], 3
    )
    assert len(rows) == 3
    assert [int(row["a"]) for row in rows] == [0, 1, 2]
    assert int(rows[-1]["a"]) == 2
    assert repr(rows) == "ClientRows(<a=int32,b=float32>, 3 clients)"
    for index in (3, -4):
        with pytest.raises(IndexError, match="there are 3 clients"):
            rows[index]


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ([np.zeros(3, np.int32)], "one array for each leaf"),
        ([np.zeros(3, np.float32), np.zeros((3, 2), np.float32)], "another dtype or shape"),
        ([np.zeros(3, np.int32), np.zeros((3, 1), np.float32)], "another dtype or shape"),
        ([np.zeros(3, np.int32), np.zeros((2, 2), np.float32)], "fewer rows than there are clients"),
    ],
)
def test_stacked_values_have_the_declared_type(leaves: Any, message: str) -> None:
    """A wrong count, dtype, shape or number of rows is found when the rows are made."""
    with pytest.raises((KoinonTypeError, CardinalityError), match=message):
        ClientRows(ko.to_type({"a": np.int32, "b": (np.float32, (2,))}), leaves, 3)
