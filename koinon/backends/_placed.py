"""Placed values as the reference engine holds them, and how they enter and leave it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koinon.backends._results import result_to_user
from koinon.computation import ClientRows, Cohort
from koinon.computation._arguments import Unpacked
from koinon.computation._evaluate import tensor_types
from koinon.computation._flat import flatten
from koinon.computation._sequence import Sequence
from koinon.computation._transfer import clients_values, fields_of, local_value, packed_view
from koinon.types import (
    CLIENTS,
    FederatedType,
    SequenceType,
    StructType,
    Type,
    contains_federated_types,
    is_structure_of_tensors,
)


@dataclasses.dataclass(frozen=True, eq=False)
class AtServer:
    """A value of the server."""

    value: Any


@dataclasses.dataclass(frozen=True, eq=False)
class AtClients:
    """One value for each client, in the order of the cohort."""

    values: list[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class SameAtClients:
    """A value that every client has, however many there are."""

    value: Any


def enter(type_: Type, value: Any, path: str, counts: list[tuple[str, int]]) -> Any:
    """An argument, in a user's containers, as the engine holds it; notes the numbers of clients in `counts`."""
    if isinstance(type_, FederatedType):
        return _enter_placed(type_, value, path, counts)
    if isinstance(value, Unpacked) or (isinstance(type_, StructType) and contains_federated_types(type_)):
        return tuple([enter(t, v, path + p, counts) for p, t, v in fields_of(type_, value)])
    return local_value(type_, value, path)


def _enter_placed(type_: FederatedType, value: Any, path: str, counts: list[tuple[str, int]]) -> Any:
    if type_.placement is not CLIENTS:
        return AtServer(local_value(type_.member, value, path))
    if type_.all_equal:
        return SameAtClients(local_value(type_.member, value, path))
    values = clients_values(type_, value, path)
    counts.append((path, len(values)))
    if isinstance(values, Cohort):
        return AtClients(_cohort_sequences(values))
    return AtClients([local_value(type_.member, v, f"{path}[{i}]") for i, v in enumerate(values)])


def _cohort_sequences(cohort: Cohort) -> list[Sequence]:
    """Each client's examples in buffers of their own."""
    type_ = SequenceType(cohort.packed.element_type)
    buffers = [
        buffer if jax.dtypes.issubdtype(buffer.dtype, jax.dtypes.extended) else np.asarray(buffer)
        for buffer in cohort.packed.buffers
    ]
    return [
        Sequence(packed_view(type_, [buffer[offset : offset + length] for buffer in buffers], length))
        for offset, length in zip(cohort.offsets.tolist(), cohort.lengths.tolist(), strict=True)
    ]


def has_rows(argument: Any) -> bool:
    """Whether clients' values came stacked, so that results at the clients leave that way."""
    return any(
        isinstance(a, ClientRows) for a in (argument.arguments if isinstance(argument, Unpacked) else [argument])
    )


def _rows_of(type_: Type, values: list[Any]) -> ClientRows:
    if not values:
        return ClientRows(type_, [jnp.empty((0, *leaf.shape), leaf.dtype) for leaf in tensor_types(type_)], 0)
    columns = zip(*[flatten(type_, value) for value in values], strict=True)
    return ClientRows(type_, [jnp.stack(column) for column in columns], len(values))


def leave(type_: FederatedType, value: Any, *, as_rows: bool = False) -> Any:
    """A placed result as a user sees it; `as_rows` gives clients' values stacked."""
    if isinstance(value, AtClients):
        if as_rows and is_structure_of_tensors(type_.member):
            return _rows_of(type_.member, value.values)
        return [result_to_user(type_.member, element) for element in value.values]
    return result_to_user(type_.member, value.value)
