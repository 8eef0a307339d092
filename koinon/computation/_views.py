"""How the elements of a sequence are found: views, each of which changes how indices are computed.

At the bottom of every view is a `PackedView`, an offset and a length into flat buffers that hold the examples of many
clients back to back. Elements are in a user's containers.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from koinon._errors import TracingError
from koinon.computation import _sequence_primitives as primitives
from koinon.types import StructType, Type, from_container, infer_type, to_container


class Batch(NamedTuple):
    """Consecutive examples of a sequence, stacked.

    Attributes:
      examples: an example whose leaves have a leading dimension, the size of the batch.
      mask: bool `[size]`, False where a partial last batch has no example; those rows repeat the first example of the
        batch, so that arithmetic on them meets no value that the client does not have.
    """

    examples: Any
    mask: Any


class View(abc.ABC):
    """How the elements of a sequence are found: three ways to read them, and how many there are."""

    length: Any

    @property
    @abc.abstractmethod
    def capacity(self) -> Any:
        """A bound of the length that is known from shapes alone."""

    @abc.abstractmethod
    def at(self, index: Any) -> Any:
        """The element at a scalar index."""

    @abc.abstractmethod
    def gather(self, indices: Any) -> Any:
        """The elements at a vector of indices, stacked."""

    def run(self, start: Any, size: int, end: Any = None) -> Any:
        """The `size` elements from `start` on, stacked, where those at `end` or past it are the first of them again.

        Without an `end` no element may lie past the end of the sequence.
        """
        indices = start + jnp.arange(size, dtype=jnp.int32)
        return self.gather(indices if end is None else jnp.where(indices < end, indices, start))


class PackedView(View):
    """A stretch of rows of flat buffers.

    Args:
      element_type: the type of an element.
      buffers: one array for each leaf of an element, with the rows of this sequence and maybe of others.
      offset: the first row.
      length: the number of rows.
      padded: whether the engine has left room after the last row for the largest read of the program.
      longest: the most rows that it can have, where that is known before the program runs and is less than the rows
        of the buffers.
    """

    def __init__(
        self,
        element_type: Type,
        buffers: tuple[Any, ...],
        offset: Any,
        length: Any,
        *,
        padded: bool = False,
        longest: int | None = None,
    ) -> None:
        self.element_type = element_type
        self.buffers = buffers
        self.offset = offset
        self.length = length
        self.padded = padded
        self.longest = longest

    @property
    def capacity(self) -> Any:
        if not self.buffers:
            raise TracingError(
                "The number of elements of a sequence of empty structures has no bound that its shapes tell.",
                hint="reduce it; what is computed of its elements cannot be stacked",
            )
        return self.buffers[0].shape[0]

    def at(self, index: Any) -> Any:
        rows = [leaf[0] for leaf in primitives.read_run(self.buffers, self.offset + index, 1)]
        return with_containers(self.element_type, iter(rows))

    def run(self, start: Any, size: int, end: Any = None) -> Any:
        rows = primitives.read_run(self.buffers, self.offset + start, size)
        if end is not None:
            # Were the first row cut out of the others, XLA's CPU compiler would find its place for each number anew.
            first = primitives.read_run(self.buffers, self.offset + start, 1)
            inside = start + jnp.arange(size, dtype=jnp.int32) < end
            rows = [
                jnp.where(inside.reshape(size, *[1] * (row.ndim - 1)), row, other)
                for row, other in zip(rows, first, strict=True)
            ]
        return with_containers(self.element_type, iter(rows))

    def gather(self, indices: Any) -> Any:
        last = jnp.maximum(self.length - 1, 0)
        rows = self.offset + jnp.clip(indices, 0, last)
        return with_containers(self.element_type, iter(primitives.read_rows(self.buffers, rows)))


class MappedView(View):
    """The elements of another view, each passed through a function."""

    def __init__(self, parent: View, fn: Callable[[Any], Any]) -> None:
        self.parent = parent
        self.fn = fn
        self.length = parent.length

    @property
    def capacity(self) -> Any:
        return self.parent.capacity

    def at(self, index: Any) -> Any:
        return self.fn(self.parent.at(index))

    def run(self, start: Any, size: int, end: Any = None) -> Any:
        return on_each(self.fn, self.parent.run(start, size, end))

    def gather(self, indices: Any) -> Any:
        return on_each(self.fn, self.parent.gather(indices))


class BatchedView(View):
    """The elements of another view in batches, the last one masked where it is partial."""

    def __init__(self, parent: View, size: int, *, drop_remainder: bool) -> None:
        self.parent = parent
        self.size = size
        self.drop_remainder = drop_remainder
        self.length = parent.length // size if drop_remainder else (parent.length + size - 1) // size

    @property
    def capacity(self) -> Any:
        return (self.parent.capacity + self.size - 1) // self.size

    def at(self, index: Any) -> Any:
        start = index * self.size
        if self.drop_remainder:
            return self.parent.run(start, self.size)
        mask = start + jnp.arange(self.size, dtype=jnp.int32) < self.parent.length
        return Batch(self.parent.run(start, self.size, self.parent.length), mask)

    def gather(self, indices: Any) -> Any:
        return on_each(self.at, indices)


class ReindexedView(View):
    """The elements of another view, some times over, under other indices."""

    def __init__(self, parent: View, index: Callable[[Any], Any], times: int = 1) -> None:
        self.parent = parent
        self.length = parent.length * times
        self.index = index
        self.times = times

    @property
    def capacity(self) -> Any:
        return self.parent.capacity * self.times

    def at(self, index: Any) -> Any:
        return self.parent.at(self.index(index))

    def gather(self, indices: Any) -> Any:
        return self.parent.gather(self.index(indices))


class TakenView(View):
    """The first elements of another view."""

    def __init__(self, parent: View, count: Any) -> None:
        self.parent = parent
        self.length = jnp.clip(jnp.asarray(count, jnp.int32), 0, parent.length)

    @property
    def capacity(self) -> Any:
        return self.parent.capacity

    def at(self, index: Any) -> Any:
        return self.parent.at(index)

    def gather(self, indices: Any) -> Any:
        return self.parent.gather(indices)

    def run(self, start: Any, size: int, end: Any = None) -> Any:
        return self.parent.run(start, size, end)


class VariantsView(View):
    """Several variants of a view, one after the other, all of one length."""

    def __init__(self, count: int, variant: Callable[[Any], View]) -> None:
        self.count = count
        self.variant = variant
        self.first = variant(jnp.int32(0))
        self.length = self.first.length * count
        _check_one_length(variant)

    @property
    def capacity(self) -> Any:
        return self.first.capacity * self.count

    def at(self, index: Any) -> Any:
        divisor = jnp.maximum(self.first.length, 1)
        return self.variant(index // divisor).at(index % divisor)

    def gather(self, indices: Any) -> Any:
        return on_each(self.at, indices)


jax.tree_util.register_pytree_node(
    PackedView,
    lambda view: ((view.buffers, view.offset, view.length), (view.element_type, view.padded, view.longest)),
    lambda static, children: PackedView(static[0], *children, padded=static[1], longest=static[2]),
)


def _check_one_length(variant: Callable[[Any], View]) -> None:
    """Checks that the length of a variant does not depend on its number."""
    jaxpr = jax.make_jaxpr(lambda epoch: variant(epoch).length)(jax.ShapeDtypeStruct((), jnp.int32)).jaxpr
    reached = set(jaxpr.invars)
    for eqn in jaxpr.eqns:
        if any(not isinstance(atom, Literal) and atom in reached for atom in eqn.invars):
            reached.update(eqn.outvars)
    if any(not isinstance(atom, Literal) and atom in reached for atom in jaxpr.outvars):
        raise TracingError(
            "All variants of a repeated sequence must have one length; the length of these depends on the epoch.",
            hint="take as many elements in every epoch",
        )


def on_leaves_of(fn: Callable[[Any], Any], value: Any) -> Any:
    """A value in any containers, those that JAX does not know among them, with a function applied to its leaves."""
    type_ = infer_type(value)
    return with_containers(type_, map(fn, leaves_in_type_order(type_, value)))


def on_each(fn: Callable[[Any], Any], stacked: Any) -> Any:
    """`jax.vmap(fn)(stacked)`, for values in any containers."""
    type_ = infer_type(stacked)
    result_type: list[Type] = []

    def on_leaves(*leaves: Any) -> list[Any]:
        result = fn(with_containers(type_, iter(leaves)))
        result_type[:] = [infer_type(result)]
        return list(leaves_in_type_order(result_type[0], result))

    results = jax.vmap(on_leaves)(*leaves_in_type_order(type_, stacked))
    return with_containers(result_type[0], iter(results))


def with_containers(type_: Type, leaves: Any) -> Any:
    if isinstance(type_, StructType):
        return to_container(type_, [with_containers(field, leaves) for _, field in type_.items()])
    return next(leaves)


def leaves_in_type_order(type_: Type, value: Any) -> Iterator[Any]:
    if isinstance(type_, StructType):
        for (_, field), child in zip(type_.items(), from_container(type_, value), strict=True):
            yield from leaves_in_type_order(field, child)
    else:
        yield value
