"""Files of TensorFlow Federated: databases of serialized examples, and HDF5."""

from __future__ import annotations

import contextlib
import importlib
import pathlib
import sqlite3
import struct
import sys
from collections.abc import Mapping
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from koinon._errors import (
    KoinonTypeError,
    KoinonValueError,
    MissingDependencyError,
    TypeNotAssignableError,
    UnknownClientError,
)
from koinon.simulation import (
    ClientData,
    HDF5ClientData,
    SqlClientData,
    load_and_parse_sql_client_data,
    save_to_sql_client_data,
)
from koinon.simulation._tf_example import parse_example

SPEC = {"pixels": (np.float32, (2, 3)), "label": np.int32}


def varint(value: int) -> bytes:
    """An integer as seven bits a byte, the lowest first; negative ones in two's complement of 64 bits."""
    value %= 2**64
    data = b""
    while value >= 128:
        data, value = data + bytes([value % 128 + 128]), value // 128
    return data + bytes([value])


def field(number: int, content: bytes) -> bytes:
    """A field with its length before it."""
    return varint(8 * number + 2) + varint(len(content)) + content


def encoded(features: Mapping[str, Any], *, packed: bool = True) -> bytes:
    """A `tf.train.Example`, by the description of the format: lists of bytes, float and int64 have numbers 1, 2, 3."""
    entries = b""
    for name, values in features.items():
        if values and isinstance(values[0], bytes):
            kind, content = 1, b"".join(field(1, value) for value in values)
        elif values and isinstance(values[0], float):
            kind, parts = 2, [struct.pack("<f", value) for value in values]
            content = field(1, b"".join(parts)) if packed else b"".join(varint(8 + 5) + part for part in parts)
        else:
            kind, parts = 3, [varint(value) for value in values]
            content = field(1, b"".join(parts)) if packed else b"".join(varint(8) + part for part in parts)
        entries += field(1, field(1, name.encode()) + field(2, field(kind, content)))
    return field(1, entries)


def database(path: pathlib.Path, rows: list[tuple[str, str, bytes]]) -> pathlib.Path:
    """A database with the tables of TensorFlow Federated: rows of part, client and example."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "CREATE TABLE examples (split_name TEXT NOT NULL, client_id TEXT NOT NULL, "
            "serialized_example_proto BLOB NOT NULL)"
        )
        connection.execute(
            "CREATE TABLE client_metadata (client_id TEXT NOT NULL, split_name TEXT NOT NULL, "
            "num_examples INTEGER NOT NULL)"
        )
        connection.executemany("INSERT INTO examples VALUES (?, ?, ?)", rows)
        clients = dict.fromkeys((client_id, part) for part, client_id, _ in rows)
        sizes = [(*client, sum(row[1::-1] == client for row in rows)) for client in clients]
        connection.executemany("INSERT INTO client_metadata VALUES (?, ?, ?)", sizes)
    return path


def example(label: int) -> bytes:
    return encoded({"pixels": [label + 0.5] * 6, "label": [label], "other": [b"text"]})


@pytest.fixture
def emnist(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two clients with examples in two parts."""
    rows = [("train", "zoe", 1), ("train", "ann", 2), ("test", "zoe", 3), ("train", "zoe", 4)]
    return database(tmp_path / "emnist.sqlite", [(part, client_id, example(label)) for part, client_id, label in rows])


INT64 = st.integers(-(2**63), 2**63 - 1)
FEATURES = st.dictionaries(
    st.text(max_size=5),
    st.lists(INT64, max_size=20)
    | st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20)
    | st.lists(st.binary(max_size=200), min_size=1, max_size=3),
    max_size=4,
)


@hypothesis.given(FEATURES, st.booleans())
def test_an_example_is_read_as_it_was_written(features: dict[str, Any], packed: bool) -> None:
    """All integers of 64 bits, floats and bytes, in both ways to write lists."""
    message = encoded(features, packed=packed)
    found = parse_example(message)
    assert {name: list(values) for name, values in found.items()} == features
    for name, values in features.items():
        if not values or not isinstance(values[0], bytes):
            assert isinstance(found[name], np.ndarray)
            assert np.asarray(found[name]).dtype == (
                np.float32 if values and isinstance(values[0], float) else np.int64
            )


@hypothesis.given(st.binary(max_size=60) | st.integers(0, len(example(7)) - 1).map(lambda size: example(7)[:size]))
def test_damage_is_a_value_error(message: bytes) -> None:
    """Random bytes and messages cut off are read as something, or are a ValueError; nothing else, and no hanging."""
    with contextlib.suppress(ValueError):
        assert isinstance(parse_example(message), dict)


def test_the_encoder_of_these_tests_agrees_with_protocol_buffers() -> None:
    """What the package `protobuf` makes of the same message, from its description."""
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    pool = importlib.import_module("google.protobuf.descriptor_pool").DescriptorPool()
    factory = importlib.import_module("google.protobuf.message_factory")
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    lists = {"BytesList": 12, "FloatList": 2, "Int64List": 3}
    for name, kind in lists.items():
        file.message_type.add(name=name).field.add(name="value", number=1, label=3, type=kind)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(lists, 1):
        feature.field.add(name=f"f{number}", number=number, label=1, type=11, type_name=f".t.{name}", oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.field.add(name="key", number=1, label=1, type=9)
    entry.field.add(name="value", number=2, label=1, type=11, type_name=".t.Feature")
    entry.options.map_entry = True
    features.field.add(name="feature", number=1, label=3, type=11, type_name=".t.Features.FeatureEntry")
    file.message_type.add(name="Example").field.add(
        name="features", number=1, label=1, type=11, type_name=".t.Features"
    )
    pool.Add(file)
    message = factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))()
    message.features.feature["a"].f3.value.extend([-(2**63), -1, 0, 127, 128, 2**63 - 1])
    message.features.feature["b"].f2.value.extend([0.5, -2.0])
    message.features.feature["c"].f1.value.extend([b"", b"xyz"])

    found = parse_example(message.SerializeToString())
    assert {name: list(values) for name, values in found.items()} == {
        "a": [-(2**63), -1, 0, 127, 128, 2**63 - 1],
        "b": [0.5, -2.0],
        "c": [b"", b"xyz"],
    }
    assert parse_example(encoded({"a": [-1, 300]}))["a"].tolist() == [-1, 300]  # pyright: ignore[reportAttributeAccessIssue]


def test_the_clients_of_a_part_are_read(emnist: pathlib.Path) -> None:
    """In the order of their ids, each with its examples in the order in which they were written."""
    train = load_and_parse_sql_client_data(emnist, SPEC, "train")
    assert train.client_ids == ("ann", "zoe")
    assert str(train.element_type) == "<label=int32,pixels=float32[2,3]>"
    assert [train.num_examples(client_id) for client_id in train.client_ids] == [1, 2]
    zoe = train.dataset("zoe")
    np.testing.assert_array_equal(zoe["label"], np.int32([1, 4]))
    np.testing.assert_array_equal(zoe["pixels"], np.float32([1.5, 4.5])[:, None, None] * np.ones((1, 2, 3), np.float32))
    assert [zoe["label"].dtype, zoe["pixels"].dtype] == [np.int32, np.float32]
    assert repr(train.cohort(["zoe"])) == "Cohort(1 of 1 clients, 2 examples)"


def test_without_a_part_a_client_has_its_examples_of_all_parts(emnist: pathlib.Path) -> None:
    """As in TensorFlow Federated."""
    everything = load_and_parse_sql_client_data(emnist, SPEC)
    assert everything.dataset("zoe")["label"].tolist() == [1, 3, 4]
    assert everything.num_examples("zoe") == 3
    assert load_and_parse_sql_client_data(emnist, SPEC, "test").client_ids == ("zoe",)


def test_bytes_are_filled_up_with_zeros(emnist: pathlib.Path) -> None:
    """Text is of a declared length; longer text is an error, and never cut."""
    data = load_and_parse_sql_client_data(emnist, {"other": (np.uint8, (6,))})
    assert data.dataset("ann")["other"].tolist() == [[*b"text", 0, 0]]
    with pytest.raises(KoinonValueError, match="'other' with 4 values, where uint8\\[3\\] has 3"):
        load_and_parse_sql_client_data(emnist, {"other": (np.uint8, (3,))}).dataset("ann")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"nothing": np.int32}, "no feature 'nothing'"),
        ({"label": (np.int32, (2,))}, r"'label' with 1 values, where int32\[2\] has 2"),
        ({"other": np.int32}, "'other' of bytes"),
        ({"label": np.bool_}, "'label' with an integer that bool does not hold"),
    ],
)
def test_a_feature_of_another_type_is_named(spec: dict[str, Any], message: str, emnist: pathlib.Path) -> None:
    """With the client and the file."""
    data = load_and_parse_sql_client_data(emnist, spec)
    with pytest.raises(KoinonValueError, match=rf"client 'zoe' cannot be read from(.|\n)*{message}"):
        data.dataset("zoe")


@pytest.mark.parametrize("spec", [np.int32, {}, {"x": {"y": np.int32}}, {"x": (np.int32, (None,))}, [np.int32]])
def test_a_specification_has_names_and_tensors(spec: Any, emnist: pathlib.Path) -> None:
    """As TensorFlow Federated demands it."""
    with pytest.raises(KoinonTypeError, match="names, and types of tensors"):
        load_and_parse_sql_client_data(emnist, spec)


def test_other_databases_are_told_apart(emnist: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Each reader names the one that reads the other's; a missing file, part or client is named."""
    own = tmp_path / "own.sqlite"
    save_to_sql_client_data(ClientData.from_clients({"ann": np.zeros(2)}), own)
    with pytest.raises(KoinonValueError, match="load_and_parse_sql_client_data"):
        SqlClientData(emnist)
    with pytest.raises(KoinonValueError, match=r"read by `SqlClientData`"):
        load_and_parse_sql_client_data(own, SPEC)
    with pytest.raises(KoinonValueError, match=r"'tset'(.|\n)*\['test', 'train'\]"):
        load_and_parse_sql_client_data(emnist, SPEC, "tset")
    with pytest.raises(KoinonValueError, match="no such file"):
        load_and_parse_sql_client_data(tmp_path / "none.sqlite", SPEC)
    with pytest.raises(UnknownClientError):
        load_and_parse_sql_client_data(emnist, SPEC).dataset("bob")


def test_a_damaged_example_is_an_error_that_names_the_client(tmp_path: pathlib.Path) -> None:
    """Not an example without features."""
    path = database(tmp_path / "damaged.sqlite", [("train", "ann", example(1)[:-3])])
    with pytest.raises(KoinonValueError, match=r"client 'ann'(.|\n)*longer than what is there"):
        load_and_parse_sql_client_data(path, SPEC).dataset("ann")


def hdf5(path: pathlib.Path, clients: Mapping[str, Mapping[str, Any]]) -> pathlib.Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for client_id, features in clients.items():
            for name, values in features.items():
                file[f"examples/{client_id}/{name}"] = values
    return path


def test_the_clients_of_an_hdf5_file_are_read(tmp_path: pathlib.Path) -> None:
    """All features of the first client, or those that are declared; sizes without reading."""
    rng = np.random.default_rng(0)
    clients = {
        name: {"pixels": rng.random((size, 2, 3), np.float32), "label": rng.integers(0, 9, size, np.int64)}
        for name, size in {"zoe": 3, "ann": 1}.items()
    }
    path = hdf5(tmp_path / "clients.h5", clients)
    data = HDF5ClientData(path)
    assert data.client_ids == ("ann", "zoe")
    assert str(data.element_type) == "<label=int64,pixels=float32[2,3]>"
    assert [data.num_examples(client_id) for client_id in data.client_ids] == [1, 3]
    for client_id, features in clients.items():
        for name, values in features.items():
            np.testing.assert_array_equal(data.dataset(client_id)[name], values)
    pixels = HDF5ClientData(path, example_spec={"pixels": (np.float32, (2, 3))})
    assert repr(pixels.cohort(["zoe", "ann"])) == "Cohort(2 of 2 clients, 4 examples)"
    with pytest.raises(UnknownClientError):
        data.num_examples("bob")


def test_an_hdf5_file_of_another_kind_is_an_error(tmp_path: pathlib.Path) -> None:
    """A missing file, one of another format, one without clients, text, and a client with other features."""
    h5py = pytest.importorskip("h5py")
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["data"] = np.zeros(3)
    no_hdf5 = tmp_path / "text.h5"
    no_hdf5.write_text("text")
    for path, message in [(tmp_path / "none.h5", "cannot be read"), (no_hdf5, "cannot be read"), (other, "'data'")]:
        with pytest.raises(KoinonValueError, match=message):
            HDF5ClientData(path)
    text = HDF5ClientData(hdf5(tmp_path / "text2.h5", {"ann": {"snippets": ["to be", "or not"], "n": [1, 2]}}))
    with pytest.raises(KoinonTypeError, match=r"'snippets' of client 'ann' is text(.|\n)*example_spec"):
        text.dataset("ann")
    assert HDF5ClientData(tmp_path / "text2.h5", example_spec={"n": np.int64}).dataset("ann")["n"].tolist() == [1, 2]
    uneven = HDF5ClientData(hdf5(tmp_path / "uneven.h5", {"ann": {"x": [1]}, "bob": {"y": [1]}, "cid": {"x": [0.5]}}))
    with pytest.raises(KoinonValueError, match=r"'bob' has no array 'x'(.|\n)*\['y'\]"):
        uneven.dataset("bob")
    with pytest.raises(TypeNotAssignableError, match="'cid'"):
        uneven.dataset("cid")


def test_without_h5py_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Before the file is looked for."""
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match=r"koinon\[hdf5\]"):
        HDF5ClientData(tmp_path / "clients.h5")
