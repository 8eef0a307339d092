"""Arguments on their way into a compiled program, and results on their way out.

For each part of a parameter there is a feeder, made once: it takes what a user gives to flat arrays. The fast way is a
structure of arrays that has exactly the declared type; all else, and every error, goes the slow and careful way. The
work in Python does not grow with the number of clients of a cohort.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from koinon._jax import Device
from koinon.backends._results import result_to_user
from koinon.computation import ClientRows, Cohort
from koinon.computation._flat import fields_at, flatten, leaf_types, to_user, unflatten
from koinon.computation._transfer import check_cohort, clients_values, columns, local_value
from koinon.types import FederatedType, SequenceType, StructType, TensorType, Type

_signature = operator.attrgetter("dtype", "shape")
_WEAK_TYPE, _FALSE = itertools.repeat("weak_type"), itertools.repeat(False)

# The classes of the arrays that came so far. None of tracers: one class of them stands for arrays and for others.
_array_classes: set[type] = set()


class NotOneProgramError(Exception):
    """A call that cannot be one compiled program, such as one with clients' values of several shapes."""


class Layout:
    """How a value of a type lies in its containers, as JAX flattens them.

    Attributes:
      treedef: the structure, or None where JAX does not know a container or the type has sequences.
      order: for each leaf of the type, its place among JAX's leaves.
    """

    def __init__(self, type_: Type) -> None:
        self.leaf_types = leaf_types(type_)
        self.treedef: Any = None
        if not _made_of_tensors(type_):
            return
        numbers = list(range(len(self.leaf_types)))
        leaves, treedef = jax.tree.flatten(to_user(type_, unflatten(type_, numbers)))
        if sorted(leaf for leaf in leaves if isinstance(leaf, int)) != numbers or len(leaves) != len(numbers):
            return
        self.treedef = treedef
        self.order = sorted(numbers, key=leaves.__getitem__)
        by_place = [self.leaf_types[i] for i in leaves]
        self.signatures = [(leaf.dtype, leaf.shape) for leaf in by_place]
        self.in_order = self.order == numbers

    def take(self, value: Any) -> list[Any] | None:
        """The leaves of a value that has exactly the declared type, in the order of the type; else None."""
        leaves, treedef = jax.tree.flatten(value)
        if treedef != self.treedef or not (_array_classes.issuperset(map(type, leaves)) or _are_arrays(leaves)):
            return None
        if list(map(_signature, leaves)) != self.signatures:
            return None
        return leaves if self.in_order else [leaves[i] for i in self.order]

    def give(self, leaves: list[Any]) -> Any:
        """The value in its containers from its leaves in the order of the type."""
        if not self.in_order:
            ordered = [None] * len(leaves)
            for place, leaf in zip(self.order, leaves, strict=True):
                ordered[place] = leaf
            leaves = ordered
        return self.treedef.unflatten(leaves)


def _are_arrays(leaves: list[Any]) -> bool:
    """Whether all leaves are arrays, of NumPy or JAX: other things have a dtype and a shape as well."""
    if not all(isinstance(leaf, (np.ndarray, np.generic, jax.Array)) for leaf in leaves):
        return False
    _array_classes.update(type(leaf) for leaf in leaves if not isinstance(leaf, Tracer))
    return True


def _strongly_typed(leaf: Any) -> Any:
    return jnp.asarray(leaf, leaf.dtype) if getattr(leaf, "weak_type", False) else leaf


@functools.lru_cache(maxsize=1024)
def layout_of(type_: Type) -> Layout:
    """The layout of a type, made once."""
    return Layout(type_)


def _made_of_tensors(type_: Type) -> bool:
    if isinstance(type_, StructType):
        return all(_made_of_tensors(field) for _, field in type_.items())
    return isinstance(type_, TensorType)


class ServerFeeder:
    """Feeds a value that is not placed, or is the same everywhere."""

    def __init__(self, type_: Type, path: str) -> None:
        self.type = type_
        self.member = type_.member if isinstance(type_, FederatedType) else type_
        self.path = path
        self.layout = layout_of(self.member)

    def feed(self, value: Any) -> list[Any]:
        """The flat leaves of a value."""
        leaves = self.layout.take(value) if self.layout.treedef is not None else None
        if leaves is None:
            leaves = flatten(self.member, local_value(self.member, value, self.path))
        # What an engine returns is not weakly typed, as `jnp.full(3, 0.5)` is. A program for such a first state alone
        # would take longer to compile than this check takes in thousands of rounds.
        if any(map(getattr, leaves, _WEAK_TYPE, _FALSE)):
            return list(map(_strongly_typed, leaves))
        return leaves


class ClientsFeeder:
    """Feeds the values of the clients: stacked, or packed back to back where they are sequences."""

    def __init__(self, type_: FederatedType, path: str) -> None:
        self.type = type_
        self.path = path
        self._known_element: Type | None = None
        self._known_rows: Type | None = None

    def count(self, value: Any) -> int:
        """The number of clients of an argument."""
        if not isinstance(value, (Cohort, ClientRows)):
            value = clients_values(self.type, value, self.path)
        return len(value)

    def feed(self, value: Any, capacity: int, room: int, device: Device | None = None) -> list[Any]:
        """The leaves of the clients' values.

        Args:
          value: one value for each client, or a cohort.
          capacity: the number of clients that the arrays have room for.
          room: the number of rows that follow the last example of a packed sequence.
          device: where a cohort's packed sequences shall be; None for the default device.
        """
        if isinstance(value, Cohort):
            if value.packed.element_type is not self._known_element:
                check_cohort(self.type, value, self.path)
                self._known_element = value.packed.element_type
            count = len(value)
            places = np.zeros((2, capacity), np.int32)
            places[0, :count], places[1, :count] = value.offsets, value.lengths
            return [(value.packed.on_device(room, device), places[0], places[1])]
        leaves: list[Any] = []
        if isinstance(value, ClientRows):
            if value.type is not self._known_rows:
                clients_values(self.type, value, self.path)
                self._known_rows = value.type
            return [_with_capacity(leaf, capacity) for leaf in value.leaves]
        _stack(self.type.member, list(value), self.path, capacity, room, leaves)
        return leaves


def _with_capacity(leaf: Any, capacity: int) -> Any:
    missing = capacity - leaf.shape[0]
    return leaf if missing <= 0 else jnp.concatenate([leaf, jnp.empty((missing, *leaf.shape[1:]), leaf.dtype)])


def _stack(type_: Type, values: list[Any], path: str, capacity: int, room: int, leaves: list[Any]) -> None:
    """Appends the stacked leaves of values of one type, in the order of the type."""
    if isinstance(type_, SequenceType):
        leaves.append(_pack(type_, values, path, capacity, room))
    elif isinstance(type_, StructType) and not _made_of_tensors(type_):
        rows = [[field for _, _, field in fields_at(type_, value, f"{path}[{i}]")] for i, value in enumerate(values)]
        for i, (name, field) in enumerate(type_.items()):
            field_path = f"{path}.{name}" if name is not None else f"{path}[{i}]"
            _stack(field, [row[i] for row in rows], field_path, capacity, room, leaves)
    else:
        layout = layout_of(type_)
        rows = []
        for i, value in enumerate(values):
            taken = layout.take(value) if layout.treedef is not None else None
            rows.append(taken if taken is not None else flatten(type_, local_value(type_, value, f"{path}[{i}]")))
        for i, leaf in enumerate(leaf_types(type_)):
            leaves.append(_stack_leaf(leaf, [row[i] for row in rows], capacity))


def _stack_leaf(type_: TensorType, rows: list[Any], capacity: int) -> Any:
    shape = tuple([dim or 0 for dim in type_.shape or ()])
    if jax.dtypes.issubdtype(type_.dtype, jax.dtypes.extended):
        padding = rows[:1] * (capacity - len(rows))
        _check_one_shape(rows)
        return jnp.stack(rows + padding) if rows else jnp.empty((capacity, *shape), type_.dtype)
    if rows:
        _check_one_shape(rows)
        shape = rows[0].shape
    if any(isinstance(row, Tracer) for row in rows):
        return jnp.stack([*rows, *[jnp.zeros(shape, type_.dtype)] * (capacity - len(rows))])
    stacked = np.zeros((capacity, *shape), type_.dtype)
    for i, row in enumerate(rows):
        stacked[i] = np.asarray(row)
    return stacked


def _check_one_shape(rows: list[Any]) -> None:
    if any(row.shape != rows[0].shape for row in rows):
        raise NotOneProgramError("the values of the clients have several shapes")


def _pack(type_: SequenceType, values: list[Any], path: str, capacity: int, room: int) -> Any:
    packed = [columns(type_, value, f"{path}[{i}]") for i, value in enumerate(values)]
    counts = [count for _, count in packed]
    lengths = np.zeros(capacity, np.int32)
    lengths[: len(counts)] = counts
    offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)[:-1]])
    rows = bucket(sum(counts) + room)
    buffers = []
    for i, leaf in enumerate(leaf_types(type_.element)):
        pieces = [piece[i] for piece, count in packed if count]
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            padding = [pieces[0][:1]] * (rows - sum(counts)) if pieces else []
            empty = jnp.empty((rows, *(leaf.shape or ())), leaf.dtype)
            buffers.append(jnp.concatenate(pieces + padding) if pieces else empty)
            continue
        shape = pieces[0].shape[1:] if pieces else tuple([dim or 0 for dim in leaf.shape or ()])
        if any(piece.shape[1:] != shape for piece in pieces):
            raise NotOneProgramError("the examples of the clients have several shapes")
        if any(isinstance(piece, Tracer) for piece in pieces):
            buffers.append(jnp.concatenate([*pieces, jnp.zeros((rows - sum(counts), *shape), leaf.dtype)]))
            continue
        buffer = np.zeros((rows, *shape), leaf.dtype)
        if pieces:
            np.concatenate(pieces, out=buffer[: sum(counts)])
        buffers.append(buffer)
    return tuple(buffers), offsets, lengths


def bucket(count: int) -> int:
    """The room for a number of things: the next power of two, so that few sizes are ever compiled."""
    return 1 << max(0, count - 1).bit_length()


def result_builder(type_: Type) -> Callable[[list[Any]], Any]:
    """What turns the flat leaves of a result that is not placed, or is the server's, into what a user sees."""
    layout = layout_of(type_)
    if layout.treedef is not None:
        return layout.give
    return lambda leaves: result_to_user(type_, unflatten(type_, leaves))
