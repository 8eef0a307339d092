"""Packed sequences of few sizes, so that computations on ever other cohorts are compiled a few times only."""

from __future__ import annotations

import dataclasses
from typing import Any, final

import numpy as np

from koinon._errors import KoinonValueError
from koinon._jax import aligned_empty
from koinon.computation import PackedSequences
from koinon.simulation._columns import Columns, leaf_specs
from koinon.types import Type

_MAX_ROWS = 2**31 - 1


@dataclasses.dataclass
class Room:
    """What the cohorts of a dataset have taught about the sizes to give the next ones.

    Attributes:
      rows: how many rows engines want after the last example, the greatest number that one has asked for yet.
      largest: the number of rows of the largest cohort yet.
    """

    rows: int = 0
    largest: int = 1

    def rows_for(self, num_examples: int) -> int:
        """A power of two with room for so many examples, and at least a quarter of the largest: three sizes in all."""
        rows = 1 << max(0, num_examples + self.rows - 1).bit_length()
        self.largest = max(self.largest, rows)
        return max(rows, self.largest // 4)


@final
class BucketedSequences(PackedSequences):
    """Packed sequences whose number of rows is a power of two, the room after the last example included."""

    def __init__(
        self, element_type: Type, buffers: list[np.ndarray], offsets: np.ndarray, lengths: np.ndarray, room: Room
    ) -> None:
        super().__init__(element_type, buffers, offsets, lengths)
        self._asked = room

    def expected_examples(self, capacity: int) -> int:
        """About how many examples such a cohort has: the same for all whose arrays have the same room."""
        del capacity
        return max([len(buffer) for buffer in self.buffers], default=0) // 2

    def _rows_for(self, room: int) -> int:
        self._asked.rows = max(self._asked.rows, room)
        return self._asked.rows_for(int(self.lengths.sum()))


def pack_bucketed(element_type: Type, parts: list[Columns], room: Room) -> BucketedSequences:
    """The examples of some clients back to back.

    Args:
      element_type: the type of an example.
      parts: the examples of each client.
      room: shared by the cohorts of a dataset, so that the first of them tell for the others.
    """
    lengths = np.array([part.num_rows for part in parts], np.int64)
    total = int(lengths.sum())
    if total > _MAX_ROWS:
        raise KoinonValueError(f"A cohort has at most {_MAX_ROWS} examples.", found=str(total))
    rows = room.rows_for(total)
    buffers: list[Any] = []
    for leaf, (dtype, shape) in enumerate(leaf_specs(element_type)):
        buffer = aligned_empty((rows, *shape), dtype)
        if parts:
            np.concatenate([part.leaves[leaf] for part in parts], out=buffer[:total])
        buffer[total:] = 0
        buffer.flags.writeable = False
        buffers.append(buffer)
    return BucketedSequences(element_type, buffers, np.cumsum(lengths) - lengths, lengths, room)
