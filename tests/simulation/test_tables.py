"""Tables of other libraries: the rows of each client, in types that JAX holds, or an error that says what to do."""

from __future__ import annotations

import types
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.simulation import ClientData

COLUMNS = {"user": ["b", "a", "b", "b"], "x": [0.5, 1.5, 2.5, 3.5], "y": [1, 0, 2, 1], "ok": [True, False, True, True]}


class HuggingFaceDataset:
    """What `datasets.Dataset` has of methods that matter here."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: Any) -> Any:
        return {name: np.asarray(values) for name, values in self.columns.items()} if key == slice(None) else None

    def select_columns(self, names: list[str]) -> HuggingFaceDataset:
        return HuggingFaceDataset({name: self.columns[name] for name in names})

    def with_format(self, type_: str) -> HuggingFaceDataset:
        assert type_ == "numpy"
        return self


class ArrowTable(HuggingFaceDataset):
    """What `pyarrow.Table` has: `columns` without names, and columns that know their NumPy arrays."""

    select_columns = with_format = None  # pyright: ignore[reportAssignmentType]

    def __getitem__(self, key: Any) -> Any:
        return types.SimpleNamespace(to_numpy=lambda: np.asarray(self.columns[key]), dtype="string")

    def __getattribute__(self, name: str) -> Any:
        if name in ("select_columns", "with_format"):
            raise AttributeError(name)
        return super().__getattribute__(name)


def pandas_frame(columns: dict[str, Any]) -> Any:
    return pytest.importorskip("pandas").DataFrame(columns)


@pytest.mark.parametrize("make", [dict, pandas_frame, HuggingFaceDataset, ArrowTable])
def test_tables_of_every_kind_give_each_client_its_rows(make: Any) -> None:
    """64-bit columns come in the 32 bits that JAX holds; the client column is no part of an example."""
    data = ClientData.from_table(make(COLUMNS), client_column="user")
    assert str(data.element_type) == "<ok=bool,x=float32,y=int32>"
    assert data.client_ids == ("b", "a")
    assert data.dataset("b")["x"].tolist() == [0.5, 2.5, 3.5]
    assert data.dataset("a")["y"].tolist() == [0]
    chosen = ClientData.from_table(make(COLUMNS), client_column="y", columns=["x"])
    assert chosen.client_ids == (1, 0, 2)
    assert {type(client_id) for client_id in chosen.client_ids} == {int}
    assert str(chosen.element_type) == "<x=float32>"


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-(2**31), 2**31 - 1)), min_size=1, max_size=20))
def test_a_table_is_grouped_as_python_would(rows: list[tuple[int, int]]) -> None:
    """Every client has the values of its rows, in order."""
    table = {"client": [client for client, _ in rows], "value": [value for _, value in rows]}
    data = ClientData.from_table(table, client_column="client")
    for client_id in data.client_ids:
        expected = [value for client, value in rows if client == client_id]
        assert data.dataset(client_id)["value"].tolist() == expected


def test_columns_of_arrays_of_one_shape_are_stacked() -> None:
    """Pixels in lists become one array; ragged ones are an error that names the column."""
    for cells in ([[1.0, 2.0], [3.0, 4.0]], [np.array([1.0, 2.0]), np.array([3.0, 4.0])]):
        table = pandas_frame({"user": [0, 1], "x": cells})
        assert str(ClientData.from_table(table, client_column="user").element_type) == "<x=float32[2]>"
    for table in ({"user": [0, 1], "x": [[1.0], [3.0, 4.0]]}, pandas_frame({"user": [0, 1], "x": [[1.0], [3.0, 4.0]]})):
        with pytest.raises(KoinonTypeError, match=r"'x' holds arrays of different shapes(.|\n)*\(1,\), \(2,\)"):
            ClientData.from_table(table, client_column="user")


def test_with_64_bits_in_use_columns_keep_them() -> None:
    """What JAX holds now decides."""
    with jax.enable_x64(True):
        data = ClientData.from_table(COLUMNS, client_column="user")
    assert str(data.element_type) == "<ok=bool,x=float64,y=int64>"


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        (["red", "green"], KoinonTypeError, "'x' does not hold numbers(.|\n)*encode text"),
        ([1, None], KoinonTypeError, "'x' does not hold numbers(.|\n)*fill in"),
        ([0.5, float("nan")], KoinonValueError, "'x' has missing values(.|\n)*1 that are NaN(.|\n)*from_arrays"),
        ([2**31, 0], KoinonValueError, "do not fit into int32(.|\n)*0 to 2147483648"),
    ],
)
def test_columns_that_hold_no_numbers_are_refused(column: list[Any], error: type[Exception], message: str) -> None:
    """Text, missing values, and integers that would be cut off."""
    with pytest.raises(error, match=message):
        ClientData.from_table({"user": [0, 1], "x": column}, client_column="user")
    assert len(ClientData.from_table({"user": [0, 1], "x": column, "z": [1, 2]}, client_column="user", columns=["z"]))


@pytest.mark.parametrize("missing", [None, float("nan"), "pandas.NA"])
def test_rows_without_a_client_are_refused(missing: Any) -> None:
    """A missing id is no client of its own."""
    if missing == "pandas.NA":
        missing = pytest.importorskip("pandas").NA
    table = pandas_frame({"user": np.array(["a", missing, "b"], object), "x": [1.0, 2.0, 3.0]})
    with pytest.raises(KoinonValueError, match="1 rows without, the first of them row 1"):
        ClientData.from_table(table, client_column="user")


def test_columns_that_are_not_there_are_refused() -> None:
    """The error has the names that there are; a table needs more than its clients."""
    with pytest.raises(KoinonValueError, match=r"no column 'client', 'z'(.|\n)*'user', 'x', 'y', 'ok'"):
        ClientData.from_table(COLUMNS, client_column="client", columns=["x", "z"])
    with pytest.raises(KoinonValueError, match="besides"):
        ClientData.from_table({"user": [1]}, client_column="user")


@pytest.mark.parametrize("table", [3, [1, 2], np.zeros(3), "user,x"])
def test_what_is_no_table_is_refused(table: Any) -> None:
    """The error says what is one."""
    with pytest.raises(KoinonTypeError, match="no table"):
        ClientData.from_table(table, client_column="user")


def test_a_dictionary_of_splits_is_no_table() -> None:
    """The error says how to choose one."""
    with pytest.raises(KoinonTypeError, match=r"dataset\['train'\]"):
        ClientData.from_table({"train": HuggingFaceDataset(COLUMNS)}, client_column="user")
