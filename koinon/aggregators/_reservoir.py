"""A uniform sample of the clients' values, for a look at single clients where there are too many to list."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from koinon._errors import KoinonValueError
from koinon.computation import (
    federated_aggregate,
    federated_eval,
    federated_map,
    federated_split_key,
    federated_zip,
    jax_computation,
)
from koinon.templates._specs import specs_of
from koinon.types import SERVER, StructType, Type, register_container, strip_placement


class ClientSample(NamedTuple):
    """The values of some clients.

    Attributes:
      values: leaves `[size, ...]`, a row for each client of the sample; rows from `count` on are zeros.
      count: int32, the number of clients in the sample: `size`, or all of a smaller cohort.
    """

    values: Any
    count: Any


register_container("koinon.ClientSample", ClientSample)


class Reservoir(NamedTuple):
    """The values of the greatest priority so far.

    Attributes:
      values: leaves `[size, ...]`.
      priorities: int32 `[size]`; a free row has -1.
    """

    values: Any
    priorities: Any


def check_sample_size(name: str, size: Any) -> None:
    """Checks that a size of a sample is a positive int.

    Raises:
      KoinonValueError: it is not.
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise KoinonValueError(f"`{name}` must be a positive int.", found=repr(size))


def sample_clients(value: Any, size: int, key: Any) -> Any:
    """A uniform sample without replacement of the clients' values, a `ClientSample`; see `reservoir_of`."""
    return federated_map(sample_of, reservoir_of(value, size, key))


def reservoir_of(value: Any, size: int, key: Any) -> Any:
    """A uniform sample without replacement of the clients' values, a `Reservoir` at the server.

    Every client draws a number, and the values with the greatest ones are kept: so the sample does not depend on the
    order in which, or the machines on which, clients are aggregated.

    Args:
      value: `{T}@CLIENTS`, inside a federated computation.
      size: the number of rows.
      key: a PRNG key at the server.
    """
    return fill_reservoir(value, federated_map(draw_priority, federated_split_key(key)), size)


def fill_reservoir(value: Any, priority: Any, size: int) -> Any:
    """The values of the greatest priorities, a `Reservoir` at the server.

    Args:
      value: `{T}@CLIENTS`, inside a federated computation.
      priority: `{int32}@CLIENTS`; a client with -1 stays out.
      size: the number of rows.
    """
    entry = federated_zip((value, priority))
    entry_type = strip_placement(entry.type_signature)
    assert isinstance(entry_type, StructType)
    empty = jax_computation()(lambda: empty_reservoir(entry_type[0], size))
    return federated_aggregate(entry, empty(), _insert, merge_reservoirs, lambda kept: kept)


def draw_priority(key: jax.Array) -> jax.Array:
    """A number of 31 random bits, so that two of a thousand clients draw the same once in four thousand rounds."""
    return (jax.random.bits(key, (), jnp.uint32) >> 1).astype(jnp.int32)


def empty_reservoir(value_type: Type, size: int) -> Reservoir:
    """A reservoir of free rows."""
    rows = jax.tree.map(lambda spec: jnp.zeros((size, *spec.shape), spec.dtype), specs_of(value_type))
    return Reservoir(rows, jnp.full((size,), -1, jnp.int32))


def constant_key(seed: int) -> Any:
    """A PRNG key at the server that is the same at each call, inside a federated computation."""
    return federated_eval(lambda: jax.random.key(seed), SERVER)


def _insert(reservoir: Reservoir, client: tuple[Any, Any]) -> Reservoir:
    value, priority = client
    lowest = jnp.argmin(reservoir.priorities)
    is_kept = priority > reservoir.priorities[lowest]
    values = jax.tree.map(
        lambda rows, row: rows.at[lowest].set(jnp.where(is_kept, row, rows[lowest])), reservoir.values, value
    )
    priorities = reservoir.priorities.at[lowest].max(priority)
    return Reservoir(values, priorities)


def merge_reservoirs(a: Reservoir, b: Reservoir) -> Reservoir:
    """The reservoir of the values of both, of the size of the first."""
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), a, b)
    order = jnp.argsort(-both.priorities)[: a.priorities.shape[0]]
    return jax.tree.map(lambda rows: rows[order], both)


def in_order(reservoir: Reservoir) -> Reservoir:
    """The reservoir in descending order of priorities, its free rows last."""
    order = jnp.argsort(-reservoir.priorities)
    return jax.tree.map(lambda rows: rows[order], reservoir)


def sample_of(reservoir: Reservoir) -> ClientSample:
    """The sample that a reservoir holds."""
    return ClientSample(in_order(reservoir).values, jnp.sum(reservoir.priorities >= 0, dtype=jnp.int32))
