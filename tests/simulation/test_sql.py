"""Clients in a database: what was saved comes back, whole or with an error that names the client."""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
import threading
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from koinon._errors import KoinonValueError, ProgramStateCorruptedError
from koinon.simulation import ClientData, GeneratedClientData, SqlClientData, save_to_sql_client_data


def saved(tmp_path: pathlib.Path, data: Any) -> pathlib.Path:
    path = tmp_path / "clients.sqlite"
    save_to_sql_client_data(data, path)
    return path


def change(path: pathlib.Path, statement: str, *arguments: Any) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(statement, arguments)


def test_ids_keep_their_kind_and_order(tmp_path: pathlib.Path) -> None:
    """7 and '7' are two clients; an integer of NumPy finds the one of Python."""
    clients = {name: np.full(size, size, np.int16) for size, name in enumerate([7, "7", "é?#%", -(2**63), ""])}
    data = SqlClientData(saved(tmp_path, ClientData.from_clients(clients)))
    assert data.client_ids == (7, "7", "é?#%", -(2**63), "")
    assert [type(client_id) for client_id in data.client_ids] == [int, str, str, int, str]
    for client_id, expected in clients.items():
        assert data.num_examples(client_id) == len(expected)
        np.testing.assert_array_equal(data.dataset(client_id), expected)
    assert data.num_examples(np.int64(7)) == 0


@pytest.mark.parametrize("client_id", [2.5, ("a", 1), None, 2**63, True])
def test_other_ids_are_refused_and_leave_no_file(client_id: Any, tmp_path: pathlib.Path) -> None:
    """A database has strings and integers of 64 bits."""
    with pytest.raises(KoinonValueError, match="strings or integers"):
        saved(tmp_path, GeneratedClientData([client_id], lambda _: np.zeros(2)))
    assert list(tmp_path.iterdir()) == []


def test_containers_come_back_as_the_declared_ones(tmp_path: pathlib.Path) -> None:
    """Without a declaration examples are dicts and lists, of any dtype of JAX."""
    example = (np.zeros((2, 3), jnp.bfloat16), {"y": np.ones(2, bool)})
    path = saved(tmp_path, ClientData.from_clients({"ann": example}))
    found = SqlClientData(path).dataset("ann")
    assert isinstance(found, list)
    assert found[0].dtype == jnp.bfloat16
    declared = SqlClientData(path, example_spec=((jnp.bfloat16, (3,)), {"y": np.bool_}))
    assert isinstance(declared.dataset("ann"), tuple)
    assert declared.dataset("ann")[1]["y"].tolist() == [True, True]


def test_an_existing_file_is_replaced_only_if_that_is_wanted(tmp_path: pathlib.Path) -> None:
    """And then as a whole; a failure in the middle leaves the old one."""
    path = saved(tmp_path, ClientData.from_clients({"old": np.zeros(2)}))
    with pytest.raises(KoinonValueError, match="allow_overwrite"):
        save_to_sql_client_data(ClientData.from_clients({"new": np.zeros(2)}), path)

    def fails_late(client_id: int) -> Any:
        return np.zeros(3 // (5 - client_id))

    with pytest.raises(ZeroDivisionError):
        save_to_sql_client_data(GeneratedClientData(6, fails_late), path, allow_overwrite=True)
    assert SqlClientData(path).client_ids == ("old",)
    save_to_sql_client_data(ClientData.from_clients({"new": np.zeros(2)}), path, allow_overwrite=True)
    assert SqlClientData(path).client_ids == ("new",)
    assert [entry.name for entry in tmp_path.iterdir()] == ["clients.sqlite"]
    with pytest.raises(KoinonValueError, match="cannot be written"):
        save_to_sql_client_data(ClientData.from_clients({"new": np.zeros(2)}), tmp_path / "nowhere" / "x.sqlite")


def test_damage_is_found_and_names_the_client(tmp_path: pathlib.Path) -> None:
    """Any changed bit of a client's examples; the other clients are still read."""
    path = saved(tmp_path, ClientData.from_clients({"ann": np.zeros(20), "bob": np.ones(3)}))
    with contextlib.closing(sqlite3.connect(path)) as database:
        blob = bytearray(database.execute("SELECT examples FROM clients WHERE client_id = 'ann'").fetchone()[0])
    rng = np.random.default_rng(0)
    for bit in rng.integers(0, 8 * len(blob), 50).tolist():
        damaged = blob.copy()
        damaged[bit // 8] ^= 1 << bit % 8
        change(path, "UPDATE clients SET examples = ? WHERE client_id = 'ann'", bytes(damaged))
        data = SqlClientData(path, example_spec=np.float64)
        with pytest.raises(ProgramStateCorruptedError) as caught:
            data.cohort(["bob", "ann"])
        assert "client 'ann'" in caught.value.__notes__[0]
    assert data.dataset("bob").tolist() == [1, 1, 1]
    change(path, "DELETE FROM clients WHERE client_id = 'ann'")
    with pytest.raises(KoinonValueError, match="'ann' is no longer"):
        data.dataset("ann")


def test_other_files_are_no_database_of_clients(tmp_path: pathlib.Path) -> None:
    """No file, a text, another database, and one of a version to come."""
    path = tmp_path / "clients.sqlite"
    with pytest.raises(KoinonValueError, match="cannot be read"):
        SqlClientData(path)
    assert not path.exists()
    path.write_text("nothing of the kind" * 100)
    with pytest.raises(KoinonValueError, match="not a database"):
        SqlClientData(path)
    path.unlink()
    change(path, "CREATE TABLE clients (client_id)")
    with pytest.raises(KoinonValueError, match="application id 0"):
        SqlClientData(path)
    path.unlink()
    saved(tmp_path, ClientData.from_clients({"ann": np.zeros(2)}))
    change(path, "PRAGMA user_version = 9")
    with pytest.raises(KoinonValueError, match="format version 9"):
        SqlClientData(path)


def test_several_threads_may_read_at_once(tmp_path: pathlib.Path) -> None:
    """Each use has a connection of its own."""
    clients = {i: np.full((i % 5, 4), i, np.float32) for i in range(200)}
    data = SqlClientData(saved(tmp_path, ClientData.from_clients(clients)))
    wrong: list[int] = []

    def read(offset: int) -> None:
        for i in range(200):
            client_id = (i * 7 + offset) % 200
            if not np.array_equal(data.dataset(client_id), clients[client_id]):
                wrong.append(client_id)

    threads = [threading.Thread(target=read, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
