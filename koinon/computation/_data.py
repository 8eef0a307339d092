"""Clients' sequences as engines hold them: all examples back to back, and a cohort as a choice of clients.

A sequence is a view, an offset and a length, into flat buffers. So a federated dataset is placed on a device once, and
the cohort of a round is two small vectors of integers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import CardinalityError, KoinonTypeError, UnknownClientError
from koinon._jax import Device, aligned_empty
from koinon.computation._flat import leaf_types
from koinon.types import TensorType, Type, structure_from_tensor_type_tree

_COMMON_ROOM = 512
_COMMON_BYTES = 2**23


class PackedSequences:
    """The sequences of many clients, packed back to back into one buffer per leaf of an example.

    Attributes:
      element_type: the type of one example.
      buffers: one array per leaf of `element_type`, in the order of its fields; each has the leading dimension
        `rows`, which is at least the number of examples. An array of NumPy that can be written to is copied, so that
        the data stay what they are; one that is read-only is shared, and must not be written to in another way.
      offsets: int32 `[clients]`, the row at which each client's examples start.
      lengths: int32 `[clients]`, the number of each client's examples.

    Raises:
      KoinonTypeError: if the buffers are not those of the element type.
      CardinalityError: if the offsets and lengths do not fit each other, or leave the buffers.
    """

    def __init__(self, element_type: Type, buffers: Sequence[Any], offsets: np.ndarray, lengths: np.ndarray) -> None:
        self.element_type = element_type
        self.buffers = tuple(buffers)
        self.offsets = np.array(offsets, np.int32)
        self.lengths = np.array(lengths, np.int32)
        # By device, None for the default one: the buffers there, and their least number of rows.
        self._placed: dict[Device | None, tuple[tuple[jax.Array, ...], float]] = {}
        if self.offsets.shape != self.lengths.shape or self.offsets.ndim != 1:
            raise CardinalityError(
                "The offsets and lengths of packed sequences must be two vectors with one entry per client.",
                found=f"shapes {self.offsets.shape} and {self.lengths.shape}",
            )
        self._check_buffers()
        # What is placed on devices; `buffers` are the rows of it that were given.
        self._fixed = tuple(map(self._fixed_of, self.buffers))
        self.buffers = tuple(map(_first_rows, self._fixed, map(len, self.buffers)))

    @classmethod
    def pack(
        cls, element_type: Type, leaves: Sequence[np.ndarray], lengths: np.ndarray, rows: np.ndarray | None = None
    ) -> PackedSequences:
        """Packs copies of examples, with the room that a device wants, so that a CPU device shares the arrays.

        Args:
          element_type: the type of one example.
          leaves: one array `[examples, ...]` per leaf of `element_type`.
          lengths: int `[clients]`, the number of each client's examples.
          rows: the examples of the clients, client by client, as indices into `leaves`; None for all in order.
        """
        total = int(lengths.sum())
        room = common_room([leaf[:1].nbytes for leaf in leaves])
        buffers = []
        for leaf in leaves:
            buffer = aligned_empty((total + room, *leaf.shape[1:]), leaf.dtype)
            if rows is None:
                buffer[:total] = leaf
            else:
                np.take(leaf, rows, 0, buffer[:total], mode="clip")
            buffer[total:] = 0
            buffer.flags.writeable = False
            buffers.append(buffer)
        return cls(element_type, buffers, np.cumsum(lengths) - lengths, lengths)

    def _check_buffers(self) -> None:
        leaves = leaf_types(self.element_type)
        if len(self.buffers) != len(leaves):
            raise KoinonTypeError(
                "Packed sequences have one buffer for each leaf of an example.",
                expected=f"{len(leaves)} buffers, for {self.element_type}",
                found=f"{len(self.buffers)} buffers",
            )
        for i, (leaf, buffer) in enumerate(zip(leaves, self.buffers, strict=True)):
            expected = TensorType(leaf.dtype, None if leaf.shape is None else (None, *leaf.shape))
            found = TensorType(buffer.dtype, buffer.shape)
            if not expected.is_assignable_from(found):
                raise KoinonTypeError(
                    "A buffer of packed sequences has another dtype or shape than the examples.",
                    expected=expected,
                    found=found,
                    differs=f"buffer {i}",
                )
        ends = self.offsets.astype(np.int64) + self.lengths
        rows = min([buffer.shape[0] for buffer in self.buffers], default=int(ends.max(initial=0)))
        if (self.offsets < 0).any() or (self.lengths < 0).any() or (ends > rows).any():
            raise CardinalityError(
                "The examples of a client lie outside the buffers of packed sequences.",
                expected=f"rows from 0 to {rows}",
                found=f"rows from {self.offsets.min()} to {ends.max()}",
            )

    @property
    def num_clients(self) -> int:
        """The number of clients whose sequences are packed."""
        return len(self.offsets)

    @functools.cached_property
    def longest(self) -> int:
        """The most examples that a client has."""
        return int(self.lengths.max(initial=0))

    def expected_examples(self, capacity: int) -> int:
        """About how many examples a cohort of so many clients has: the same for all cohorts of one dataset."""
        return self._num_examples * capacity // max(1, self.num_clients)

    @functools.cached_property
    def _num_examples(self) -> int:
        return int(self.lengths.sum())

    def _fixed_of(self, buffer: Any) -> Any:
        """The buffer, or a copy of it where somebody could write to it, with the room that a device wants."""
        if not isinstance(buffer, np.ndarray) or not buffer.flags.writeable:
            return buffer
        return _copied(buffer, max(len(buffer), self._end + self._common_room))

    def on_device(self, room: int = 0, device: Device | None = None) -> tuple[jax.Array, ...]:
        """The buffers on a device, copied there at the first use and kept.

        Args:
          room: at least so many rows follow the last example, so that a batch that begins at it can be read at once.
          device: the device; None for the default one.
        """
        rows = self._rows_for(room)
        placed, least = self._placed.get(device, ((), -1))
        if least < rows:
            placed = tuple([jax.device_put(_with_room(buffer, rows), device) for buffer in self._fixed])
            self._placed[device] = placed, min([buffer.shape[0] for buffer in placed], default=math.inf)
        return placed

    def _rows_for(self, room: int) -> int:
        """The rows of the buffers on a device that leave so much room."""
        return self._end + max(room, self._common_room)

    @functools.cached_property
    def _end(self) -> int:
        return int((self.offsets + self.lengths).max(initial=0))

    @functools.cached_property
    def _common_room(self) -> int:
        # Room for the batches of programs yet to come, so that those that ran already need not be compiled again.
        return common_room([buffer[:1].nbytes for buffer in self.buffers])

    def __repr__(self) -> str:
        total = int(self.lengths.sum())
        return f"PackedSequences({self.element_type}*, {self.num_clients} clients, {total} examples)"


def _with_room(buffer: Any, rows: int) -> Any:
    missing = rows - buffer.shape[0]
    if missing <= 0:
        return buffer
    if isinstance(buffer, jax.Array):
        return jnp.concatenate([buffer, jnp.empty((missing, *buffer.shape[1:]), buffer.dtype)])
    return _copied(buffer, rows)


def _copied(buffer: np.ndarray, rows: int) -> np.ndarray:
    """A copy with so many rows, of which those that are new are zero: a CPU device shares it."""
    copy = aligned_empty((rows, *buffer.shape[1:]), buffer.dtype)
    copy[: len(buffer)], copy[len(buffer) :] = buffer, 0
    copy.flags.writeable = False
    return copy


def _first_rows(buffer: Any, rows: int) -> Any:
    return buffer if len(buffer) == rows else buffer[:rows]


def common_room(row_bytes: Sequence[int]) -> int:
    """The rows that follow the last example of packed buffers on a device, unless a program needs more.

    Args:
      row_bytes: the size of a row of each buffer.
    """
    return _COMMON_ROOM if max(row_bytes, default=0) * _COMMON_ROOM <= _COMMON_BYTES else 0


class Cohort:
    """Some clients of a packed dataset, in order: what a computation takes for a parameter `{D*}@CLIENTS`.

    Attributes:
      packed: the packed dataset.
      indices: int32 `[cohort]`, the positions of the clients in the packed dataset.
      client_ids: the ids of the clients, for messages and for state that belongs to a client.
    """

    def __init__(
        self, packed: PackedSequences, indices: np.ndarray, client_ids: Sequence[Hashable] | None = None
    ) -> None:
        self.packed = packed
        self.indices = np.asarray(indices, np.int32)
        self.client_ids = client_ids
        outside = self.indices[(self.indices < 0) | (self.indices >= packed.num_clients)]
        if outside.size:
            raise UnknownClientError(
                f"The dataset has no client at position {outside[0]}.",
                expected=f"positions from 0 to {packed.num_clients - 1}",
                found=str(outside.tolist()),
            )
        self.offsets = packed.offsets[self.indices]
        self.lengths = packed.lengths[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"Cohort({len(self)} of {self.packed.num_clients} clients, {int(self.lengths.sum())} examples)"


@functools.lru_cache(maxsize=256)
def _leaves_of(type_: Type) -> list[tuple[Any, tuple[int | None, ...]]]:
    return [(leaf.dtype, leaf.shape or ()) for leaf in leaf_types(type_)]


class ClientRows:
    """The values of some clients, stacked: what a computation takes for, and gives for, `{T}@CLIENTS`.

    It is for state that clients keep between rounds: a call that is given rows also returns its results at the clients
    as rows, and no work in Python grows with the number of clients.

    Attributes:
      type: the type of one client's value, made of tensors.
      leaves: one array per leaf of `type`, in the order of its fields, with the leading dimension `[clients]` or more.
      count: the number of clients.

    Raises:
      KoinonTypeError: if the leaves are not those of the type.
      CardinalityError: if a leaf has fewer rows than there are clients.
    """

    def __init__(self, type_: Type, leaves: Sequence[Any], count: int) -> None:
        self.type = type_
        self.leaves = tuple(leaves)
        self.count = count
        expected = _leaves_of(type_)
        if len(expected) != len(self.leaves):
            raise KoinonTypeError(
                "Rows of clients have one array for each leaf of a value.",
                expected=f"{len(expected)} arrays, for {type_}",
                found=f"{len(self.leaves)} arrays",
            )
        for (dtype, shape), leaf in zip(expected, self.leaves, strict=True):
            if leaf.dtype != dtype or (leaf.shape[1:] != shape and None not in shape):
                raise KoinonTypeError(
                    "An array of rows of clients has another dtype or shape than its leaf.",
                    expected=TensorType(dtype, (None, *shape)),
                    found=TensorType(leaf.dtype, leaf.shape),
                )
            if leaf.shape[0] < count:
                raise CardinalityError(
                    "An array of rows of clients has fewer rows than there are clients.",
                    expected=f"{count} rows",
                    found=f"{leaf.shape[0]} rows",
                )

    @classmethod
    def trusted(cls, type_: Type, leaves: list[Any], count: int) -> ClientRows:
        """The rows that a program gave, whose leaves are those of the type: as much work for every type."""
        rows = cls.__new__(cls)
        rows.type, rows.leaves, rows.count = type_, tuple(leaves), count
        return rows

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        """The value of one client, in the containers of the type."""
        if not -self.count <= index < self.count:
            raise IndexError(f"there are {self.count} clients, so no client {index}")
        leaves = iter([leaf[index % self.count] for leaf in self.leaves])
        return structure_from_tensor_type_tree(lambda _: next(leaves), self.type)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(self.count))

    def __repr__(self) -> str:
        return f"ClientRows({self.type}, {self.count} clients)"
