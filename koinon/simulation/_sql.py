"""Clients in an SQLite database: any number of them in one file, each read on its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import sqlite3
import tempfile
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, final

import jax
import numpy as np

from koinon._errors import KoinonValueError, ProgramStateCorruptedError
from koinon.program import pytree_from_bytes, pytree_to_bytes
from koinon.simulation._client_data import FederatedDataset
from koinon.simulation._streamed import StreamedClientData

# What `file` and others tell the format by, and its version; both live in the header of the database.
_APPLICATION_ID = int.from_bytes(b"koin", "big")
_FORMAT_VERSION = 1
# The ids have no declared type, so that 7 and '7' stay what they are.
_SCHEMA = (
    "CREATE TABLE clients (position INTEGER PRIMARY KEY, client_id NOT NULL UNIQUE, "
    "num_examples INTEGER NOT NULL, examples BLOB NOT NULL)"
)


@final
class SqlClientData(StreamedClientData):
    """A federated dataset in an SQLite database that `save_to_sql_client_data` has written.

    A client's examples are a checksummed container of arrays, without pickle; damage is an error that names the
    client. The database is only read, and may be used from several threads and processes.

    Example:
      >>> import pathlib, tempfile, numpy as np
      >>> from koinon.simulation import ClientData
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "clients.sqlite"
      >>> clients = {"ann": {"x": np.ones((2, 3), np.float32)}, "bob": {"x": np.zeros((1, 3), np.float32)}}
      >>> save_to_sql_client_data(ClientData.from_clients(clients), path)
      >>> data = SqlClientData(path)
      >>> data.num_examples("ann"), data.cohort(["bob"])
      (2, Cohort(1 of 1 clients, 1 examples))
    """

    def __init__(self, database_filepath: str | os.PathLike[str], *, example_spec: Any = None) -> None:
        """Reads the ids of the clients.

        Args:
          database_filepath: the file.
          example_spec: what `koinon.types.to_type` reads as the type of one example, with the containers that examples
            are to have; None for dicts and lists.

        Raises:
          KoinonValueError: if there is no such file, or it is no database of clients.
        """
        self._path = pathlib.Path(database_filepath).absolute()
        with connect_read_only(self._path) as database:
            found = [database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
            if found != [_APPLICATION_ID, _FORMAT_VERSION]:
                raise KoinonValueError(
                    f"The database {str(self._path)!r} is not one of clients that this koinon reads.",
                    expected=f"application id {_APPLICATION_ID}, format version {_FORMAT_VERSION}",
                    found=f"application id {found[0]}, format version {found[1]}",
                    hint="read it with `load_and_parse_sql_client_data`, since it is one of TensorFlow Federated"
                    if is_of_tff(database)
                    else "write it with `save_to_sql_client_data`",
                )
            rows = database.execute("SELECT client_id, position FROM clients ORDER BY position").fetchall()
        super().__init__((client_id for client_id, _ in rows), example_spec)
        self._positions = dict(rows)

    def num_examples(self, client_id: Hashable) -> int:
        """The number of a client's examples, which are not read for it.

        Raises:
          UnknownClientError: if there is no such client.
        """
        self._check_known([client_id])
        with connect_read_only(self._path) as database:
            return self._select(database, "num_examples", client_id)

    def _read(self, client_ids: Sequence[Hashable]) -> Iterator[Any]:
        with connect_read_only(self._path) as database:
            for client_id in client_ids:
                try:
                    yield pytree_from_bytes(self._select(database, "examples", client_id))
                except ProgramStateCorruptedError as error:
                    error.add_note(f"This happened with the examples of client {client_id!r} in {str(self._path)!r}.")
                    raise

    def _select(self, database: sqlite3.Connection, column: str, client_id: Hashable) -> Any:
        position = self._positions[client_id]
        row = database.execute(f"SELECT {column} FROM clients WHERE position = ?", (position,)).fetchone()
        if row is None:
            raise KoinonValueError(f"The client {client_id!r} is no longer in {str(self._path)!r}.")
        return row[0]


@contextlib.contextmanager
def connect_read_only(path: str | os.PathLike[str]) -> Iterator[sqlite3.Connection]:
    """A connection to a database, of its own for each use, since one must stay in its thread.

    Raises:
      KoinonValueError: if there is no such file, it is no database, or reading fails in the block.
    """
    try:
        uri = f"{pathlib.Path(path).as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
            yield database
    except sqlite3.Error as error:
        raise KoinonValueError(
            f"The database {os.fspath(path)!r} cannot be read.",
            expected="a database of SQLite, uncompressed",
            found="no such file" if not os.path.exists(path) else f"{type(error).__name__}: {error}",
        ) from error


def is_of_tff(database: sqlite3.Connection) -> bool:
    """Whether a database has the tables of those that TensorFlow Federated has written."""
    names = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return names >= {"examples", "client_metadata"}


def save_to_sql_client_data(
    data: FederatedDataset, database_filepath: str | os.PathLike[str], *, allow_overwrite: bool = False
) -> None:
    """Writes a federated dataset, client by client, to an SQLite database for `SqlClientData`.

    The file appears when it is whole.

    Args:
      data: the dataset; its client ids are strings or integers.
      database_filepath: the file.
      allow_overwrite: whether it may exist, and is then replaced.

    Raises:
      KoinonValueError: if the file exists and must not, a client id is neither a string nor an integer, or the
        database cannot be written.
    """
    path = pathlib.Path(database_filepath).absolute()
    if path.exists() and not allow_overwrite:
        raise KoinonValueError(f"The file {str(path)!r} exists.", hint="pass `allow_overwrite=True` to replace it")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            unfinished = pathlib.Path(folder) / path.name
            with contextlib.closing(sqlite3.connect(unfinished)) as database, database:
                database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                database.execute(f"PRAGMA user_version = {_FORMAT_VERSION}")
                database.execute(_SCHEMA)
                database.executemany("INSERT INTO clients VALUES (?, ?, ?, ?)", _rows(data))
            os.replace(unfinished, path)
    except (sqlite3.Error, OSError) as error:
        raise KoinonValueError(
            f"The database {str(path)!r} cannot be written.", found=f"{type(error).__name__}: {error}"
        ) from error


def _rows(data: FederatedDataset) -> Iterator[tuple[int, Any, int, bytes]]:
    for position, client_id in zip(itertools.count(), data.client_ids, strict=False):
        examples = data.dataset(client_id)
        num_examples = len(jax.tree.leaves(examples)[0])
        yield position, _sql_id(client_id), num_examples, pytree_to_bytes(examples)


def _sql_id(client_id: Hashable) -> str | int:
    if isinstance(client_id, np.integer):
        client_id = int(client_id)
    if type(client_id) is str or (type(client_id) is int and -(2**63) <= client_id < 2**63):
        return client_id
    raise KoinonValueError(
        "The ids of clients in a database are strings or integers of 64 bits.",
        found=f"{client_id!r} of type {type(client_id).__name__}",
    )
