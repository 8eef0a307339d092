"""Federated datasets: the examples of many clients, each client's its own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self, final, runtime_checkable

import numpy as np

from koinon._errors import CardinalityError, KoinonTypeError, KoinonValueError
from koinon.computation import Cohort, PackedSequences
from koinon.simulation._columns import Columns, assemble, read_columns
from koinon.simulation._ids import as_ids, check_count, unknown_client_error
from koinon.simulation._prefetch import prefetch_cohorts
from koinon.simulation._summary import ClientDataSummary, summarize
from koinon.simulation._tables import read_table
from koinon.types import Type

_MAX_ROWS = 2**31 - 1


@runtime_checkable
class FederatedDataset(Protocol):
    """The examples of many clients, wherever they are kept; what simulations need of them."""

    @property
    def client_ids(self) -> Sequence[Hashable]:
        """The ids of the clients, in order."""
        ...

    @property
    def element_type(self) -> Type:
        """The type of one example."""
        ...

    def num_examples(self, client_id: Hashable) -> int:
        """The number of a client's examples."""
        ...

    def dataset(self, client_id: Hashable) -> Any:
        """A client's examples, as a container of stacked arrays."""
        ...

    def cohort(self, client_ids: Iterable[Hashable] | None = None) -> Cohort:
        """The given clients, or all, as an argument for a parameter `{D*}@CLIENTS`."""
        ...

    def prefetch(self, selections: Iterable[Iterable[Hashable]], buffer_size: int = 1) -> Iterator[Cohort]:
        """The cohorts of `selections` one after the other, `buffer_size` of them made ahead in the background."""
        ...


@final
class ClientData:
    """A federated dataset in memory: an immutable mapping of client ids to examples.

    The examples of all clients lie back to back in one NumPy array per leaf. A round's cohort is a choice of clients
    and costs the same few Python calls for ten clients and for a hundred thousand; the arrays go to the device once.
    What `subset`, `sample` and `train_test_client_split` return shares the arrays, on the device too.

    Use the constructors `from_arrays`, `from_clients`, `from_partition` and `from_table`.

    Example:
      >>> import numpy as np
      >>> arrays = {"x": np.zeros((5, 3), np.float32), "y": np.arange(5, dtype=np.int32)}
      >>> data = ClientData.from_arrays(arrays, ["ann", "bob", "ann", "ann", "bob"])
      >>> data
      ClientData(<x=float32[3],y=int32>*, 2 clients, 5 examples)
      >>> data.dataset("bob")["y"]
      array([1, 4], dtype=int32)
      >>> data.cohort(["bob"])
      Cohort(1 of 2 clients, 2 examples)
    """

    def __init__(self, packed: PackedSequences, client_ids: Iterable[Hashable], positions: np.ndarray) -> None:
        """Views clients of packed sequences; the constructors that users need are the class methods.

        Args:
          packed: the examples.
          client_ids: one distinct id for each client.
          positions: int32 `[clients]`, where each client is in `packed`.
        """
        self._packed = packed
        self._client_ids = tuple(client_ids)
        self._positions = positions
        self._index = dict(zip(self._client_ids, itertools.count(), strict=False))
        if len(self._index) != len(positions) or len(self._client_ids) != len(positions):
            raise KoinonValueError(
                "Every client needs an id of its own.",
                expected=f"{len(positions)} distinct ids",
                found=f"{len(self._client_ids)} ids, {len(self._index)} of them distinct",
            )

    @classmethod
    def from_arrays(cls, arrays: Any, client_ids: Sequence[Hashable] | np.ndarray) -> Self:
        """Groups examples by the clients that they belong to.

        Clients are in the order of their first examples; the examples of a client keep their order.

        Args:
          arrays: a container of arrays `[n, ...]`, or one array; row i of each is example i.
          client_ids: the client of each example, n ids.

        Raises:
          KoinonTypeError: if a leaf is no array of numbers, for example one of ragged Python lists.
          CardinalityError: if there is not one id for each example.
        """
        columns = read_columns(arrays, "The arrays of a federated dataset")
        ids: list[Hashable] = client_ids.tolist() if isinstance(client_ids, np.ndarray) else list(client_ids)
        if len(ids) != columns.num_rows:
            raise CardinalityError(
                "Every example needs the id of its client.",
                expected=f"{columns.num_rows} ids, as many as there are examples",
                found=f"{len(ids)} ids",
                hint="for one dataset per client, use `ClientData.from_clients`",
            )
        clients = dict.fromkeys(ids)
        index = dict(zip(clients, itertools.count(), strict=False))
        client_of_row = np.fromiter(map(index.__getitem__, ids), np.int64, len(ids))
        rows = np.argsort(client_of_row, kind="stable")
        return cls._pack(columns, rows, np.bincount(client_of_row, minlength=len(clients)), clients)

    @classmethod
    def from_clients(cls, clients: Mapping[Any, Any]) -> Self:
        """Packs one dataset per client; clients may have no examples.

        Args:
          clients: for each client id, a container of stacked arrays `[examples, ...]`, or one array; all with the
            same fields, shapes and dtypes.

        Raises:
          KoinonValueError: if there are no clients, because then there is no type of the examples.
          KoinonTypeError: if `clients` is no mapping, or a leaf is no array of numbers.
          TypeNotAssignableError: if a client's examples have another type than those of the first client.
        """
        if not isinstance(clients, Mapping):
            raise KoinonTypeError(
                "The datasets of clients are given by their ids.",
                expected="a mapping of client ids to datasets",
                found=type(clients).__name__,
                hint="for a list, `ClientData.from_clients(dict(enumerate(datasets)))`",
            )
        if not clients:
            raise KoinonValueError("A federated dataset made of clients needs at least one client.")
        parts: list[Columns] = []
        for client_id, dataset in clients.items():
            expected = parts[0].element_type if parts else None
            parts.append(read_columns(dataset, f"The arrays of client {client_id!r}", expected))
        leaves = [np.concatenate(leaf_parts) for leaf_parts in zip(*(part.leaves for part in parts), strict=True)]
        lengths = np.array([part.num_rows for part in parts])
        columns = Columns(parts[0].element_type, leaves, len(leaves[0]))
        return cls._pack(columns, None, lengths, clients)

    @classmethod
    def from_partition(cls, arrays: Any, partition: Sequence[Any] | Mapping[Any, Any]) -> Self:
        """Deals the examples of a centralized dataset out to clients.

        Args:
          arrays: a container of arrays `[n, ...]`, or one array.
          partition: for each client the indices of its examples: a mapping of client ids to index arrays, or a list
            of index arrays, as the partitioners return; the ids are then the integers from 0 on. An index may be left
            out, and may occur several times.

        Raises:
          KoinonTypeError: if a leaf is no array of numbers, or indices are no integers.
          KoinonValueError: if an index is negative, or n or more.
        """
        columns = read_columns(arrays, "The arrays of a federated dataset")
        if isinstance(partition, Mapping):
            client_ids: Iterable[Any] = partition.keys()
            parts = [_indices(part) for part in partition.values()]
        else:
            client_ids = range(len(partition))
            parts = [_indices(part) for part in partition]
        rows = np.concatenate([np.zeros(0, np.int64), *parts])
        if rows.size and not 0 <= rows.min() <= rows.max() < columns.num_rows:
            raise KoinonValueError(
                "A partition refers to examples that do not exist.",
                expected=f"indices from 0 to {columns.num_rows - 1}",
                found=f"indices from {rows.min()} to {rows.max()}",
            )
        return cls._pack(columns, rows, np.array([len(part) for part in parts], np.int64), client_ids)

    @classmethod
    def from_table(cls, table: Any, *, client_column: str, columns: Sequence[str] | None = None) -> Self:
        """Groups the rows of a table by the column that names their clients.

        An example is a dict of the other columns. What JAX holds with fewer bits, it gets with fewer bits: unless JAX
        is configured for 64 bits, int64 becomes int32, and float64 is rounded to float32. A column of arrays or lists
        of one shape is stacked.

        Args:
          table: a pandas or polars `DataFrame`, a pyarrow `Table`, a Hugging Face `datasets.Dataset`, or a dict of
            arrays.
          client_column: the name of the column of client ids.
          columns: the names of the columns to take besides; None for all.

        Raises:
          KoinonTypeError: if `table` is no table, or a column holds no numbers.
          KoinonValueError: if there is no such column, a client id or a number is missing, or an integer does not fit.

        Example:
          >>> table = {"user": ["ann", "bob", "ann"], "x": [0.5, 1.5, 2.5], "y": [0, 1, 1]}
          >>> data = ClientData.from_table(table, client_column="user")
          >>> data
          ClientData(<x=float32,y=int32>*, 2 clients, 3 examples)
          >>> data.dataset("ann")["x"]
          array([0.5, 2.5], dtype=float32)
        """
        arrays, client_ids = read_table(table, client_column, columns)
        return cls.from_arrays(arrays, client_ids)

    @classmethod
    def _pack(
        cls, columns: Columns, rows: np.ndarray | None, lengths: np.ndarray, client_ids: Iterable[Hashable]
    ) -> Self:
        """Packs the given rows, or all if None, of which each client in turn has as many as `lengths` says."""
        num_rows = int(lengths.sum())
        if num_rows > _MAX_ROWS:
            raise KoinonValueError(f"A federated dataset has at most {_MAX_ROWS} examples.", found=str(num_rows))
        packed = PackedSequences.pack(columns.element_type, columns.leaves, lengths, rows)
        return cls(packed, client_ids, np.arange(len(lengths), dtype=np.int32))

    @property
    def client_ids(self) -> tuple[Hashable, ...]:
        """The ids of the clients, in order."""
        return self._client_ids

    @property
    def element_type(self) -> Type:
        """The type of one example; its containers are those of the arrays that the data was made of."""
        return self._packed.element_type

    def __len__(self) -> int:
        """The number of clients."""
        return len(self._client_ids)

    def num_examples(self, client_id: Hashable) -> int:
        """The number of a client's examples.

        Raises:
          UnknownClientError: if there is no such client.
        """
        return int(self._packed.lengths[self._positions_of([client_id])[0]])

    def dataset(self, client_id: Hashable) -> Any:
        """A client's examples: the containers of an example, with arrays `[examples, ...]`, read-only, not copied.

        Raises:
          UnknownClientError: if there is no such client.
        """
        return self._dataset_at(self._positions_of([client_id])[0])

    def cohort(self, client_ids: Iterable[Hashable] | None = None) -> Cohort:
        """The given clients, or all, as an argument for a parameter `{D*}@CLIENTS`.

        Args:
          client_ids: the ids, in the order of the cohort; an id may occur several times; there may be none at all.

        Raises:
          UnknownClientError: if there is no client of one of the ids.
        """
        if client_ids is None:
            return Cohort(self._packed, self._positions, self._client_ids)
        ids = as_ids(client_ids)
        return Cohort(self._packed, self._positions_of(ids), ids)

    def prefetch(self, selections: Iterable[Iterable[Hashable]], buffer_size: int = 1) -> Iterator[Cohort]:
        """The cohorts of `selections` one after the other; see `StreamedClientData.prefetch`.

        In memory a cohort costs next to nothing; this is here so that a program need not know where its data is.
        """
        return prefetch_cohorts(self.cohort, selections, buffer_size)

    def sample(self, size: int, seed: int | None = None) -> Cohort:
        """A cohort of `size` distinct clients, drawn uniformly.

        Args:
          size: the number of clients.
          seed: the same seed draws the same clients; None for another draw each time.

        Raises:
          KoinonValueError: if `size` is negative or more than there are clients.
        """
        check_count("size", size)
        if not 0 <= size <= len(self):
            raise KoinonValueError(
                f"{size} clients cannot be drawn without replacement.", expected=f"0 to {len(self)} clients"
            )
        chosen = np.random.default_rng(seed).choice(len(self), size, replace=False)
        return self.cohort(map(self._client_ids.__getitem__, chosen.tolist()))

    def subset(self, client_ids: Iterable[Hashable]) -> ClientData:
        """The dataset of the given clients only, in the given order.

        Raises:
          UnknownClientError: if there is no client of one of the ids.
          KoinonValueError: if an id occurs twice.
        """
        ids = list(client_ids)
        return ClientData(self._packed, ids, self._positions_of(ids))

    def train_test_client_split(self, num_test_clients: int, seed: int | None = None) -> tuple[ClientData, ClientData]:
        """Splits the clients at random into those to train with and those to test with.

        Test clients have at least one example. Both parts keep the order of the clients.

        Args:
          num_test_clients: the number of test clients.
          seed: the same seed gives the same split; None for another split each time.

        Returns:
          The datasets of the training clients and of the test clients.

        Raises:
          KoinonTypeError: if `num_test_clients` is no integer.
          KoinonValueError: if `num_test_clients` is not positive, leaves no client to train with, or is more than
            there are clients with examples.
        """
        check_count("num_test_clients", num_test_clients)
        lengths = self._packed.lengths[self._positions]
        candidates = np.flatnonzero(lengths)
        if not 0 < num_test_clients < len(self):
            raise KoinonValueError(
                f"{num_test_clients} of {len(self)} clients cannot be test clients.",
                expected=f"at least 1 and at most {len(self) - 1}, so that both parts have clients",
            )
        if num_test_clients > len(candidates):
            raise KoinonValueError(
                f"{num_test_clients} test clients cannot be drawn: too many clients have no examples.",
                expected=f"at most {len(candidates)}, the number of clients with examples",
            )
        is_test = np.zeros(len(self), bool)
        is_test[np.random.default_rng(seed).choice(candidates, num_test_clients, replace=False)] = True
        return self._masked(~is_test), self._masked(is_test)

    def preprocess(self, fn: Callable[[Any], Any]) -> ClientData:
        """A dataset with `fn` applied to the examples of each client, at once.

        Args:
          fn: takes a client's examples as `dataset` returns them, and returns stacked arrays; it may change their
            number, and the fields, shapes and dtypes, but those for all clients alike.

        Raises:
          TypeNotAssignableError: if `fn` returns other fields, shapes or dtypes for one client than for another.

        Example:
          >>> import numpy as np
          >>> data = ClientData.from_clients({"ann": np.arange(4), "bob": np.arange(2)})
          >>> data.preprocess(lambda x: x[x > 0] / 2).dataset("ann")
          array([0.5, 1. , 1.5])
        """
        return ClientData.from_clients(
            {
                client_id: fn(self._dataset_at(position))
                for client_id, position in zip(self._client_ids, self._positions, strict=True)
            }
        )

    def all_examples(self, seed: int | None = None) -> Any:
        """The examples of all clients, stacked: for a test set at the server, or to train without federation.

        Args:
          seed: None for one client after the other; a number for another order of the examples.

        Example:
          >>> import numpy as np
          >>> data = ClientData.from_clients({"ann": np.arange(4), "bob": np.arange(2)})
          >>> data.all_examples()
          array([0, 1, 2, 3, 0, 1])
        """
        lengths = self._packed.lengths[self._positions].astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        rows = np.repeat(self._packed.offsets[self._positions] - starts, lengths) + np.arange(lengths.sum())
        rows = rows if seed is None else np.random.default_rng(seed).permutation(rows)
        return assemble(self.element_type, [np.asarray(buffer)[rows] for buffer in self._packed.buffers])

    def describe(self) -> ClientDataSummary:
        """The number of examples of each client and, where examples have a label, of each label.

        The label is an integer field called `y`, `label` or `labels`.
        """
        return summarize(self._packed, self._positions, self._client_ids)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the clients' sizes and labels to an image file; see `ClientDataSummary.plot`."""
        self.describe().plot(path)

    def __repr__(self) -> str:
        total = int(self._packed.lengths[self._positions].sum())
        return f"ClientData({self.element_type}*, {len(self)} clients, {total} examples)"

    def _masked(self, mask: np.ndarray) -> ClientData:
        return ClientData(self._packed, itertools.compress(self._client_ids, mask), self._positions[mask])

    def _dataset_at(self, position: int) -> Any:
        start, length = int(self._packed.offsets[position]), int(self._packed.lengths[position])
        return assemble(self.element_type, [buffer[start : start + length] for buffer in self._packed.buffers])

    def _positions_of(self, ids: list[Hashable]) -> np.ndarray:
        """Where the clients are in the packed data, without Python code for each of them."""
        try:
            chosen = np.fromiter(map(self._index.__getitem__, ids), np.int64, len(ids))
        except KeyError:
            unknown = [client_id for client_id in ids if client_id not in self._index]
            raise unknown_client_error(unknown, self._client_ids) from None
        return self._positions[chosen]


def _indices(part: Any) -> np.ndarray:
    indices = np.asarray(part)
    if indices.size == 0:
        return np.zeros(0, np.int64)
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise KoinonTypeError(
            "The examples of a client are given by their indices.",
            expected="a vector of integers",
            found=f"dtype {indices.dtype}, shape {indices.shape}",
            hint="for a boolean mask, `np.flatnonzero(mask)`",
        )
    return indices.astype(np.int64)
