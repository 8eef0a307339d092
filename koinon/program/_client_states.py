"""The states that clients keep from one participation to the next, for all clients of a simulation."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import CardinalityError, KoinonTypeError, KoinonValueError, UnknownClientError
from koinon.computation import ClientRows, Computation
from koinon.types import (
    StructType,
    TensorType,
    Type,
    contains_federated_types,
    from_container,
    is_structure_of_tensors,
)


class ClientStates(NamedTuple):
    """What a `ClientStateStore` holds, as checkpoints save it; of one structure however many clients have taken part.

    Attributes:
      table: one array `[clients, ...]` for each leaf of a client's state; PRNG keys as their data.
      has_taken_part: bool `[clients]`; the rows of the others are zeros, and stand for the state of a new client.
    """

    table: tuple[Any, ...]
    has_taken_part: Any


class ClientStateStore:
    """A table on the device with a row for each client, from which a round takes rows, and into which it puts them.

    Two programs are compiled, one that reads rows and one that writes them: the work of Python does not grow with the
    number of clients, and no state leaves the device. The memory is that of one state times the number of clients.

    A driver needs three lines: `rows = store.rows(ids)`, then `output = process.next(state, rows, cohort)`, then
    `store.update(ids, output.client_state)`; and `store.state` as a part of its program state, both ways.

    >>> import jax.numpy as jnp, koinon as ko
    >>> from koinon.program import ClientStateStore
    >>> store = ClientStateStore(ko.jax_computation()(lambda: {"visits": jnp.int32(0)}), ["a", "b", "c"])
    >>> rows_type = ko.types.at_clients({"visits": jnp.int32})
    >>> @ko.federated_computation(rows_type)
    ... def visit(states):
    ...     return ko.federated_map(lambda state: {"visits": state["visits"] + 1}, states)
    >>> for ids in (["a", "c"], ["c"]):
    ...     store.update(ids, visit(store.rows(ids)))
    >>> [int(store[client_id]["visits"]) for client_id in "abc"]
    [1, 0, 2]

    Args:
      initialize: a `Computation` `( -> C)` of the state of a client that has not taken part yet, as of
        `LearningProcess.initialize_client_state`. C is a tensor or a struct of tensors of known shapes.
      client_ids: the ids of all clients, in an order that does not change, since checkpoints keep rows by it.

    Raises:
      KoinonTypeError: `initialize` is no such computation.
      KoinonValueError: an id occurs twice.
    """

    def __init__(self, initialize: Computation, client_ids: Sequence[Hashable]) -> None:
        self.type = _state_type(initialize)
        self._index = {client_id: row for row, client_id in enumerate(client_ids)}
        if len(self._index) != len(client_ids):
            raise KoinonValueError(
                "The ids of clients must be distinct.",
                found=f"{len(client_ids)} ids, {len(self._index)} of them distinct",
            )
        self._fresh = tuple(jnp.asarray(leaf) for leaf in _leaves(self.type, initialize()))
        shapes = [jax.eval_shape(_without_keys, leaf) for leaf in self._fresh]
        count = len(self._index)
        self._states = ClientStates(
            tuple(jnp.zeros((count, *leaf.shape), leaf.dtype) for leaf in shapes), jnp.zeros((count,), bool)
        )

    @property
    def state(self) -> ClientStates:
        """All rows; the arrays are valid until the next `update`, which writes in place."""
        return self._states

    @state.setter
    def state(self, states: ClientStates) -> None:
        """Takes over saved rows.

        Raises:
          KoinonValueError: they are those of another number of clients, or of another type.
        """
        found = [(np.shape(leaf), np.dtype(leaf.dtype)) for leaf in jax.tree.leaves(tuple(states))]
        expected = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tuple(self._states))]
        if found != expected:
            raise KoinonValueError(
                "The saved states of clients do not fit these clients.", expected=repr(expected), found=repr(found)
            )
        # Copies, since updates write in place and the given arrays are the caller's.
        self._states = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), ClientStates(*states))

    def rows(self, client_ids: Sequence[Hashable]) -> ClientRows:
        """The states of some clients, in this order: what a process with client state takes.

        Raises:
          UnknownClientError: there is no client of some id.
          KoinonValueError: a client occurs twice, because then there would be two states to keep of it.
        """
        positions = self._positions(client_ids)
        # Sizes are rounded up to powers of two, so that cohorts of changing sizes share few compiled programs.
        capacity = 1 << max(0, len(positions) - 1).bit_length()
        padded = np.pad(positions, (0, capacity - len(positions)))
        leaves = _read(*self._states, self._fresh, padded) if len(self._index) else self._no_rows()
        return ClientRows(self.type, leaves, len(positions))

    def update(self, client_ids: Sequence[Hashable], rows: ClientRows) -> None:
        """Keeps the states of these clients, as a process has returned them.

        Raises:
          UnknownClientError: there is no client of some id.
          KoinonTypeError: the rows are no `ClientRows` of the type of the states.
          CardinalityError: there are more or fewer rows than clients.
          KoinonValueError: a client occurs twice.
        """
        positions = self._positions(client_ids)
        if not isinstance(rows, ClientRows) or not self.type.is_assignable_from(rows.type):
            raise KoinonTypeError(
                "What is kept of clients must be rows of their states.",
                expected=f"ClientRows of {self.type}",
                found=f"{type(rows).__name__} of {rows.type}" if isinstance(rows, ClientRows) else repr(rows),
                hint="give the process `store.rows(ids)`; then its `client_state` is rows too",
            )
        if len(rows) != len(positions):
            raise CardinalityError(
                "There must be one state for each client.", expected=f"{len(positions)} rows", found=f"{len(rows)} rows"
            )
        if len(positions) and rows.leaves:
            # What lies behind the last row is written beyond the table, that is nowhere.
            beyond = rows.leaves[0].shape[0] - len(positions)
            padded = np.pad(positions, (0, beyond), constant_values=len(self._index))
            self._states = _write(self._states, padded, rows.leaves)

    def __getitem__(self, client_id: Hashable) -> Any:
        """The state of one client, in the containers of its type."""
        return self.rows([client_id])[0]

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        taken_part = int(jnp.sum(self._states.has_taken_part))
        return f"ClientStateStore({self.type}, {taken_part} of {len(self)} clients have taken part)"

    def _positions(self, client_ids: Sequence[Hashable]) -> np.ndarray:
        try:
            positions = np.array([self._index[client_id] for client_id in client_ids], np.int32)
        except KeyError as error:
            raise UnknownClientError(
                "There is no client of this id.", expected=f"one of {len(self._index)} ids", found=repr(error.args[0])
            ) from None
        if len(np.unique(positions)) != len(positions):
            raise KoinonValueError(
                "A client that keeps a state takes part at most once in a round.",
                found=f"{len(positions)} clients, {len(np.unique(positions))} of them distinct",
                hint="sample without replacement",
            )
        return positions

    def _no_rows(self) -> tuple[Any, ...]:
        return tuple(jnp.broadcast_to(leaf, (1, *leaf.shape)) for leaf in self._fresh)


@jax.jit
def _read(table: tuple[Any, ...], has_taken_part: Any, fresh: tuple[Any, ...], positions: Any) -> tuple[Any, ...]:
    is_kept = has_taken_part[positions]

    def rows_of(column: Any, leaf: Any) -> Any:
        mask = is_kept.reshape(-1, *[1] * (column.ndim - 1))
        rows = jnp.where(mask, column[positions], _without_keys(leaf))
        return jax.random.wrap_key_data(rows, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else rows

    return tuple(rows_of(column, leaf) for column, leaf in zip(table, fresh, strict=True))


@functools.partial(jax.jit, donate_argnums=0)
def _write(states: ClientStates, positions: Any, rows: tuple[Any, ...]) -> ClientStates:
    table = tuple(
        column.at[positions].set(_without_keys(leaf), mode="drop")
        for column, leaf in zip(states.table, rows, strict=True)
    )
    return ClientStates(table, states.has_taken_part.at[positions].set(True, mode="drop"))


def _without_keys(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _state_type(initialize: Any) -> Type:
    hint = "pass `process.initialize_client_state` of a process whose clients keep a state"
    if not isinstance(initialize, Computation) or initialize.type_signature.parameter is not None:
        raise KoinonTypeError(
            "The state of a new client is given by a computation without parameter.",
            expected="( -> C)",
            found=str(initialize.type_signature) if isinstance(initialize, Computation) else repr(initialize),
            hint=hint,
        )
    type_ = initialize.type_signature.result
    is_made_of_tensors = is_structure_of_tensors(type_) and not contains_federated_types(type_)
    if not is_made_of_tensors or not all(leaf.is_fully_defined for leaf in _leaf_types(type_)):
        raise KoinonTypeError("The state of a client must be made of unplaced tensors of known shapes.", found=type_)
    return type_


def _leaf_types(type_: Type) -> Iterator[TensorType]:
    if isinstance(type_, StructType):
        for child in type_:
            yield from _leaf_types(child)
    elif isinstance(type_, TensorType):
        yield type_


def _leaves(type_: Type, value: Any) -> Iterator[Any]:
    """The leaves of a value in the order of its type, which need not be that of JAX."""
    if isinstance(type_, StructType):
        for child, field in zip(type_, from_container(type_, value), strict=True):
            yield from _leaves(child, field)
    else:
        yield value
