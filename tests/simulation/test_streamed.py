"""Federated datasets that are not in memory: all sources show the same clients, and computations compile once."""

from __future__ import annotations

import pathlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import koinon as ko
from koinon._errors import KoinonTypeError, KoinonValueError, TypeNotAssignableError, UnknownClientError
from koinon.simulation import (
    ClientData,
    FederatedDataset,
    FilePerUserClientData,
    GeneratedClientData,
    SqlClientData,
    StreamedClientData,
    save_to_sql_client_data,
)

CLIENTS = {
    name: {
        "x": np.arange(size * 2, dtype=np.float32).reshape(size, 2) + position,
        "y": np.arange(size, dtype=np.int32) % 3,
    }
    for position, (name, size) in enumerate([("ann", 3), ("bob", 0), ("cleo", 5), ("dan", 1)])
}
IN_MEMORY = ClientData.from_clients(CLIENTS)


def from_files(folder: pathlib.Path) -> StreamedClientData:
    for name, arrays in CLIENTS.items():
        np.savez(folder / f"{name}.npz", **arrays)
    return FilePerUserClientData(folder)


def from_sql(folder: pathlib.Path) -> StreamedClientData:
    save_to_sql_client_data(IN_MEMORY, folder / "clients.sqlite")
    return SqlClientData(folder / "clients.sqlite")


SOURCES: dict[str, Callable[[pathlib.Path], StreamedClientData]] = {
    "files": from_files,
    "sql": from_sql,
    "generated": lambda folder: GeneratedClientData(CLIENTS, CLIENTS.__getitem__),
    "subset": lambda folder: GeneratedClientData([*CLIENTS, "eve"], CLIENTS.__getitem__).subset(CLIENTS),
    "preprocessed": lambda folder: GeneratedClientData(
        CLIENTS, lambda name: {"x": CLIENTS[name]["x"] + 1, "y": CLIENTS[name]["y"]}
    ).preprocess(lambda arrays: {"x": arrays["x"] - 1, "y": arrays["y"]}),
}


@pytest.fixture(params=SOURCES)
def data(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> StreamedClientData:
    """The clients above from each kind of source."""
    return SOURCES[request.param](tmp_path)


def cohort_datasets(cohort: ko.Cohort) -> list[list[Any]]:
    """What an engine reads: for each client of a cohort, the rows that its offset and length say."""
    return [
        [np.asarray(buffer)[offset : offset + length].tolist() for buffer in cohort.packed.on_device()]
        for offset, length in zip(cohort.offsets, cohort.lengths, strict=True)
    ]


def test_every_source_shows_the_same_clients(data: StreamedClientData) -> None:
    """Ids, types, sizes and examples are those of the dataset in memory."""
    assert isinstance(data, FederatedDataset)
    assert tuple(data.client_ids) == IN_MEMORY.client_ids
    assert data.element_type == IN_MEMORY.element_type
    assert len(data) == 4
    for name, arrays in CLIENTS.items():
        assert data.num_examples(name) == len(arrays["y"])
        found = data.dataset(name)
        assert found.keys() == arrays.keys()
        for field in arrays:
            np.testing.assert_array_equal(found[field], arrays[field])


@pytest.mark.parametrize("ids", [None, ["dan", "ann"], ["cleo"], ["ann", "ann", "bob"], ["bob"], []])
def test_a_cohort_has_the_examples_of_its_clients_and_no_others(
    data: StreamedClientData, ids: list[str] | None
) -> None:
    """Rows are those of the dataset in memory, in arrays that have room for a power of two."""
    cohort = data.cohort(ids)
    expected = IN_MEMORY.cohort(ids)
    assert list(cohort.client_ids or ()) == list(expected.client_ids or ())
    assert cohort_datasets(cohort) == cohort_datasets(expected)
    rows = cohort.packed.buffers[0].shape[0]
    distinct = sum(len(CLIENTS[name]["y"]) for name in (CLIENTS if ids is None else set(ids)))
    assert rows == 2 ** int(np.ceil(np.log2(max(distinct, 1))))


@pytest.mark.parametrize("method", ["dataset", "num_examples", "cohort", "subset"])
def test_unknown_clients_are_refused(data: StreamedClientData, method: str) -> None:
    """The error names them, and some that there are."""
    argument = "eve" if method in ("dataset", "num_examples") else ["ann", "eve"]
    with pytest.raises(UnknownClientError, match=r"no client 'eve'(.|\n)*4 clients: 'ann', 'bob'"):
        getattr(data, method)(argument)


def test_one_string_is_no_cohort(data: StreamedClientData) -> None:
    """Its letters would pass for ids."""
    with pytest.raises(KoinonTypeError, match="several client ids"):
        data.cohort("ann")


def test_describe_counts_sizes_and_labels(data: StreamedClientData) -> None:
    """The summary is that of the dataset in memory."""
    found, expected = data.describe(), IN_MEMORY.describe()
    assert repr(found) == repr(expected)
    np.testing.assert_array_equal(found.label_counts, expected.label_counts)


@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=700))
def test_describe_puts_chunks_of_clients_together(sizes: list[int]) -> None:
    """Counts of many clients, more than are read at a time, with labels that only some have, equal a direct count."""
    labels = [[(client * 7 + i) % 5 for i in range(size)] for client, size in enumerate(sizes)]
    data = GeneratedClientData(len(sizes), lambda client: {"y": np.array(labels[client], np.int32)})
    summary = data.describe()
    assert summary.sizes.tolist() == sizes
    found = sorted({label for own in labels for label in own})
    assert (summary.labels if summary.labels is not None else np.zeros(0)).tolist() == found
    counts = summary.label_counts if summary.label_counts is not None else np.zeros((len(sizes), 0))
    assert counts.tolist() == [[own.count(label) for label in found] for own in labels]


def test_all_examples_are_those_of_the_clients_one_after_the_other(data: StreamedClientData) -> None:
    """Stacked; a seed gives another order, the same for data in memory, and keeps each example together."""
    for name in ("x", "y"):
        expected = np.concatenate([arrays[name] for arrays in CLIENTS.values()])
        np.testing.assert_array_equal(data.all_examples()[name], expected)
        np.testing.assert_array_equal(IN_MEMORY.all_examples()[name], expected)
    mixed, in_memory = data.all_examples(seed=1), IN_MEMORY.all_examples(seed=1)
    rows = lambda examples: [(*x, y) for x, y in zip(examples["x"].tolist(), examples["y"].tolist(), strict=True)]  # noqa: E731
    assert rows(mixed) == rows(in_memory) != rows(data.all_examples())
    assert sorted(rows(mixed)) == sorted(rows(data.all_examples()))
    one = IN_MEMORY.subset(["dan", "bob", "ann"]).all_examples()
    np.testing.assert_array_equal(one["x"], np.concatenate([CLIENTS["dan"]["x"], CLIENTS["ann"]["x"]]))


def test_splits_keep_test_clients_with_examples(data: StreamedClientData) -> None:
    """Both parts are the clients in their order; bob, who has none, never tests; impossible numbers are refused."""
    for seed in range(10):
        train, test = data.train_test_client_split(2, seed)
        assert sorted([*train.client_ids, *test.client_ids]) == sorted(CLIENTS)
        assert list(test.client_ids) == [name for name in CLIENTS if name in set(test.client_ids)]
        assert "bob" not in test.client_ids
        assert test.dataset(test.client_ids[0])["y"].tolist() == CLIENTS[str(test.client_ids[0])]["y"].tolist()
        assert train.train_test_client_split(1, seed)[0].client_ids[0] in CLIENTS
    assert data.train_test_client_split(2, 3)[1].client_ids == data.train_test_client_split(2, 3)[1].client_ids
    for number in (0, 4):
        with pytest.raises(KoinonValueError, match="both parts have clients"):
            data.train_test_client_split(number)
    with pytest.raises(KoinonValueError, match="at most 1, the number of clients with examples"):
        GeneratedClientData(3, lambda i: np.zeros(int(i == 1))).train_test_client_split(2)


def test_samples_are_distinct_clients_and_repeat_with_the_seed(data: StreamedClientData) -> None:
    """As many as asked for; more than there are is an error."""
    ids = data.sample(3, seed=1).client_ids
    assert ids is not None
    assert len(set(ids)) == 3
    assert data.sample(3, seed=1).client_ids == ids
    with pytest.raises(KoinonValueError, match="0 to 4 clients"):
        data.sample(5)


def test_preprocessing_may_change_fields_and_numbers() -> None:
    """The function sees one client's examples whenever it is read; a view of a view works too."""
    data = GeneratedClientData(CLIENTS, CLIENTS.__getitem__).preprocess(lambda arrays: arrays["x"][arrays["y"] > 0])
    halves = data.subset(["cleo", "ann"]).preprocess(lambda x: x / 2)
    assert str(halves.element_type) == "float32[2]"
    assert halves.num_examples("cleo") == 3
    np.testing.assert_array_equal(halves.dataset("cleo"), CLIENTS["cleo"]["x"][[1, 2, 4]] / 2)


def test_clients_of_another_type_than_the_first_are_refused() -> None:
    """The error names the client; a type that was declared holds for the first client too."""
    data = GeneratedClientData(3, lambda i: np.zeros(2, np.float64 if i == 2 else np.float32))
    assert len(data.cohort([0, 1])) == 2
    with pytest.raises(TypeNotAssignableError, match="client 2 have another type"):
        data.cohort([1, 2])
    declared = GeneratedClientData(3, lambda i: np.zeros(2), example_spec=jnp.float32)
    with pytest.raises(TypeNotAssignableError, match="client 0"):
        declared.dataset(0)


def test_clients_have_an_id_each_and_there_is_one() -> None:
    """Ids that occur twice, and no ids, are errors."""
    with pytest.raises(KoinonValueError, match="2 distinct ids"):
        GeneratedClientData("aba", lambda i: np.zeros(2))
    with pytest.raises(KoinonValueError, match="at least one client"):
        GeneratedClientData(0, lambda i: np.zeros(2))


def test_an_error_of_the_users_function_names_the_client() -> None:
    """It stays the error that it was, with a note."""

    def examples_of(client_id: int) -> Any:
        return np.zeros(4 // client_id)

    data = GeneratedClientData(3, examples_of, example_spec=np.float64)
    with pytest.raises(ZeroDivisionError) as caught:
        data.cohort([1, 0])
    assert caught.value.__notes__ == ["This happened with the examples of client 0."]
    with pytest.raises(ZeroDivisionError) as caught:
        data.subset([0]).preprocess(lambda x: 1 / len(x)).cohort()
    assert "client 0" in caught.value.__notes__[0]


def test_numbers_of_examples_may_be_known_beforehand() -> None:
    """Then nobody generates the examples to count them; other clients than those that there are stay unknown."""

    def never(client_id: int) -> Any:
        raise AssertionError

    data = GeneratedClientData(5, never, num_examples_fn=lambda client_id: client_id + 1)
    assert [data.num_examples(client_id) for client_id in range(5)] == [1, 2, 3, 4, 5]
    with pytest.raises(UnknownClientError):
        data.num_examples(5)


def test_a_population_of_a_million_takes_no_memory() -> None:
    """The dataset, its sampling and 50 cohorts allocate less than 2 MB at a time."""

    def examples_of(client_id: Any) -> Any:
        return {"x": np.full((int(client_id) % 5, 3), client_id, np.float32)}

    tracemalloc.start()
    try:
        data = GeneratedClientData(1_000_000, examples_of)
        sample = ko.simulation.build_uniform_sampling_fn(data.client_ids, seed=0)
        for round_num in range(50):
            cohort = data.cohort(sample(round_num, 20))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    assert [np.asarray(rows).tolist() for (rows,) in cohort_datasets(cohort)] == [
        [[float(str(client_id))] * 3] * (int(str(client_id)) % 5) for client_id in cohort.client_ids or ()
    ]
    assert data.cohort(np.array([999_999])).client_ids == [999_999]
    for unknown in (1_000_000, -1, "0", 0.5):
        with pytest.raises(UnknownClientError):
            data.dataset(unknown)


@pytest.mark.parametrize("engine", ["local", "reference"])
def test_engines_compute_on_streamed_cohorts_what_they_compute_on_cohorts_in_memory(engine: str) -> None:
    """A fold over batches, which reads beyond the end of a client's last batch, gives the same numbers."""
    data = GeneratedClientData(CLIENTS, CLIENTS.__getitem__)

    @ko.federated_computation(ko.types.at_clients(ko.types.SequenceType(IN_MEMORY.element_type)))
    def weigh(examples: Any) -> Any:
        def fold(xs: ko.Sequence) -> Any:
            def add(total: Any, batch: ko.Batch) -> Any:
                return 0.5 * total + jnp.where(batch.mask[:, None], batch.examples["x"], 0).sum(0)

            return xs.batch(4).reduce(jnp.zeros(2), add)

        return ko.federated_sum(ko.federated_map(fold, examples))

    with ko.backends.use(engine):
        for ids in (None, ["dan", "ann"], ["cleo", "cleo"], []):
            np.testing.assert_array_equal(weigh(data.cohort(ids)), weigh(IN_MEMORY.cohort(ids)))


def test_room_after_the_last_example_does_not_bring_more_shapes() -> None:
    """Whatever room an engine asks for, sizes on the device are powers of two, and later cohorts have it at once."""
    data = GeneratedClientData(40, lambda i: np.zeros(i, np.float32))
    first = data.cohort([7])
    assert {size: first.packed.on_device(size)[0].shape[0] for size in (0, 1, 2, 20)} == {0: 8, 1: 8, 2: 16, 20: 32}
    for i in range(40):
        packed = data.cohort([i]).packed
        expected = 2 ** int(np.ceil(np.log2(i + 20)))
        assert packed.buffers[0].shape[0] == packed.on_device(20)[0].shape[0] == expected
    assert isinstance(packed.on_device()[0], jax.Array)
