"""Federated datasets in memory: every client has exactly its examples, and a cohort costs no Python per client."""

from __future__ import annotations

import collections
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon._errors import (
    CardinalityError,
    KoinonTypeError,
    KoinonValueError,
    MissingDependencyError,
    TypeNotAssignableError,
    UnknownClientError,
)
from koinon.simulation import ClientData, FederatedDataset, GeneratedClientData
from koinon.types import parse


class Example(NamedTuple):
    y: Any
    x: Any


def make(num_clients: int = 6, seed: int = 0) -> ClientData:
    """Clients of 0 to 4 examples; the x of an example says whose it is, and the number it has there."""
    sizes = np.random.default_rng(seed).integers(0, 5, num_clients)
    return ClientData.from_clients(
        {
            f"client {number}": {
                "x": np.stack([np.full(size, number), np.arange(size)], 1).astype(np.float32),
                "y": np.arange(size, dtype=np.int32) % 3,
            }
            for number, size in enumerate(sizes)
        }
    )


def cohort_datasets(cohort: Any) -> list[list[np.ndarray]]:
    """What an engine reads: for each client of a cohort, the rows that its offset and length say."""
    return [
        [np.asarray(buffer)[offset : offset + length] for buffer in cohort.packed.buffers]
        for offset, length in zip(cohort.offsets, cohort.lengths, strict=True)
    ]


@given(st.lists(st.sampled_from(["a", "b", 3, ("c", 1), None]), max_size=30))
def test_from_arrays_gives_each_client_its_rows_in_order(ids: list[Any]) -> None:
    """Grouping equals a selection of rows in Python, for ids of any hashable kind."""
    rows = np.arange(len(ids), dtype=np.int32)
    data = ClientData.from_arrays({"row": rows}, ids)
    assert data.client_ids == tuple(dict.fromkeys(ids))
    for client_id in data.client_ids:
        expected = [row for row, owner in enumerate(ids) if owner == client_id]
        assert data.dataset(client_id)["row"].tolist() == expected
        assert data.num_examples(client_id) == len(expected)


def test_numpy_ids_become_python_values() -> None:
    """Ids from an array can be written to JSON, and are found by Python values."""
    data = ClientData.from_arrays(np.arange(3), np.array([7, 5, 7]))
    assert data.client_ids == (7, 5)
    assert {type(client_id) for client_id in data.client_ids} == {int}
    assert data.dataset(7).tolist() == [0, 2]


def test_from_clients_keeps_each_dataset() -> None:
    """What goes in comes out, with clients that have nothing too."""
    datasets = {"a": np.arange(3), "empty": np.arange(0), "b": np.arange(5, 7)}
    data = ClientData.from_clients(datasets)
    for client_id, expected in datasets.items():
        np.testing.assert_array_equal(data.dataset(client_id), expected)
    assert [data.num_examples(client_id) for client_id in data.client_ids] == [3, 0, 2]


def test_from_partition_takes_lists_and_mappings() -> None:
    """Indices may be left out or shared; ids are numbers, or what the mapping says."""
    arrays = {"x": np.arange(10) * 10}
    data = ClientData.from_partition(arrays, [[3, 1], [], np.array([1, 9], np.uint8)])
    assert data.client_ids == (0, 1, 2)
    assert [data.dataset(client_id)["x"].tolist() for client_id in data.client_ids] == [[30, 10], [], [10, 90]]
    assert ClientData.from_partition(arrays, {"ann": [4]}).dataset("ann")["x"].tolist() == [40]


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ([10], KoinonValueError, "indices from 10 to 10"),
        ([-1, 3], KoinonValueError, "indices from -1 to 3"),
        ([0.5], KoinonTypeError, "vector of integers"),
        ([True, False], KoinonTypeError, "flatnonzero"),
        ([[1, 2]], KoinonTypeError, r"shape \(1, 2\)"),
    ],
)
def test_impossible_indices_are_refused(part: Any, error: type[Exception], message: str) -> None:
    """Indices out of range, masks and fractions are errors, and never wrap around."""
    with pytest.raises(error, match=message):
        ClientData.from_partition(np.arange(10), [part])


@pytest.mark.parametrize(
    ("arrays", "type_string"),
    [
        (np.zeros((2, 3), np.float32), "float32[3]"),
        ({"y": np.zeros(2, np.int32), "x": np.zeros((2, 4), np.float16)}, "<x=float16[4],y=int32>"),
        (collections.OrderedDict(b=np.zeros((2, 1), bool), a=np.zeros(2, np.int8)), "<b=bool[1],a=int8>"),
        (Example(np.zeros(2, np.int8), (np.zeros((2, 2)), jnp.zeros(2))), "<y=int8,x=<float64[2],float32>>"),
        ([np.zeros(2, np.uint8), {"a": {"b": np.zeros(2, np.int64)}}], "<uint8,<a=<b=int64>>>"),
        (jnp.zeros((2, 3), jnp.bfloat16), "bfloat16[3]"),
    ],
)
def test_the_type_of_an_example_and_its_containers_are_kept(arrays: Any, type_string: str) -> None:
    """The element type drops the first dimension; a client's dataset has the containers of the arrays."""
    data = ClientData.from_arrays(arrays, ["a", "b"])
    assert str(data.element_type) == type_string
    assert data.element_type.is_equivalent_to(parse(type_string))
    dataset = data.dataset("b")
    assert type(dataset) is type(arrays) or isinstance(arrays, jnp.ndarray)
    if isinstance(arrays, collections.OrderedDict):
        assert list(dataset) == list(arrays)
    again = ClientData.from_clients({client_id: data.dataset(client_id) for client_id in data.client_ids})
    assert again.element_type == data.element_type


@pytest.mark.parametrize(
    ("arrays", "differs", "message"),
    [
        ({"x": np.array([[1, 2], [3]], object)}, "['x']", "ragged"),
        ([np.array(["a", "b"])], "[0]", "encode text"),
        ({"t": np.zeros(2, "datetime64[s]")}, "['t']", "dates"),
        ({"x": [[1, 2], [3, 4]]}, "['x'][0][0]", "np.stack"),
        ({"x": np.float32(3)}, "['x']", r"dtype float32, shape \(\)"),
        ({"key": jax.random.split(jax.random.key(0))}, "['key']", "dtype key<fry>"),
        (3.5, None, "found      3.5"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(arrays: Any, differs: str | None, message: str) -> None:
    """The error says where the leaf is and what to do."""
    with pytest.raises(KoinonTypeError, match=message) as caught:
        ClientData.from_arrays(arrays, ["a", "b"])
    assert caught.value.differs == differs


def test_arrays_without_a_leaf_are_refused() -> None:
    """An empty container has no examples to speak of."""
    with pytest.raises(KoinonTypeError, match="no arrays"):
        ClientData.from_arrays({}, [])


def test_arrays_of_different_lengths_are_refused() -> None:
    """Leaves that disagree on the number of examples, and a wrong number of ids, are errors."""
    with pytest.raises(CardinalityError, match="first dimensions 2, 3"):
        ClientData.from_arrays({"x": np.zeros(2), "y": np.zeros(3)}, ["a", "b"])
    with pytest.raises(CardinalityError, match="3 ids"):
        ClientData.from_arrays(np.zeros(2), ["a", "b", "a"])


@pytest.mark.parametrize(
    "second",
    [
        {"x": np.zeros((1, 3)), "y": np.zeros(1)},
        {"x": np.zeros((1, 2), np.float32), "y": np.zeros(1)},
        {"x": np.zeros((1, 2))},
        {"x": np.zeros((1, 2)), "y": np.zeros(1), "z": np.zeros(1)},
        np.zeros((1, 2)),
    ],
)
def test_clients_of_different_types_are_refused(second: Any) -> None:
    """The error names the client whose examples are unlike those of the first."""
    with pytest.raises(TypeNotAssignableError, match="client 'b' have another type"):
        ClientData.from_clients({"a": {"x": np.zeros((1, 2)), "y": np.zeros(1)}, "b": second})


def test_fields_of_clients_are_matched_by_name() -> None:
    """A client whose dict has another order has the same examples."""
    data = ClientData.from_clients({"a": {"x": np.ones(1), "y": np.zeros(1)}, "b": {"y": np.zeros(2), "x": np.ones(2)}})
    assert data.dataset("b")["x"].tolist() == [1, 1]


def test_no_clients_are_refused_where_the_type_would_be_unknown() -> None:
    """From clients there must be one; from arrays and from a partition there may be none."""
    with pytest.raises(KoinonValueError, match="at least one client"):
        ClientData.from_clients({})
    for data in (ClientData.from_arrays(np.zeros((0, 2)), []), ClientData.from_partition(np.zeros(3), [])):
        assert len(data) == len(data.cohort()) == 0
        assert "clients   none" in repr(data.describe())


def test_ids_must_be_distinct() -> None:
    """Two clients cannot share an id."""
    data = make()
    with pytest.raises(KoinonValueError, match="2 ids, 1 of them distinct"):
        data.subset(["client 1", "client 1"])


def test_it_is_a_federated_dataset() -> None:
    """The class has what the protocol asks for."""
    assert isinstance(make(), FederatedDataset)


def test_the_data_cannot_be_changed() -> None:
    """Neither what a client's dataset shows nor the arrays that the data was made of are shared for writing."""
    source = np.zeros(3)
    for data in (ClientData.from_clients({"a": source}), ClientData.from_arrays(source, ["a"] * 3)):
        with pytest.raises(ValueError, match="read-only"):
            data.dataset("a")[0] = 1
        source[0] = 5
        assert data.dataset("a").tolist() == [0, 0, 0]
        source[0] = 0


@given(st.data())
def test_a_cohort_has_the_rows_of_its_clients(draw: st.DataObject) -> None:
    """Any choice of clients, with repetitions and empty, in any order, is what its ids say."""
    data = make(seed=draw.draw(st.integers(0, 5)))
    ids = draw.draw(st.lists(st.sampled_from(data.client_ids)))
    cohort = data.cohort(ids)
    assert list(cohort.client_ids or ()) == ids
    assert len(cohort) == len(ids)
    for client_id, (x, y) in zip(ids, cohort_datasets(cohort), strict=True):
        np.testing.assert_array_equal(x, data.dataset(client_id)["x"])
        np.testing.assert_array_equal(y, data.dataset(client_id)["y"])


def test_the_cohort_of_all_is_in_order() -> None:
    """Without ids a cohort has all clients once."""
    cohort = make().cohort()
    assert tuple(cohort.client_ids or ()) == make().client_ids
    assert cohort.indices.tolist() == [*range(6)]


def test_cohorts_share_what_is_on_the_device() -> None:
    """All cohorts, of subsets too, refer to one packed dataset."""
    data = make()
    train, test = data.train_test_client_split(2, seed=0)
    packed = {id(cohort.packed) for cohort in (data.cohort(), data.cohort([]), train.cohort(), test.sample(1, 0))}
    assert len(packed) == 1


@pytest.mark.parametrize("ask", [ClientData.dataset, ClientData.num_examples, lambda data, x: data.cohort([x])])
def test_an_unknown_client_is_named(ask: Callable[[ClientData, Any], Any]) -> None:
    """The error has the id, the number of clients and some of their ids; it is a ValueError and a KeyError."""
    with pytest.raises(UnknownClientError, match=r"no client 'dora'\.\n.*one of 6 clients: 'client 0', ") as caught:
        ask(make(), "dora")
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, KeyError)


def test_many_unknown_clients_are_counted() -> None:
    """The message stays short."""
    with pytest.raises(UnknownClientError, match=r"no clients 0, 1, 2, 3, 4 \(nor 95 others\)"):
        make().cohort(range(100))


def test_a_single_id_is_no_cohort() -> None:
    """A string is not taken for the list of its characters."""
    with pytest.raises(KoinonTypeError, match=r"cohort\(\['client 1'\]\)"):
        make().cohort("client 1")


def count_frames(function: Callable[[], object]) -> int:
    """The number of Python functions entered in a call."""
    frames = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal frames
        frames += event == "call"

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return frames


def test_the_cost_of_a_cohort_does_not_grow_with_its_clients() -> None:
    """As many Python functions run for 4 clients as for 4,000."""
    data = ClientData.from_arrays(np.zeros(5000), range(5000))
    counts = {count_frames(lambda size=size: data.cohort(range(size))) for size in (4, 400, 4000)}
    assert len(counts) == 1
    assert counts.pop() <= 10


@pytest.mark.parametrize("seed", range(5))
def test_a_split_holds_out_clients_with_examples(seed: int) -> None:
    """The parts are disjoint, together all clients, in order; test clients have examples; a seed repeats it."""
    data = make(20, seed)
    train, test = data.train_test_client_split(7, seed)
    assert len(test) == 7
    assert all(test.num_examples(client_id) > 0 for client_id in test.client_ids)
    assert not set(train.client_ids) & set(test.client_ids)
    assert {*train.client_ids, *test.client_ids} == {*data.client_ids}
    for part in (train, test):
        assert list(part.client_ids) == [name for name in data.client_ids if name in part.client_ids]
        for client_id in part.client_ids:
            np.testing.assert_array_equal(part.dataset(client_id)["x"], data.dataset(client_id)["x"])
    assert data.train_test_client_split(7, seed)[1].client_ids == test.client_ids


def test_splits_differ_by_seed() -> None:
    """Not every seed gives the same test clients."""
    data = ClientData.from_arrays(np.zeros(50), range(50))
    assert len({data.train_test_client_split(5, seed)[1].client_ids for seed in range(5)}) > 1


@pytest.mark.parametrize("number", [0, -1, 6, 7])
def test_both_parts_of_a_split_have_clients(number: int) -> None:
    """No test clients, or no training clients, is an error."""
    with pytest.raises(KoinonValueError, match="at most 5"):
        make(6).train_test_client_split(number)


@pytest.mark.parametrize("number", [0.5, "3", None, True])
def test_a_number_of_clients_is_an_integer(number: Any) -> None:
    """Of a share the error says how to make a number of clients; for a dataset in memory and for one that streams."""
    hint = r"`round\(0\.5 \* len\(data\)\)`" if number == 0.5 else "an integer"
    for data in (make(6), GeneratedClientData(6, lambda client_id: np.zeros(1 + client_id))):
        for method in (data.train_test_client_split, data.sample):
            with pytest.raises(KoinonTypeError, match=hint):
                method(number)


def test_clients_are_given_by_their_ids() -> None:
    """A list of datasets has no ids; the error says how to give it some."""
    with pytest.raises(KoinonTypeError, match=r"dict\(enumerate\(datasets\)\)"):
        ClientData.from_clients([np.zeros(2)])  # pyright: ignore[reportArgumentType]


def test_a_split_needs_enough_clients_with_examples() -> None:
    """Empty clients are not held out to reach the number."""
    data = ClientData.from_clients({name: np.zeros(size) for name, size in zip("abcd", [3, 0, 0, 1], strict=True)})
    assert len(data.train_test_client_split(2, 0)[1]) == 2
    with pytest.raises(KoinonValueError, match="at most 2"):
        data.train_test_client_split(3)


def test_a_sample_has_distinct_clients_and_repeats_with_its_seed() -> None:
    """Sizes from none to all are possible, more are an error."""
    data = make(10)
    for size in (0, 4, 10):
        ids = list(data.sample(size, seed=3).client_ids or ())
        assert len(set(ids)) == size
        assert list(data.sample(size, seed=3).client_ids or ()) == ids
    for size in (-1, 11):
        with pytest.raises(KoinonValueError, match="0 to 10"):
            data.sample(size)


def test_preprocessing_sees_one_client_at_a_time_and_may_change_everything() -> None:
    """Fields, shapes, dtypes and numbers of examples may change; clients and their order stay."""
    data = make(6, seed=1)

    def center(dataset: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        kept = dataset["y"] > 0
        return {"z": dataset["x"][kept, 1].astype(np.float64) - (dataset["x"][kept, 1].mean() if kept.any() else 0)}

    found = data.preprocess(center)
    assert str(found.element_type) == "<z=float64>"
    assert found.client_ids == data.client_ids
    for client_id in data.client_ids:
        x, y = data.dataset(client_id)["x"][:, 1], data.dataset(client_id)["y"]
        expected = x[y > 0] - np.mean(x[y > 0]) if np.any(y > 0) else []
        np.testing.assert_allclose(found.dataset(client_id)["z"], expected)


def test_preprocessing_must_give_all_clients_one_type() -> None:
    """A function that returns something else for one client is an error with its id."""
    with pytest.raises(TypeNotAssignableError, match="client 'b'"):
        ClientData.from_clients({"a": np.zeros(1), "b": np.zeros(2)}).preprocess(lambda x: np.zeros((2, len(x))))


def test_a_description_counts_sizes_and_labels() -> None:
    """Counts equal those taken client by client; the text has the numbers that matter."""
    data = make(10, seed=2)
    subset = data.subset(reversed(data.client_ids[3:]))
    summary = subset.describe()
    assert summary.sizes.tolist() == [data.num_examples(client_id) for client_id in subset.client_ids]
    assert summary.labels is not None
    assert summary.label_counts is not None
    for client_id, counts in zip(subset.client_ids, summary.label_counts, strict=True):
        y = data.dataset(client_id)["y"]
        assert counts.tolist() == [int((y == label).sum()) for label in summary.labels]
    text = repr(summary)
    assert f"clients   7, {int((summary.sizes == 0).sum())} of them without examples" in text
    assert f"sizes     {summary.num_examples} in all; a client has {summary.sizes.min()} to" in text
    assert "0: " in text


@pytest.mark.parametrize("arrays", [np.zeros(3), {"y": np.zeros(3)}, {"y": np.zeros((3, 2), int)}, {"z": np.arange(3)}])
def test_a_description_does_without_labels(arrays: Any) -> None:
    """Only an integer field of that name is a label."""
    summary = ClientData.from_arrays(arrays, ["a", "b", "a"]).describe()
    assert summary.labels is None
    assert "labels" not in repr(summary)


def test_labels_are_found_behind_nested_fields() -> None:
    """The label need not be the first leaf."""
    arrays = {"x": {"left": np.zeros(3), "right": np.ones(3)}, "label": np.array([5, 9, 5])}
    summary = ClientData.from_arrays(arrays, ["a", "b", "b"]).describe()
    assert summary.labels is not None
    assert summary.label_counts is not None
    assert summary.labels.tolist() == [5, 9]
    assert summary.label_counts.tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize("labels", [3, 50, None])
def test_a_plot_is_an_image(tmp_path: pathlib.Path, labels: int | None) -> None:
    """Few labels are stacked, many or none are not; the file has the format of its suffix."""
    pytest.importorskip("matplotlib")
    arrays = {"x": np.zeros(60), **({} if labels is None else {"y": np.arange(60) % labels})}
    ClientData.from_arrays(arrays, np.arange(60) % 7).plot(tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert "<svg" in text


def test_plotting_without_matplotlib_says_what_to_install(monkeypatch: Any, tmp_path: pathlib.Path) -> None:
    """The error has the command."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"koinon\[plot\]"):
        make().plot(tmp_path / "plot.png")


def test_the_text_of_a_dataset_tells_its_type_and_sizes() -> None:
    """The representation is one line."""
    data = ClientData.from_clients({"a": {"y": np.zeros((3, 2))}, "b": {"y": np.zeros((4, 2))}})
    assert repr(data) == "ClientData(<y=float64[2]>*, 2 clients, 7 examples)"
