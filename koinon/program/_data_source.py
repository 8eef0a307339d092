"""Where a program gets the data of a round from: sources that choose clients and can be resumed."""

from __future__ import annotations

import abc
import enum
import operator
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol, final

import numpy as np

from koinon._errors import KoinonValueError
from koinon.types import FederatedType, SequenceType, Type, at_clients


class Capability(enum.Enum):
    """What a data source promises.

    `RANDOM_UNIFORM`: each choice is uniform among the clients. `SUPPORTS_REUSE`: a client may be chosen again.
    """

    RANDOM_UNIFORM = "random_uniform"
    SUPPORTS_REUSE = "supports_reuse"


class FederatedDataSourceIterator(abc.ABC):
    """Chooses the clients of one round after the other."""

    @property
    @abc.abstractmethod
    def federated_type(self) -> FederatedType:
        """The type of the data, `{D*}@CLIENTS`."""

    @property
    @abc.abstractmethod
    def state(self) -> dict[str, int]:
        """What a new iterator of the same source needs to go on from here; save it with the state of the program."""

    @abc.abstractmethod
    def select(self, k: int | None = None) -> Any:
        """The data of `k` clients, as an argument for a parameter of `federated_type`."""


class FederatedDataSource(abc.ABC):
    """The data of a population of clients: of a simulation, or of devices that a backend reaches."""

    @property
    @abc.abstractmethod
    def federated_type(self) -> FederatedType:
        """The type of the data, `{D*}@CLIENTS`."""

    @property
    @abc.abstractmethod
    def capabilities(self) -> list[Capability]:
        """What this source promises."""

    @abc.abstractmethod
    def iterator(self, state: Mapping[str, int] | None = None) -> FederatedDataSourceIterator:
        """A new iterator; one that goes on where another was, if its `state` is given."""


class ClientDatasets(Protocol):
    """What `DatasetDataSource` needs of a federated dataset; those of `koinon.simulation` have it."""

    @property
    def client_ids(self) -> Sequence[Hashable]:
        """The ids of the clients."""
        ...

    @property
    def element_type(self) -> Type:
        """The type of one example."""
        ...

    def cohort(self, client_ids: Iterable[Hashable]) -> Any:
        """The data of the given clients, as an argument for a parameter `{D*}@CLIENTS`."""
        ...


@final
class DatasetDataSource(FederatedDataSource):
    """The clients of a federated dataset as a data source: each choice uniform, without replacement.

    Example:
      >>> import numpy as np
      >>> from koinon.simulation import ClientData
      >>> source = DatasetDataSource(ClientData.from_clients({name: np.zeros(2, np.float32) for name in "abcde"}))
      >>> iterator = source.iterator()
      >>> print(iterator.federated_type)
      {float32*}@CLIENTS
      >>> _ = iterator.select(3)
      >>> state = iterator.state  # .. and the program is stopped, and started again
      >>> source.iterator(state).select(3).client_ids == iterator.select(3).client_ids
      True
    """

    def __init__(self, data: ClientDatasets, *, seed: int = 0) -> None:
        """Takes a federated dataset; `seed`, a non-negative integer, is where choosing begins.

        Raises:
          KoinonValueError: if `seed` is negative.
        """
        self._data = data
        self._seed = operator.index(seed)
        if self._seed < 0:
            raise KoinonValueError("A seed must not be negative.", found=str(seed))

    @property
    def federated_type(self) -> FederatedType:
        """The type of the data, `{D*}@CLIENTS`."""
        return at_clients(SequenceType(self._data.element_type))

    @property
    def capabilities(self) -> list[Capability]:
        """What this source promises."""
        return [Capability.RANDOM_UNIFORM, Capability.SUPPORTS_REUSE]

    def iterator(self, state: Mapping[str, int] | None = None) -> DatasetDataSourceIterator:
        """A new iterator; one that goes on where another was, if its `state` is given."""
        state = {"num_selections": 0, "seed": self._seed} if state is None else state
        return DatasetDataSourceIterator(self._data, self.federated_type, **state)


@final
class DatasetDataSourceIterator(FederatedDataSourceIterator):
    """An iterator of a `DatasetDataSource`."""

    def __init__(self, data: ClientDatasets, federated_type: FederatedType, num_selections: int, seed: int) -> None:
        self._data = data
        self._federated_type = federated_type
        self._num_selections = num_selections
        self._seed = seed

    @property
    def federated_type(self) -> FederatedType:
        """The type of the data, `{D*}@CLIENTS`."""
        return self._federated_type

    @property
    def state(self) -> dict[str, int]:
        """How many choices were made, and the seed."""
        return {"num_selections": self._num_selections, "seed": self._seed}

    def select(self, k: int | None = None) -> Any:
        """The cohort of `k` distinct clients, drawn uniformly.

        Raises:
          KoinonValueError: if `k` is no integer, negative, or more than there are clients.
        """
        population = self._data.client_ids
        if not isinstance(k, int | np.integer) or not 0 <= k <= len(population):
            raise KoinonValueError(
                f"{k} clients cannot be selected.", expected=f"0 to {len(population)} clients", found=repr(k)
            )
        entropy = np.random.SeedSequence(self._seed, spawn_key=(self._num_selections,))
        chosen = np.random.default_rng(entropy).choice(len(population), k, replace=False)
        cohort = self._data.cohort([population[position] for position in chosen.tolist()])
        self._num_selections += 1
        return cohort
