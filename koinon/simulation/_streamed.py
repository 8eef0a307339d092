"""Federated datasets that are not in memory: a client is read when a cohort needs it."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, final

import numpy as np

from koinon._errors import KoinonValueError
from koinon.computation import Cohort
from koinon.simulation._bucketed import Room, pack_bucketed
from koinon.simulation._columns import Columns, assemble, read_columns
from koinon.simulation._ids import as_ids, check_count, unknown_client_error
from koinon.simulation._prefetch import prefetch_cohorts
from koinon.simulation._summary import ClientDataSummary, merge_summaries, summarize
from koinon.types import Type, to_type

_CLIENTS_AT_A_TIME = 256


class StreamedClientData(abc.ABC):
    """A federated dataset of which only the cohorts in use are in memory; the base of those that koinon has.

    A cohort is packed when it is asked for, into arrays whose numbers of rows are powers of two: so a computation is
    compiled for a few sizes, and not anew for every cohort. `prefetch` packs the next cohort and copies it to the
    device while a computation works with this one.

    The clients must be the same whenever they are read.
    """

    def __init__(self, client_ids: Iterable[Hashable], example_spec: Any = None) -> None:
        """Takes the ids of the clients; a `range` stays one, so that a million clients take no memory.

        Args:
          client_ids: one distinct id for each client.
          example_spec: what `koinon.types.to_type` reads as the type of one example; None for the type of the first
            client's examples.
        """
        self._client_ids: Sequence[Hashable] = client_ids if isinstance(client_ids, range) else tuple(client_ids)
        self._known = None if isinstance(client_ids, range) else frozenset(self._client_ids)
        self._element_type = None if example_spec is None else to_type(example_spec)
        self._room = Room()
        if not self._client_ids:
            raise KoinonValueError("A federated dataset needs at least one client.")
        if self._known is not None and len(self._known) != len(self._client_ids):
            raise KoinonValueError(
                "Every client needs an id of its own.",
                expected=f"{len(self._client_ids)} distinct ids",
                found=f"{len(self._known)} distinct ids",
            )

    @abc.abstractmethod
    def _read(self, client_ids: Sequence[Hashable]) -> Iterator[Any]:
        """Yields the examples of each of the given clients, all of them known, as a container of stacked arrays."""

    @property
    def client_ids(self) -> Sequence[Hashable]:
        """The ids of the clients, in order."""
        return self._client_ids

    @property
    def element_type(self) -> Type:
        """The type of one example; the first client is read to know it, if no one has said it."""
        if self._element_type is None:
            first = self._client_ids[0]
            self._element_type = read_columns(next(self._read([first])), _what(first)).element_type
        return self._element_type

    def __len__(self) -> int:
        """The number of clients."""
        return len(self._client_ids)

    def num_examples(self, client_id: Hashable) -> int:
        """The number of a client's examples.

        Raises:
          UnknownClientError: if there is no such client.
        """
        self._check_known([client_id])
        return next(self._columns([client_id])).num_rows

    def dataset(self, client_id: Hashable) -> Any:
        """A client's examples: the containers of an example, with arrays `[examples, ...]`.

        Raises:
          UnknownClientError: if there is no such client.
        """
        self._check_known([client_id])
        return next(self._datasets([client_id]))

    def cohort(self, client_ids: Iterable[Hashable] | None = None) -> Cohort:
        """The given clients, or all, as an argument for a parameter `{D*}@CLIENTS`; they alone are read.

        Args:
          client_ids: the ids, in the order of the cohort; an id may occur several times; there may be none at all.

        Raises:
          UnknownClientError: if there is no client of one of the ids.
          TypeNotAssignableError: if a client's examples have another type than `element_type`.
        """
        ids = list(self._client_ids) if client_ids is None else as_ids(client_ids)
        self._check_known(ids)
        distinct = dict(zip(dict.fromkeys(ids), itertools.count(), strict=False))
        packed = pack_bucketed(self.element_type, list(self._columns(list(distinct))), self._room)
        return Cohort(packed, np.fromiter(map(distinct.__getitem__, ids), np.int32, len(ids)), ids)

    def prefetch(self, selections: Iterable[Iterable[Hashable]], buffer_size: int = 1) -> Iterator[Cohort]:
        """The cohorts of `selections` one after the other, the next ones made in the background and on the device.

        What comes out does not depend on timing. An error in making a cohort is raised where that cohort was due. The
        background work ends with the iterator: when it is exhausted, closed or no longer referred to.

        Args:
          selections: the client ids of each cohort, for example `(sample(round_num, 10) for round_num in range(100))`;
            taken up to `buffer_size` ahead.
          buffer_size: how many cohorts are made ahead, and are in memory besides the one in use.

        Raises:
          KoinonValueError: if `buffer_size` is not positive.
        """
        return prefetch_cohorts(self.cohort, selections, buffer_size)

    def sample(self, size: int, seed: int | None = None) -> Cohort:
        """A cohort of `size` distinct clients, drawn uniformly; the same seed draws the same, None others each time.

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

    def subset(self, client_ids: Iterable[Hashable]) -> StreamedClientData:
        """The dataset of the given clients only, in the given order.

        Raises:
          UnknownClientError: if there is no client of one of the ids.
          KoinonValueError: if an id occurs twice, or there are none.
        """
        ids = client_ids if isinstance(client_ids, range) else list(client_ids)
        self._check_known(ids)
        return _View(self, ids, None)

    def preprocess(self, fn: Callable[[Any], Any]) -> StreamedClientData:
        """A dataset with `fn` applied to the examples of a client whenever it is read.

        Args:
          fn: takes a client's examples as `dataset` returns them, and returns stacked arrays; it may change their
            number, and the fields, shapes and dtypes, but those for all clients alike.
        """
        return _View(self, self._client_ids, fn)

    def train_test_client_split(
        self, num_test_clients: int, seed: int | None = None
    ) -> tuple[StreamedClientData, StreamedClientData]:
        """Splits the clients at random into those to train with and those to test with.

        Test clients have at least one example. Both parts keep the order of the clients. No more clients are read than
        it takes to find the test clients.

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
        if not 0 < num_test_clients < len(self):
            raise KoinonValueError(
                f"{num_test_clients} of {len(self)} clients cannot be test clients.",
                expected=f"at least 1 and at most {len(self) - 1}, so that both parts have clients",
            )
        order = np.random.default_rng(seed).permutation(len(self))
        candidates = (int(position) for position in order if self.num_examples(self._client_ids[position]) > 0)
        chosen = list(itertools.islice(candidates, num_test_clients))
        if len(chosen) < num_test_clients:
            raise KoinonValueError(
                f"{num_test_clients} test clients cannot be drawn: too many clients have no examples.",
                expected=f"at most {len(chosen)}, the number of clients with examples",
            )
        is_test = np.zeros(len(self), bool)
        is_test[chosen] = True
        return (
            self.subset(itertools.compress(self._client_ids, ~is_test)),
            self.subset(itertools.compress(self._client_ids, is_test)),
        )

    def all_examples(self, seed: int | None = None) -> Any:
        """The examples of all clients, stacked; see `ClientData.all_examples`. They must fit into memory."""
        parts = [part.leaves for part in self._columns(self.client_ids)]
        leaves = [np.concatenate(column) for column in zip(*parts, strict=True)]
        if seed is not None:
            rows = np.random.default_rng(seed).permutation(len(leaves[0]))
            leaves = [leaf[rows] for leaf in leaves]
        return assemble(self.element_type, leaves)

    def describe(self) -> ClientDataSummary:
        """The number of examples of each client and, where examples have a label, of each label; reads all clients.

        The label is an integer field called `y`, `label` or `labels`.
        """
        ids, summaries = iter(self._client_ids), []
        while some := list(itertools.islice(ids, _CLIENTS_AT_A_TIME)):
            packed = pack_bucketed(self.element_type, list(self._columns(some)), Room())
            summaries.append(summarize(packed, np.arange(len(some)), tuple(some)))
        return merge_summaries(summaries)

    def __repr__(self) -> str:
        return f"{type(self).__name__.lstrip('_')}({self.element_type}*, {len(self)} clients)"

    def _columns(self, client_ids: Sequence[Hashable]) -> Iterator[Columns]:
        element_type = self.element_type
        for client_id, examples in zip(client_ids, self._read(client_ids), strict=True):
            yield read_columns(examples, _what(client_id), element_type)

    def _datasets(self, client_ids: Sequence[Hashable]) -> Iterator[Any]:
        for columns in self._columns(client_ids):
            yield assemble(columns.element_type, columns.leaves)

    def _check_known(self, client_ids: Sequence[Hashable]) -> None:
        unknown = [client_id for client_id in client_ids if not self._is_known(client_id)]
        if unknown:
            raise unknown_client_error(unknown, self._client_ids)

    def _is_known(self, client_id: Hashable) -> bool:
        if self._known is not None:
            return client_id in self._known
        # A range looks through all its members for what is no int, a NumPy integer among others.
        return isinstance(client_id, int | np.integer) and int(client_id) in self._client_ids


@final
class _View(StreamedClientData):
    """Some clients of a streamed dataset, their examples transformed."""

    def __init__(
        self, base: StreamedClientData, client_ids: Iterable[Hashable], fn: Callable[[Any], Any] | None
    ) -> None:
        super().__init__(client_ids, base._element_type if fn is None else None)
        self._base = base
        self._fn = fn

    @property
    def element_type(self) -> Type:
        """That of the base, if examples stay as they are."""
        return self._base.element_type if self._fn is None else super().element_type

    def num_examples(self, client_id: Hashable) -> int:
        """The number of a client's examples."""
        self._check_known([client_id])
        return self._base.num_examples(client_id) if self._fn is None else super().num_examples(client_id)

    def _read(self, client_ids: Sequence[Hashable]) -> Iterator[Any]:
        datasets = self._base._datasets(client_ids)
        if self._fn is None:
            return datasets
        return apply_to_clients(self._fn, client_ids, datasets)

    def __repr__(self) -> str:
        return f"StreamedClientData({self.element_type}*, {len(self)} clients)"


def apply_to_clients(fn: Callable[[Any], Any], client_ids: Iterable[Hashable], values: Iterable[Any]) -> Iterator[Any]:
    """Yields `fn` of each value; an error of `fn` gets a note that says which client it was."""
    for client_id, value in zip(client_ids, values, strict=True):
        try:
            yield fn(value)
        except Exception as error:
            error.add_note(f"This happened with the examples of client {client_id!r}.")
            raise


def _what(client_id: Hashable) -> str:
    return f"The examples of client {client_id!r}"
